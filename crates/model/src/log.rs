//! Logs: which part of them somebody wants, and what is gathered from the tasks of a cluster.

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, ServiceId, TaskId};
use crate::time::Timestamp;

/// Which lines of a log. By default all that were written, of both streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LogSelection {
    /// Lines of standard output.
    pub stdout: bool,
    /// Lines of standard error.
    pub stderr: bool,
    /// Go on with what comes, until the writer ends or the reader leaves.
    pub follow: bool,
    /// Only that many of the last lines, of each task; absent: all.
    pub tail: Option<u64>,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    /// Only lines up to this time.
    pub until: Option<Timestamp>,
}

impl Default for LogSelection {
    fn default() -> Self {
        Self { stdout: true, stderr: true, follow: false, tail: None, since: None, until: None }
    }
}

/// Whose logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogsOf {
    /// Every task of a service, ended ones too.
    Service(ServiceId),
    /// One task.
    Task(TaskId),
}

/// One item of gathered logs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskLog {
    /// A line of a task.
    Line(TaskLogLine),
    /// A part that cannot be had, in one line: a node that is down, a task that never had a
    /// container. The rest goes on.
    Warning(String),
}

/// A line of a task's log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskLogLine {
    /// The task.
    pub task_id: TaskId,
    /// Its service; absent for network attachments.
    pub service_id: Option<ServiceId>,
    /// Its node.
    pub node_id: NodeId,
    /// When it was written.
    pub time: Timestamp,
    /// Whether it was written to standard error.
    pub stderr: bool,
    /// The bytes, with the line feed if there is one.
    #[serde(with = "crate::bytes_text")]
    pub line: Vec<u8>,
}
