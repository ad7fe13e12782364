//! Which root certificates a cluster trusts, and how one takes another's place.
//!
//! A *digest* here is what join tokens say of a root certificate; that of several roots is of all
//! of them together, in any order.

use serde::{Deserialize, Serialize};

use crate::object::{Cluster, RootCa};
use crate::time::Timestamp;

/// What a cluster trusts beside its root certificate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Trust {
    /// The digest of the root certificate; empty in clusters that have never replaced it.
    pub digest: String,
    /// `ForceRotate` of the settings as it was when it was last obeyed.
    pub forced: u64,
    /// The rotation that is under way.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub next: Option<NextRoot>,
    /// Roots that were replaced, newest first. They prove who asks for a certificate of the present
    /// one, and nothing else.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<FormerRoot>,
}

impl Trust {
    /// Whether there is nothing to say.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The root that is to take the present one's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NextRoot {
    /// Certificate and key; no key if an external authority signs.
    pub root: RootCa,
    /// Its digest.
    pub digest: String,
    /// The digest of everything that nodes trust meanwhile.
    pub all: String,
    /// Its key, certified by the present root: so nodes that have not heard of it know it. Empty if
    /// the present root's key is not here.
    #[serde(default)]
    pub cross_pem: String,
    /// Targets of rotations that this one has replaced, newest first: nodes may have certificates
    /// of theirs.
    #[serde(default)]
    pub given_up: Vec<FormerRoot>,
    /// How far it has come.
    pub stage: TrustStage,
    /// When it began.
    pub since: Timestamp,
}

/// How far a rotation has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TrustStage {
    /// Nodes learn to trust the next root; certificates are of the present one.
    Announcing,
    /// Certificates are of the next root, and every node asks for one.
    Issuing,
}

/// A root that was replaced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FormerRoot {
    /// Its certificate.
    pub cert_pem: String,
    /// Its digest.
    pub digest: String,
    /// The key of the root that took its place, certified by it; may be empty.
    #[serde(default)]
    pub cross_pem: String,
    /// Since when it is a former one.
    pub since: Timestamp,
}

/// What is known of a node's certificate. Empty where it was never said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeTls {
    /// The digest of the root that issued it.
    pub issuer: String,
    /// The digest of the roots that the node trusts.
    pub trusts: String,
    /// The digest of its public key.
    pub key: String,
    /// The digest of the last public key that a certificate was issued for. The node may not have
    /// got it.
    pub given: String,
}

impl NodeTls {
    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a key with this digest is the node's.
    #[must_use]
    pub fn has_key(&self, digest: &str) -> bool {
        !digest.is_empty() && (self.key == digest || self.given == digest)
    }
}

impl Cluster {
    /// The rotation that has come so far that its root issues certificates.
    fn issuing(&self) -> Option<&NextRoot> {
        self.trust.next.as_ref().filter(|next| next.stage == TrustStage::Issuing)
    }

    /// The root that issues certificates.
    #[must_use]
    pub fn signing_root(&self) -> &RootCa {
        self.issuing().map_or(&self.root_ca, |next| &next.root)
    }

    /// The root that the cluster has, or is to have.
    #[must_use]
    pub fn desired_root(&self) -> &RootCa {
        self.trust.next.as_ref().map_or(&self.root_ca, |next| &next.root)
    }

    /// All root certificates that nodes are to trust, PEM.
    #[must_use]
    pub fn trusted_pem(&self) -> String {
        let mut roots: Vec<&str> = vec![&self.desired_root().cert_pem];
        let given_up = self.trust.next.iter().flat_map(|next| &next.given_up);
        let others = given_up.map(|root| &root.cert_pem).chain([&self.root_ca.cert_pem]);
        for root in others.map(String::as_str) {
            if !roots.contains(&root) {
                roots.push(root);
            }
        }
        roots.concat()
    }

    /// Roots whose certificates are good for asking for the next one, PEM.
    #[must_use]
    pub fn former_pem(&self) -> String {
        self.trust.former.iter().map(|root| root.cert_pem.as_str()).collect()
    }

    /// What comes after a certificate that is issued now: the ways from roots that nodes may still
    /// trust alone, and the roots that join tokens may name; the one that issued it last.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        let mut chain = String::new();
        if let Some(next) = self.issuing() {
            chain.push_str(&next.cross_pem);
        }
        chain.extend(self.trust.former.iter().map(|root| root.cross_pem.as_str()));
        if self.signing_root() != &self.root_ca {
            chain.push_str(&self.root_ca.cert_pem);
        }
        chain.push_str(&self.signing_root().cert_pem);
        chain
    }
}
