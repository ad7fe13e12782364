//! Runs the tender's program.

use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::ImageBuilder;

/// Longest that an instance of a test may run.
const DEADLINE: Duration = Duration::from_secs(60);

/// The backends that this machine has; says which is left out.
pub fn backends() -> Vec<&'static str> {
    if std::path::Path::new("/dev/kvm").exists() {
        return vec!["process", "kvm"];
    }
    eprintln!("skipped: the virtual machine backend, because there is no /dev/kvm");
    vec!["process"]
}

/// An image and its configuration.
pub struct Instance {
    pub dir: TempDir,
    pub config: Value,
}

/// How an instance ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub crash: Option<Value>,
}

impl Instance {
    pub fn new(backend: &str, image: &ImageBuilder) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, image.build()).unwrap();
        let config = json!({
            "format": 1,
            "image": path,
            "backend": backend,
            "memory_bytes": 4 << 20,
            "args": ["guest", "one"],
            "crash_file": dir.path().join("crash"),
            "stats_file": dir.path().join("stats"),
            "uid": 65534,
            "gid": 65534,
        });
        Self { dir, config }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The command that starts it, its output to be read.
    pub fn command(&self) -> Command {
        let path = self.path("config.json");
        std::fs::write(&path, self.config.to_string()).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_shoal-tender"));
        command.arg(path).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    pub fn run(&self) -> Outcome {
        let child = self.command().spawn().unwrap();
        self.finish(child)
    }

    /// Waits for the end; ends it itself at the deadline.
    pub fn finish(&self, mut child: Child) -> Outcome {
        let until = Instant::now() + DEADLINE;
        let read = |mut from: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                from.read_to_end(&mut bytes).unwrap();
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = read(Box::new(child.stdout.take().unwrap()));
        let stderr = read(Box::new(child.stderr.take().unwrap()));
        let killer = std::thread::spawn({
            let pid = child.id() as i32;
            let done =
                std::sync::Arc::new((std::sync::Mutex::new(false), std::sync::Condvar::new()));
            let shared = done.clone();
            let handle = move || {
                let (lock, condition) = &*shared;
                let guard = lock.lock().unwrap();
                let left = until.saturating_duration_since(Instant::now());
                let (guard, _) = condition.wait_timeout_while(guard, left, |done| !*done).unwrap();
                if !*guard {
                    // SAFETY: the child was not waited for yet, so that the id is its own.
                    unsafe { libc::kill(pid, libc::SIGKILL) };
                }
            };
            let thread = std::thread::spawn(handle);
            move || (done, thread)
        });
        let (done, thread) = killer.join().unwrap();
        let stdout = stdout.join().unwrap();
        let stderr = stderr.join().unwrap();
        *done.0.lock().unwrap() = true;
        done.1.notify_all();
        thread.join().unwrap();
        let status = child.wait().unwrap();
        let crash = std::fs::read(self.path("crash")).unwrap_or_default();
        Outcome {
            status: status.code(),
            signal: status.signal(),
            stdout,
            stderr,
            crash: serde_json::from_slice(&crash).ok(),
        }
    }
}
