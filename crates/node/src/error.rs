//! What can go wrong in a node's life.

use std::io::ErrorKind;
use std::net::IpAddr;
use std::path::PathBuf;

use shoal_identity::error::IdentityError;
use shoal_manager::error::{ControlError, ManagerError};
use shoal_manager::reach::Farther;
use shoal_model::fault::{Fault, FaultId, FaultKind};
use shoal_store::{BackupError, StoreError};
use shoal_wire::error::WireError;

/// A failure of a node's life.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// It is a member already.
    #[error(
        "This node is already part of a swarm. Use \"docker swarm leave\" to leave this swarm and \
         join another one."
    )]
    AlreadyMember,
    /// It is no member.
    #[error("This node is not part of a swarm")]
    NotMember,
    /// The last manager does not leave by accident.
    #[error(
        "You are attempting to leave the swarm on a node that is participating as a manager. \
         Removing the last manager erases all current state of the swarm. Use `--force` to ignore \
         this message. "
    )]
    LastManager,
    /// A swarm whose managers are a majority goes on by itself.
    #[error(
        "begin the swarm again from this manager alone: a majority of its managers answers, so \
         nothing has to be recovered"
    )]
    HasMajority,
    /// Another manager that answers has more, some of which may have been acknowledged.
    #[error(
        "begin the swarm again from this manager alone: manager {}, which answers, has changes \
         that are not here; its log ends at entry {} of term {}, this one's at entry {} of term {}",
        farther.name, farther.there.index, farther.there.term, farther.here.index,
        farther.here.term
    )]
    Behind {
        /// Which.
        farther: Farther,
    },
    /// A worker has no state of the swarm.
    #[error("begin the swarm again from this node alone: it is no manager")]
    NotManager,
    /// A manager whose unlock key nobody has given.
    #[error(
        "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"docker \
         swarm unlock\" to unlock it."
    )]
    Locked,
    /// A locked manager does not leave by accident.
    #[error(
        "Swarm is encrypted and locked. Please unlock it first or use `--force` to ignore this \
         message."
    )]
    LeaveLocked,
    /// There is nothing to unlock.
    #[error("swarm is not locked")]
    NotLocked,
    /// Another unlock key is the one.
    #[error("swarm could not be unlocked: invalid key provided")]
    WrongUnlockKey,
    /// A manager among others does not leave by accident either.
    #[error(
        "You are attempting to leave the swarm on a node that is participating as a manager. \
         Removing this node leaves {rest} managers out of {all}. Use `--force` to take it out of \
         the managers and to leave. "
    )]
    OneOfManagers {
        /// How many others vote.
        rest: usize,
        /// How many vote now.
        all: usize,
    },
    /// Another init, join or leave is under way.
    #[error("another change of this node's membership is under way")]
    Busy,
    /// The daemon is stopping.
    #[error("the daemon is stopping")]
    Stopping,
    /// A step of an init, join or leave broke off by a fault in this program.
    #[error("a step of this change of membership broke off: {problem}")]
    BrokeOff {
        /// What the panic said.
        problem: String,
    },
    /// Shoal does not have this yet.
    #[error("not implemented: {what}")]
    NotImplemented {
        /// What.
        what: String,
    },
    /// An address cannot be one.
    #[error("{what} address '{text}' is not valid: {problem}")]
    Address {
        /// `listen`, `advertise`, `data path`, `manager`.
        what: &'static str,
        /// What was given.
        text: String,
        /// Why not.
        problem: String,
    },
    /// No address to advertise could be found, or several.
    #[error(
        "could not choose an IP address to advertise since this system has {}",
        found(candidates)
    )]
    NoAdvertiseAddress {
        /// What there is.
        candidates: Vec<(String, IpAddr)>,
    },
    /// The advertised address is not on this machine.
    #[error("advertise address {address} is not on any interface of this machine")]
    NotOwnAddress {
        /// The address.
        address: IpAddr,
    },
    /// A file cannot be read or written.
    #[error("{action} '{}'", path.display())]
    File {
        /// `read`, `write`, `remove`.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The record of the membership has another format.
    #[error("'{}' has format {found}, this version knows {known}", path.display())]
    Format {
        /// Which file.
        path: PathBuf,
        /// What it says.
        found: u32,
        /// What is known.
        known: u32,
    },
    /// Keys, certificates or tokens.
    #[error("{action}")]
    Identity {
        /// What was being done.
        action: &'static str,
        /// Why.
        #[source]
        source: IdentityError,
    },
    /// No manager let this node in.
    #[error("join the swarm at '{addr}'")]
    Join {
        /// The last manager that was tried.
        addr: String,
        /// Why.
        #[source]
        source: WireError,
    },
    /// No manager renewed this node's certificate.
    #[error("renew this node's certificate at '{addr}'")]
    Renew {
        /// The last manager that was asked.
        addr: String,
        /// Why.
        #[source]
        source: WireError,
    },
    /// The store of the cluster's state.
    #[error("{action} the cluster's state")]
    Store {
        /// `create`, `open`.
        action: &'static str,
        /// Why.
        #[source]
        source: StoreError,
    },
    /// A backup that cannot be used.
    #[error("restore the swarm")]
    Backup(#[source] BackupError),
    /// The manager did not start.
    #[error("start the manager")]
    Manager(#[source] ManagerError),
    /// The manager did not make the ingress network.
    #[error("make the ingress network")]
    Ingress(#[source] ControlError),
    /// The settings of a swarm that is to begin make no sense.
    #[error(transparent)]
    Settings(ControlError),
}

fn found(candidates: &[(String, IpAddr)]) -> String {
    if candidates.is_empty() {
        return "no address that other nodes could reach".to_owned();
    }
    let list: Vec<String> =
        candidates.iter().map(|(link, address)| format!("{address} on {link}")).collect();
    format!("multiple addresses ({})", list.join(", "))
}

impl NodeError {
    /// Whether a manager's files are wrapped by an unlock key that was not given.
    pub(crate) fn is_locked(&self) -> bool {
        matches!(self, Self::Store { source: StoreError::Locked { .. }, .. })
    }
}

impl Fault for NodeError {
    fn kind(&self) -> FaultKind {
        match self {
            Self::AlreadyMember
            | Self::NotMember
            | Self::LastManager
            | Self::OneOfManagers { .. }
            | Self::Locked
            | Self::LeaveLocked
            | Self::Busy
            | Self::HasMajority
            | Self::Behind { .. }
            | Self::NotManager
            | Self::Stopping => FaultKind::Unavailable,
            Self::NotLocked => FaultKind::Conflict,
            Self::WrongUnlockKey => FaultKind::Unauthorized,
            Self::NotImplemented { .. } => FaultKind::NotImplemented,
            Self::Address { .. } | Self::NoAdvertiseAddress { .. } | Self::NotOwnAddress { .. } => {
                FaultKind::Invalid
            }
            Self::Identity { source, .. } => source.kind(),
            Self::Join { source, .. } | Self::Renew { source, .. } => source.kind(),
            Self::Store { source, .. } => source.kind(),
            Self::Backup(source) => source.kind(),
            Self::Manager(source) => source.kind(),
            Self::Ingress(source) | Self::Settings(source) => source.kind(),
            Self::File { .. } | Self::Format { .. } | Self::BrokeOff { .. } => FaultKind::Internal,
        }
    }

    fn id(&self) -> Option<FaultId> {
        match self {
            Self::NoAdvertiseAddress { .. } => Some(FaultId("SH-NOD-001")),
            Self::NotOwnAddress { .. } => Some(FaultId("SH-NOD-002")),
            Self::Format { .. } => Some(FaultId("SH-NOD-003")),
            Self::NotImplemented { .. } => Some(FaultId("SH-NOD-004")),
            Self::HasMajority => Some(FaultId("SH-NOD-020")),
            Self::NotManager => Some(FaultId("SH-NOD-021")),
            Self::WrongUnlockKey => Some(FaultId("SH-NOD-022")),
            Self::Behind { .. } => Some(FaultId("SH-NOD-023")),
            Self::Identity { source, .. } => source.id(),
            Self::Join { source, .. } | Self::Renew { source, .. } => source.id(),
            Self::Store { source, .. } => source.id(),
            Self::Backup(source) => source.id(),
            Self::Manager(source) => source.id(),
            Self::Ingress(source) | Self::Settings(source) => source.id(),
            _ => None,
        }
    }

    fn remedy(&self) -> Option<String> {
        match self {
            Self::NoAdvertiseAddress { .. } => Some("specify one with --advertise-addr".to_owned()),
            Self::HasMajority => {
                Some("remove managers with 'docker node demote' and 'docker node rm'".to_owned())
            }
            Self::Behind { farther: Farther { name, .. } } => Some(format!(
                "run the command on {name}, which this manager then follows as a worker; to go on \
                 without these changes, stop Shoal there first"
            )),
            Self::WrongUnlockKey => Some(
                "give the key of when this manager was last up; if it was off during a rotation \
                 that is the one of before"
                    .to_owned(),
            ),
            Self::NotManager => Some("use a node that is a manager".to_owned()),
            Self::NotOwnAddress { .. } => {
                Some("advertise an address of this machine (see `ip address`)".to_owned())
            }
            Self::Format { .. } => Some("start the version that wrote it".to_owned()),
            Self::File { action: "read", path, source }
                if source.kind() == ErrorKind::InvalidData =>
            {
                Some(format!(
                    "put '{}' back as it was; or leave with 'docker swarm leave --force' and join \
                     again",
                    path.display()
                ))
            }
            Self::Identity { source, .. } => source.remedy(),
            Self::Join { source, .. } | Self::Renew { source, .. } => source.remedy(),
            Self::Store { source, .. } => source.remedy(),
            Self::Backup(source) => source.remedy(),
            Self::Manager(source) => source.remedy(),
            Self::Ingress(source) | Self::Settings(source) => source.remedy(),
            _ => None,
        }
    }
}
