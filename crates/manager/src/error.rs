//! Why the cluster refused a request, and why a manager did not start.

use std::time::Duration;

use shoal_identity::error::IdentityError;
use shoal_model::change::ApplyError;
use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_model::id::NodeId;
use shoal_model::time::Timestamp;
use shoal_plan::validate::SpecError;
use shoal_store::StoreError;
use shoal_wire::error::WireError;
use shoal_wire::fault::RemoteFault;

/// Why the cluster refused a request.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The named object does not exist.
    #[error("{kind} {word} not found")]
    NotFound {
        /// `service`, `network`, `node`…
        kind: &'static str,
        /// As the caller named it.
        word: String,
    },
    /// The node was removed: its certificate is worth nothing any more.
    #[error("node {node} is not a member of the cluster: it was removed")]
    Removed {
        /// Which.
        node: NodeId,
    },
    /// A node whose program cannot read what the cluster writes.
    #[error(
        "upgrade this node: the cluster writes format {level}, its program{} reads up to {reads}",
        version(.program)
    )]
    TooOld {
        /// Its version, if it says one.
        program: String,
        /// What it reads.
        reads: u32,
        /// What the cluster writes.
        level: u32,
    },
    /// The caller's version is not the object's.
    #[error("update out of sequence")]
    OutOfSequence,
    /// The spec is wrong.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The object is still needed.
    #[error("{message}")]
    InUse {
        /// By what.
        message: String,
    },
    /// The state does not allow it.
    #[error("{message}")]
    Precondition {
        /// Why.
        message: String,
    },
    /// Keys, certificates or tokens.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store did not take the change.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// This manager is stopping.
    #[error("the manager is stopping")]
    Stopping,
    /// The manager that leads says so: everything that a client reads is as if it were said here.
    #[error(transparent)]
    Remote(#[from] RemoteFault),
    /// Nobody can lead: too many managers are not reached. Nothing was begun, or it is not known.
    #[error(
        "change the cluster: no majority of its managers {}{}",
        since.map_or_else(|| "is reached".to_owned(), |s| format!("has been reached since {s}")),
        who(missing)
    )]
    NoMajority {
        /// When that was noticed.
        since: Option<Timestamp>,
        /// Names and addresses of those that are not reached.
        missing: Vec<String>,
    },
    /// Another manager leads, or none. Nothing was begun.
    #[error("carry out a change: this manager does not lead the others")]
    NotLeading,
    /// The manager that leads could not be asked, or did not answer.
    #[error("pass a change on to the manager that leads{}", open(*.sent))]
    PassOn {
        /// Whether it may have heard of it.
        sent: bool,
        /// What is wrong with the way there.
        #[source]
        source: Box<WireError>,
    },
    /// There was no answer in time.
    #[error(
        "wait for a change to be made: no answer within {} ms{}", after.as_millis(), open(true)
    )]
    Late {
        /// How long we waited.
        after: Duration,
    },
    /// A node does not open the stream that it was asked for.
    #[error("reach node '{name}': {why}")]
    NodeAway {
        /// Its host name.
        name: String,
        /// What is known of it.
        why: String,
    },
    /// Another manager asks for something that this version does not know.
    #[error("not implemented: {name}")]
    UnknownRequest {
        /// Its name.
        name: String,
    },
    /// The manager that leads answers with something that this version does not know.
    #[error("read the leader's answer (the change is made): '{name}' is not known here")]
    UnknownReply {
        /// Its name.
        name: String,
    },
    /// A message between managers makes no sense.
    #[error("{action}: {problem}")]
    Malformed {
        /// `read a request of another manager`…
        action: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

fn who(missing: &[String]) -> String {
    if missing.is_empty() { String::new() } else { format!(": missing {}", missing.join(", ")) }
}

fn open(sent: bool) -> &'static str {
    if sent { "; it may still happen" } else { "" }
}

/// What is known of a request that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is as the error says: asking again would be answered in the same way.
    Refused,
    /// It was not begun: nobody who leads has heard of it.
    NotBegun,
    /// It may have been carried out, or may be still.
    Open,
}

/// The ids of what another manager says that is no answer to the request itself.
const OUT_OF_SEQUENCE: &str = "SH-MGR-002";
pub(crate) const REMOVED: &str = "SH-MGR-007";
const NOT_LEADING: &str = "SH-MGR-008";
const STOPPING: &str = "SH-MGR-010";
const STORE_NOT_LEADING: &str = "SH-STO-002";
const STORE_DEPOSED: &str = "SH-STO-026";
const STORE_STOPPED: &str = "SH-STO-005";

impl ControlError {
    /// What a failed call of the manager that leads means for the request that was passed on.
    #[must_use]
    pub fn passing_on(error: WireError) -> Self {
        match error {
            WireError::Remote(fault) => Self::Remote(fault),
            other => Self::PassOn { sent: other.may_have_been_heard(), source: Box::new(other) },
        }
    }

    /// Whether somebody else has changed the object meanwhile.
    #[must_use]
    pub fn is_out_of_sequence(&self) -> bool {
        self.id() == Some(FaultId(OUT_OF_SEQUENCE))
    }

