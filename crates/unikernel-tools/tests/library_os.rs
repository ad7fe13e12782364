//! The library OS on both backends: one appliance, told what to do by its arguments, in the real
//! tender; what it talks to is a hosted instance of the same library in this process.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::Cell;
use std::fs;
use std::future::Future;
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::OnceLock;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use shoal_unikernel_tools::cargo::{self, Options};
use unikernel::hosted::{Config, Net, pair, run};
use unikernel::net::{Error, TcpStream, UdpSocket};
use unikernel::time::{sleep, timeout};

const TOOL: &str = env!("CARGO_BIN_EXE_shoal-unikernel");
const APPLIANCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testing/appliance");
/// Longer than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(120);

/// The image, built once for all tests.
fn image() -> &'static Path {
    static IMAGE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = IMAGE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("appliance.unikernel");
        let options = Options { output: Some(path.clone()), ..Options::default() };
        cargo::build(Path::new(APPLIANCE), &options).unwrap();
        (dir, path)
    });
    path
}

/// The backends of this machine.
fn backends() -> &'static [&'static str] {
    if fs::File::options().read(true).write(true).open("/dev/kvm").is_ok() {
        &["process", "kvm"]
    } else {
        println!("only the process backend is tried: /dev/kvm cannot be opened");
        &["process"]
    }
}

/// A running appliance; ended with this.
struct Guest {
    child: Child,
    folder: tempfile::TempDir,
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn network(socket: &OwnedFd, net: &Net) -> Value {
    nix::fcntl::fcntl(socket, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let [a, b, c, d] = net.info.ipv4;
    json!({ "net": {
        "attach": { "fd": { "number": socket.as_raw_fd(), "offload": true } },
        "mac": "02:00:00:00:00:01",
        "ipv4": format!("{a}.{b}.{c}.{d}/24"),
        "dns": ["10.0.0.2"],
    }})
}

fn start(backend: &str, args: &[&str], devices: Value, mounts: Value) -> Guest {
    let folder = tempfile::tempdir().unwrap();
    let mut words = vec!["appliance"];
    words.extend(args);
    let config = json!({
        "format": 1,
        "image": image(),
        "backend": backend,
        "memory_bytes": 64 << 20,
        "args": words,
        "devices": devices,
        "mounts": mounts,
        "crash_file": folder.path().join("crash.json"),
    });
    let path = folder.path().join("config.json");
    fs::write(&path, serde_json::to_vec(&config).unwrap()).unwrap();
    let child = Command::new(TOOL)
        .arg("tender")
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Guest { child, folder }
}

impl Guest {
    /// The next line of its output.
    fn line(&mut self) -> String {
        let mut line = String::new();
        // Byte by byte: what follows must stay in the pipe.
        let out = self.child.stdout.as_mut().unwrap();
        let mut reader = BufReader::with_capacity(1, out);
        reader.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Waits for its end: status, rest of the output, and errors.
    fn end(mut self) -> (Option<i32>, String, String) {
        let (mut out, mut err) = (String::new(), String::new());
        self.child.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        self.child.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (self.child.wait().unwrap().code(), out, err)
    }

    fn ask_to_stop(&self) {
        kill(Pid::from_raw(self.child.id() as i32), Signal::SIGTERM).unwrap();
    }
}

/// Runs `peer` on a hosted instance at the other end of the appliance's network.
fn with_peer<F>(args: &[&str], peer: fn() -> F, after: fn(Guest))
where
    F: Future<Output = Result<(), Error>> + 'static,
{
    for backend in backends() {
        let (ours, theirs) = pair().unwrap();
        let devices = json!({ "net": network(&ours.socket, &ours) });
        let guest = start(backend, args, devices, json!([]));
        drop(ours);
        let config = Config {
            nets: vec![theirs],
            heap_bytes: 256 << 20,
            offload: true,
            ..Config::default()
        };
        let peer = async move || timeout(PATIENCE, peer()).await.expect("it is done in time");
        assert_eq!(run(config, peer).unwrap(), 0, "{backend}");
        after(guest);
    }
}

const fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), port)
}

fn stopped(guest: Guest) {
    guest.ask_to_stop();
    let (status, out, err) = guest.end();
    assert_eq!((status, out.as_str()), (Some(0), "ready\n"), "{err}");
}

/// Tries until the appliance listens.
async fn connect() -> Result<TcpStream, Error> {
    loop {
        match TcpStream::connect(at(7)).await {
            Err(Error::Refused | Error::Unreachable) => sleep(Duration::from_millis(5)).await,
            other => return other,
        }
    }
}

