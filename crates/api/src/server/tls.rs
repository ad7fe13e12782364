//! TLS with client certificates, from the three files that Docker's flags name.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use crate::server::fault::ServeError;

/// `--tlscacert`, `--tlscert`, `--tlskey`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// Authorities whose clients may connect.
    pub ca: PathBuf,
    /// The server's certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

impl TlsFiles {
    /// Reads the files; clients must show a certificate of the authority.
    ///
    /// # Errors
    /// Names the file that cannot be read or used.
    pub fn acceptor(&self) -> Result<TlsAcceptor, ServeError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        for cert in certificates(&self.ca)? {
            let unusable = failed("use the authority", &self.ca);
            roots.add(cert).map_err(|e| unusable(e.into()))?;
        }
        let other = |source: Cause| ServeError::Tls { source };
        let verifier =
            WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
                .build()
                .map_err(|e| other(e.into()))?;
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| other(e.into()))?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.cert)?, private_key(&self.key)?)
            .map_err(|e| other(e.into()))?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn failed(action: &'static str, path: &Path) -> impl Fn(Cause) -> ServeError {
    let path = path.to_owned();
    move |source| ServeError::TlsFile { action, path: path.clone(), source }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServeError> {
    let unreadable = failed("read certificates from", path);
    let pem = std::fs::read(path).map_err(|e| unreadable(e.into()))?;
    let found: Result<Vec<_>, _> = rustls_pemfile::certs(&mut pem.as_slice()).collect();
    let found = found.map_err(|e| unreadable(e.into()))?;
    if found.is_empty() {
        return Err(unreadable("there is no certificate in it".into()));
    }
    Ok(found)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, ServeError> {
    let unreadable = failed("read the key from", path);
    let pem = std::fs::read(path).map_err(|e| unreadable(e.into()))?;
    let found =
        rustls_pemfile::private_key(&mut pem.as_slice()).map_err(|e| unreadable(e.into()))?;
    found.ok_or_else(|| unreadable("there is no key in it".into()))
}