    pub(crate) fn fate(&self) -> Fate {
        match self {
            Self::NotLeading | Self::PassOn { sent: false, .. } => Fate::NotBegun,
            Self::PassOn { sent: true, .. } | Self::Late { .. } => Fate::Open,
            Self::Store(StoreError::NotLeader { .. }) => Fate::NotBegun,
            Self::Store(StoreError::Deposed { .. }) => Fate::Open,
            Self::Remote(fault) => match fault.id.as_str() {
                NOT_LEADING | STORE_NOT_LEADING => Fate::NotBegun,
                STOPPING | STORE_DEPOSED | STORE_STOPPED => Fate::Open,
                _ => Fate::Refused,
            },
            _ => Fate::Refused,
        }
    }
}

fn version(program: &str) -> String {
    if program.is_empty() { String::new() } else { format!(" (version {program})") }
}

impl Fault for ControlError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::NotFound { .. } => FaultKind::NotFound,
            Self::Removed { .. } => FaultKind::Forbidden,
            Self::TooOld { .. } => FaultKind::Conflict,
            // Docker's status for it; tools match the text.
            Self::OutOfSequence => FaultKind::Internal,
            Self::Spec(spec) => spec.kind(),
            Self::InUse { .. } | Self::Precondition { .. } => FaultKind::Invalid,
            Self::Identity(identity) => identity.kind(),
            Self::Store(StoreError::Refused(ApplyError::NameTaken { .. })) => FaultKind::Conflict,
            Self::Store(store) => store.kind(),
            Self::Remote(fault) => fault.kind(),
            Self::Stopping | Self::NotLeading | Self::PassOn { .. } | Self::Late { .. } => {
                FaultKind::Unavailable
            }
            Self::NoMajority { .. } | Self::NodeAway { .. } => FaultKind::Unavailable,
            Self::UnknownRequest { .. } => FaultKind::NotImplemented,
            Self::UnknownReply { .. } | Self::Malformed { .. } => FaultKind::Internal,
        }
    }

    fn id(&self) -> Option<FaultId> {
        match self {
            Self::Spec(spec) => spec.id(),
            Self::Identity(identity) => identity.id(),
            Self::Store(store) => store.id(),
            Self::OutOfSequence => Some(FaultId(OUT_OF_SEQUENCE)),
            Self::Removed { .. } => Some(FaultId(REMOVED)),
            Self::TooOld { .. } => Some(FaultId("SH-MGR-020")),
            Self::Remote(fault) => fault.id(),
            Self::NoMajority { .. } => Some(FaultId("SH-MGR-012")),
            Self::NodeAway { .. } => Some(FaultId("SH-MGR-013")),
            Self::NotLeading => Some(FaultId(NOT_LEADING)),
            Self::PassOn { .. } | Self::Late { .. } => Some(FaultId("SH-MGR-009")),
            Self::Stopping => Some(FaultId(STOPPING)),
            Self::UnknownRequest { .. } => Some(FaultId("SH-MGR-001")),
            Self::UnknownReply { .. } | Self::Malformed { .. } => Some(FaultId("SH-MGR-011")),
            _ => None,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Identity(identity) => identity.remedy(),
            Self::Store(store) => store.remedy(),
            Self::Spec(spec) => spec.remedy(),
            Self::Remote(fault) => fault.remedy(),
            Self::NoMajority { .. } => Some(
                "start the missing managers, or check TCP 2377 between them; what runs goes on \
                 meanwhile"
                    .to_owned(),
            ),
            Self::NotLeading => Some("try again; another manager leads or will soon".to_owned()),
            Self::PassOn { .. } | Self::Late { .. } => Some(
                "check with 'docker node ls' that a majority of the managers is reachable"
                    .to_owned(),
            ),
            Self::NodeAway { .. } => Some(
                "look at its state with 'docker node ls'; a node that is ready must reach this \
                 manager at TCP 2377"
                    .to_owned(),
            ),
            Self::TooOld { .. } => Some(
                "stop its daemon, install the version of shoal that the managers run, and start it"
                    .to_owned(),
            ),
            Self::UnknownRequest { .. } => Some("upgrade the leader".to_owned()),
            Self::UnknownReply { .. } => Some("upgrade this manager".to_owned()),
            Self::Malformed { .. } => Some("run one version of shoal on all managers".to_owned()),
            Self::Removed { .. } => {
                Some("leave with 'docker swarm leave' and join again with a token".to_owned())
            }
            _ => None,
        }
    }
}

/// Why a manager did not start.
#[derive(Debug, thiserror::Error)]
pub enum ManagerError {
    /// This node's certificate cannot be used.
    #[error("use this node's certificate")]
    Identity(#[source] IdentityError),
    /// The listening address cannot be had.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl Fault for ManagerError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::Identity(identity) => identity.kind(),
            Self::Wire(wire) => wire.kind(),
        }
    }

    fn id(&self) -> Option<FaultId> {
        match self {
            Self::Identity(identity) => identity.id(),
            Self::Wire(wire) => wire.id(),
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::Identity(identity) => identity.remedy(),
            Self::Wire(wire) => wire.remedy(),
        }
    }
}
