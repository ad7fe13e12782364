//! State changes of containers, for those who follow them (`agent`).

use serde::{Deserialize, Serialize};
use shoal_model::id::{ContainerId, TaskId};

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Made, never started.
    #[default]
    Created,
    /// Its process lives.
    Running,
    /// Frozen.
    Paused,
    /// Ended; will be started again by its restart policy.
    Restarting,
    /// Being removed.
    Removing,
    /// Ended.
    Exited,
    /// A removal failed halfway.
    Dead,
}

impl Phase {
    /// The word in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Removing => "removing",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Whether a process of it lives.
    #[must_use]
    pub const fn is_alive(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// The verdict of a container's health check.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// It has no health check.
    #[default]
    None,
    /// Not known yet.
    Starting,
    /// The last check passed.
    Healthy,
    /// Too many checks in a row failed.
    Unhealthy,
}

impl HealthStatus {
    /// The word in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// A container as it is after a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerChange {
    /// Which container.
    pub id: ContainerId,
    /// Its name, without a slash.
    pub name: String,
    /// The task that it is for, if any.
    pub task_id: Option<TaskId>,
    /// Where it is in its life. After the last change of a removed container: see `removed`.
    pub phase: Phase,
    /// Whether it is gone; nothing follows after this.
    pub removed: bool,
    /// Its first process on the host; 0 when none.
    pub pid: u32,
    /// Exit status of the last run.
    pub exit_code: i64,
    /// Why it could not start or why it was ended by the engine; empty if fine.
    pub error: String,
    /// Whether the kernel killed it for lack of memory.
    pub oom_killed: bool,
    /// Its health.
    pub health: HealthStatus,
}
