//! TLS settings. Chains are checked against the cluster's root; names are not looked at, roles are.

use std::sync::Arc;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, ServerConfig, SignatureScheme,
};
use shoal_model::id::ClusterId;
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;

use crate::authority;
use crate::error::IdentityError;
use crate::node_identity::NodeIdentity;
use crate::peer::{self, PeerIdentity};
use crate::token::CaDigest;

/// How long after its end a certificate still proves who asks for the next one, and nothing else: a
/// node that was off for long comes back by itself.
pub const RENEWAL_GRACE: Duration = Duration::from_secs(90 * 24 * 3600);

/// HTTP/2, the only protocol that is spoken on these connections.
pub const ALPN: &[u8] = b"h2";

/// The one place where the cryptography provider is chosen.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl NodeIdentity {
    /// For listening: shows this node's certificate and checks a client's, if it shows one. Who
    /// shows none reaches the handlers as nobody.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when certificate and key cannot be used.
    pub fn server_tls(&self) -> Result<ServerTls, IdentityError> {
        self.server_tls_with("", "")
    }

    /// The same where further roots are trusted, and roots that were replaced let nodes in that ask
    /// for the next certificate, and no others (PEM, which may be empty): also if this node has not
    /// been told yet to trust them no more.
    ///
    /// # Errors
    /// As [`Self::server_tls`].
    pub fn server_tls_with(
        &self,
        trusted_pem: &str,
        former_pem: &str,
    ) -> Result<ServerTls, IdentityError> {
        let action = "set up TLS for listening";
        let replaced = listed(former_pem)?;
        let mut trusted = listed(&self.root_pem)?;
        trusted.retain(|root| !replaced.contains(root));
        trusted.extend(listed(trusted_pem)?);
        let (trusted, former) = (Arc::new(store_of(trusted)?), Arc::new(store_of(replaced)?));
        let check = |roots: &Arc<RootCertStore>| {
            WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| crypto(action, &e))
        };
        let has_former = !former.is_empty();
        let verifier = MemberVerifier {
            chain: check(&trusted)?,
            former: if has_former { Some(check(&former)?) } else { None },
            cluster_id: self.cluster_id.clone(),
        };
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(|e| crypto(action, &e))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_single_cert(authority::certificates(&self.cert_pem)?, self.key()?)
            .map_err(|e| crypto(action, &e))?;
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Sessions are few and long: nothing is gained by resuming them, and a resumed one would
        // skip the check of a certificate that has expired since.
        config.send_tls13_tickets = 0;
        Ok(ServerTls { config: Arc::new(config), trusted, has_former })
    }

    /// For connecting to a manager of this node's cluster.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when certificate and key cannot be used.
    pub fn client_config(&self) -> Result<Arc<ClientConfig>, IdentityError> {
        let verifier = ManagerVerifier {
            trust: Trust::Roots(Arc::new(store(&[&self.root_pem])?)),
            algorithms: provider().signature_verification_algorithms,
        };
        let config = client_builder(verifier)?
            .with_client_auth_cert(authority::certificates(&self.cert_pem)?, self.key()?)
            .map_err(|e| crypto("set up TLS for connecting", &e))?;
        Ok(finish(config))
    }

    /// For asking an authority of somebody else's by HTTPS: it is known by its name and the roots
    /// in `roots_pem` or this node's, and knows this node by its certificate.
    ///
    /// # Errors
    /// [`IdentityError::Crypto`] when certificates and key cannot be used.
    pub fn https_config(&self, roots_pem: &str) -> Result<Arc<ClientConfig>, IdentityError> {
        let action = "set up TLS for asking an external CA";
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .map_err(|e| crypto(action, &e))?
            .with_root_certificates(store(&[roots_pem, &self.root_pem])?)
            .with_client_auth_cert(authority::certificates(&self.cert_pem)?, self.key()?)
            .map_err(|e| crypto(action, &e))?;
        Ok(Arc::new(config))
    }

    /// Whether the roots that this node trusts now speak for what a manager has shown.
    #[must_use]
    pub fn knows(&self, shown: &Shown) -> bool {
        store(&[&self.root_pem]).is_ok_and(|roots| is_known(&shown.certs, &roots))
    }

    fn key(&self) -> Result<PrivateKeyDer<'static>, IdentityError> {
        PrivateKeyDer::from_pem_slice(self.key_pem.as_bytes())
            .map_err(|e| crypto("read the node's private key", &e))
    }
}

