//! The appliances that ship, each on every platform with the same test: as an ordinary program, as
//! a locked process, and as a virtual machine where there is KVM.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

const TOOL: &str = env!("CARGO_BIN_EXE_shoal-unikernel");
/// How long an appliance may take to be built, or to end.
const PATIENCE: Duration = Duration::from_secs(300);

/// The platforms of this machine. Where there is no KVM, the rest is tested.
fn platforms() -> Vec<&'static str> {
    let mut all = vec!["host", "process"];
    if Path::new("/dev/kvm").exists() {
        all.push("kvm");
    } else {
        println!("skipped on kvm: this machine has no /dev/kvm");
    }
    all
}

fn appliance(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../unikernels").join(name)
}

/// A running appliance; ended when dropped.
struct Running {
    child: Child,
    errors: BufReader<ChildStderr>,
    said: String,
}

impl Running {
    fn start(name: &str, platform: &str, arguments: &[&str]) -> Self {
        let mut child = Command::new(TOOL)
            .args(["run", "--backend", platform, "--hostname", "here"])
            .args(arguments)
            .arg(appliance(name))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        Self { child, errors, said: String::new() }
    }

    /// The address of this host that leads to a port of the guest, once it is told.
    fn published(&mut self) -> SocketAddr {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut line = String::new();
            let count = self.errors.read_line(&mut line).unwrap();
            self.said.push_str(&line);
            assert!(count > 0, "it ended: {}", self.said);
            assert!(Instant::now() < deadline, "no published port: {}", self.said);
            if !line.contains("leads to port") {
                continue;
            }
            let words = line.split_whitespace();
            let found = words.filter_map(|word| word.split('/').next()?.parse().ok()).next();
            return found.unwrap_or_else(|| panic!("no address in '{line}'"));
        }
    }

    /// Asks it to stop; it must end well.
    fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.child.wait().unwrap();
        let mut rest = String::new();
        self.errors.read_to_string(&mut rest).unwrap();
        assert_eq!(status.code(), Some(0), "{}{rest}", self.said);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ignored because: usually it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends `request` and reads until the server closes.
fn exchange(address: SocketAddr, request: &str) -> String {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        if read.is_ok() && !answer.is_empty() {
            return String::from_utf8(answer).unwrap();
        }
        // The port is open before the guest listens.
        assert!(Instant::now() < deadline, "{request}: {read:?}");
    }
}

fn get(address: SocketAddr, path: &str, fields: &str) -> String {
    let fields = format!("Host: h\r\nConnection: close\r\n{fields}");
    exchange(address, &format!("GET {path} HTTP/1.1\r\n{fields}\r\n"))
}

/// The value of a field of an answer.
fn field<'a>(answer: &'a str, name: &str) -> &'a str {
    let head = answer.split("\r\n\r\n").next().unwrap();
    let line = head.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.unwrap_or_else(|| panic!("no field '{name}' in {answer}"))
}

fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap().1
}

