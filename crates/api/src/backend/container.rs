//! This node's containers, execs and volumes.

use shoal_model::filter::Filters;
use std::collections::BTreeMap;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use futures::stream::BoxStream;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use shoal_model::log::LogSelection;
use shoal_model::spec::StringMap;
use shoal_model::spec::container::{ContainerCreate, EndpointSettings};
use shoal_model::time::Timestamp;
use tokio::sync::mpsc;

use crate::error::ApiResult;
use crate::http::frame::Channel;

/// A stream of bytes that may break.
pub type ByteStream = Pin<Box<dyn Stream<Item = std::io::Result<Bytes>> + Send>>;

/// This node's containers.
#[async_trait]
pub trait ContainerBackend: Send + Sync {
    /// A random name for what the client did not name; a later attempt gives a longer one.
    fn fresh_name(&self, attempt: u32) -> String;
    /// `{"Id", "Warnings"}`.
    ///
    /// # Errors
    /// 404 for a missing image, 409 for a name in use, 400 for settings that make no sense.
    async fn create(&self, spec: ContainerCreate, by: CreateBy) -> ApiResult<Value>;
    /// The list, in the API's shape.
    ///
    /// # Errors
    /// 400 for unknown filters.
    async fn list(&self, query: ContainerList) -> ApiResult<Value>;
    /// One container in full.
    ///
    /// # Errors
    /// 404.
    async fn inspect(&self, word: &str, size: bool) -> ApiResult<Value>;
    /// Whether `word` means one of this node's containers, or several.
    async fn knows(&self, word: &str) -> bool {
        !self.inspect(word, false).await.is_err_and(|error| error.is_not_found())
    }
    /// Starts it.
    ///
    /// # Errors
    /// 304 if it runs; else why it does not start, in the words that set `docker run`'s status.
    async fn start(&self, word: &str) -> ApiResult<()>;
    /// Asks it to stop, kills it after `timeout` seconds (-1: never).
    ///
    /// # Errors
    /// 304 if it does not run.
    async fn stop(&self, word: &str, how: StopHow) -> ApiResult<()>;
    /// Stops and starts it.
    ///
    /// # Errors
    /// As starting and stopping.
    async fn restart(&self, word: &str, how: StopHow) -> ApiResult<()>;
    /// Sends a signal.
    ///
    /// # Errors
    /// 409 if it does not run, 400 for an unknown signal.
    async fn kill(&self, word: &str, signal: &str) -> ApiResult<()>;
    /// Freezes it.
    ///
    /// # Errors
    /// 409 if it does not run.
    async fn pause(&self, word: &str) -> ApiResult<()>;
    /// Thaws it.
    ///
    /// # Errors
    /// 409 if it is not paused.
    async fn unpause(&self, word: &str) -> ApiResult<()>;
    /// Gives it another name.
    ///
    /// # Errors
    /// 409 for a name in use.
    async fn rename(&self, word: &str, name: &str) -> ApiResult<()>;
    /// Changes limits and restart policy; `{"Warnings"}`.
    ///
    /// # Errors
    /// 400 for settings that make no sense.
    async fn update(&self, word: &str, change: Value) -> ApiResult<Value>;
    /// Removes it.
    ///
    /// # Errors
    /// 409 if it runs and `force` is not set.
    async fn remove(&self, word: &str, how: RemoveHow) -> ApiResult<()>;
    /// Registers a wait at once; what it returns ends with the exit status.
    ///
    /// # Errors
    /// 404, or 400 for an unknown condition.
    async fn wait(&self, word: &str, condition: &str) -> ApiResult<WaitFuture>;
    /// Output that was written.
    ///
    /// # Errors
    /// 404.
    async fn logs(&self, word: &str, query: LogSelection) -> ApiResult<Logs>;
    /// Attaches at once: nothing that is written from now on is missed.
    ///
    /// # Errors
    /// 404, or 409 for a paused container.
    async fn attach(&self, word: &str, how: AttachHow) -> ApiResult<Stdio>;
    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// 409 if it does not run.
    async fn resize(&self, word: &str, size: TerminalSize) -> ApiResult<()>;
    /// Its processes.
    ///
    /// # Errors
    /// 409 if it does not run.
    async fn top(&self, word: &str, ps_args: &str) -> ApiResult<Value>;
    /// Samples of its use; one if not `stream`.
    ///
    /// # Errors
    /// 404.
    async fn stats(
        &self,
        word: &str,
        stream: bool,
        one_shot: bool,
    ) -> ApiResult<BoxStream<'static, ApiResult<Value>>>;
    /// What it changed in its root.
    ///
    /// # Errors
    /// 404.
    async fn changes(&self, word: &str) -> ApiResult<Value>;
    /// Its root as a tar archive.
    ///
    /// # Errors
    /// 404.
    async fn export(&self, word: &str) -> ApiResult<ByteStream>;
    /// Facts of a path inside, for the header `X-Docker-Container-Path-Stat`.
    ///
    /// # Errors
    /// 404 for container or path.
    async fn stat_path(&self, word: &str, path: &str) -> ApiResult<Value>;
    /// A path inside as a tar archive, with its facts.
    ///
    /// # Errors
    /// 404 for container or path.
    async fn get_archive(&self, word: &str, path: &str) -> ApiResult<(Value, ByteStream)>;
    /// Unpacks a tar archive at a path inside.
    ///
    /// # Errors
    /// 404 for container or path, 400 for a broken archive.
    async fn put_archive(&self, word: &str, put: PutArchive, body: ByteStream) -> ApiResult<()>;
    /// Removes stopped containers; the API's answer.
    ///
    /// # Errors
    /// 400 for unknown filters.
    async fn prune(&self, filters: &Filters) -> ApiResult<Value>;