/// TLS settings of a server, and how it knows who has come.
#[derive(Clone, Debug)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// Today's roots.
    trusted: Arc<RootCertStore>,
    /// Whether others let somebody in, too.
    has_former: bool,
}

impl ServerTls {
    /// For the handshake.
    #[must_use]
    pub fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }

    /// Who has shown `certs` in a handshake with these settings.
    ///
    /// # Errors
    /// [`IdentityError::CertificateMalformed`] names what is missing.
    pub fn peer(&self, certs: &[CertificateDer<'_>]) -> Result<PeerIdentity, IdentityError> {
        let mut peer = PeerIdentity::from_certs(certs)?;
        peer.former = self.has_former && !is_known(certs, &self.trusted);
        Ok(peer)
    }

    /// Whether today's roots speak for a certificate that was shown in an earlier handshake.
    #[must_use]
    pub fn knows(&self, shown: &Shown) -> bool {
        is_known(&shown.certs, &self.trusted)
    }

    /// Whether other settings have the same roots of today.
    #[must_use]
    pub fn same_roots(&self, other: &Self) -> bool {
        self.trusted.roots == other.trusted.roots
    }
}

/// The certificates that the other end of a connection has shown.
#[derive(Clone, Debug)]
pub struct Shown {
    certs: Vec<CertificateDer<'static>>,
    /// The end of the first one's validity.
    not_after: Timestamp,
}

impl Shown {
    /// Leaf first.
    ///
    /// # Errors
    /// [`IdentityError::CertificateMalformed`] if there is none, or none that can be read.
    pub fn new(certs: &[CertificateDer<'_>]) -> Result<Self, IdentityError> {
        let leaf = certs.first().ok_or_else(|| IdentityError::CertificateMalformed {
            problem: "there is none".to_owned(),
        })?;
        let (_, not_after) = peer::validity(&peer::parse(leaf)?);
        let certs = certs.iter().map(|cert| cert.clone().into_owned()).collect();
        Ok(Self { certs, not_after })
    }

    /// The same of PEM.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn of_pem(pem: &str) -> Result<Self, IdentityError> {
        Self::new(&authority::certificates(pem)?)
    }

    /// Until when it is valid.
    #[must_use]
    pub fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

fn is_known(certs: &[CertificateDer<'_>], roots: &RootCertStore) -> bool {
    certs.split_first().is_some_and(|(leaf, others)| leads_to(leaf, others, roots))
}

/// Whether one of `roots` speaks for a certificate, at the end of its validity.
fn leads_to(
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
    roots: &RootCertStore,
) -> bool {
    let (Ok(parsed), Ok(cert)) = (ParsedCertificate::try_from(leaf), peer::parse(leaf)) else {
        return false;
    };
    let (_, end) = peer::validity(&cert);
    let end = u64::try_from(end.secs()).unwrap_or(0);
    let at = UnixTime::since_unix_epoch(Duration::from_secs(end));
    let algorithms = provider().signature_verification_algorithms;
    rustls::client::verify_server_cert_signed_by_trust_anchor(
        &parsed,
        roots,
        others,
        at,
        algorithms.all,
    )
    .is_ok()
}

/// Whether `root` itself has issued `leaf`.
pub(crate) fn issued_by(leaf: &CertificateDer<'_>, root: &CertificateDer<'_>) -> bool {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone().into_owned()).is_ok() && leads_to(leaf, &[], &roots)
}

/// The certificates of all texts, once each.
fn store(pems: &[&str]) -> Result<RootCertStore, IdentityError> {
    let mut known = Vec::new();
    for pem in pems {
        known.extend(listed(pem)?);
    }
    store_of(known)
}

/// The certificates of a text that may be empty.
fn listed(pem: &str) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    if pem.is_empty() { Ok(Vec::new()) } else { authority::certificates(pem) }
}

