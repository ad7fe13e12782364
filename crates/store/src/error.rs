//! Why the store could not do something.

use std::path::PathBuf;
use std::time::Duration;

use shoal_model::change::ApplyError;
use shoal_model::fault::{Fault, FaultId, FaultKind};

use crate::peer::Member;

/// Why the store could not do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The transaction does not fit the state. It changed nothing.
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// The transaction is over the size limit. It changed nothing.
    #[error("write to the store: the transaction has {bytes} bytes, at most {limit} fit")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// The bound.
        limit: usize,
    },
    /// This node does not lead the managers.
    #[error("write to the store: this manager is not the leader{}", known(.leader))]
    NotLeader {
        /// The leader, if known.
        leader: Option<Member>,
    },
    /// No answer in time. The transaction may still be applied later.
    #[error(
        "write to the store: not confirmed by a majority of the managers within {} ms{}; it may \
         still happen", after.as_millis(), unheard(.missing)
    )]
    NoQuorum {
        /// How long we waited.
        after: Duration,
        /// Managers that were not heard lately, as far as this one knows.
        missing: Vec<Member>,
    },
    /// This manager lost the lead while the write was under way. It may be applied all the same.
    #[error(
        "write to the store: this manager lost the lead {} ms after it had begun to write; it may \
         still happen", after.as_millis()
    )]
    Deposed {
        /// How long the write was under way.
        after: Duration,
    },
    /// Nobody leads: there is no majority. Nothing was written.
    #[error(
        "write to the store: no manager has led for {} ms or more, so there is no majority{}; \
         nothing was written", after.as_millis(), unheard(.missing)
    )]
    NoLeader {
        /// How long nobody led, at least.
        after: Duration,
        /// Managers that were not heard lately.
        missing: Vec<Member>,
    },
    /// What the leader had confirmed is not applied here yet.
    #[error(
        "read the store: this manager did not catch up with the others within {} ms (entry \
         {wanted} is wanted, {applied} is applied)", after.as_millis()
    )]
    Behind {
        /// How long we waited.
        after: Duration,
        /// The entry that was waited for.
        wanted: u64,
        /// The last one that is applied here.
        applied: u64,
    },
    /// The group of managers could not be changed.
    #[error("change the group of managers: {problem}")]
    Group {
        /// Why not.
        problem: String,
    },
    /// The leadership was not handed over.
    #[error("hand over the leadership of the managers: {problem}")]
    HandOver {
        /// Why not.
        problem: String,
    },
    /// Another manager asked what this one cannot answer.
    #[error("answer manager '{from}': {problem}")]
    Question {
        /// The node that asked.
        from: String,
        /// Why not.
        problem: String,
    },
    /// Another manager asked that goes back to another beginning of the cluster.
    #[error("answer manager '{from}': {}", other_epoch(*left))]
    Stranger {
        /// The node that asked.
        from: String,
        /// Whether it is the one that was left behind.
        left: bool,
    },
    /// This manager cannot go on alone.
    #[error("recover the swarm from this manager: {problem}")]
    Recover {
        /// Why not.
        problem: String,
    },
    /// Too many writes are waiting.
    #[error("write to the store: {waiting} writes are waiting already")]
    Busy {
        /// How many.
        waiting: usize,
    },
    /// The disk is full. The store opens itself again as soon as there is room.
    #[error("write to the store: the disk is full ({problem})")]
    Full {
        /// What the system said.
        problem: String,
    },
    /// The disk failed while the store was open. The store opens itself again.
    #[error("use the store: its disk failed ({problem}); it is being opened again")]
    Failing {
        /// What the library or the system said.
        problem: String,
    },
    /// The file's content is not what was written.
    #[error("{action} the store '{}': the file is damaged ({problem})", path.display())]
    Damaged {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Which part of it, and how.
        problem: String,
    },
    /// Something in the file, or what another manager wrote, is of a later version of the program.
    /// Nothing is damaged, and nothing is skipped or guessed.
    #[error("{action} the store '{}': upgrade this manager: {problem}", path.display())]
    NeedsUpgrade {
        /// What was tried.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// Which part, of which version.
        problem: String,
    },
    /// The store has been shut down.
    #[error("use the store: it has stopped ({reason})")]
    Stopped {
        /// Why.
        reason: String,
    },
    /// There is no store to open.
    #[error("open the store '{}': there is none", path.display())]
    Missing {
        /// Where.
        path: PathBuf,
    },
    /// There is a store already where a new one was to be made.
    #[error("create the store '{}': there is one already", path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// Another process has the file open.
    #[error("open the store '{}': another process has it open", path.display())]
    InUse {
        /// Where.
        path: PathBuf,
    },
    /// The file is of another version.
    #[error("open the store '{}': its format version is {found}, this program knows {known}",
        path.display())]
    Version {
        /// Where.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// The file was made for another member of the managers.
    #[error("open the store '{}': it belongs to manager number {found}, not {expected}",
        path.display())]
    OtherMember {
        /// Where.
        path: PathBuf,
        /// In the file.
        found: u64,
        /// Asked for.
        expected: u64,
    },
    /// A value cannot be decrypted: wrong key, or the file was damaged or tampered with.
    #[error("decrypt the record '{record}' of the store: wrong key or damaged file")]
    Seal {
        /// Which record.
        record: String,
    },
    /// The key file cannot be used.
    #[error("{action} the store's key '{}': {problem}", path.display())]
    Key {
        /// `read`, `write`…
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The key file is wrapped by an unlock key.
    #[error("read the store's key '{}': {}", path.display(), locked(*tried))]
    Locked {
        /// Which file.
        path: PathBuf,
        /// Whether an unlock key was given, which is not the one.
        tried: bool,
    },
    /// What was given as an unlock key is none.
    #[error("invalid unlock key: {problem}")]
    UnlockKey {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The disk or the file's structure failed.
    #[error("{action} the store: {problem}")]
    Disk {
        /// What was tried.
        action: &'static str,
        /// What the library or the system said.
        problem: String,
    },
}

fn known(leader: &Option<Member>) -> String {
    let is = |leader: &Member| format!(" ({leader} is)");
    leader.as_ref().map_or_else(|| ", and no leader is known".to_owned(), is)
}

fn locked(tried: bool) -> &'static str {
    if tried {
        "the unlock key that was given does not open it"
    } else {
        "it is locked, and nobody has given the unlock key"
    }
}

