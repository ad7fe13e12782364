//! An authority of somebody else's, asked by the protocol of cfssl: one HTTPS request for each
//! certificate. What comes back is checked as if it came from anybody.

use async_trait::async_trait;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use serde::Deserialize;
use serde_json::json;
use shoal_model::id::{ClusterId, NodeId};
use shoal_model::object::{Cluster, RootCa};
use shoal_model::spec::cluster::ExternalCa;
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;
use std::sync::Arc;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer;

use crate::authority::{CSR_PEM_MAX, certificates, digest_of_pem};
use crate::error::IdentityError;
use crate::node_identity::NodeIdentity;
use crate::peer::{PeerIdentity, organizational_unit};
use crate::tls;
use crate::token::CaDigest;

/// Largest answer that is read: a certificate has about a kilobyte.
pub const ANSWER_MAX: usize = 256 * 1024;
/// The one protocol that is spoken.
pub const CFSSL: &str = "cfssl";

/// Sends one request. Whoever implements it bounds the wait and the answer ([`ANSWER_MAX`]).
#[async_trait]
pub trait HttpsPost: Send + Sync + 'static {
    /// POSTs JSON; the body of whatever is answered.
    ///
    /// # Errors
    /// In words: why there is no answer.
    async fn post(&self, url: &str, tls: Arc<ClientConfig>, body: String)
    -> Result<String, String>;
}

/// For programs without a way to the outside.
#[derive(Debug)]
pub struct NoHttps;

#[async_trait]
impl HttpsPost for NoHttps {
    async fn post(&self, _: &str, _: Arc<ClientConfig>, _: String) -> Result<String, String> {
        Err("not implemented: this program makes no HTTPS requests".to_owned())
    }
}

/// Whom a certificate is for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// CN.
    pub node_id: NodeId,
    /// OU.
    pub role: NodeRole,
    /// O.
    pub cluster_id: ClusterId,
    /// PEM of the signing request; only its public key counts.
    pub csr_pem: String,
}

/// The authorities among `listed` that issue by `root`: those that name it, and where it is the
/// cluster's root of today, those that name none.
///
/// # Errors
/// [`IdentityError::CertificateMalformed`] if one of them names what is no certificate.
pub fn authorities_of<'a>(
    listed: &'a [ExternalCa],
    cluster: &Cluster,
    root: &RootCa,
) -> Result<Vec<&'a ExternalCa>, IdentityError> {
    let wanted = digest_of_pem(&root.cert_pem)?;
    let mut fitting = Vec::new();
    for ca in listed {
        let fits = match ca.ca_cert.trim() {
            "" => *root == cluster.root_ca,
            pem => digest_of_pem(pem)? == wanted,
        };
        if fits {
            fitting.push(ca);
        }
    }
    Ok(fitting)
}

/// What cfssl answers.
#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    success: bool,
    #[serde(default)]
    result: Option<Issued>,
    #[serde(default)]
    errors: Vec<Problem>,
}

#[derive(Deserialize)]
struct Issued {
    certificate: String,
}

#[derive(Deserialize)]
struct Problem {
    #[serde(default)]
    message: String,
}

/// Has the authority at `url` issue a certificate by `root`. The leaf alone, PEM.
///
/// # Errors
/// [`IdentityError::External`] says what went wrong; [`IdentityError::CsrMalformed`] is the node's
/// own fault.
pub async fn issue(
    way: &dyn HttpsPost,
    url: &str,
    root: &RootCa,
    as_whom: &NodeIdentity,
    wanted: &Wanted,
    now: Timestamp,
) -> Result<String, IdentityError> {
    let key = key_of(&wanted.csr_pem)?;
    let unit = organizational_unit(wanted.role);
    let request = json!({
        "hosts": [unit, wanted.node_id],
        "certificate_request": wanted.csr_pem,
        "subject": {
            "CN": wanted.node_id,
            "names": [{ "OU": unit, "O": wanted.cluster_id }],
        },
    });
    let tls = as_whom.https_config(&root.cert_pem)?;
    let failed = |problem: String| IdentityError::External { url: url.to_owned(), problem };
    let text = way.post(url, tls, request.to_string()).await.map_err(failed)?;
    let answer: Answer = serde_json::from_str(&text)
        .map_err(|e| failed(format!("its answer is not cfssl's: {e}")))?;
    let issued = match (answer.success, answer.result) {
        (true, Some(issued)) => issued,
        _ => {
            let said: Vec<&str> = answer.errors.iter().map(|e| e.message.as_str()).collect();
            return Err(failed(format!("it refuses: {}", said.join("; "))));
        }
    };
    let leaf = CertificateDer::from_pem_slice(issued.certificate.as_bytes())
        .map_err(|e| failed(format!("its certificate is not PEM: {e}")))?;
    check(&leaf, root, wanted, &key, now).map_err(failed)?;
    let end = "-----END CERTIFICATE-----";
    let first = issued.certificate.split_inclusive(end).next().unwrap_or_default();
    Ok(format!("{}\n", first.trim()))
}

/// Whether a certificate is what was asked for.
fn check(
    leaf: &CertificateDer<'_>,
    root: &RootCa,
    wanted: &Wanted,
    key: &str,
    now: Timestamp,
) -> Result<(), String> {
    let peer = PeerIdentity::from_der(leaf).map_err(|e| e.to_string())?;
    let same = (peer.node_id, peer.role, peer.cluster_id);
    if same != (wanted.node_id.clone(), wanted.role, wanted.cluster_id.clone()) {
        return Err("its certificate has another subject than was asked for".to_owned());
    }
    if peer.key != key {
        return Err("its certificate is for another key than was asked for".to_owned());
    }
    if peer.not_after <= now {
        return Err(format!("its certificate has expired already, at {}", peer.not_after));
    }
    let roots = certificates(&root.cert_pem).map_err(|e| e.to_string())?;
    if !roots.iter().any(|root| tls::issued_by(leaf, root)) {
        return Err("its certificate is not issued by the swarm's root certificate".to_owned());
    }
    Ok(())
}

/// The digest of the key in a signing request.
fn key_of(csr_pem: &str) -> Result<String, IdentityError> {
    let malformed = |problem: String| IdentityError::CsrMalformed { problem };
    if csr_pem.len() > CSR_PEM_MAX {
        return Err(malformed(format!("it has {} bytes, far too many", csr_pem.len())));
    }
    let der = CertificateSigningRequestDer::from_pem_slice(csr_pem.as_bytes())
        .map_err(|e| malformed(format!("not PEM: {e}")))?;
    let (_, request) = X509CertificationRequest::from_der(&der)
        .map_err(|e| malformed(format!("not a signing request: {e}")))?;
    let key = request.certification_request_info.subject_pki.raw;
    Ok(CaDigest::of_der(key).to_string())
}
