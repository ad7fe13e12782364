//! What the tests against NSD share: a reader of responses that is independent of the server's own
//! code, and a real NSD on loopback.

#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// The zones that both servers serve: apex and file below `tests/zones`.
pub const ZONES: &[(&str, &str)] = &[
    ("example.", "example.zone"),
    ("sub.example.", "sub.zone"),
    ("other.test.", "other.zone"),
    ("2.0.192.in-addr.arpa.", "reverse.zone"),
    ("big.test.", "big.zone"),
];

pub fn zone_path(file: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/zones").join(file)
}

/// A response taken apart.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    pub id: u16,
    /// Without the code.
    pub flags: u16,
    pub code: u8,
    /// As it is in the message, upper and lower case included.
    pub question: Vec<u8>,
    /// Records of each section, names in lower case and data without compression, sorted.
    pub sections: [Vec<String>; 3],
    pub opt: Option<String>,
}

impl std::fmt::Debug for Message {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "id {} flags {:04x} code {}", self.id, self.flags, self.code)?;
        writeln!(f, " question {}", String::from_utf8_lossy(&self.question).escape_debug())?;
        for (name, records) in ["answer", "authority", "additional"].iter().zip(&self.sections) {
            writeln!(f, "  {name}: {}", records.len())?;
            for record in records.iter().take(6) {
                writeln!(f, "    {}", record.chars().take(150).collect::<String>())?;
            }
        }
        writeln!(f, "  opt {:?}", self.opt)
    }
}

/// Takes a response apart; says what is wrong with it.
pub fn decode(bytes: &[u8]) -> Result<Message, String> {
    let word = |at: usize| -> Result<u16, String> {
        let pair = bytes.get(at..at + 2).ok_or(format!("ends at {}", bytes.len()))?;
        Ok(u16::from_be_bytes([pair[0], pair[1]]))
    };
    let flags = word(2)?;
    let mut at = 12;
    for _ in 0..word(4)? {
        at = name_at(bytes, at)?.1 + 4;
    }
    let question = bytes.get(12..at).ok_or("question")?.to_vec();
    let mut sections: [Vec<String>; 3] = Default::default();
    let mut opt = None;
    for (section, count_at) in [6, 8, 10].into_iter().enumerate() {
        for _ in 0..word(count_at)? {
            let (name, next) = name_at(bytes, at)?;
            let (rtype, class) = (word(next)?, word(next + 2)?);
            let ttl = u32::from(word(next + 4)?) << 16 | u32::from(word(next + 6)?);
            let len = usize::from(word(next + 8)?);
            let start = next + 10;
            at = start + len;
            let data = bytes.get(start..at).ok_or("data")?;
            if rtype == 41 {
                opt = Some(format!("size {class} ttl {ttl:08x} data {data:02x?}"));
                continue;
            }
            let names = match rtype {
                2 | 5 | 12 => Some((0, 1)),
                15 => Some((2, 1)),
                6 => Some((0, 2)),
                33 => Some((6, 1)),
                _ => None,
            };
            let mut text = String::new();
            let mut rest = start;
            if let Some((before, count)) = names {
                write!(text, "{:02x?}", bytes.get(start..start + before).ok_or("data")?).unwrap();
                rest = start + before;
                for _ in 0..count {
                    let (name, next) = name_at(bytes, rest)?;
                    write!(text, " {name}").unwrap();
                    rest = next;
                }
                if rest > at {
                    return Err("a name goes beyond its record".to_owned());
                }
            }
            for byte in &bytes[rest..at] {
                write!(text, "{byte:02x}").unwrap();
            }
            sections[section].push(format!("{name} {ttl} {class} {rtype} {text}"));
        }
        sections[section].sort();
    }
    if at != bytes.len() {
        return Err(format!("{} bytes behind the last record", bytes.len() - at));
    }
    let code = u8::try_from(flags & 15).unwrap();
    Ok(Message { id: word(0)?, flags: flags & !15, code, question, sections, opt })
}

/// A name in lower case, and where what follows it begins.
fn name_at(bytes: &[u8], mut at: usize) -> Result<(String, usize), String> {
    let mut text = String::new();
    let mut after = None;
    let mut jumps = 0;
    loop {
        let len = usize::from(*bytes.get(at).ok_or("a name goes beyond the message")?);
        if len >= 0xc0 {
            let low = usize::from(*bytes.get(at + 1).ok_or("a pointer is cut")?);
            after = after.or(Some(at + 2));
            let target = (len & 0x3f) << 8 | low;
            if target >= at || jumps > 127 {
                return Err("a pointer does not point backwards".to_owned());
            }
            (at, jumps) = (target, jumps + 1);
            continue;
        }
        if len > 63 {
            return Err("a label has an unknown kind".to_owned());
        }
        if len == 0 {
            return Ok((text + ".", after.unwrap_or(at + 1)));
        }
        let label = bytes.get(at + 1..at + 1 + len).ok_or("a label goes beyond the message")?;
        if !text.is_empty() {
            text.push('.');
        }
        write!(text, "{}", label.to_ascii_lowercase().escape_ascii()).unwrap();
        at += len + 1;
    }
}

