//! What a manager's files are sealed with: its identity as it is kept, and the task that has
//! everything sealed as the cluster wants it.

use std::sync::PoisonError;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_identity::error::IdentityError;
use shoal_identity::node_identity::NodeIdentity;
use shoal_model::fault::report;
use shoal_model::id::NodeId;
use shoal_model::object::Cluster;
use shoal_model::spec::node::NodeRole;
use shoal_store::{SealedAside, Store, StoreError, UnlockKey};

use crate::error::NodeError;
use crate::record::Folder;

/// The version of an identity's file that is sealed; in clear it is of the first one.
const SEALED_VERSION: u32 = 2;
/// Largest file that is read. Ours has about 8 KiB.
const FILE_LEN_MAX: u64 = 1 << 20;
/// What the identity is called where it is sealed.
const WHAT: &str = "identity";
/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// An identity's file, if it is sealed.
#[derive(Serialize, Deserialize)]
struct SealedFile {
    version: u32,
    /// Whose it is.
    node_id: NodeId,
    sealed: SealedAside,
}

/// Only the version.
#[derive(Deserialize)]
struct AnyFile {
    version: u32,
}

/// An identity as it was found.
enum Found {
    Clear(NodeIdentity),
    Sealed(SealedFile),
}

fn read_failed(source: IdentityError) -> NodeError {
    NodeError::Identity { action: "read this node's identity", source }
}

fn key_failed(source: StoreError) -> NodeError {
    NodeError::Store { action: "use the keys of", source }
}

impl Folder {
    /// This node's identity, as it is kept.
    ///
    /// # Errors
    /// It cannot be used, or there is none; a locked manager's needs the unlock key.
    pub(crate) fn load_identity(&self) -> Result<NodeIdentity, NodeError> {
        match self.find_identity()? {
            Found::Clear(identity) => Ok(identity),
            Found::Sealed(file) => {
                let opened = self.keyring().open_aside(WHAT, &file.sealed);
                let bytes = opened.map_err(key_failed)?;
                NodeIdentity::decode(&bytes, &self.identity()).map_err(read_failed)
            }
        }
    }

    /// Whose identity is kept, as far as that can be read without a key.
    pub(crate) fn kept_node(&self) -> Option<NodeId> {
        match self.find_identity() {
            Ok(Found::Clear(identity)) => Some(identity.node_id),
            Ok(Found::Sealed(file)) => Some(file.node_id),
            Err(_) => None,
        }
    }

    /// Keeps an identity; a locked manager's is sealed.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn save_identity(&self, identity: &NodeIdentity) -> Result<(), NodeError> {
        let _turn = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_identity(identity)
    }

    /// The same beside others' work.
    ///
    /// # Errors
    /// As [`Self::save_identity`], or it broke off.
    pub(crate) async fn keep_identity(&self, identity: NodeIdentity) -> Result<(), NodeError> {
        let folder = self.clone();
        apart(move || folder.save_identity(&identity)).await
    }

    /// Keeps the identity that is kept, sealed as it is to be now.
    ///
    /// # Errors
    /// It cannot be read or written.
    fn reseal_identity(&self) -> Result<(), NodeError> {
        let _turn = self.replacing.lock().unwrap_or_else(PoisonError::into_inner);
        let (role, sealed) = match self.find_identity()? {
            Found::Clear(identity) => (identity.role, None),
            Found::Sealed(file) => (NodeRole::Manager, Some(file.sealed)),
        };
        let fits = self.keyring().fits_aside(sealed.as_ref()).map_err(key_failed)?;
        if fits || role == NodeRole::Worker {
            return Ok(());
        }
        self.write_identity(&self.load_identity()?)
    }

    fn write_identity(&self, identity: &NodeIdentity) -> Result<(), NodeError> {
        let failed =
            |source| NodeError::Identity { action: "keep this node's certificate", source };
        let path = self.identity();
        let bytes = identity.encode(&path).map_err(failed)?;
        // A worker's is in clear: the store with its keys is swept away when it becomes one.
        let sealed = match identity.role {
            NodeRole::Worker => None,
            NodeRole::Manager => self.keyring().seal_aside(WHAT, &bytes).map_err(key_failed)?,
        };
        let Some(sealed) = sealed else { return identity.save_in_clear(&path).map_err(failed) };
        let file =
            SealedFile { version: SEALED_VERSION, node_id: identity.node_id.clone(), sealed };
        shoal_durable::replace_json(&path, &file).map_err(|source| NodeError::File {
            action: "write",
            path,
            source,
        })
    }

    fn find_identity(&self) -> Result<Found, NodeError> {
        let path = self.identity();
        let unread = |source| NodeError::File { action: "read", path: path.clone(), source };
        let bytes = shoal_durable::read(&path, FILE_LEN_MAX).map_err(unread)?;
        let bytes = bytes.ok_or_else(|| unread(std::io::ErrorKind::NotFound.into()))?;
        let version = serde_json::from_slice::<AnyFile>(&bytes).map(|file| file.version);
        if !version.is_ok_and(|version| version == SEALED_VERSION) {
            return NodeIdentity::decode(&bytes, &path).map(Found::Clear).map_err(read_failed);
        }
        let file = serde_json::from_slice(&bytes);
        file.map(Found::Sealed).map_err(|e| unread(std::io::Error::from(e)))
    }
}

/// Has everything of this manager sealed as the cluster wants it, as often as it wants something
/// else, until it is dropped. What fails is said, and tried again.
pub(crate) async fn keep_sealed(folder: Folder, store: Store) {
    let mut changes = store.watch();
    let mut done = None;
    loop {
        changes.borrow_and_update();
        let state = store.state();
        // A manager that joins has learned nothing yet.
        if let Some(cluster) = &state.cluster
            && done.as_ref() != Some(&cluster.unlock)
        {
            if let Err(error) = seal_as(&folder, &store, cluster).await {
                let cause = report(&error);
                let text =
                    format!("this manager's files are not sealed as they are to be: {cause}");
                if folder.keyring().say(text) {
                    tracing::warn!(cause, "this manager's files could not be sealed; tried again");
                }
                tokio::time::sleep(RETRY).await;
                continue;
            }
            folder.keyring().say(String::new());
            done = Some(cluster.unlock.clone());
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Does it once. Cut at any point, it is done again from the beginning.
async fn seal_as(folder: &Folder, store: &Store, cluster: &Cluster) -> Result<(), NodeError> {
    let unlock = cluster.unlock.as_ref().map(|key| UnlockKey::parse(&key.0));
    let unlock = unlock.transpose().map_err(key_failed)?;
    store.renew_keys(unlock, cluster.meta.version).await.map_err(key_failed)?;
    let identity = folder.clone();
    apart(move || identity.reseal_identity()).await?;
    // Nothing is sealed with the keys of before any more.
    store.retire_keys().await.map_err(key_failed)
}

/// Does what reads and writes files where it holds nobody up.
async fn apart(
    work: impl FnOnce() -> Result<(), NodeError> + Send + 'static,
) -> Result<(), NodeError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| NodeError::BrokeOff { problem: error.to_string() })?
}
