//! One daemon on a host of the lab.

use std::fs::File;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use shoal_stopwatch::Stopwatch;

use crate::host::Host;
use crate::http::{Outcome, Request};
use crate::{eventually, shoal};

/// How long a daemon may take until it answers its first request.
const START_DEADLINE: Duration = Duration::from_secs(20);
/// How long a daemon may take to stop on SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(15);
/// How long a ping may take.
const PING_MAX: Duration = Duration::from_secs(2);
/// How often a daemon that starts is asked.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How to start a daemon.
#[derive(Clone, Debug, Default)]
pub struct DaemonOptions {
    /// Further arguments.
    pub args: Vec<String>,
    /// Start it under the name `dockerd`.
    pub as_dockerd: bool,
    /// The node's name, if it is not the host's.
    pub node_name: Option<String>,
    /// Where its durable state is, if not in the host's folder.
    pub data_root: Option<PathBuf>,
    /// Without what is logged for debugging.
    pub quiet: bool,
    /// The program, if it is another one than [`shoal`].
    pub program: Option<PathBuf>,
}

/// A daemon on a host.
#[derive(Debug)]
pub struct Daemon {
    dir: PathBuf,
    pub(crate) options: DaemonOptions,
    child: Option<Child>,
    killed: bool,
}

impl Daemon {
    pub(crate) fn start(host: &Host, dir: &Path, options: &DaemonOptions) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let mut daemon =
            Self { dir: dir.to_path_buf(), options: options.clone(), child: None, killed: false };
        daemon.restart(host);
        daemon
    }

    pub(crate) fn restart(&mut self, host: &Host) {
        if let Err(problem) = self.try_restart(host, START_DEADLINE) {
            panic!("{problem}");
        }
    }

    /// Starts it; gives how long it took until it answered, or why it does not.
    pub(crate) fn try_restart(
        &mut self,
        host: &Host,
        deadline: Duration,
    ) -> Result<Duration, String> {
        assert!(self.child.is_none(), "the daemon still runs");
        self.killed = false;
        let began = Stopwatch::start();
        self.child = Some(self.command(host).spawn().unwrap());
        let socket = self.dir.join("docker.sock");
        loop {
            if let Some(status) = self.child.as_mut().unwrap().try_wait().unwrap() {
                self.child = None;
                self.killed = true;
                return Err(format!("the daemon ended with {status}:\n{}", self.log_tail()));
            }
            if answers(&socket) {
                return Ok(began.elapsed());
            }
            if began.elapsed() > deadline {
                self.kill();
                let log = self.log_tail();
                return Err(format!("the daemon does not answer within {deadline:?}:\n{log}"));
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// Whether its process lives.
    pub(crate) fn runs(&mut self) -> bool {
        let ended = self.child.as_mut().map(|child| child.try_wait().unwrap());
        if let Some(Some(_)) = ended {
            self.child = None;
        }
        self.child.is_some()
    }

    /// Whether its last process was ended by [`Self::kill`], or that it ended has been said.
    pub(crate) fn was_killed(&self) -> bool {
        self.killed
    }

    fn command(&self, host: &Host) -> Command {
        let program = self.options.program.clone().unwrap_or_else(shoal);
        let program = if self.options.as_dockerd {
            let link = self.dir.join("dockerd");
            if !link.exists() {
                std::os::unix::fs::symlink(program, &link).unwrap();
            }
            link
        } else {
            program
        };
        let name = self.options.node_name.clone().unwrap_or_else(|| host.name().to_owned());
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = host.command(&program.to_string_lossy());
        if !self.options.as_dockerd {
            command.arg("daemon");
        }
        command
            .arg("--host")
            .arg(format!("unix://{}", self.dir.join("docker.sock").display()))
            .arg("--data-root")
            .arg(self.data_root())
            .arg("--exec-root")
            .arg(self.dir.join("exec"))
            .arg("--pidfile")
            .arg(self.dir.join("pid"))
            .args((!self.options.quiet).then_some("--debug"))
            .args(["--node-name", &name])
            .args(["--swarm-default-advertise-addr", host.address()])
            .args(&self.options.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        command
    }

    /// Where its durable state is.
    #[must_use]
    pub fn data_root(&self) -> PathBuf {
        self.options.data_root.clone().unwrap_or_else(|| self.dir.join("data"))
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }

    fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Its process id. `nsenter` replaces itself by the daemon, so the child is the daemon.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon does not run").id()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            self.killed = true;
            // Ignored because: it may have ended by itself.
            let _ = child.kill();
            child.wait().unwrap();
        }
    }

    /// SIGTERM; gives how long it took.
    ///
    /// # Panics
    /// If it does not end within `STOP_DEADLINE`, or not cleanly.
    pub fn stop(&mut self) -> Duration {
        let Some(mut child) = self.child.take() else { return Duration::ZERO };
        let began = Stopwatch::start();
        let sent = Command::new("kill").arg(child.id().to_string()).status().unwrap();
        assert!(sent.success(), "the daemon had ended before: {}", self.log_tail());
        let log = self.log_tail();
        let status = eventually("the daemon to stop", STOP_DEADLINE, || {
            child.try_wait().unwrap().ok_or_else(|| log.clone())
        });
        assert!(
            status.success() && status.signal().is_none(),
            "the daemon ended with {status}:\n{}",
            self.log_tail()
        );
        began.elapsed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Whether somebody answers a ping on a socket.
fn answers(socket: &Path) -> bool {
    let answer = Request::new("GET", "/_ping").send_within(socket, PING_MAX);
    matches!(answer, Outcome::Answered(200, _))
}
