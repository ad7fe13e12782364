//! Root certificates that an operator gives, and what is said of several of them.

use std::time::Duration;

use rcgen::{DistinguishedName, DnType, DnValue, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use shoal_model::id::{ClusterId, NodeId};
use shoal_model::object::RootCa;
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;
use x509_parser::asn1_rs::Tag;
use x509_parser::prelude::X509Certificate;
use x509_parser::x509::X509Name;

use crate::authority::{KeyAndCsr, NODE_VALIDITY, RootAuthority, certificates};
use crate::error::IdentityError;
use crate::token::CaDigest;
use crate::{der, peer, tls};

/// How long a root certificate that an operator gives must still be valid: a year, as in Docker.
pub const ROOT_LEFT_MIN: Duration = Duration::from_secs(365 * 24 * 3600);

/// The digest of all certificates in `pem` together, in whatever order. Of one, it is its own.
///
/// # Errors
/// [`IdentityError::CertificateMalformed`] if there is none in it.
pub fn digest_of_all(pem: &str) -> Result<CaDigest, IdentityError> {
    let mut all = certificates(pem)?;
    all.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    all.dedup();
    let bytes: Vec<u8> = all.iter().flat_map(|cert| cert.iter().copied()).collect();
    Ok(CaDigest::of_der(&bytes))
}

/// A root certificate and, unless an external authority has it, its key, as an operator gave them.
///
/// # Errors
/// [`IdentityError::RootUnusable`] says what is wrong with them, never the key itself.
pub fn supplied(cert_pem: &str, key_pem: &str, now: Timestamp) -> Result<RootCa, IdentityError> {
    let cert_pem = only_certificate(cert_pem)?;
    let found = certificates(&cert_pem)?;
    let [der] = found.as_slice() else {
        return Err(unusable("no valid root CA certificates found"));
    };
    let cert = peer::parse(der).map_err(|e| unusable(e.to_string()))?;
    check_authority(&cert, now)?;
    name_of(cert.subject())?;
    if key_pem.trim().is_empty() {
        return Ok(RootCa { cert_pem, key_pem: String::new() });
    }
    let key = key_pair(key_pem)?;
    if key.public_key_raw() != cert.public_key().subject_public_key.data.as_ref() {
        return Err(unusable("certificate key mismatch: the key is not the certificate's"));
    }
    let root = RootCa { cert_pem, key_pem: key.serialize_pem() };
    try_out(&root, der, now)?;
    Ok(root)
}

fn unusable(problem: impl Into<String>) -> IdentityError {
    IdentityError::RootUnusable { problem: problem.into() }
}

/// The one certificate of a PEM text, in the form in which it is kept.
fn only_certificate(pem: &str) -> Result<String, IdentityError> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let lines: Vec<&str> = pem.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let begins = lines.iter().filter(|line| **line == BEGIN).count();
    if begins > 1 {
        return Err(unusable("the desired CA certificate cannot contain multiple certificates"));
    }
    let begin = lines.iter().position(|line| *line == BEGIN);
    let end = lines.iter().position(|line| *line == END);
    let (Some(begin), Some(end)) = (begin, end) else {
        return Err(unusable("no valid root CA certificates found: it is not PEM"));
    };
    let block = lines.get(begin..=end).unwrap_or_default();
    let text = block.iter().flat_map(|line| [*line, "\n"]).collect::<String>();
    certificates(&text).map_err(|e| unusable(e.to_string()))?;
    Ok(text)
}

/// Whether a certificate may be a root's, and long enough.
fn check_authority(cert: &X509Certificate<'_>, now: Timestamp) -> Result<(), IdentityError> {
    let constraints = cert.basic_constraints().map_err(|e| unusable(e.to_string()))?;
    if !constraints.is_some_and(|it| it.value.ca) {
        return Err(unusable("the certificate is not a CA's (basic constraints: CA:FALSE)"));
    }
    let usage = cert.key_usage().map_err(|e| unusable(e.to_string()))?;
    if usage.is_some_and(|it| !it.value.key_cert_sign()) {
        return Err(unusable("the certificate's key usage does not allow it to sign certificates"));
    }
    let (not_before, not_after) = peer::validity(cert);
    if not_before > now {
        return Err(unusable(format!("the CA certificate is valid from {not_before} on only")));
    }
    if not_after < now.plus(ROOT_LEFT_MIN) {
        return Err(unusable(format!(
            "CA certificate expires too soon: at {not_after}, it must last a year at least"
        )));
    }
    Ok(())
}

