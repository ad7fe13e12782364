//! TCP with client certificates: the real docker CLI gets in with one and not without.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Output};

use fake::server::Server;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    SanType,
};
use shoal_api::server::fault::ServeError;
use shoal_api::server::tls::TlsFiles;

/// Writes `ca.pem`, `cert.pem`, `key.pem` of a client into `dir`; gives the server's files.
fn certificates(dir: &Path) -> TlsFiles {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    std::fs::write(dir.join("ca.pem"), ca.pem()).unwrap();
    let issue = |usage: ExtendedKeyUsagePurpose, cert: &str, key: &str| {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        params.extended_key_usages = vec![usage];
        let pair = KeyPair::generate().unwrap();
        let signed = params.signed_by(&pair, &ca).unwrap();
        std::fs::write(dir.join(cert), signed.pem()).unwrap();
        std::fs::write(dir.join(key), pair.serialize_pem()).unwrap();
    };
    issue(ExtendedKeyUsagePurpose::ClientAuth, "cert.pem", "key.pem");
    issue(ExtendedKeyUsagePurpose::ServerAuth, "server.pem", "server-key.pem");
    TlsFiles {
        ca: dir.join("ca.pem"),
        cert: dir.join("server.pem"),
        key: dir.join("server-key.pem"),
    }
}

fn docker(address: SocketAddr, dir: &Path, tls: &[&str]) -> Output {
    Command::new("timeout")
        .args(["60", "docker", "-H", &format!("tcp://{address}")])
        .args(tls)
        .args(["version", "--format", "{{.Server.Version}}"])
        .env("DOCKER_CERT_PATH", dir)
        .env("HOME", dir)
        .env_remove("DOCKER_HOST")
        .output()
        .unwrap()
}

#[test]
fn clients_need_a_certificate_of_the_authority() {
    let dir = tempfile::tempdir().unwrap();
    let files = certificates(dir.path());
    let (server, address) = Server::start_tls(&files);
    let out = docker(address, dir.path(), &["--tlsverify"]);
    let errors = String::from_utf8_lossy(&out.stderr).into_owned();
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "0.1.0", "{errors}");
    let plain = docker(address, dir.path(), &[]);
    assert!(!plain.status.success());
    let other = tempfile::tempdir().unwrap();
    certificates(other.path());
    std::fs::copy(dir.path().join("ca.pem"), other.path().join("ca.pem")).unwrap();
    let stranger = docker(address, other.path(), &["--tlsverify"]);
    assert!(!stranger.status.success(), "a client of another authority must not get in");
    drop(server);
}

#[test]
fn unusable_files_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let files = certificates(dir.path());
    let missing = TlsFiles { key: dir.path().join("nothing"), ..files.clone() };
    let error = missing.acceptor().err().unwrap();
    assert!(error.to_string().ends_with("nothing'"), "{error}");
    let swapped = TlsFiles { cert: files.key.clone(), ..files };
    assert!(matches!(swapped.acceptor().err().unwrap(), ServeError::TlsFile { .. }));
}
