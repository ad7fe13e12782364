//! `TLSInfo`: the authority's certificate, its subject and its public key.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use shoal_model::object::Cluster;
use shoal_model::trust::NodeTls;

/// `TLSInfo` of a node: the root that its certificate is of, and those that it trusts.
#[must_use]
pub fn of_node(cluster: &Cluster, node: &NodeTls) -> Value {
    let trust = &cluster.trust;
    let next = trust.next.as_ref();
    let replaced = next.map(|next| next.given_up.iter()).unwrap_or_default();
    let others = replaced.chain(&trust.former).map(|it| (&it.digest, &it.cert_pem));
    let all = next.map(|next| (&next.digest, &next.root.cert_pem));
    let known: Vec<(&String, &String)> =
        all.into_iter().chain([(&trust.digest, &cluster.root_ca.cert_pem)]).chain(others).collect();
    // Who has never said anything has what the cluster has.
    let named = |digest: &str| {
        let found = known.iter().find(|(known, _)| !digest.is_empty() && *known == digest);
        found.map_or(&cluster.root_ca.cert_pem, |(_, pem)| *pem)
    };
    let trusts = match next {
        Some(next) if next.all == node.trusts => cluster.trusted_pem(),
        _ => named(&node.trusts).clone(),
    };
    let mut out = info(named(&node.issuer));
    if let Some(trust_root) = out.get_mut("TrustRoot") {
        *trust_root = json!(trusts);
    }
    out
}

/// `TLSInfo` of the authority with this certificate; `{}` if the certificate cannot be read.
#[must_use]
pub fn info(cert_pem: &str) -> Value {
    let der = rustls_pemfile::certs(&mut cert_pem.as_bytes()).next();
    let Some(Ok(der)) = der else { return json!({}) };
    let Some((subject, key)) = subject_and_key(&der) else { return json!({}) };
    json!({
        "TrustRoot": cert_pem,
        "CertIssuerSubject": STANDARD.encode(subject),
        "CertIssuerPublicKey": STANDARD.encode(key),
    })
}

/// Finds two members of an X.509 certificate (RFC 5280, 4.1): the certificate is a sequence whose
/// first member is a sequence of [version], serial, algorithm, issuer, validity, subject, key.
fn subject_and_key(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (_, certificate, _) = element(der)?;
    let (_, body, _) = element(certificate)?;
    let (tag, _, after_version) = element(body)?;
    let mut rest = if tag == 0xa0 { after_version } else { body };
    let mut members = Vec::with_capacity(6);
    for _ in 0..6 {
        let (_, _, after) = element(rest)?;
        members.push(rest.get(..rest.len() - after.len())?);
        rest = after;
    }
    Some((*members.get(4)?, *members.get(5)?))
}

/// Splits off one DER element: its tag, its contents, and what follows it.
fn element(der: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (&tag, rest) = der.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (len, rest) = if first < 0x80 {
        (usize::from(first), rest)
    } else {
        let count = usize::from(first & 0x7f);
        let (digits, rest) = rest.split_at_checked(count.min(5))?;
        (digits.iter().fold(0_usize, |sum, b| (sum << 8) | usize::from(*b)), rest)
    };
    let (contents, after) = rest.split_at_checked(len)?;
    Some((tag, contents, after))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_split() {
        assert_eq!(element(&[0x30, 1, 7, 9]), Some((0x30, &[7_u8][..], &[9_u8][..])));
        assert_eq!(element(&[0x30, 0x81, 1, 7]), Some((0x30, &[7_u8][..], &[][..])));
        assert_eq!(element(&[0x30, 5, 1]), None);
        assert_eq!(element(&[]), None);
    }

    #[test]
    fn rubbish_gives_an_empty_object() {
        assert_eq!(info("no certificate"), json!({}));
    }
}
