//! This node's identity: kept in one file, readable by root only, replaced in one step.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_model::id::{ClusterId, NodeId};
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;
use shoal_model::trust::NodeTls;

use crate::error::IdentityError;
use crate::peer::PeerIdentity;
use crate::token::CaDigest;
use crate::{authority, roots, tls};

/// The version of the file's format.
pub const FILE_VERSION: u32 = 1;
/// Largest file that is read. Ours has about 3 KiB.
const FILE_LEN_MAX: u64 = 256 * 1024;

/// Who this node is, with its proof.
#[derive(Clone, PartialEq, Eq)]
pub struct NodeIdentity {
    /// CN of the certificate.
    pub node_id: NodeId,
    /// OU of the certificate.
    pub role: NodeRole,
    /// O of the certificate.
    pub cluster_id: ClusterId,
    /// PEM, leaf first, root last.
    pub cert_pem: String,
    /// PEM of the private key.
    pub key_pem: String,
    /// PEM of the cluster's root certificate; of several while one takes another's place.
    pub root_pem: String,
    /// Begin of the certificate's validity.
    pub not_before: Timestamp,
    /// End of the certificate's validity.
    pub not_after: Timestamp,
}

impl std::fmt::Debug for NodeIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeIdentity")
            .field("node_id", &self.node_id)
            .field("role", &self.role)
            .field("cluster_id", &self.cluster_id)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

/// What the file holds; everything else is read from the certificate.
#[derive(Serialize, Deserialize)]
struct Stored {
    version: u32,
    cert_pem: String,
    key_pem: String,
    root_pem: String,
}

/// Only the version, so that a file of another version gets the right message.
#[derive(Deserialize)]
struct StoredVersion {
    version: u32,
}

impl NodeIdentity {
    /// Puts an identity together; id, role and cluster come from the certificate.
    ///
    /// # Errors
    /// [`IdentityError::CertificateMalformed`] when the certificate is not of a node, and
    /// [`IdentityError::Crypto`] when it does not belong to the key or was not issued by the root.
    pub fn new(cert_pem: String, key_pem: String, root_pem: String) -> Result<Self, IdentityError> {
        let chain = authority::certificates(&cert_pem)?;
        let peer = PeerIdentity::from_certs(&chain)?;
        let identity = Self {
            node_id: peer.node_id,
            role: peer.role,
            cluster_id: peer.cluster_id,
            cert_pem,
            key_pem,
            root_pem,
            not_before: peer.not_before,
            not_after: peer.not_after,
        };
        // Whatever cannot be used for TLS is found now, not at the first connection.
        identity.client_config()?;
        Ok(identity)
    }

    /// Reads the identity at `path`; `None` if there is no file.
    ///
    /// # Errors
    /// [`IdentityError::File`] and [`IdentityError::FileVersion`] name the file.
    pub fn load(path: &Path) -> Result<Option<Self>, IdentityError> {
        let failed = |problem: String| IdentityError::File {
            action: "read",
            path: path.to_owned(),
            problem,
        };
        let bytes = shoal_durable::read(path, FILE_LEN_MAX).map_err(|e| failed(e.to_string()))?;
        let Some(bytes) = bytes else { return Ok(None) };
        Self::decode(&bytes, path).map(Some)
    }

    /// Reads what [`Self::encode`] made; `path` is where it was.
    ///
    /// # Errors
    /// [`IdentityError::File`] and [`IdentityError::FileVersion`] name the file.
    pub fn decode(bytes: &[u8], path: &Path) -> Result<Self, IdentityError> {
        let failed = |problem: String| IdentityError::File {
            action: "read",
            path: path.to_owned(),
            problem,
        };
        let StoredVersion { version: found } =
            serde_json::from_slice(bytes).map_err(|e| failed(e.to_string()))?;
        if found != FILE_VERSION {
            let path = path.to_owned();
            return Err(IdentityError::FileVersion { path, found, known: FILE_VERSION });
        }
        let stored: Stored = serde_json::from_slice(bytes).map_err(|e| failed(e.to_string()))?;
        Self::new(stored.cert_pem, stored.key_pem, stored.root_pem)
    }

    /// As it is kept; `path` is where.
    ///
    /// # Errors
    /// [`IdentityError::File`], in theory.
    pub fn encode(&self, path: &Path) -> Result<Vec<u8>, IdentityError> {
        let stored = Stored {
            version: FILE_VERSION,
            cert_pem: self.cert_pem.clone(),
            key_pem: self.key_pem.clone(),
            root_pem: self.root_pem.clone(),
        };
        serde_json::to_vec(&stored).map_err(|e| IdentityError::File {
            action: "write",
            path: path.to_owned(),
            problem: e.to_string(),
        })
    }

    /// Writes the identity to `path` (mode 0600), whole or not at all, also when power fails. Its
    /// key is there to read: a locked manager's is not kept so.
    ///
    /// # Errors
    /// [`IdentityError::File`] names the file.
    pub fn save_in_clear(&self, path: &Path) -> Result<(), IdentityError> {
        let failed = |problem: String| IdentityError::File {
            action: "write",
            path: path.to_owned(),
            problem,
        };
        let bytes = self.encode(path)?;
        shoal_durable::replace(path, &bytes, shoal_durable::PRIVATE_FILE)
            .map_err(|e| failed(e.to_string()))
    }

    /// When to ask for a new certificate: after half of the time for which it was issued. `spread`
    /// from 0 to 1 moves it up to 80 % of that, so that the nodes of a cluster do not all come at
    /// once.
    #[must_use]
    pub fn renew_at(&self, spread: f64) -> Timestamp {
        let validity = self.validity();
        let share = 0.5 + 0.3 * spread.clamp(0.0, 1.0);
        self.issued().plus(validity.mul_f64(share))
    }

    /// For how long the certificate was issued.
    #[must_use]
    pub fn validity(&self) -> Duration {
        self.not_after.since(self.issued())
    }

    /// When it was issued: certificates are valid from earlier on. Others' authorities have ways of
    /// their own with that; it is not taken for more than half of the time.
    fn issued(&self) -> Timestamp {
        let whole = self.not_after.since(self.not_before);
        self.not_before.plus(authority::BACKDATE.min(whole / 2))
    }

    /// What managers are told of the certificate.
    #[must_use]
    pub fn tls(&self) -> NodeTls {
        let chain = authority::certificates(&self.cert_pem).unwrap_or_default();
        let roots = authority::certificates(&self.root_pem).unwrap_or_default();
        let Some((leaf, others)) = chain.split_first() else { return NodeTls::default() };
        // Of a chain the root is last: before it may be others' word for the same key.
        let mut known = roots.iter().chain(others.iter().rev());
        let issuer = known.find(|root| tls::issued_by(leaf, root));
        let key = PeerIdentity::from_der(leaf).map(|peer| peer.key);
        NodeTls {
            issuer: issuer.map(|root| CaDigest::of_der(root).to_string()).unwrap_or_default(),
            trusts: roots::digest_of_all(&self.root_pem).map(|d| d.to_string()).unwrap_or_default(),
            key: key.unwrap_or_default(),
            given: String::new(),
        }
    }

    /// The same identity where these roots are trusted, PEM.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn trusting(&self, root_pem: String) -> Result<Self, IdentityError> {
        Self::new(self.cert_pem.clone(), self.key_pem.clone(), root_pem)
    }

    /// How long the certificate is still valid at `now`.
    #[must_use]
    pub fn remaining(&self, now: Timestamp) -> Duration {
        self.not_after.since(now)
    }
}
