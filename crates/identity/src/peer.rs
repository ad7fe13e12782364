//! What a certificate says about its owner.

use rustls::pki_types::CertificateDer;
use shoal_model::id::{ClusterId, NodeId};
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::x509::X509Name;

use crate::authority::certificates;
use crate::error::IdentityError;
use crate::token::CaDigest;

/// OU of a manager's certificate.
pub const OU_MANAGER: &str = "swarm-manager";
/// OU of a worker's certificate.
pub const OU_WORKER: &str = "swarm-worker";
/// Largest certificate that is parsed. Ours have about 700 bytes.
pub const CERT_DER_MAX: usize = 16 * 1024;

/// The OU of `role`.
#[must_use]
pub const fn organizational_unit(role: NodeRole) -> &'static str {
    match role {
        NodeRole::Manager => OU_MANAGER,
        NodeRole::Worker => OU_WORKER,
    }
}

/// Who a certificate is of. Says nothing about whether the certificate is genuine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// CN.
    pub node_id: NodeId,
    /// OU.
    pub role: NodeRole,
    /// O.
    pub cluster_id: ClusterId,
    /// Begin of the validity.
    pub not_before: Timestamp,
    /// End of the validity.
    pub not_after: Timestamp,
    /// Digest of the public key.
    pub key: String,
    /// Whether only a root that was replaced speaks for it: good for asking for the next
    /// certificate, if the key is known to be the node's.
    pub former: bool,
}

impl PeerIdentity {
    /// Reads the first certificate of a chain.
    ///
    /// # Errors
    /// [`IdentityError::CertificateMalformed`] names what is missing.
    pub fn from_certs(chain: &[CertificateDer<'_>]) -> Result<Self, IdentityError> {
        let leaf = chain.first().ok_or_else(|| malformed("there is none"))?;
        Self::from_der(leaf)
    }

    /// Reads the first certificate of a chain in PEM.
    ///
    /// # Errors
    /// [`IdentityError::CertificateMalformed`] names what is missing.
    pub fn from_pem(chain_pem: &str) -> Result<Self, IdentityError> {
        Self::from_certs(&certificates(chain_pem)?)
    }

    /// Whether the certificate has expired at `now`, and if so the words for it.
    ///
    /// # Errors
    /// [`IdentityError::Expired`].
    pub fn check_not_expired(&self, now: Timestamp) -> Result<(), IdentityError> {
        if now <= self.not_after {
            return Ok(());
        }
        Err(IdentityError::Expired {
            subject: self.node_id.to_string(),
            not_after: self.not_after,
            now,
            late: now.since(self.not_after),
        })
    }

    /// Whether the cluster's roots of today speak for it, and if not the words for it.
    ///
    /// # Errors
    /// [`IdentityError::FormerRoot`].
    pub fn check_not_former(&self) -> Result<(), IdentityError> {
        if self.former {
            return Err(IdentityError::FormerRoot { node: self.node_id.to_string() });
        }
        Ok(())
    }

    /// Reads a certificate.
    ///
    /// # Errors
    /// [`IdentityError::CertificateMalformed`] names what is missing.
    pub fn from_der(der: &[u8]) -> Result<Self, IdentityError> {
        let cert = parse(der)?;
        let subject = cert.subject();
        let role = match text_of(subject.iter_organizational_unit(), "OU")? {
            OU_MANAGER => NodeRole::Manager,
            OU_WORKER => NodeRole::Worker,
            other => {
                return Err(malformed(format!(
                    "its OU is '{other}', not that of a cluster's node"
                )));
            }
        };
        let (not_before, not_after) = validity(&cert);
        Ok(Self {
            node_id: NodeId::new(text_of(subject.iter_common_name(), "CN")?),
            role,
            cluster_id: ClusterId::new(text_of(subject.iter_organization(), "O")?),
            not_before,
            not_after,
            key: CaDigest::of_der(cert.public_key().raw).to_string(),
            former: false,
        })
    }
}

/// The subject as text, for messages; never fails.
pub(crate) fn subject_of(der: &[u8]) -> String {
    parse(der).map_or_else(|_| "unreadable".to_owned(), |cert| shorten(cert.subject()))
}

pub(crate) fn validity(cert: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let validity = cert.validity();
    (
        Timestamp::from_secs(validity.not_before.timestamp()),
        Timestamp::from_secs(validity.not_after.timestamp()),
    )
}

pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, IdentityError> {
    if der.len() > CERT_DER_MAX {
        return Err(malformed(format!("it has {} bytes, far too many", der.len())));
    }
    match X509Certificate::from_der(der) {
        Ok((_, cert)) => Ok(cert),
        Err(error) => Err(malformed(format!("not X.509: {error}"))),
    }
}

fn malformed(problem: impl Into<String>) -> IdentityError {
    IdentityError::CertificateMalformed { problem: problem.into() }
}

/// A subject may be as long as its owner likes; our messages may not.
fn shorten(name: &X509Name<'_>) -> String {
    const SUBJECT_LEN_MAX: usize = 200;
    name.to_string().chars().filter(|c| !c.is_control()).take(SUBJECT_LEN_MAX).collect()
}

fn text_of<'a>(
    mut parts: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
    what: &str,
) -> Result<&'a str, IdentityError> {
    let part = parts.next().ok_or_else(|| malformed(format!("its subject has no {what}")))?;
    if parts.next().is_some() {
        return Err(malformed(format!("its subject has more than one {what}")));
    }
    match part.as_str() {
        Ok(text) if !text.is_empty() => Ok(text),
        _ => Err(malformed(format!("the {what} of its subject is not a text"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::authority::{KeyAndCsr, NODE_VALIDITY, RootAuthority};

    fn leaf() -> Vec<u8> {
        let now = Timestamp::from_secs(1_800_000_000);
        let (root, _) = RootAuthority::create(now).unwrap();
        let csr = KeyAndCsr::generate().unwrap().csr_pem;
        let role = NodeRole::Worker;
        let chain = root.issue(&csr, &"n1".into(), role, &"c1".into(), now, NODE_VALIDITY).unwrap();
        certificates(&chain).unwrap().remove(0).to_vec()
    }

    #[test]
    fn garbage_and_oversize_are_refused() {
        assert!(PeerIdentity::from_certs(&[]).is_err());
        let error = PeerIdentity::from_der(&vec![0x30; CERT_DER_MAX + 1]).unwrap_err();
        assert!(error.to_string().contains("far too many"), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_changed_certificate_never_panics(at in 0usize..400, byte in any::<u8>()) {
            let mut der = leaf();
            der[at] = byte;
            if let Ok(peer) = PeerIdentity::from_der(&der) {
                prop_assert!(!peer.node_id.as_str().is_empty());
            }
            // Ignored because: only that it returns counts.
            let _ = subject_of(&der);
        }
    }
}