#[test]
fn thousands_of_connections_are_echoed() {
    with_peer(
        &["echo"],
        || async {
            let count = 2000;
            let done = Rc::new(Cell::new(0));
            drop(connect().await?);
            for number in 0..count {
                let done = Rc::clone(&done);
                unikernel::spawn(async move {
                    let stream = TcpStream::connect(at(7)).await.unwrap();
                    for round in 0..3_u32 {
                        let data = (number * 3 + round).to_le_bytes().repeat(50);
                        stream.write_all(&data).await.unwrap();
                        let mut answer = [0; 200];
                        stream.read_exact(&mut answer).await.unwrap();
                        assert_eq!(answer[..], data[..]);
                    }
                    done.set(done.get() + 1);
                    while done.get() < count {
                        sleep(Duration::from_millis(10)).await;
                    }
                });
            }
            while done.get() < count {
                sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        },
        stopped,
    );
}

#[test]
fn a_long_stream_is_echoed() {
    with_peer(
        &["echo"],
        || async {
            let stream = Rc::new(connect().await?);
            let data: Rc<Vec<u8>> =
                Rc::new((0..20_000_000_u32).map(|at| (at % 251) as u8).collect());
            let (writer, sent) = (Rc::clone(&stream), Rc::clone(&data));
            unikernel::spawn(async move {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            });
            let mut back = vec![0; data.len()];
            stream.read_exact(&mut back).await?;
            assert!(back == *data, "the echo differs");
            assert_eq!(stream.read(&mut [0]).await?, 0);
            Ok(())
        },
        stopped,
    );
}

#[test]
fn datagrams_are_echoed() {
    with_peer(
        &["echo"],
        || async {
            drop(connect().await?);
            let socket = UdpSocket::bind(0)?;
            for number in 0..1000_u32 {
                let mut answer = [0; 100];
                socket.send_to(&number.to_le_bytes(), at(7)).await?;
                let (count, from) = socket.recv_from(&mut answer).await?;
                assert_eq!((&answer[..count], from), (&number.to_le_bytes()[..], at(7)));
            }
            Ok(())
        },
        stopped,
    );
}

#[test]
fn names_are_looked_up() {
    with_peer(
        &["lookup", "www.example.com"],
        || async {
            let socket = UdpSocket::bind(53)?;
            let mut query = [0; 512];
            // The first question is ignored: it is asked again.
            socket.recv_from(&mut query).await?;
            let (count, from) = socket.recv_from(&mut query).await?;
            let mut answer = query[..count].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[7] = 1;
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 7]);
            socket.send_to(&answer, from).await
        },
        |guest| {
            let (status, out, err) = guest.end();
            assert_eq!((status, out.as_str()), (Some(0), "192.0.2.7\n"), "{err}");
        },
    );
}

#[test]
fn blocks_are_written_and_read() {
    for backend in backends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(5 << 20).unwrap();
        let devices = json!({ "data": { "block": { "path": file.path() } } });
        let (status, out, err) = start(backend, &["block"], devices, json!([])).end();
        assert_eq!((status, out.as_str()), (Some(0), "5242880 bytes\n"), "{backend}: {err}");
        let written = fs::read(file.path()).unwrap();
        assert!(written.iter().enumerate().all(|(at, byte)| *byte == (at / 7 % 251) as u8));
    }
}

#[test]
fn mounted_files_are_read() {
    for backend in backends() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("sub")).unwrap();
        fs::write(folder.path().join("sub/file"), "content").unwrap();
        let mounts = json!([{ "path": "/etc/app", "source": folder.path() }]);
        let guest = start(backend, &["file", "/etc/app/sub/file"], json!({}), mounts);
        let (status, out, err) = guest.end();
        assert_eq!((status, out.as_str()), (Some(0), "content\n"), "{backend}: {err}");
    }
}

#[test]
fn a_panic_leaves_a_record_with_names() {
    for backend in backends() {
        let mut guest = start(backend, &["panic"], json!({}), json!([]));
        let status = guest.child.wait().unwrap();
        let record = fs::read(guest.folder.path().join("crash.json")).unwrap();
        let record: Value = serde_json::from_slice(&record).unwrap();
        assert_eq!(status.code(), Some(134), "{backend}: {record}");
        let text = record.to_string();
        assert!(text.contains("index out of bounds"), "{backend}: {text}");
        assert!(text.contains("src/main.rs"), "{backend}: {text}");
        assert!(text.contains("test_appliance::index"), "{backend}: {text}");
    }
}

#[test]
fn a_guest_is_told_to_stop() {
    for backend in backends() {
        let mut guest = start(backend, &["stop"], json!({}), json!([]));
        assert_eq!(guest.line(), "waiting");
        guest.ask_to_stop();
        let (status, out, err) = guest.end();
        assert_eq!((status, out.as_str()), (Some(3), "told to stop\n"), "{backend}: {err}");
    }
}

#[test]
fn errors_of_main_are_said() {
    for backend in backends() {
        let (status, _, err) = start(backend, &["nonsense"], json!({}), json!([])).end();
        assert_eq!(status, Some(1), "{backend}: {err}");
        assert!(err.ends_with("error: there is no test 'nonsense'\n"), "{backend}: {err}");
    }
}
