//! The replicated, watchable object store: consensus library, log and snapshots on disk (sealed),
//! transactions with compare-and-set versions.
//!
//! The state machine is [`shoal_model::cluster_state::ClusterState`], held in memory; the disk
//! holds the log and the last snapshot in one file. A transaction that [`Store::propose`] has
//! answered is on disk and survives a crash at any later moment.
//!
//! A disk that fails or is full ends the consensus library, but not the store: its life (`life`)
//! closes the file and opens it again until it can write. Meanwhile everything can be read, writes
//! fail at once, and this member does not lead.
//!
//! Other members are asked by [`Peers`] and ask by [`Door`]; what carries the questions is somebody
//! else's business. Who leads is [`Store::lead`], who is in the group [`Store::group`].
//!
//! **Invariants**: everything that is written goes through the log; one process at a time has the
//! file open; every value on disk is encrypted and bound to its place; no call waits without bound;
//! what was shown to a reader is never taken back.
//!
//! Nothing outside of this crate sees the consensus library. Begin reading at [`Store`].

#![forbid(unsafe_code)]

mod backup;
mod ceiling;
mod commit;
mod consensus;
mod core;
mod disk;
mod door;
mod epoch;
mod error;
mod failure;
mod first_format;
mod group;
mod keyring;
mod lead;
mod leadership;
mod life;
mod links;
mod log_store;
mod medium;
mod network;
mod outside;
mod peer;
mod proposer;
mod pulse;
mod question;
mod reach;
mod read;
mod record;
mod recover;
mod reseal;
mod seal;
mod state_machine;
#[cfg(test)]
mod storage_tests;
mod store;
mod unlock;

pub use backup::{Backup, BackupError, BackupHead};
pub use door::Door;
pub use epoch::Epoch;
pub use error::StoreError;
pub use group::{Group, GroupStep, LAG_MAX};
pub use keyring::{Keyring, SealedAside};
pub use lead::Lead;
pub use medium::{Medium, OpenMedium};
pub use outside::{Machine, Outside, Unfinished, Work, offloaded};
pub use peer::{Lane, Member, NoPeers, PeerError, Peers};
pub use proposer::{PROPOSE_DEADLINE, TRANSACTION_BYTES_MAX};
pub use reach::LogEnd;
pub use recover::{Recovered, recover_alone, restore};
pub use store::{ChangeEvent, Changes, FIRST_RAFT_ID, Store, StoreConfig};
pub use unlock::UnlockKey;
