//! Which beginning of the cluster a store goes back to. A group that was recovered without its
//! majority, or from a backup, begins a new epoch: who is of another one has other entries in the
//! same places, and is not listened to.

use serde::{Deserialize, Serialize};

use crate::disk::{Disk, EPOCH_RECORD, Op};
use crate::error::StoreError;
use crate::log_store::encode;
use crate::record::RECORD_VERSION;

/// The beginning that a store goes back to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Epoch {
    /// Drawn anew at each beginning; 0 in stores of before there were epochs.
    pub id: u64,
    /// The entry with which it began here: members with numbers up to this are of an earlier epoch,
    /// but for the one that began it. 0 where nothing was before, or where somebody else knows.
    pub since: u64,
}

impl Epoch {
    /// A new one by the number `random`, which begins with the entry `since`.
    pub(crate) fn begin(since: u64, random: u64) -> Self {
        // Never 0, which means that there was none.
        Self { id: random | 1, since }
    }
}

/// What is kept. `None`: this member joins, and takes the epoch of the leader that adds it.
#[derive(Serialize, Deserialize)]
pub(crate) struct EpochRecord {
    v: u32,
    epoch: Option<Epoch>,
}

impl EpochRecord {
    pub(crate) fn encode(epoch: Option<Epoch>) -> Result<Vec<u8>, StoreError> {
        encode(EPOCH_RECORD, &Self { v: RECORD_VERSION, epoch })
    }
}

impl Disk {
    /// The epoch on disk.
    pub(crate) fn epoch(&self) -> Result<Option<Epoch>, StoreError> {
        let Some(bytes) = self.meta(EPOCH_RECORD)? else { return Ok(Some(Epoch::default())) };
        Ok(self.decode::<EpochRecord>(EPOCH_RECORD, &bytes)?.epoch)
    }

    /// Keeps the epoch of the group that this member was added to.
    pub(crate) async fn join_epoch(&self, id: u64) -> Result<Epoch, StoreError> {
        let epoch = Epoch { id, since: 0 };
        self.write(vec![Op::PutMeta(EPOCH_RECORD, EpochRecord::encode(Some(epoch))?)]).await?;
        Ok(epoch)
    }
}