/// A running NSD with the zones of [`ZONES`]; ended when dropped.
pub struct Nsd {
    child: Child,
    pub address: SocketAddr,
    socket: UdpSocket,
    _folder: TempDir,
}

impl Nsd {
    pub fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Bound and let go at once: nobody else takes a port that the kernel gave so lately.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let dir = folder.path().display();
        let mut config = format!(
            "server:\n  ip-address: 127.0.0.1@{port}\n  username: \"\"\n  chroot: \"\"\n  \
             database: \"\"\n  zonesdir: \"\"\n  pidfile: \"{dir}/pid\"\n  \
             zonelistfile: \"{dir}/list\"\n  xfrdfile: \"{dir}/xfrd\"\n  xfrdir: \"{dir}\"\n  \
             server-count: 1\n  rrl-ratelimit: 0\n  minimal-responses: yes\n  refuse-any: no\n\
             remote-control:\n  control-enable: no\n"
        );
        for (apex, file) in ZONES {
            let path = zone_path(file);
            write!(
                config,
                "zone:\n  name: \"{apex}\"\n  zonefile: \"{}\"\n  \
                 provide-xfr: 127.0.0.1 NOKEY\n",
                path.display()
            )
            .unwrap();
        }
        let config_path = folder.path().join("nsd.conf");
        std::fs::write(&config_path, config).unwrap();
        let nsd = if Path::new("/usr/sbin/nsd").exists() { "/usr/sbin/nsd" } else { "nsd" };
        let child = Command::new(nsd)
            .args(["-d", "-c"])
            .arg(&config_path)
            .stdout(Stdio::null())
            .stderr(Stdio::inherit())
            .spawn()
            .expect("NSD starts: install the Debian package 'nsd'");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.connect(address).unwrap();
        let nsd = Self { child, address, socket, _folder: folder };
        let deadline = Instant::now() + Duration::from_secs(20);
        let probe = dns_server::message::request(
            0xffff,
            b"\x07example\0",
            dns_server::zone::Type::SOA,
            None,
        );
        while nsd.try_ask(&probe, Duration::from_millis(50)).is_none() {
            assert!(Instant::now() < deadline, "NSD does not answer");
        }
        nsd
    }

    /// Asks once. An answer that comes late is never taken for one to something else: identifiers
    /// are compared.
    fn try_ask(&self, request: &[u8], patience: Duration) -> Option<Vec<u8>> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        // Ignored because: before NSD listens, sending fails with "connection refused".
        let _ = self.socket.send(request);
        let mut buffer = vec![0; 65_536];
        loop {
            let len = self.socket.recv(&mut buffer).ok()?;
            if request.get(..2) == Some(&buffer[..2]) {
                buffer.truncate(len);
                return Some(buffer);
            }
        }
    }

    /// Asks over UDP; nothing: it stays silent. `silent`: that is expected.
    pub fn udp(&self, request: &[u8], silent: bool) -> Option<Vec<u8>> {
        let patience: &[u64] = if silent { &[10] } else { &[60, 250] };
        patience.iter().find_map(|patience| self.try_ask(request, Duration::from_millis(*patience)))
    }

    /// Asks over TCP; all messages up to the one after which `done` says so or it closes.
    pub fn tcp(&self, request: &[u8], mut done: impl FnMut(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let len = u16::try_from(request.len()).unwrap();
        stream.write_all(&[&len.to_be_bytes(), request].concat()).unwrap();
        let mut messages = Vec::new();
        loop {
            let mut len = [0; 2];
            if stream.read_exact(&mut len).is_err() {
                return messages;
            }
            let mut message = vec![0; usize::from(u16::from_be_bytes(len))];
            stream.read_exact(&mut message).unwrap();
            let end = done(&message);
            messages.push(message);
            if end {
                return messages;
            }
        }
    }
}

impl Drop for Nsd {
    fn drop(&mut self) {
        // Politely: it has children of its own, which it ends then.
        let pid = self.child.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let _ = self.child.wait();
    }
}

/// Random numbers that are the same in every run.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end as u64).unwrap()
    }
}

/// Differences by what was asked, counted.
#[derive(Default)]
pub struct Differences {
    pub asked: usize,
    /// NSD said nothing to what is malformed.
    pub silences: usize,
    pub found: BTreeMap<String, (usize, String)>,
}

impl Differences {
    pub fn add(&mut self, kind: String, example: String) {
        let entry = self.found.entry(kind).or_insert((0, example));
        entry.0 += 1;
    }

    pub fn none(&self) {
        assert!(self.silences * 50 <= self.asked, "NSD is silent too often: {}", self.silences);
        let mut text = String::new();
        for (kind, (count, example)) in &self.found {
            write!(text, "\n== {kind}: {count} times, for example\n{example}").unwrap();
        }
        assert!(self.found.is_empty(), "{} questions; NSD differs:{text}", self.asked);
    }
}