/// These, once each.
fn store_of(mut known: Vec<CertificateDer<'static>>) -> Result<RootCertStore, IdentityError> {
    known.sort_unstable_by(|a, b| a.as_ref().cmp(b.as_ref()));
    known.dedup();
    let mut roots = RootCertStore::empty();
    for cert in known {
        roots.add(cert).map_err(|e| crypto("trust the root certificate", &e))?;
    }
    Ok(roots)
}

/// For the first contact: trusts whoever proves to be a manager under the root with `digest`.
///
/// # Errors
/// [`IdentityError::Crypto`] when the TLS library refuses its settings.
pub fn pinned_client_config(digest: &CaDigest) -> Result<Arc<ClientConfig>, IdentityError> {
    let verifier = ManagerVerifier {
        trust: Trust::Digest(digest.clone()),
        algorithms: provider().signature_verification_algorithms,
    };
    Ok(finish(client_builder(verifier)?.with_no_client_auth()))
}

/// What a connection's error says about certificates: our own refusal, if it was one.
#[must_use]
pub fn refusal_in(error: &rustls::Error) -> Option<IdentityError> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(inner))) => {
            inner.downcast_ref::<IdentityError>().cloned()
        }
        _ => None,
    }
}

fn client_builder(
    verifier: ManagerVerifier,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, IdentityError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|e| crypto("set up TLS for connecting", &e))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier)))
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    // As on the server: every connection checks certificates anew.
    config.resumption = rustls::client::Resumption::disabled();
    // Members are known by their certificates, not by names.
    config.enable_sni = false;
    Arc::new(config)
}

fn crypto(action: &'static str, error: &dyn std::error::Error) -> IdentityError {
    IdentityError::Crypto { action, problem: error.to_string() }
}

/// What a client believes in.
#[derive(Debug)]
enum Trust {
    /// The cluster's root, known from joining.
    Roots(Arc<RootCertStore>),
    /// Whatever root has this digest.
    Digest(CaDigest),
}

/// Checks that the server is a manager of the cluster.
#[derive(Debug)]
struct ManagerVerifier {
    trust: Trust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ManagerVerifier {
    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        others: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), IdentityError> {
        let roots = match &self.trust {
            Trust::Roots(roots) => Arc::clone(roots),
            Trust::Digest(digest) => Arc::new(root_with(digest, leaf, others)?),
        };
        let parsed = ParsedCertificate::try_from(leaf).map_err(|e| {
            IdentityError::CertificateMalformed { problem: format!("not X.509: {e}") }
        })?;
        rustls::client::verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &roots,
            others,
            now,
            self.algorithms.all,
        )
        .map_err(|error| explain(leaf, now, &error))?;
        let peer = PeerIdentity::from_der(leaf)?;
        match peer.role {
            NodeRole::Manager => Ok(()),
            NodeRole::Worker => Err(IdentityError::NotAManager {
                node: peer.node_id.to_string(),
                role: peer.role.as_str(),
            }),
        }
    }
}

