//! The life of a task. States only ever grow; a replacement is a new task in the same slot.

use std::fmt;

use crate::level;
use crate::word::{Word, words};

/// Where a task is in its life, in order. Names as in Docker's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TaskState {
    /// A later version's word, which has no place in this order: it comes before everything, so
    /// that nothing is ended for it, and `apply` refuses it.
    Other(Word),
    /// Created, nothing decided.
    New,
    /// Has its addresses; waits for a node.
    Pending,
    /// Has a node.
    Assigned,
    /// The node's agent knows it.
    Accepted,
    /// Image and network are being prepared.
    Preparing,
    /// Prepared; waits until it may start. The hold point of updates and restart delays.
    Ready,
    /// Its process is being started, or it is not healthy yet.
    Starting,
    /// Up, healthy, in DNS and load balancing.
    Running,
    /// Ended by itself with exit status 0.
    Complete,
    /// Ended because it was told to.
    Shutdown,
    /// Ended by itself with a failure.
    Failed,
    /// The node refused it or could not prepare it.
    Rejected,
    /// Marked for removal together with its history.
    Remove,
    /// Its node was away for so long that nobody knows.
    Orphaned,
    /// The next version's, for tests.
    #[cfg(feature = "next-level")]
    Archived,
}

words!(TaskState {
    New => "new",
    Pending => "pending",
    Assigned => "assigned",
    Accepted => "accepted",
    Preparing => "preparing",
    Ready => "ready",
    Starting => "starting",
    Running => "running",
    Complete => "complete",
    Shutdown => "shutdown",
    Failed => "failed",
    Rejected => "rejected",
    Remove => "remove",
    Orphaned => "orphaned",
    #[cfg(feature = "next-level")]
    Archived => "archived",
});

impl TaskState {
    /// Every state, in order.
    pub const ALL: &'static [Self] = &[
        Self::New,
        Self::Pending,
        Self::Assigned,
        Self::Accepted,
        Self::Preparing,
        Self::Ready,
        Self::Starting,
        Self::Running,
        Self::Complete,
        Self::Shutdown,
        Self::Failed,
        Self::Rejected,
        Self::Remove,
        Self::Orphaned,
        #[cfg(feature = "next-level")]
        Self::Archived,
    ];

    /// Whether nothing of the task runs any more, and never will.
    #[must_use]
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    /// The lowest level of a cluster that may hold it.
    #[must_use]
    pub const fn needs(self) -> u32 {
        match self {
            Self::Other(_) => level::UNKNOWN,
            #[cfg(feature = "next-level")]
            Self::Archived => level::FIRST + 1,
            _ => level::FIRST,
        }
    }
}

impl fmt::Display for TaskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