    /// Prepares an exec; its id.
    ///
    /// # Errors
    /// 404, 409 if the container does not run.
    async fn exec_create(&self, word: &str, spec: ExecCreate) -> ApiResult<String>;
    /// The few facts that routes decide by.
    ///
    /// # Errors
    /// 404, 409 if it was started before.
    async fn exec_facts(&self, id: &str) -> ApiResult<ExecFacts>;
    /// Starts it; `None` if it was started detached.
    ///
    /// # Errors
    /// 404, 409; or why it does not start.
    async fn exec_start(&self, id: &str, start: ExecStart) -> ApiResult<Option<Stdio>>;
    /// An exec in full.
    ///
    /// # Errors
    /// 404.
    async fn exec_inspect(&self, id: &str) -> ApiResult<Value>;
    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// 404.
    async fn exec_resize(&self, id: &str, size: TerminalSize) -> ApiResult<()>;

    /// Adds a network to a running container.
    ///
    /// # Errors
    /// 404, or 501 if that is not possible yet.
    async fn connect(&self, word: &str, network: &str, settings: EndpointSettings)
    -> ApiResult<()>;
    /// Takes a network from a running container.
    ///
    /// # Errors
    /// As [`Self::connect`].
    async fn disconnect(&self, word: &str, network: &str, force: bool) -> ApiResult<()>;
}

/// What a creator says beside the body.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateBy {
    /// The name; a random one if absent.
    pub name: Option<String>,
    /// `os/arch[/variant]` that the image must have.
    pub platform: Option<String>,
}

/// A registered wait; its end comes later.
pub type WaitFuture = Pin<Box<dyn Future<Output = ApiResult<WaitEnd>> + Send>>;

/// How a wait ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WaitEnd {
    /// The exit status.
    pub status: i64,
}

/// A session with a process.
pub struct Stdio {
    /// Whether it has a terminal: then output is passed on raw.
    pub tty: bool,
    /// What the process prints; ends with it, or after the detach keys.
    pub output: BoxStream<'static, (Channel, Bytes)>,
    /// What the client types; dropping it is the end of input. `None` if input was not asked for.
    pub input: Option<mpsc::Sender<Bytes>>,
}

/// A container's output that was written.
pub struct Logs {
    /// Whether it has a terminal: then lines are passed on raw.
    pub tty: bool,
    /// `name=value` pairs that `details` prints before each line.
    pub details: Vec<String>,
    /// The lines.
    pub lines: BoxStream<'static, ApiResult<LogPiece>>,
}

/// Which containers to list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ContainerList {
    /// Those that do not run, too.
    pub all: bool,
    /// Only the newest so many; includes those that do not run.
    pub limit: Option<u64>,
    /// With sizes.
    pub size: bool,
    /// Filters.
    pub filters: Filters,
}

/// The few facts of an exec that routes decide by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExecFacts {
    /// Whether it has a terminal.
    pub tty: bool,
}

/// How to stop.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopHow {
    /// Seconds until it is killed; -1: never; `None`: what the container says.
    pub timeout: Option<i64>,
    /// The signal that asks; `None`: what the container says.
    pub signal: Option<String>,
}

/// How to remove.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemoveHow {
    /// Kill it if it runs.
    pub force: bool,
    /// Its anonymous volumes, too.
    pub volumes: bool,
}

