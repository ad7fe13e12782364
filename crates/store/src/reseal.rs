//! Sealing the whole store with another key: everything is written into a new file, which then
//! takes the old one's place. Written in place, pages that are free again would keep what
//! was sealed with the old key.

use std::fs;
use std::path::Path;

use redb::{Database, ReadableDatabase as _, ReadableTable as _};

use crate::disk::{
    FORMAT_RECORD, KEY_RECORD, LOG, META, SNAPSHOT, log_record, meta_record, piece_record, remove,
};
use crate::error::StoreError;
use crate::failure::{DiskFailure as _, io_failure};
use crate::medium::{self, Made, OpenMedium};
use crate::seal::Sealer;

const ACTION: &str = "seal anew";

/// Writes everything of `from` into a new file beside `path`, sealed by `new` of `generation`, and
/// puts that in its place. After a crash the one or the other is there, whole.
pub(crate) fn rewrite(
    (from, old): (&Database, &Sealer),
    path: &Path,
    medium: Option<&OpenMedium>,
    (generation, new): (u64, &Sealer),
) -> Result<Database, StoreError> {
    let next = path.with_extension("next");
    let failed = |e: &std::io::Error| io_failure(ACTION, e);
    remove(&next).map_err(|e| failed(&e))?;
    let made = medium::make(&next, medium).map_err(|e| e.at(ACTION, &next));
    let placed = made.and_then(|(database, medium): Made| {
        let copy = Copy { from, old, to: &database, new };
        copy.all(generation).map_err(|e| e.at(ACTION, path))?;
        fs::rename(&next, path).map_err(|e| failed(&e))?;
        if let Some(medium) = medium {
            medium.renamed(path);
        }
        Ok(database)
    });
    if placed.is_err() {
        // Ignored because: what failed is said; what is left is removed before the next attempt.
        let _ = remove(&next);
    }
    placed
}

struct Copy<'a> {
    from: &'a Database,
    old: &'a Sealer,
    to: &'a Database,
    new: &'a Sealer,
}

impl Copy<'_> {
    fn all(&self, generation: u64) -> Result<(), redb::Error> {
        let there = self.from.begin_read()?;
        let txn = self.to.begin_write()?;
        {
            let mut meta = txn.open_table(META)?;
            for item in there.open_table(META)?.iter()? {
                let (name, value) = item?;
                match name.value() {
                    KEY_RECORD => {}
                    FORMAT_RECORD => drop(meta.insert(FORMAT_RECORD, value.value())?),
                    name => {
                        let sealed = self.anew(&meta_record(name), value.value())?;
                        meta.insert(name, sealed.as_slice())?;
                    }
                }
            }
            meta.insert(KEY_RECORD, generation.to_le_bytes().as_slice())?;
            let mut log = txn.open_table(LOG)?;
            for item in there.open_table(LOG)?.iter()? {
                let (index, value) = item?;
                let sealed = self.anew(&log_record(index.value()), value.value())?;
                log.insert(index.value(), sealed.as_slice())?;
            }
            let mut snapshot = txn.open_table(SNAPSHOT)?;
            for item in there.open_table(SNAPSHOT)?.iter()? {
                let (number, value) = item?;
                let sealed = self.anew(&piece_record(number.value()), value.value())?;
                snapshot.insert(number.value(), sealed.as_slice())?;
            }
        }
        Ok(txn.commit()?)
    }

    fn anew(&self, record: &str, sealed: &[u8]) -> Result<Vec<u8>, redb::Error> {
        let damaged = |e: StoreError| redb::Error::Corrupted(e.to_string());
        let plain = self.old.open(record, sealed).map_err(damaged)?;
        self.new.seal(record, &plain).map_err(damaged)
    }
}