fn other_epoch(left: bool) -> &'static str {
    if left {
        "the swarm was recovered without this manager"
    } else {
        "one of the two was left behind when the swarm was recovered"
    }
}

fn unheard(missing: &[Member]) -> String {
    if missing.is_empty() {
        return String::new();
    }
    let names: Vec<String> = missing.iter().map(ToString::to_string).collect();
    format!(" (not heard: {})", names.join(", "))
}

impl Fault for StoreError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Refused(
                ApplyError::OutOfSequence { .. }
                | ApplyError::NameTaken { .. }
                | ApplyError::NotUnique { .. },
            )
            | Self::Exists { .. }
            | Self::Group { .. }
            | Self::Stranger { .. }
            | Self::Recover { .. }
            | Self::HandOver { .. }
            | Self::InUse { .. } => FaultKind::Conflict,
            Self::Refused(ApplyError::TooLarge { .. } | ApplyError::Level { .. })
            | Self::TooLarge { .. }
            | Self::UnlockKey { .. }
            | Self::Question { .. } => FaultKind::Invalid,
            Self::Locked { tried: true, .. } => FaultKind::Unauthorized,
            Self::NotLeader { .. }
            | Self::NoQuorum { .. }
            | Self::Deposed { .. }
            | Self::NoLeader { .. }
            | Self::Behind { .. }
            | Self::Busy { .. }
            | Self::Full { .. }
            | Self::Failing { .. }
            | Self::Locked { .. }
            | Self::Stopped { .. } => FaultKind::Unavailable,
            Self::Missing { .. } => FaultKind::NotFound,
            Self::Version { .. }
            | Self::NeedsUpgrade { .. }
            | Self::OtherMember { .. }
            | Self::Seal { .. }
            | Self::Key { .. }
            | Self::Damaged { .. }
            | Self::Disk { .. } => FaultKind::Internal,
        }
    }

    fn id(&self) -> Option<FaultId> {
        Some(FaultId(match self {
            Self::Refused(_) => return None,
            Self::TooLarge { .. } => "SH-STO-001",
            Self::NotLeader { .. } => "SH-STO-002",
            Self::NoQuorum { .. } => "SH-STO-003",
            Self::Busy { .. } => "SH-STO-004",
            Self::Stopped { .. } => "SH-STO-005",
            Self::Missing { .. } => "SH-STO-006",
            Self::Exists { .. } => "SH-STO-007",
            Self::InUse { .. } => "SH-STO-008",
            Self::Version { .. } => "SH-STO-009",
            Self::OtherMember { .. } => "SH-STO-010",
            Self::Seal { .. } => "SH-STO-011",
            Self::Key { .. } => "SH-STO-012",
            Self::Disk { .. } => "SH-STO-013",
            Self::Full { .. } => "SH-STO-014",
            Self::Failing { .. } => "SH-STO-015",
            Self::Damaged { .. } => "SH-STO-016",
            Self::NoLeader { .. } => "SH-STO-017",
            Self::Behind { .. } => "SH-STO-018",
            Self::Group { .. } => "SH-STO-019",
            Self::Question { .. } => "SH-STO-020",
            Self::Stranger { .. } => "SH-STO-030",
            Self::Recover { .. } => "SH-STO-031",
            Self::NeedsUpgrade { .. } => "SH-STO-032",
            Self::HandOver { .. } => "SH-STO-025",
            Self::Deposed { .. } => "SH-STO-026",
            Self::Locked { .. } => "SH-STO-050",
            Self::UnlockKey { .. } => "SH-STO-051",
        }))
    }

    fn remedy(&self) -> Option<String> {
        let text = match self {
            Self::Refused(_) => return None,
            Self::TooLarge { .. } => "split the change into smaller ones",
            Self::Deposed { .. } => "look whether it happened, and try again if not",
            Self::NotLeader { .. } => "try again; another manager leads or will soon",
            Self::NoQuorum { .. } | Self::NoLeader { .. } => {
                "check with 'docker node ls' that a majority of the managers is reachable"
            }
            Self::Behind { .. } => "try again; check this manager's disk and network if it lasts",
            Self::Group { .. } => "try again once 'docker node ls' shows the group as it should be",
            Self::HandOver { .. } => "try again; another manager must be reachable for it",
            Self::Question { .. } => "run the same version of shoal on all managers",
            Self::Stranger { .. } => {
                "on the manager that was left behind: 'docker swarm leave --force', then join again"
            }
            Self::Recover { .. } => {
                "use a manager that was a member for longer, or 'shoal restore' with a backup"
            }
            Self::Busy { .. } => "try again in a moment; the disk of the leader is too slow",
            Self::Stopped { .. } => "try again; the daemon is stopping or leaves its cluster",
            Self::Full { .. } => "free space under --data-root; the store goes on by itself",
            Self::Failing { .. } => {
                "check the disk under --data-root with 'dmesg'; the store goes on by itself"
            }
            Self::Damaged { .. } => {
                "restore the store's directory from a backup of this node, or give the cluster up \
                 with 'docker swarm leave --force' and make a new one"
            }
            Self::Missing { .. } => "this node has no cluster: use 'docker swarm init' or 'join'",
            Self::Exists { .. } => "leave the cluster first: 'docker swarm leave --force'",
            Self::InUse { .. } => "give each daemon its own --data-root, or stop the other one",
            Self::Version { .. } => "run the version of shoal that wrote it",
            Self::NeedsUpgrade { .. } => {
                "stop the daemon, install the version of shoal that the other managers run, and \
                 start it"
            }
            Self::OtherMember { .. } => "the data root was copied from another node: remove it",
            Self::Seal { .. } | Self::Key { .. } => {
                "restore the key file that belongs to the store, or leave and join again"
            }
            Self::Locked { .. } => "unlock this manager with 'docker swarm unlock'",
            Self::UnlockKey { .. } => {
                "give the whole line that 'docker swarm unlock-key' prints on a manager that runs"
            }
            Self::Disk { .. } => "check space and health of the disk under --data-root",
        };
        Some(text.to_owned())
    }
}
