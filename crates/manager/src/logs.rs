//! Logs of services and tasks, gathered from the nodes that have them.

use shoal_model::id::{NodeId, ServiceId, TaskId};
use shoal_model::time::Timestamp;

/// Whose logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogSelector {
    /// Every task of a service, ended ones too.
    Service(ServiceId),
    /// One task.
    Task(TaskId),
}

/// Which lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogQuery {
    /// Go on with new lines (and new tasks) until the receiver is dropped.
    pub follow: bool,
    /// Only that many of the last lines of each task; absent: all.
    pub tail: Option<u64>,
    /// Only lines from this time on.
    pub since: Option<Timestamp>,
    /// Only lines before this time.
    pub until: Option<Timestamp>,
    /// Lines of standard output.
    pub stdout: bool,
    /// Lines of standard error.
    pub stderr: bool,
}

/// One item of a gathered log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogItem {
    /// A line of a task.
    Line(TaskLine),
    /// A part of the log that cannot be had, in one line: a node that is down, a task that never
    /// had a container. The rest goes on.
    Warning(String),
}

/// A line of a task's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskLine {
    /// The task's node.
    pub node_id: NodeId,
    /// Its service; absent for network attachments.
    pub service_id: Option<ServiceId>,
    /// The task.
    pub task_id: TaskId,
    /// When it was written.
    pub time: Timestamp,
    /// Whether it was written to standard error.
    pub stderr: bool,
    /// The bytes, with the line feed if there is one.
    pub line: Vec<u8>,
}
