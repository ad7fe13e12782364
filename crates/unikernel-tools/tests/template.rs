//! What a new user does first: a new project, run as a program, a process and a virtual machine.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const TOOL: &str = env!("CARGO_BIN_EXE_shoal-unikernel");
const CHECKOUT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Enough for a compiler that shares two cores.
const PATIENCE: Duration = Duration::from_secs(180);

/// A new project, made once for all tests.
fn project() -> &'static Path {
    static PROJECT: OnceLock<PathBuf> = OnceLock::new();
    PROJECT.get_or_init(|| {
        // A temporary folder in a static would never be removed.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("template");
        let project = dir.join("first");
        if project.exists() {
            std::fs::remove_dir_all(&project).unwrap();
        }
        let status = Command::new(TOOL)
            .args(["new", "--shoal", CHECKOUT])
            .arg(&project)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert!(status.success());
        project
    })
}

/// Ends what was started, also after a failure.
struct Running(Child);

impl Running {
    fn start(backend: &str) -> (Self, SocketAddr) {
        let mut child = Command::new(TOOL)
            .args(["run", "--backend", backend, "-p", "0:80"])
            .arg(project())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group_of_its_own()
            .spawn()
            .unwrap();
        let errors = BufReader::new(child.stderr.take().unwrap());
        let running = Self(child);
        let mut said = String::new();
        for line in errors.lines() {
            let line = line.unwrap();
            let address = line.split([' ', '/']).find_map(|word| word.parse().ok());
            if let Some(address) = address.filter(|_| line.contains("leads to port 80")) {
                return (running, address);
            }
            said.push_str(&line);
            said.push('\n');
        }
        panic!("it ended: {said}");
    }

    /// Asks it to stop, as an interrupt from the terminal does; answers its exit status.
    fn stop(mut self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.0.wait().unwrap().code()
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let group = rustix::process::Pid::from_child(&self.0);
        rustix::process::kill_process_group(group, signal).unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().unwrap().is_none() {
            self.signal(rustix::process::Signal::KILL);
            self.0.wait().unwrap();
        }
    }
}

trait OwnGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    /// Cargo starts the program of the backend `host` as a child of its own.
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

/// One request. An instance that does not listen yet refuses or resets.
fn ask(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: first\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn serves(backend: &str) {
    let (running, address) = Running::start(backend);
    let deadline = Instant::now() + PATIENCE;
    let answer = loop {
        match ask(address) {
            Ok(answer) if !answer.is_empty() => break answer,
            other => assert!(Instant::now() < deadline, "{other:?}"),
        }
        std::thread::yield_now();
    };
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hello\n"), "{answer}");
    assert_eq!(running.stop(), Some(0), "it did not end well when it was asked to");
}

#[test]
fn a_new_project_serves_as_an_ordinary_program() {
    serves("host");
}

#[test]
fn a_new_project_serves_as_a_process() {
    serves("process");
}

#[test]
fn a_new_project_serves_as_a_virtual_machine() {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        println!("skipped: /dev/kvm cannot be opened here");
        return;
    }
    serves("kvm");
}
