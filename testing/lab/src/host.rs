//! One host of the lab.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use crate::daemon::{Daemon, DaemonOptions};
use crate::{must, must_fail, run};

/// A network namespace with an address on the underlay, and the daemons that run there.
#[derive(Debug)]
pub struct Host {
    name: String,
    netns: String,
    address: String,
    dir: PathBuf,
    daemons: RefCell<Vec<Daemon>>,
    dead: std::cell::Cell<bool>,
}

impl Host {
    pub(crate) fn new(name: String, netns: String, address: String, dir: PathBuf) -> Self {
        Self { name, netns, address, dir, daemons: RefCell::new(Vec::new()), dead: false.into() }
    }

    /// `node-1`…: its host name and the name of its node.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address on the underlay.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The name of its network namespace.
    #[must_use]
    pub fn netns(&self) -> &str {
        &self.netns
    }

    /// A folder of its own.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where its first daemon listens.
    #[must_use]
    pub fn socket(&self) -> String {
        format!("unix://{}", self.dir.join("d0/docker.sock").display())
    }

    /// Where its first daemon's things are.
    #[must_use]
    pub fn place(&self) -> crate::reality::Place {
        crate::reality::Place {
            socket: self.dir.join("d0/docker.sock"),
            data: self.daemons.borrow()[0].data_root(),
            exec: self.dir.join("d0/exec"),
            netns: self.netns.clone(),
        }
    }

    /// Starts a daemon with usual settings and waits until it answers.
    pub fn daemon(&self) {
        self.daemon_with(&DaemonOptions::default());
    }

    /// Starts a daemon and waits until it answers.
    pub fn daemon_with(&self, options: &DaemonOptions) {
        let number = self.daemons.borrow().len();
        let daemon = Daemon::start(self, &self.dir.join(format!("d{number}")), options);
        self.daemons.borrow_mut().push(daemon);
    }

    /// Starts the first daemon again, on the same folders, after it was stopped or killed.
    pub fn restart(&self) {
        self.daemons.borrow_mut()[0].restart(self);
    }

    /// Further arguments of the first daemon from its next start on.
    pub fn set_args(&self, args: &[String]) {
        self.daemons.borrow_mut()[0].options.args = args.to_vec();
    }

    /// Stops the first daemon and starts it again with other options.
    pub fn restart_with(&self, options: &DaemonOptions) {
        let mut daemons = self.daemons.borrow_mut();
        daemons[0].stop();
        daemons[0].options = options.clone();
        daemons[0].restart(self);
    }

    /// As [`Self::restart`], but gives how long it took, or why it does not come up.
    ///
    /// # Errors
    /// It ends, or does not answer within `deadline`; then it is killed.
    pub fn try_restart(&self, deadline: Duration) -> Result<Duration, String> {
        self.daemons.borrow_mut()[0].try_restart(self, deadline)
    }

    /// Whether the first daemon's process lives.
    #[must_use]
    pub fn daemon_runs(&self) -> bool {
        self.daemons.borrow_mut()[0].runs()
    }

    /// Whether the first daemon's last process was killed by the lab.
    #[must_use]
    pub fn was_killed(&self) -> bool {
        self.daemons.borrow()[0].was_killed()
    }

    /// Kills the first daemon with SIGKILL, and nothing else.
    pub fn kill_daemon(&self) {
        self.daemons.borrow_mut()[0].kill();
    }

    /// Stops the first daemon with SIGTERM; gives how long it took.
    pub fn stop_daemon(&self) -> Duration {
        self.daemons.borrow_mut()[0].stop()
    }

    /// The first daemon's process id.
    #[must_use]
    pub fn daemon_pid(&self) -> u32 {
        self.daemons.borrow()[0].pid()
    }

    /// What the daemons logged.
    #[must_use]
    pub fn logs(&self) -> Vec<PathBuf> {
        self.daemons.borrow().iter().map(Daemon::log).collect()
    }

    /// The instance ids of its daemons.
    pub(crate) fn instances(&self) -> Vec<String> {
        let of = |daemon: &Daemon| {
            let path = daemon.data_root().join("instance");
            std::fs::read_to_string(path).map(|id| id.trim().to_owned()).ok()
        };
        self.daemons.borrow().iter().filter_map(of).collect()
    }

    pub(crate) fn stop_all(&self) {
        for daemon in self.daemons.borrow_mut().iter_mut() {
            daemon.stop();
        }
    }

    /// Whether its power was cut: then nobody cleaned up, and nobody is asked to.
    pub(crate) fn is_dead(&self) -> bool {
        self.dead.get()
    }

    /// A power cut: every process that belongs to this host, at once.
    pub fn cut_power(&self) {
        self.dead.set(true);
        self.kill_everything();
    }

    /// Ends every process that belongs to this host.
    pub(crate) fn kill_everything(&self) {
        for daemon in self.daemons.borrow_mut().iter_mut() {
            daemon.kill();
        }
        let marker = self.dir.to_string_lossy().into_owned();
        crate::leaks::kill_processes(&self.netns, &marker);
    }

    /// A command that runs on this host: in its network namespace.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.netns)).arg(program);
        command
    }

    /// Runs a shell line on this host; it must succeed.
    pub fn sh(&self, line: &str) -> String {
        must(self.command("sh").args(["-c", line]))
    }

    /// Runs a shell line on this host, whatever comes of it.
    pub fn try_sh(&self, line: &str) -> Output {
        run(self.command("sh").args(["-c", line]))
    }

    fn docker_command(&self, args: &[&str]) -> Command {
        let mut command = self.command("docker");
        command.env("DOCKER_HOST", self.socket()).env("DOCKER_CONFIG", self.dir.join("config"));
        command.args(args);
        command
    }

    /// The docker CLI against this host's daemon; it must succeed. `args` is split at spaces.
    pub fn docker(&self, args: &str) -> String {
        self.docker_args(&args.split_whitespace().collect::<Vec<_>>())
    }

    /// The docker CLI with arguments that contain spaces; it must succeed.
    pub fn docker_args(&self, args: &[&str]) -> String {
        must(&mut self.docker_command(args))
    }

    /// The docker CLI; it must fail. Gives what it printed.
    pub fn docker_fails(&self, args: &str) -> String {
        let args: Vec<&str> = args.split_whitespace().collect();
        must_fail(&mut self.docker_command(&args))
    }

    /// The docker CLI, whatever comes of it.
    pub fn try_docker(&self, args: &str) -> Output {
        let args: Vec<&str> = args.split_whitespace().collect();
        run(&mut self.docker_command(&args))
    }

    /// The docker CLI as a command, to feed it or to let it run on.
    #[must_use]
    pub fn docker_cmd(&self, args: &[&str]) -> Command {
        self.docker_command(args)
    }

    /// `docker inspect` and the like: the answer as JSON.
    pub fn docker_json(&self, args: &str) -> serde_json::Value {
        let text = self.docker(args);
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args}: {error}: {text}"))
    }
}
