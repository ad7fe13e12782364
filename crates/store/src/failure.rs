//! What the database library's errors mean to us: a full disk, a failing one, or a damaged file.

use std::io::{self, ErrorKind};
use std::path::Path;

use crate::error::StoreError;

/// One of the library's errors.
pub(crate) trait DiskFailure {
    /// What it means when `action` was tried on the file at `path`.
    fn at(self, action: &'static str, path: &Path) -> StoreError;
}

impl<E: Into<redb::Error>> DiskFailure for E {
    fn at(self, action: &'static str, path: &Path) -> StoreError {
        let error = self.into();
        let damaged = |problem: String| {
            let path = path.to_owned();
            StoreError::Damaged { action, path, problem }
        };
        match error {
            redb::Error::Io(error) => match error.kind() {
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof => damaged(error.to_string()),
                _ => io_failure(action, &error),
            },
            redb::Error::Corrupted(problem) => damaged(problem),
            error @ (redb::Error::TableDoesNotExist(_)
            | redb::Error::TableTypeMismatch { .. }
            | redb::Error::TypeDefinitionChanged { .. }
            | redb::Error::TableIsMultimap(_)
            | redb::Error::UpgradeRequired(_)
            | redb::Error::RepairAborted) => damaged(error.to_string()),
            error @ (redb::Error::PreviousIo | redb::Error::DatabaseClosed) => {
                StoreError::Failing { problem: error.to_string() }
            }
            other => StoreError::Disk { action, problem: other.to_string() },
        }
    }
}

/// An error of the system.
pub(crate) fn io_failure(action: &'static str, error: &io::Error) -> StoreError {
    let problem = error.to_string();
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            StoreError::Full { problem }
        }
        _ => StoreError::Disk { action, problem },
    }
}