/// A piece of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogPiece {
    /// When it was written.
    pub at: Timestamp,
    /// Whether it came from standard error.
    pub stderr: bool,
    /// The bytes, with the line end.
    pub line: Bytes,
}

/// What an attachment wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttachHow {
    /// What was written before.
    pub logs: bool,
    /// What comes.
    pub stream: bool,
    /// Give it input.
    pub stdin: bool,
    /// Standard output.
    pub stdout: bool,
    /// Standard error.
    pub stderr: bool,
    /// Keys that detach the client; `None`: Docker's `ctrl-p,ctrl-q`.
    pub detach_keys: Option<String>,
}

/// The size of a terminal, in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TerminalSize {
    /// Rows.
    pub rows: u16,
    /// Columns.
    pub columns: u16,
}

/// Where an archive is unpacked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PutArchive {
    /// A directory inside.
    pub path: String,
    /// Refuse to replace a directory by a file or a file by a directory.
    pub no_overwrite_dir_non_dir: bool,
    /// Keep numeric owners of the archive.
    pub copy_uid_gid: bool,
}

/// The body of `POST /containers/{id}/exec`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecCreate {
    /// Give it input.
    pub attach_stdin: bool,
    /// Standard output goes to the client.
    pub attach_stdout: bool,
    /// Standard error goes to the client.
    pub attach_stderr: bool,
    /// Keys that detach the client.
    pub detach_keys: String,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Rows and columns at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<[u16; 2]>,
    /// `NAME=value`.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub env: Vec<String>,
    /// What runs.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub cmd: Vec<String>,
    /// Whether it has every capability.
    pub privileged: bool,
    /// `user[:group]`.
    pub user: String,
    /// Working directory.
    pub working_dir: String,
    /// Whether the client does not wait; said again at the start.
    pub detach: bool,
}

/// The body of `POST /exec/{id}/start`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct ExecStart {
    /// Come back at once.
    pub detach: bool,
    /// Whether the client has a terminal.
    pub tty: bool,
    /// Rows and columns at the start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<[u16; 2]>,
}

/// This node's volumes.
#[async_trait]
pub trait VolumeBackend: Send + Sync {
    /// `{"Volumes", "Warnings"}`.
    ///
    /// # Errors
    /// 400 for unknown filters.
    async fn list(&self, filters: &Filters) -> ApiResult<Value>;
    /// The volumes alone, with `UsageData`.
    ///
    /// # Errors
    /// As [`Self::list`].
    async fn list_with_usage(&self) -> ApiResult<Value>;
    /// Makes one, or finds the one of that name.
    ///
    /// # Errors
    /// 400 for another driver than `local`.
    async fn create(&self, volume: VolumeCreate) -> ApiResult<Value>;
    /// One volume.
    ///
    /// # Errors
    /// 404.
    async fn inspect(&self, name: &str) -> ApiResult<Value>;
    /// Removes one.
    ///
    /// # Errors
    /// 409 if a container uses it.
    async fn remove(&self, name: &str, force: bool) -> ApiResult<()>;
    /// Removes the unused ones; the API's answer.
    ///
    /// # Errors
    /// 400 for unknown filters.
    async fn prune(&self, filters: &Filters) -> ApiResult<Value>;
}

/// The body of `POST /volumes/create`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct VolumeCreate {
    /// Empty: a random one.
    pub name: String,
    /// `local` or empty.
    pub driver: String,
    /// Options of the driver.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub driver_opts: StringMap,
    /// Labels.
    #[serde(deserialize_with = "shoal_model::spec::service::null_as_default")]
    pub labels: StringMap,
    /// Only for cluster volumes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cluster_volume_spec: Option<Value>,
}

/// How many containers there are, by state; for `info`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Running.
    pub running: u64,
    /// Paused.
    pub paused: u64,
    /// Neither.
    pub stopped: u64,
}

/// Counts states in a list that the backend gave.
#[must_use]
pub fn count_states(list: &Value) -> Counts {
    let mut by_state: BTreeMap<&str, u64> = BTreeMap::new();
    for item in list.as_array().into_iter().flatten() {
        *by_state.entry(item["State"].as_str().unwrap_or("")).or_default() += 1;
    }
    let of = |state: &str| by_state.get(state).copied().unwrap_or(0);
    let all: u64 = by_state.values().sum();
    let (running, paused) = (of("running"), of("paused"));
    Counts { running, paused, stopped: all - running - paused }
}
