//! Small JSON files, written so that a crash leaves the old or the new text, never half of it.

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::AgentError;

/// Reads a file; `None` if there is none.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, AgentError> {
    let failed = |source| AgentError::ReadFile { path: path.to_path_buf(), source };
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into()))
}

/// Writes a file: beside it first, to the disk, then in its place.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<(), AgentError> {
    let write = || -> std::io::Result<()> {
        let beside = path.with_extension("new");
        let mut file = fs::File::create(&beside)?;
        file.write_all(&serde_json::to_vec_pretty(value)?)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        if let Some(dir) = path.parent() {
            fs::File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|source| AgentError::WriteFile { path: path.to_path_buf(), source })
}
