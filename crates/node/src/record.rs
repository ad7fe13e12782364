//! What is kept of a membership, beside the identity and the store.

use std::fs;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use shoal_model::spec::node::NodeRole;
use shoal_store::Keyring;

use crate::error::NodeError;

/// The format of the file.
const FORMAT: u32 = 1;
/// Longest file that is read. Ours has some hundred bytes.
const LEN_MAX: u64 = 1024 * 1024;
/// The store's folder.
const STORE: &str = "store";

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
    /// Of a manager whose store nobody can have reached yet: the number that it is made with. A
    /// store that is missing without this is lost, and never made anew under its number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opening: Option<u64>,
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
        let opening = None;
        Self { format: FORMAT, role, listen, advertise, data_path, managers, opening }
    }

    /// The same node as a worker, which goes to `managers`.
    #[must_use]
    pub fn as_worker(&self, managers: Vec<String>) -> Self {
        Self { role: NodeRole::Worker, managers, opening: None, ..self.clone() }
    }

    /// The same node as a manager whose store is still to be made.
    #[must_use]
    pub fn as_opening(&self, raft_id: u64) -> Self {
        Self { role: NodeRole::Manager, opening: Some(raft_id), ..self.clone() }
    }

    /// The same node as a manager whose store is there.
    #[must_use]
    pub fn as_manager(&self) -> Self {
        Self { role: NodeRole::Manager, opening: None, ..self.clone() }
    }

    /// Whether `addr` is where this node itself is a manager.
    #[must_use]
    pub fn is_own(&self, addr: &str) -> bool {
        [self.advertise, self.listen].iter().any(|own| own.to_string() == addr)
    }
}

/// The folder of a membership.
#[derive(Clone, Debug)]
pub struct Folder {
    path: PathBuf,
    /// What a manager's files are sealed with.
    keyring: Keyring,
    /// Held while the identity is replaced.
    pub(crate) replacing: Arc<Mutex<()>>,
}

impl Folder {
    /// Below the data root.
    #[must_use]
    pub fn new(data_root: &Path) -> Self {
        let path = data_root.join("swarm");
        let keyring = Keyring::of(&path.join(STORE));
        Self { path, keyring, replacing: Arc::default() }
    }

    /// What a manager's files are sealed with.
    #[must_use]
    pub fn keyring(&self) -> &Keyring {
        &self.keyring
    }

    /// Where the identity is.
    #[must_use]
    pub fn identity(&self) -> PathBuf {
        self.path.join("identity.json")
    }

    /// Where the store is.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path.join(STORE)
    }

    fn file(&self) -> PathBuf {
        self.path.join("node.json")
    }

    /// Makes the folder, empty.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn prepare(&self) -> Result<(), NodeError> {
        self.sweep()?;
        shoal_durable::make_private_dir(&self.path).map_err(|source| self.failed("write", source))
    }

    /// Reads the record; `None` if this node is no member.
    ///
    /// # Errors
    /// The file cannot be read or has another format.
    pub fn read(&self) -> Result<Option<Record>, NodeError> {
        let read = shoal_durable::read_json::<Record>(&self.file(), LEN_MAX);
        let Some(record) = read.map_err(|source| self.record_failed("read", source))? else {
            return Ok(None);
        };
        // Ignored because: it matters for folders of earlier versions only, which everybody could
        // read; a file system that refuses must not keep a member out.
        let _ = shoal_durable::make_private_dir(&self.path);
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
        shoal_durable::replace_json(&self.file(), record)
            .map_err(|source| self.record_failed("write", source))
    }

    /// Removes the record: from now on this node is no member, and the rest is leftovers.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn forget(&self) -> Result<(), NodeError> {
        match fs::remove_file(self.file()) {
            Ok(()) => {
                shoal_durable::sync_dir(&self.path).map_err(|source| self.failed("sync", source))
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Err(error) => Err(self.record_failed("remove", error)),
        }
    }

    /// Whether there are files of a store.
    #[must_use]
    pub fn has_store(&self) -> bool {
        self.store().exists()
    }

    /// Removes the store.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn sweep_store(&self) -> Result<(), NodeError> {
        self.keyring.forget();
        let path = self.store();
        match fs::remove_dir_all(&path) {
            Err(source) if source.kind() != ErrorKind::NotFound => {
                Err(NodeError::File { action: "remove", path, source })
            }
            _ => Ok(()),
        }
    }

    /// Removes everything: this node is no member.
    ///
    /// # Errors
    /// The file system refuses.
    pub fn sweep(&self) -> Result<(), NodeError> {
        self.forget()?;
        self.keyring.forget();
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed("remove", error)),
            _ => Ok(()),
        }
    }

    fn record_failed(&self, action: &'static str, source: std::io::Error) -> NodeError {
        NodeError::File { action, path: self.file(), source }
    }

    fn failed(&self, action: &'static str, source: std::io::Error) -> NodeError {
        NodeError::File { action, path: self.path.clone(), source }
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