/// Reads a private key in PKCS #8, or as older tools write it.
fn key_pair(pem: &str) -> Result<KeyPair, IdentityError> {
    if pem.contains("ENCRYPTED") {
        return Err(unusable("the key is encrypted: decrypt it first"));
    }
    let key = PrivateKeyDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| unusable("the key is not PEM, or of no kind that is known"))?;
    let read = |der: &[u8]| KeyPair::try_from(der);
    let pair = match &key {
        PrivateKeyDer::Pkcs8(key) => read(key.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(key) => read(&der::pkcs8_of_rsa(key.secret_pkcs1_der())),
        PrivateKeyDer::Sec1(key) => {
            let curves = [der::P256, der::P384];
            let der = key.secret_sec1_der();
            let mut tried = curves.iter().map(|curve| read(&der::pkcs8_of_ec(curve, der)));
            tried.find(Result::is_ok).unwrap_or_else(|| read(der))
        }
        _ => read(key.secret_der()),
    };
    pair.map_err(|_| {
        unusable("the key cannot be used: it must be ECDSA P-256 or P-384, Ed25519, or RSA")
    })
}

/// Issues a certificate that nobody gets, and checks it as every node would.
fn try_out(root: &RootCa, der: &CertificateDer<'_>, now: Timestamp) -> Result<(), IdentityError> {
    let told = |error: IdentityError| unusable(error.to_string());
    let authority = RootAuthority::load(root).map_err(told)?;
    let csr = KeyAndCsr::generate()?.csr_pem;
    let (node, cluster) = (NodeId::new("node"), ClusterId::new("cluster"));
    let chain = authority
        .issue(&csr, &node, NodeRole::Manager, &cluster, now, NODE_VALIDITY)
        .map_err(told)?;
    match certificates(&chain)?.first() {
        Some(leaf) if tls::issued_by(leaf, der) => Ok(()),
        _ => Err(unusable("certificates that it issues are not recognised as its own")),
    }
}

