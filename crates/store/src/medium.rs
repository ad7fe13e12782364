//! What lies beneath the store's file. A file, as a rule; tests put something there that fails, or
//! forgets what was never synced.

use std::fmt::Debug;
use std::io;
use std::path::Path;
use std::sync::Arc;

use redb::{Builder, Database, DatabaseError, StorageBackend};

/// Memory for cached pages: the whole log and snapshot of a usual cluster fit.
const CACHE_BYTES: usize = 16 << 20;

/// The bytes of one open file.
pub trait Medium: Debug + Send + Sync + 'static {
    /// How many there are.
    ///
    /// # Errors
    /// As of a file.
    fn len(&self) -> io::Result<u64>;

    /// Whether there are none.
    ///
    /// # Errors
    /// As of a file.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Reads all of `out` from `offset` on.
    ///
    /// # Errors
    /// As of a file.
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;

    /// Writes all of `data` from `offset` on. It may be lost, or a part of it, until the next sync.
    ///
    /// # Errors
    /// As of a file.
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()>;

    /// Cuts it, or makes it longer by zeros.
    ///
    /// # Errors
    /// As of a file.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes durable what was written.
    ///
    /// # Errors
    /// As of a file.
    fn sync(&self) -> io::Result<()>;

    /// From now on it lies at `path`, in place of what was there.
    fn renamed(&self, _path: &Path) {}
}

/// Opens the medium in place of the file at a path.
pub type OpenMedium = Arc<dyn Fn(&Path) -> io::Result<Box<dyn Medium>> + Send + Sync>;

/// A medium, as the database library asks for it. The store locks nothing but its file.
#[derive(Debug)]
struct Beneath(Arc<dyn Medium>);

impl StorageBackend for Beneath {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// Opens the database at `path`, or the medium in its place. Every page is read and compared with
/// its checksum: only after a crash is it known that the last commit may be torn; a file that was
/// closed and is not what was written then is refused.
pub(crate) fn open(path: &Path, medium: Option<&OpenMedium>) -> Result<Database, DatabaseError> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES).set_check_integrity_on_open(true);
    match medium {
        None => builder.open(path),
        Some(open) => {
            let medium = open(path).map_err(|e| DatabaseError::Storage(e.into()))?;
            builder.create_with_backend(Beneath(medium.into()))
        }
    }
}

/// A new database, and the medium beneath it, if it is no file.
pub(crate) type Made = (Database, Option<Arc<dyn Medium>>);

/// Makes an empty database at `path`, where nothing is, on the medium that lies in place of files.
pub(crate) fn make(path: &Path, medium: Option<&OpenMedium>) -> Result<Made, DatabaseError> {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    let Some(open) = medium else { return Ok((builder.create(path)?, None)) };
    let failed = |e: io::Error| DatabaseError::Storage(e.into());
    std::fs::File::create(path).map_err(failed)?;
    let medium: Arc<dyn Medium> = open(path).map_err(failed)?.into();
    Ok((builder.create_with_backend(Beneath(Arc::clone(&medium)))?, Some(medium)))
}
