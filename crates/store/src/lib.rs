//! The replicated, watchable object store: consensus library, log and snapshots on disk (sealed),
//! transactions with compare-and-set versions.
//!
//! The state machine is [`shoal_model::cluster_state::ClusterState`], held in memory; the disk
//! holds the log and the last snapshot in one file. A transaction that [`Store::propose`] has
//! answered is on disk and survives a crash at any later moment.
//!
//! **Invariants**: everything that is written goes through the log; one process at a time has the
//! file open; every value on disk is encrypted and bound to its place; no call waits without bound.
//!
//! Nothing outside of this crate sees the consensus library. Begin reading at [`Store`].

#![forbid(unsafe_code)]

mod consensus;
mod disk;
mod error;
mod log_store;
mod proposer;
mod seal;
mod state_machine;
mod store;

pub use error::StoreError;
pub use proposer::{PROPOSE_DEADLINE, TRANSACTION_BYTES_MAX};
pub use store::{ChangeEvent, Changes, Store, StoreConfig};