#[test]
fn web_serves_files_on_every_platform() {
    let site = tempfile::tempdir().unwrap();
    std::fs::create_dir(site.path().join("docs")).unwrap();
    std::fs::write(site.path().join("index.html"), "<p>home</p>").unwrap();
    std::fs::write(site.path().join("docs/index.html"), "docs").unwrap();
    std::fs::write(site.path().join("digits.txt"), "0123456789").unwrap();
    let mount = format!("/srv={}", site.path().display());
    for platform in platforms() {
        let mut web = Running::start("web", platform, &["-p", "127.0.0.1:0:80", "--mount", &mount]);
        let address = web.published();
        let at = |path: &str, fields: &str| get(address, path, fields);

        let home = at("/", "");
        assert!(home.starts_with("HTTP/1.1 200 OK\r\n"), "{platform}: {home}");
        assert_eq!(body(&home), "<p>home</p>");
        assert_eq!(field(&home, "Content-Type"), "text/html; charset=utf-8");
        assert!(at("/docs", "").contains("\r\nLocation: /docs/\r\n"), "{platform}");
        assert_eq!(body(&at("/docs/", "")), "docs");
        assert!(at("/nowhere", "").starts_with("HTTP/1.1 404"), "{platform}");
        assert!(at("/../etc/passwd", "").starts_with("HTTP/1.1 400"), "{platform}");
        let whoami = at("/whoami", "");
        assert!(body(&whoami).contains(" at 10.") && body(&whoami).contains(" sees "), "{whoami}");

        let all = at("/digits.txt", "");
        let (tag, date) = (field(&all, "ETag"), field(&all, "Last-Modified"));
        let same = at("/digits.txt", &format!("If-None-Match: {tag}\r\n"));
        assert!(same.starts_with("HTTP/1.1 304") && body(&same).is_empty(), "{same}");
        let same = at("/digits.txt", &format!("If-Modified-Since: {date}\r\n"));
        assert!(same.starts_with("HTTP/1.1 304"), "{same}");
        let other = at("/digits.txt", "If-Match: \"x\"\r\n");
        assert!(other.starts_with("HTTP/1.1 412"), "{other}");
        let part = at("/digits.txt", "Range: bytes=2-4\r\n");
        assert!(part.starts_with("HTTP/1.1 206"), "{part}");
        assert_eq!((field(&part, "Content-Range"), body(&part)), ("bytes 2-4/10", "234"));
        let changed = at("/digits.txt", "Range: bytes=2-4\r\nIf-Range: \"x\"\r\n");
        assert!(changed.starts_with("HTTP/1.1 200"), "{changed}");
        let parts = at("/digits.txt", "Range: bytes=0-1,-2\r\n");
        assert_eq!(field(&parts, "Content-Length"), body(&parts).len().to_string());
        assert!(body(&parts).contains("\r\n\r\n01\r\n") && body(&parts).contains("\r\n\r\n89\r\n"));
        let beyond = at("/digits.txt", "Range: bytes=10-\r\n");
        assert!(beyond.starts_with("HTTP/1.1 416"), "{beyond}");
        assert_eq!(field(&beyond, "Content-Range"), "bytes */10");

        let head =
            exchange(address, "HEAD /digits.txt HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
        assert!(field(&head, "Content-Length") == "10" && body(&head).is_empty(), "{head}");
        let post = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx";
        let post = exchange(address, post);
        assert!(post.starts_with("HTTP/1.1 405"), "{post}");
        assert_eq!(field(&post, "Allow"), "GET, HEAD");
        let big = "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 9999999\r\n\r\n";
        assert!(exchange(address, big).starts_with("HTTP/1.1 413"), "{platform}");
        let long = "x".repeat(9000);
        let request = format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n");
        assert!(exchange(address, &request).starts_with("HTTP/1.1 414"), "{platform}");
        let request = format!("GET / HTTP/1.1\r\nHost: h\r\nX: {long}\r\n\r\n");
        assert!(exchange(address, &request).starts_with("HTTP/1.1 431"), "{platform}");
        web.stop();
    }
}

/// A question for `name` in wire form.
fn question(name: &[u8], rtype: u8) -> Vec<u8> {
    [&[0, 7, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0], name, &[0, rtype, 0, 1]].concat()
}

fn over_tcp(address: SocketAddr, question: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let len = u16::try_from(question.len()).unwrap();
    stream.write_all(&[&len.to_be_bytes(), question].concat()).unwrap();
    let mut len = [0; 2];
    stream.read_exact(&mut len).unwrap();
    let mut answer = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut answer).unwrap();
    answer
}

#[test]
fn dns_answers_on_every_platform() {
    let zones = tempfile::tempdir().unwrap();
    let mut zone = String::from(
        "$ORIGIN example.\n$TTL 60\n@ SOA ns root 1 2 3 4 5\n@ NS ns\nns A 192.0.2.1\n\
         www CNAME ns\n",
    );
    for number in 0..60 {
        zone += &format!("many A 198.51.100.{number}\n");
    }
    std::fs::write(zones.path().join("example.zone"), zone).unwrap();
    let mount = format!("/zones={}", zones.path().display());
    for platform in platforms() {
        let ports = ["-p", "127.0.0.1:0:53/udp", "-p", "127.0.0.1:0:53"];
        let settings = ["--mount", &mount, "-e", "DNS_TRANSFER=0.0.0.0/0"];
        let mut dns = Running::start("dns", platform, &[&ports[..], &settings].concat());
        let (udp, tcp) = (dns.published(), dns.published());
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        socket.connect(udp).unwrap();
        let ask = |question: &[u8]| -> Vec<u8> {
            let deadline = Instant::now() + Duration::from_secs(20);
            let mut answer = [0; 2048];
            loop {
                // Ignored because: the port may be open before the guest listens.
                let _ = socket.send(question);
                match socket.recv(&mut answer) {
                    Ok(len) if answer[..2] == question[..2] => return answer[..len].to_vec(),
                    _ => assert!(Instant::now() < deadline, "{platform}: no answer"),
                }
            }
        };
        let www = ask(&question(b"\x03wWw\x07example\0", 1));
        assert_eq!(www[2..12], [0x84, 0, 0, 1, 0, 2, 0, 0, 0, 0], "{platform}");
        assert!(www[12..].starts_with(b"\x03wWw\x07example\0"), "the case is echoed");
        assert!(www.ends_with(&[192, 0, 2, 1]));
        let nowhere = ask(&question(b"\x02no\x07example\0", 1));
        assert_eq!((nowhere[2], nowhere[3]), (0x84, 3), "{platform}");
        // Too long for a datagram, so that it is asked for again over TCP.
        let many = question(b"\x04many\x07example\0", 1);
        let cut = ask(&many);
        assert_eq!((cut[2] & 2, cut[7]), (2, 0), "{platform}");
        let all = over_tcp(tcp, &many);
        assert_eq!((all[2] & 2, all[7]), (0, 60), "{platform}");
        let zone = over_tcp(tcp, &question(b"\x07example\0", 252));
        assert_eq!((zone[3], zone[7]), (0, 65), "{platform}: SOA, NS, 62 more and the SOA");
        dns.stop();
    }
}