/// A name as the library that writes certificates has it.
pub(crate) fn name_of(name: &X509Name<'_>) -> Result<DistinguishedName, IdentityError> {
    let problem = || unusable("the subject of the certificate has a form that is not supported");
    let mut known = DistinguishedName::new();
    for rdn in name.iter() {
        let mut parts = rdn.iter();
        let (Some(part), None) = (parts.next(), parts.next()) else { return Err(problem()) };
        let oid: Vec<u64> = part.attr_type().iter().ok_or_else(problem)?.collect();
        let data = part.attr_value().data;
        let text = || std::str::from_utf8(data).map_err(|_| problem());
        let value = match part.attr_value().header.tag() {
            Tag::Utf8String => DnValue::Utf8String(text()?.to_owned()),
            Tag::PrintableString => {
                DnValue::PrintableString(text()?.try_into().map_err(|_| problem())?)
            }
            Tag::Ia5String => DnValue::Ia5String(text()?.try_into().map_err(|_| problem())?),
            _ => return Err(problem()),
        };
        let kind = DnType::from_oid(&oid);
        // The library keeps one of each kind.
        if known.get(&kind).is_some() {
            return Err(problem());
        }
        known.push(kind, value);
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use rcgen::{CertificateParams, IsCa};

    use super::*;
    use crate::authority::digest_of_pem;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn problem(cert: &str, key: &str) -> String {
        supplied(cert, key, NOW).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_root_is_taken_with_its_key_or_without() {
        let (_, own) = RootAuthority::create(NOW).unwrap();
        let text = own.cert_pem.replace('\n', "\r\n");
        let taken = supplied(&format!("Subject: x\n{text}\n"), &own.key_pem, NOW).unwrap();
        assert_eq!(taken.cert_pem, own.cert_pem, "kept in one form");
        assert_eq!(supplied(&own.cert_pem, " ", NOW).unwrap().key_pem, "");
    }

    #[test]
    fn what_is_wrong_with_a_root_is_said() {
        let (authority, own) = RootAuthority::create(NOW).unwrap();
        let (_, other) = RootAuthority::create(NOW).unwrap();
        let csr = KeyAndCsr::generate().unwrap();
        let (node, cluster) = (NodeId::new("n"), ClusterId::new("c"));
        let validity = NODE_VALIDITY * 100;
        let chain = authority
            .issue(&csr.csr_pem, &node, NodeRole::Worker, &cluster, NOW, validity)
            .unwrap();
        let leaf = only_certificate(chain.split_inclusive("END CERTIFICATE-----").next().unwrap());
        let key = KeyPair::generate().unwrap();
        let mut no_ca = CertificateParams::default();
        no_ca.is_ca = IsCa::NoCa;
        let no_ca = no_ca.self_signed(&key).unwrap().pem();
        let late = NOW.plus(crate::authority::ROOT_VALIDITY);
        let both = format!("{}{}", own.cert_pem, other.cert_pem);
        for (cert, key, part) in [
            ("hello", "", "no valid root CA certificates found"),
            (own.key_pem.as_str(), "", "no valid root CA certificates found"),
            (&both, "", "cannot contain multiple certificates"),
            (&own.cert_pem, &other.key_pem, "certificate key mismatch"),
            (&own.cert_pem, "hello", "the key is not PEM"),
            (&own.cert_pem, "-----BEGIN ENCRYPTED PRIVATE KEY-----", "is encrypted"),
            (&leaf.unwrap(), &csr.key_pem, "CA:FALSE"),
            (&no_ca, &key.serialize_pem(), "CA:FALSE"),
        ] {
            let said = problem(cert, key);
            assert!(said.contains(part), "{part}: {said}");
            assert!(!said.contains("BEGIN"), "{said}");
        }
        let soon = supplied(&own.cert_pem, &own.key_pem, late).unwrap_err().to_string();
        assert!(soon.contains("expires too soon"), "{soon}");
        let early = supplied(&own.cert_pem, "", Timestamp::from_secs(1)).unwrap_err().to_string();
        assert!(early.contains("is valid from"), "{early}");
    }

    #[test]
    fn the_digest_of_several_roots_does_not_depend_on_their_order() {
        let (_, a) = RootAuthority::create(NOW).unwrap();
        let (_, b) = RootAuthority::create(NOW).unwrap();
        let of = |pems: &[&str]| digest_of_all(&pems.concat()).unwrap();
        let (a, b) = (a.cert_pem.as_str(), b.cert_pem.as_str());
        assert_eq!(of(&[a, b]), of(&[b, a, b]));
        assert_eq!(of(&[a]), digest_of_pem(a).unwrap());
        assert_ne!(of(&[a]), of(&[a, b]));
    }

    #[test]
    fn a_root_speaks_for_another_ones_key() {
        let (old, old_root) = RootAuthority::create(NOW).unwrap();
        let (next, next_root) = RootAuthority::create(NOW).unwrap();
        let cross = old.cross_sign(&next_root.cert_pem, NOW).unwrap();
        let key = KeyAndCsr::generate().unwrap();
        let chain = next
            .issue(&key.csr_pem, &"n".into(), NodeRole::Worker, &"c".into(), NOW, NODE_VALIDITY)
            .unwrap();
        let certs = certificates(&chain).unwrap();
        let by = |pem: &str| tls::issued_by(&certs[0], &certificates(pem).unwrap()[0]);
        assert!(by(&next_root.cert_pem) && by(&cross) && !by(&old_root.cert_pem));
        let identity = crate::node_identity::NodeIdentity::new(
            format!("{chain}{cross}{}", next_root.cert_pem),
            key.key_pem,
            old_root.cert_pem.clone(),
        )
        .unwrap();
        let said = identity.tls();
        assert_eq!(said.issuer, next.digest().to_string(), "the root, not who speaks for it");
        assert_eq!(said.trusts, old.digest().to_string());
    }
}
