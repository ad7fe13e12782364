//! One commit to the file, and what the file is known to hold since the last one.

use redb::{Database, ReadableTable as _, Table};

use crate::disk::{
    COMMITTED_RECORD, LOG, META, Op, PURGED_RECORD, SNAPSHOT, SNAPSHOT_RECORD, TAIL_RECORD,
    log_record, meta_record, piece_record,
};
use crate::record::{EntryRecord, LogIdRecord};
use crate::seal::Sealer;

/// What is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    /// The log's last entry, or up to where it was dropped if none is left.
    pub(crate) tail: Option<LogIdRecord>,
    /// The last entry in the snapshot.
    pub(crate) snapshot: Option<LogIdRecord>,
    /// Up to where entries are known to be confirmed.
    pub(crate) committed: Option<LogIdRecord>,
}

/// Carries out `ops` in one commit, with the news of what is `committed`.
pub(crate) fn commit<'a>(
    database: &Database,
    sealer: &Sealer,
    held: Held,
    committed: Option<LogIdRecord>,
    ops: impl Iterator<Item = &'a Op>,
) -> Result<Held, redb::Error> {
    let txn = database.begin_write()?;
    let mut tables = Tables {
        meta: txn.open_table(META)?,
        log: txn.open_table(LOG)?,
        snapshot: txn.open_table(SNAPSHOT)?,
        sealer,
        held,
        moved: false,
    };
    for op in ops {
        tables.carry_out(op)?;
    }
    if tables.moved {
        let tail = tables.tail()?;
        tables.held.tail = tail;
        tables.put_meta(TAIL_RECORD, &encode(&tail)?)?;
    }
    if committed > held.committed {
        tables.held.committed = committed;
        tables.put_meta(COMMITTED_RECORD, &encode(&committed)?)?;
    }
    let held = tables.held;
    drop(tables);
    // The default durability: on disk when `commit` returns.
    txn.commit()?;
    Ok(held)
}

struct Tables<'txn> {
    meta: Table<'txn, &'static str, &'static [u8]>,
    log: Table<'txn, u64, &'static [u8]>,
    snapshot: Table<'txn, u32, &'static [u8]>,
    sealer: &'txn Sealer,
    /// `tail` is the last entry that was put, until all is carried out.
    held: Held,
    /// Whether the log's end may be another one now.
    moved: bool,
}

impl Tables<'_> {
    fn carry_out(&mut self, op: &Op) -> Result<(), redb::Error> {
        match op {
            Op::PutMeta(name, value) => self.put_meta(name, value)?,
            Op::PutLog(at, value) => {
                let sealed = self.seal(&log_record(at.index), value)?;
                self.log.insert(at.index, sealed.as_slice())?;
                self.held.tail = Some(*at);
                self.moved = true;
            }
            Op::RemoveLog(range) => {
                self.log.retain_in(range.clone(), |_, _| false)?;
                self.moved = true;
            }
            Op::PutSnapshot { last, description, pieces } => {
                // Snapshots are made beside each other. The log behind the newer one may be gone
                // already: the older one must not take its place.
                if self.held.snapshot.is_some() && *last <= self.held.snapshot {
                    return Ok(());
                }
                self.put_meta(SNAPSHOT_RECORD, description)?;
                self.snapshot.retain(|_, _| false)?;
                for (number, piece) in (0u32..).zip(pieces) {
                    let sealed = self.seal(&piece_record(number), piece)?;
                    self.snapshot.insert(number, sealed.as_slice())?;
                }
                self.held.snapshot = *last;
            }
        }
        Ok(())
    }

    fn put_meta(&mut self, name: &'static str, value: &[u8]) -> Result<(), redb::Error> {
        let sealed = self.seal(&meta_record(name), value)?;
        self.meta.insert(name, sealed.as_slice())?;
        Ok(())
    }

    /// Where the log ends now.
    fn tail(&self) -> Result<Option<LogIdRecord>, redb::Error> {
        let last = self.log.range(0u64..)?.next_back().transpose()?;
        let Some((index, sealed)) = last else {
            let purged = self.meta.get(PURGED_RECORD)?;
            let Some(sealed) = purged else { return Ok(None) };
            return self.open(&meta_record(PURGED_RECORD), sealed.value()).map(Some);
        };
        let index = index.value();
        if let Some(known) = self.held.tail.filter(|known| known.index == index) {
            return Ok(Some(known));
        }
        let entry: EntryRecord = self.open(&log_record(index), sealed.value())?;
        Ok(Some(entry.at))
    }

    fn seal(&self, record: &str, value: &[u8]) -> Result<Vec<u8>, redb::Error> {
        self.sealer.seal(record, value).map_err(|e| redb::Error::Corrupted(e.to_string()))
    }

    fn open<T: serde::de::DeserializeOwned>(
        &self,
        record: &str,
        sealed: &[u8],
    ) -> Result<T, redb::Error> {
        let damaged = |e: &dyn std::fmt::Display| {
            redb::Error::Corrupted(format!("the record '{record}' cannot be read: {e}"))
        };
        let plain = self.sealer.open(record, sealed).map_err(|e| damaged(&e))?;
        serde_json::from_slice(&plain).map_err(|e| damaged(&e))
    }
}

fn encode(at: &Option<LogIdRecord>) -> Result<Vec<u8>, redb::Error> {
    serde_json::to_vec(at).map_err(|e| redb::Error::Corrupted(e.to_string()))
}
