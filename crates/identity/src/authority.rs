//! The cluster's certificate authority, and keys with signing requests for its members.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SerialNumber, SubjectPublicKeyInfo,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use shoal_model::id::{ClusterId, NodeId};
use shoal_model::object::{Cluster, RootCa};
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;
use time::OffsetDateTime;

use crate::error::IdentityError;
use crate::peer::{self, organizational_unit};
use crate::roots;
use crate::token::CaDigest;

/// How long a root certificate is valid: 20 years, as Docker's. Longer than any cluster lives.
pub const ROOT_VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
/// How long a node's certificate is valid if the cluster's settings do not say: 90 days.
pub const NODE_VALIDITY: Duration = Duration::from_secs(90 * 24 * 3600);
/// Shortest validity of a node's certificate that operators may set: below it, renewal would
/// compete with clock skew.
pub const NODE_VALIDITY_MIN: Duration = Duration::from_secs(3600);
/// Certificates are valid from this long ago on, so that clocks may differ a little.
pub const BACKDATE: Duration = Duration::from_secs(3600);
/// Largest signing request that is parsed. Ours have about 500 bytes.
pub const CSR_PEM_MAX: usize = 16 * 1024;

/// The cluster's certificate authority.
pub struct RootAuthority {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
    cert_der: CertificateDer<'static>,
    /// What nodes are to trust.
    trusted_pem: String,
    /// What comes after a certificate that is issued.
    chain_pem: String,
}

impl std::fmt::Debug for RootAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RootAuthority").field("digest", &self.digest()).finish_non_exhaustive()
    }
}

impl RootAuthority {
    /// A new root, valid from `now` (less [`BACKDATE`]) for [`ROOT_VALIDITY`].
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the system gives no randomness.
    pub fn create(now: Timestamp) -> Result<(Self, RootCa), IdentityError> {
        let action = "make the root certificate";
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto(action))?;
        let mut params = CertificateParams::default();
        params.not_before = date(now.0.saturating_sub(nanos(BACKDATE)));
        params.not_after = date(now.0.saturating_add(nanos(ROOT_VALIDITY)));
        params.serial_number = Some(serial());
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "swarm-ca");
        let cert_pem = params.self_signed(&key).map_err(crypto(action))?.pem();
        let stored = RootCa { cert_pem, key_pem: key.serialize_pem() };
        Ok((Self::load(&stored)?, stored))
    }

    /// The root that the cluster's object holds.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when key or certificate cannot be read.
    pub fn load(stored: &RootCa) -> Result<Self, IdentityError> {
        let action = "read the root certificate and its key";
        let key = KeyPair::from_pem(&stored.key_pem).map_err(crypto(action))?;
        let cert_der = first_certificate(&stored.cert_pem)?;
        let issuer = Issuer::from_ca_cert_der(&cert_der, key).map_err(crypto(action))?;
        let cert_pem = stored.cert_pem.clone();
        let (trusted_pem, chain_pem) = (cert_pem.clone(), cert_pem.clone());
        Ok(Self { issuer, cert_pem, cert_der, trusted_pem, chain_pem })
    }

    /// The root that issues certificates of a cluster now, with what nodes need to know of others;
    /// `None` if its key is not here.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when key or certificate cannot be read.
    pub fn of(cluster: &Cluster) -> Result<Option<Self>, IdentityError> {
        let root = cluster.signing_root();
        if root.key_pem.is_empty() {
            return Ok(None);
        }
        let (trusted_pem, chain_pem) = (cluster.trusted_pem(), cluster.chain_pem());
        Ok(Some(Self { trusted_pem, chain_pem, ..Self::load(root)? }))
    }

    /// PEM of all root certificates that nodes are to trust.
    #[must_use]
    pub fn trusted_pem(&self) -> &str {
        &self.trusted_pem
    }

    /// Certifies the key of another root, so that who trusts only this one knows it too. Valid as
    /// long as both are.
    ///
    /// # Errors
    /// [`IdentityError::RootUnusable`] when the other one's certificate cannot be taken over.
    pub fn cross_sign(&self, other_pem: &str, now: Timestamp) -> Result<String, IdentityError> {
        let action = "certify the next root";
        let der = first_certificate(other_pem)?;
        let other = peer::parse(&der)?;
        let key = SubjectPublicKeyInfo::from_der(other.public_key().raw).map_err(crypto(action))?;
        let own_end = peer::validity(&peer::parse(&self.cert_der)?).1;
        let mut params = CertificateParams::default();
        params.not_before = date(now.0.saturating_sub(nanos(BACKDATE)));
        params.not_after = date(own_end.min(peer::validity(&other).1).0);
        params.serial_number = Some(serial());
        // It certifies a root, below which nothing but leaves is: the way may still be longer.
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name = roots::name_of(other.subject())?;
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(&key, &self.issuer).map_err(crypto(action))?.pem())
    }

    /// PEM of the root certificate.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// What join tokens say about the root.
    #[must_use]
    pub fn digest(&self) -> CaDigest {
        CaDigest::of_der(&self.cert_der)
    }

    /// A certificate for the key in `csr_pem`, valid from `now` (less [`BACKDATE`], and less than
    /// it lasts) for `validity`.
    /// Nothing but the key is taken from the request. Returns the chain: leaf first, root last.
    ///
    /// # Errors
    /// [`IdentityError::CsrMalformed`] when the request cannot be read or is not signed by its key.
    pub fn issue(
        &self,
        csr_pem: &str,
        node_id: &NodeId,
        role: NodeRole,
        cluster_id: &ClusterId,
        now: Timestamp,
        validity: Duration,
    ) -> Result<String, IdentityError> {
        if csr_pem.len() > CSR_PEM_MAX {
            let problem = format!("it has {} bytes, far too many", csr_pem.len());
            return Err(IdentityError::CsrMalformed { problem });
        }
        let request = CertificateSigningRequestParams::from_pem(csr_pem)
            .map_err(|e| IdentityError::CsrMalformed { problem: e.to_string() })?;
        let action = "issue the certificate";
        // The id, and the role as swarm writes it, as host names: tools that insist on a name
        // have one. Shoal itself looks at the subject only.
        let names = vec![node_id.as_str().to_owned(), organizational_unit(role).to_owned()];
        let mut params = CertificateParams::new(names).map_err(crypto(action))?;
        params.not_before = date(now.0.saturating_sub(nanos(BACKDATE.min(validity))));
        params.not_after = date(now.0.saturating_add(nanos(validity)));
        params.serial_number = Some(serial());
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, cluster_id.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, organizational_unit(role));
        params.distinguished_name.push(DnType::CommonName, node_id.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&request.public_key, &self.issuer).map_err(crypto(action))?;
        Ok(format!("{}{}", leaf.pem(), self.chain_pem))
    }
}

