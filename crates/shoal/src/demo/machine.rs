//! One machine of the demonstration: a network namespace, and a daemon in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use shoal_netlink::netns;

/// How long a daemon gets to stop by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(10);
/// How often its end is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// A machine.
#[derive(Debug)]
pub struct Machine {
    /// `node-1`…, or `outside`.
    pub name: String,
    /// Its address on the underlay.
    pub address: String,
    /// Where its network namespace is mounted.
    pub netns: PathBuf,
    dir: PathBuf,
    daemon: Option<Child>,
}

impl Machine {
    /// A machine without a daemon.
    pub fn new(name: &str, address: String, netns: PathBuf, dir: PathBuf) -> Self {
        Self { name: name.to_owned(), address, netns, dir, daemon: None }
    }

    /// Where its daemon listens.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    /// Its daemon's log.
    pub fn log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// Runs `work` inside its network namespace.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        netns::run_in(&self.netns, work).with_context(|| format!("enter {}", self.name))
    }

    /// Starts the daemon.
    pub fn start(&mut self) -> Result<()> {
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("make '{}'", self.dir.display()))?;
        let log = File::create(self.log()).context("make the daemon's log")?;
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command
            .arg("daemon")
            .arg("--host")
            .arg(format!("unix://{}", self.socket().display()))
            .arg("--data-root")
            .arg(self.dir.join("data"))
            .arg("--exec-root")
            .arg(self.dir.join("run"))
            .args(["--debug", "--node-name", &self.name])
            .args(["--swarm-default-advertise-addr", &self.address])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the daemon's log")?)
            .stderr(log);
        // A signal that the terminal sends to the demonstration is not meant for the nodes.
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let child = self.inside(move || command.spawn())?.context("start the daemon")?;
        self.daemon = Some(child);
        Ok(())
    }

    /// Why the daemon has ended, if it has.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.daemon.as_mut()?.try_wait().ok()??;
        let log = std::fs::read_to_string(self.log()).unwrap_or_default();
        let last: Vec<&str> = log.lines().rev().take(5).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        Some(format!("{status}: {}", last.join(" | ")))
    }

    /// A power cut: every process of the machine dies at once.
    pub fn cut_power(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().context("kill the daemon")?;
            daemon.wait().context("wait for the daemon")?;
        }
        kill_all(&self.dir);
        Ok(())
    }

    /// Stops the daemon as an operator would; kills it if it does not end.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        if let Some(pid) = rustix::process::Pid::from_raw(daemon.id().cast_signed()) {
            // Ignored because: it may have ended by itself.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let began = Instant::now();
        while began.elapsed() < STOP_PATIENCE {
            if daemon.try_wait().context("look for the daemon's end")?.is_some() {
                return Ok(());
            }
            std::thread::sleep(LOOK_EVERY);
        }
        daemon.kill().context("kill the daemon")?;
        daemon.wait().context("wait for the daemon")?;
        bail!("{} did not stop within {} s and was killed", self.name, STOP_PATIENCE.as_secs())
    }

    /// Lets the daemon run on without this process.
    pub fn let_go(&mut self) {
        self.daemon = None;
    }
}

/// Kills every process whose command line names `dir`: shims and resolvers of one machine. A
/// container dies with its shim.
pub fn kill_all(dir: &Path) {
    let marker = dir.to_string_lossy().into_owned();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let ours = String::from_utf8_lossy(&line).contains(&marker);
        let me = pid.cast_unsigned() == std::process::id();
        if let Some(pid) = rustix::process::Pid::from_raw(pid).filter(|_| ours && !me) {
            // Ignored because: it may just have ended.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}
