//! What callers pass to the engine: queries and bodies that have no place in `model`.

use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_model::spec::container::{HostRestartPolicy, Words};

use crate::attacher::TaskAttachment;
use crate::error::EngineError;

/// What a creator says beside the body.
#[derive(Clone, Debug, Default)]
pub struct CreateOptions {
    /// The name, without a slash; `None`: a random one.
    pub name: Option<String>,
    /// `os[/arch[/variant]]` that the image must have.
    pub platform: Option<String>,
    /// Set by `agent` for tasks of the swarm.
    pub task: Option<TaskAttachment>,
    /// Files for the container's own memory file system (secrets, configs). They are never
    /// written to disk; `agent` passes them again before a restart.
    pub files: Vec<InjectedFile>,
}

/// One file that the engine puts into a container through a memory file system.
#[derive(Clone)]
pub struct InjectedFile {
    /// Absolute path inside.
    pub target: String,
    /// Contents.
    pub data: bytes::Bytes,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

impl std::fmt::Debug for InjectedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The data may be a secret: never printed.
        f.debug_struct("InjectedFile").field("target", &self.target).finish_non_exhaustive()
    }
}

/// When a wait ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitCondition {
    /// At once, if it does not run.
    #[default]
    NotRunning,
    /// At its next end, even if it does not run now.
    NextExit,
    /// When it is gone.
    Removed,
}

impl WaitCondition {
    /// Reads the query's word; empty means [`Self::NotRunning`].
    ///
    /// # Errors
    /// Any other word.
    pub fn parse(word: &str) -> Result<Self, EngineError> {
        match word {
            "" | "not-running" => Ok(Self::NotRunning),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            _ => Err(EngineError::invalid(format!("invalid condition: \"{word}\""))),
        }
    }
}

/// What a wait found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitOutcome {
    /// The exit status.
    pub status_code: i64,
    /// Why the container could not start, if so.
    pub error: Option<String>,
}

/// How a container is removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoveOptions {
    /// Kill it if it runs.
    pub force: bool,
    /// Also remove its anonymous volumes.
    pub volumes: bool,
}

/// What an attacher wants to see and say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachOptions {
    /// First what was logged so far.
    pub logs: bool,
    /// Then what comes; without it the session ends after the logs.
    pub stream: bool,
    /// Send input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// `ctrl-p,ctrl-q` if `None`.
    pub detach_keys: Option<String>,
}

/// The body of `POST /containers/{id}/exec`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecCreate {
    /// Send input.
    pub attach_stdin: bool,
    /// Standard output.
    pub attach_stdout: bool,
    /// Standard error.
    pub attach_stderr: bool,
    /// `ctrl-p,ctrl-q` if unsaid.
    pub detach_keys: Option<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// `NAME=value`, over the container's own.
    pub env: Option<Vec<String>>,
    /// What to run.
    pub cmd: Option<Words>,
    /// With every capability.
    pub privileged: bool,
    /// `user[:group]`; the container's if unsaid.
    pub user: Option<String>,
    /// The container's if unsaid.
    pub working_dir: Option<String>,
    /// Rows and columns of the terminal.
    pub console_size: Option<[u16; 2]>,
}

/// The body of `POST /exec/{id}/start`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecStart {
    /// Do not wait for it.
    pub detach: bool,
    /// Must equal what the exec was made with.
    pub tty: bool,
    /// Rows and columns of the terminal.
    pub console_size: Option<[u16; 2]>,
}

/// The body of `POST /containers/{id}/update`: limits and restart policy. Absent members stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct UpdateRequest {
    /// Bytes of memory.
    pub memory: Option<i64>,
    /// Memory and swap together, in bytes.
    pub memory_swap: Option<i64>,
    /// Billionths of a CPU.
    pub nano_cpus: Option<i64>,
    /// Relative weight.
    pub cpu_shares: Option<i64>,
    /// Microseconds.
    pub cpu_period: Option<i64>,
    /// Microseconds.
    pub cpu_quota: Option<i64>,
    /// Number of processes.
    pub pids_limit: Option<i64>,
    /// What happens when it ends.
    pub restart_policy: Option<HostRestartPolicy>,
    /// What the engine cannot change; zero and empty values are accepted.
    #[serde(flatten)]
    pub extra: shoal_model::spec::Extra,
}

/// How `PUT /containers/{id}/archive` treats what is there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// A directory may not replace a file, nor a file a directory.
    pub no_overwrite_dir_non_dir: bool,
    /// Keep owners of the archive.
    pub copy_uid_gid: bool,
}

/// How long `stop` and `restart` wait, and how they ask.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOptions {
    /// `None`: the container's own stop signal.
    pub signal: Option<String>,
    /// `None`: the container's own timeout, else 10 s.
    pub grace: Option<Grace>,
}

/// How long a container may take to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// Then it is killed.
    Limit(Duration),
    /// It is never killed.
    Forever,
}

impl Grace {
    /// From the API's seconds: negative means for ever.
    #[must_use]
    pub fn from_secs(secs: i64) -> Self {
        u64::try_from(secs).map_or(Self::Forever, |secs| Self::Limit(Duration::from_secs(secs)))
    }
}

/// What happens to containers when the daemon stops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// They run on; the next daemon takes them over.
    Keep,
    /// They are stopped, each within this time.
    Stop(Duration),
}