/// A new private key and the request to sign its public half.
pub struct KeyAndCsr {
    /// PEM of the private key; it never leaves the node.
    pub key_pem: String,
    /// PEM of the signing request.
    pub csr_pem: String,
}

impl std::fmt::Debug for KeyAndCsr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyAndCsr").finish_non_exhaustive()
    }
}

impl KeyAndCsr {
    /// Makes both.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when the system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let action = "make a key and its signing request";
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(crypto(action))?;
        let csr = CertificateParams::default()
            .serialize_request(&key)
            .and_then(|csr| csr.pem())
            .map_err(crypto(action))?;
        Ok(Self { key_pem: key.serialize_pem(), csr_pem: csr })
    }
}

/// The digest of a root certificate in PEM.
///
/// # Errors
/// [`IdentityError::CertificateMalformed`] if there is none in it.
pub fn digest_of_pem(root_pem: &str) -> Result<CaDigest, IdentityError> {
    first_certificate(root_pem).map(|der| CaDigest::of_der(&der))
}

/// The certificates in `pem`, in order.
pub(crate) fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let malformed = |problem: String| IdentityError::CertificateMalformed { problem };
    let certs = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| malformed(format!("not PEM: {e}")))?;
    if certs.is_empty() {
        return Err(malformed("there is none in the PEM text".into()));
    }
    Ok(certs)
}

fn first_certificate(pem: &str) -> Result<CertificateDer<'static>, IdentityError> {
    let certs = certificates(pem)?;
    let first = certs.into_iter().next();
    let first = first.ok_or_else(|| IdentityError::CertificateMalformed {
        problem: "there is none in the PEM text".into(),
    })?;
    peer::parse(&first)?;
    Ok(first)
}

fn crypto(action: &'static str) -> impl Fn(rcgen::Error) -> IdentityError {
    move |error| IdentityError::Crypto { action, problem: error.to_string() }
}

/// 19 random bytes with the top bit clear: RFC 5280 allows 20 and wants a positive number.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 19] = rand::random();
    if let Some(first) = bytes.first_mut() {
        *first &= 0x7f;
    }
    SerialNumber::from_slice(&bytes)
}

fn nanos(span: Duration) -> i64 {
    i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)
}

fn date(nanos: i64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(nanos.div_euclid(1_000_000_000))
        .unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use crate::peer::PeerIdentity;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    #[test]
    fn a_certificate_names_node_role_and_cluster() {
        let (root, stored) = RootAuthority::create(NOW).unwrap();
        let again = RootAuthority::load(&stored).unwrap();
        assert_eq!(again.digest(), root.digest());
        let csr = KeyAndCsr::generate().unwrap().csr_pem;
        let chain = again
            .issue(&csr, &"n1".into(), NodeRole::Manager, &"c1".into(), NOW, NODE_VALIDITY)
            .unwrap();
        let certs = certificates(&chain).unwrap();
        assert_eq!(certs.len(), 2);
        let peer = PeerIdentity::from_certs(&certs).unwrap();
        assert_eq!(peer.node_id, "n1".into());
        assert_eq!(peer.role, NodeRole::Manager);
        assert_eq!(peer.cluster_id, "c1".into());
        assert_eq!(NOW.since(peer.not_before), BACKDATE);
        assert_eq!(peer.not_after.since(NOW), NODE_VALIDITY);
    }

    #[test]
    fn requests_that_lie_or_ramble_are_refused() {
        let (root, stored) = RootAuthority::create(NOW).unwrap();
        let issue = |csr: &str| {
            root.issue(csr, &"n".into(), NodeRole::Worker, &"c".into(), NOW, NODE_VALIDITY)
        };
        for bad in ["", "hello", stored.cert_pem.as_str(), &"x".repeat(CSR_PEM_MAX + 1)] {
            assert!(matches!(issue(bad), Err(IdentityError::CsrMalformed { .. })));
        }
    }

    #[test]
    fn the_root_is_no_node() {
        let (_, stored) = RootAuthority::create(NOW).unwrap();
        let certs = certificates(&stored.cert_pem).unwrap();
        let error = PeerIdentity::from_certs(&certs).unwrap_err().to_string();
        assert!(error.contains("no OU"), "{error}");
    }
}