impl ServerCertVerifier for ManagerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.check(end_entity, intermediates, now) {
            Ok(()) => Ok(ServerCertVerified::assertion()),
            // The typed reason travels inside, so that the user reads it.
            Err(error) => Err(rustls::Error::InvalidCertificate(CertificateError::Other(
                OtherError(Arc::new(error)),
            ))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Checks that a client is a member of the cluster, or was one until less than [`RENEWAL_GRACE`]
/// ago. Refusals keep the TLS library's own kinds, so
/// that the client gets a precise alert.
#[derive(Debug)]
struct MemberVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    /// Roots that were replaced. Whoever takes the connection must look which it was.
    former: Option<Arc<dyn ClientCertVerifier>>,
    cluster_id: ClusterId,
}

impl ClientCertVerifier for MemberVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.chain.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now);
        let (verified, at) = match verified {
            Err(error) if is_expired(&error) => {
                let then = in_grace(end_entity, now).ok_or(error)?;
                (self.chain.verify_client_cert(end_entity, intermediates, then), then)
            }
            other => (other, now),
        };
        let verified = match (&self.former, verified) {
            (Some(former), Err(error)) => {
                former.verify_client_cert(end_entity, intermediates, at).map_err(|_| error)
            }
            (_, verified) => verified,
        };
        let verified = verified.map_err(|error| match error {
            // Every cluster's root has the same name, so another cluster's certificate shows as a
            // wrong signature. Its owner should read what it means.
            rustls::Error::InvalidCertificate(CertificateError::BadSignature) => {
                CertificateError::UnknownIssuer.into()
            }
            other => other,
        })?;
        match PeerIdentity::from_der(end_entity) {
            Ok(peer) if peer.cluster_id == self.cluster_id => Ok(verified),
            Ok(_) => Err(CertificateError::UnknownIssuer.into()),
            Err(_) => Err(CertificateError::BadEncoding.into()),
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

fn is_expired(error: &rustls::Error) -> bool {
    use CertificateError as E;
    matches!(error, rustls::Error::InvalidCertificate(E::Expired | E::ExpiredContext { .. }))
}

/// The last moment of a certificate's validity, if that is not too long ago. Whoever takes the
/// connection must look whether its peer has expired.
fn in_grace(leaf: &CertificateDer<'_>, now: UnixTime) -> Option<UnixTime> {
    let (_, end) = peer::validity(&peer::parse(leaf).ok()?);
    let end = Duration::from_secs(u64::try_from(end.secs()).ok()?);
    let late = Duration::from_secs(now.as_secs()).checked_sub(end)?;
    (late <= RENEWAL_GRACE).then(|| UnixTime::since_unix_epoch(end))
}

/// Finds the certificate that a join token names among those that the server sent.
fn root_with(
    digest: &CaDigest,
    leaf: &CertificateDer<'_>,
    others: &[CertificateDer<'_>],
) -> Result<RootCertStore, IdentityError> {
    let Some(root) = others.iter().find(|cert| CaDigest::of_der(cert) == *digest) else {
        let last = others.last().unwrap_or(leaf);
        return Err(IdentityError::WrongRoot {
            expected: digest.to_string(),
            presented: CaDigest::of_der(last).to_string(),
        });
    };
    let mut roots = RootCertStore::empty();
    roots
        .add(root.clone().into_owned())
        .map_err(|e| IdentityError::CertificateMalformed { problem: e.to_string() })?;
    Ok(roots)
}

/// Our words for a refused chain: times with the clock, everything else as another cluster's.
fn explain(leaf: &CertificateDer<'_>, now: UnixTime, error: &rustls::Error) -> IdentityError {
    let subject = peer::subject_of(leaf);
    let now = Timestamp::from_secs(i64::try_from(now.as_secs()).unwrap_or(i64::MAX / 2));
    if let Ok(cert) = peer::parse(leaf) {
        let (not_before, not_after) = peer::validity(&cert);
        if now > not_after {
            let late = now.since(not_after);
            return IdentityError::Expired { subject, not_after, now, late };
        }
        if now < not_before {
            let early = not_before.since(now);
            return IdentityError::NotYetValid { subject, not_before, now, early };
        }
    }
    IdentityError::OtherCluster { subject, detail: error.to_string() }
}
