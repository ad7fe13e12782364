//! What is kept of a membership, beside the identity and the store.

use std::fs;
use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_model::spec::node::NodeRole;

use crate::error::NodeError;

/// The format of the file.
const FORMAT: u32 = 1;

/// A membership. Its file is written last when a node joins and removed first when it leaves, so
/// that a crash in between leaves no half a membership: without this file, the rest is swept away.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    format: u32,
    /// What this node does.
    pub role: NodeRole,
    /// Where it listens as a manager.
    pub listen: SocketAddr,
    /// What other nodes are told.
    pub advertise: SocketAddr,
    /// Where its VXLAN frames come from.
    pub data_path: IpAddr,
    /// Managers that were known when it joined.
    pub managers: Vec<String>,
}

impl Record {
    /// A new record.
    #[must_use]
    pub fn new(
        role: NodeRole,
        listen: SocketAddr,
        advertise: SocketAddr,
        data_path: IpAddr,
        managers: Vec<String>,
    ) -> Self {
        Self { format: FORMAT, role, listen, advertise, data_path, managers }
    }
}

/// The folder of a membership.
#[derive(Clone, Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// Below the data root.
    #[must_use]
    pub fn new(data_root: &Path) -> Self {
        Self(data_root.join("swarm"))
    }

    /// Where the identity is.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.0.join("identity.json")
    }

    /// Where the store is.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.0.join("store")
    }

    fn file(&self) -> PathBuf {
        self.0.join("node.json")
    }

    /// Makes the folder, empty.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn prepare(&self) -> Result<(), NodeError> {
        self.sweep()?;
        fs::create_dir_all(&self.0).map_err(|source| self.failed("write", source))
    }

    /// Reads the record; `None` if this node is no member.
    ///
    /// # Errors
    /// The file cannot be read or has another format.
    pub fn read(&self) -> Result<Option<Record>, NodeError> {
        let bytes = match fs::read(self.file()) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(self.failed("read", source)),
        };
        let record: Record =
            serde_json::from_slice(&bytes).map_err(|error| self.failed("read", error.into()))?;
        if record.format != FORMAT {
            let (path, found) = (self.file(), record.format);
            return Err(NodeError::Format { path, found, known: FORMAT });
        }
        Ok(Some(record))
    }

    /// Writes the record: from now on this node is a member.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn write(&self, record: &Record) -> Result<(), NodeError> {
        let write = || -> std::io::Result<()> {
            let beside = self.0.join("node.new");
            let mut file = fs::File::create(&beside)?;
            file.write_all(&serde_json::to_vec_pretty(record)?)?;
            file.sync_all()?;
            fs::rename(&beside, self.file())?;
            fs::File::open(&self.0)?.sync_all()
        };
        write().map_err(|source| self.failed("write", source))
    }

    /// Removes everything: this node is no member.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn sweep(&self) -> Result<(), NodeError> {
        for remove in [fs::remove_file(self.file()), fs::remove_dir_all(&self.0)] {
            match remove {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(self.failed("remove", error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn failed(&self, action: &'static str, source: std::io::Error) -> NodeError {
        NodeError::File { action, path: self.0.clone(), source }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_membership_is_kept_and_swept() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::new(dir.path());
        assert_eq!(folder.read().unwrap(), None);
        folder.prepare().unwrap();
        let record = Record::new(
            NodeRole::Worker,
            "0.0.0.0:2377".parse().unwrap(),
            "192.0.2.1:2377".parse().unwrap(),
            "192.0.2.1".parse().unwrap(),
            vec!["192.0.2.2:2377".into()],
        );
        folder.write(&record).unwrap();
        assert_eq!(folder.read().unwrap(), Some(record));
        folder.sweep().unwrap();
        folder.sweep().unwrap();
        assert_eq!(folder.read().unwrap(), None);
    }
}
