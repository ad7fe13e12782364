//! The one HTTPS client that asks authorities of somebody else's for certificates.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::header::CONTENT_TYPE;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use shoal_identity::external::{ANSWER_MAX, HttpsPost};
use shoal_model::fault::chain;
use tokio::time::timeout;

/// Longest that one request may take. Who asks may wait less.
const DEADLINE: Duration = Duration::from_secs(10);

/// The client. Each request opens a connection of its own: they are rare, and their certificates
/// differ.
pub struct Https;

#[async_trait]
impl HttpsPost for Https {
    async fn post(
        &self,
        url: &str,
        tls: Arc<rustls::ClientConfig>,
        body: String,
    ) -> Result<String, String> {
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config((*tls).clone())
            .https_only()
            .enable_http1()
            .build();
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let request = Request::post(url)
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| format!("the URL makes no sense: {error}"))?;
        let asked = async {
            let answer = client.request(request).await.map_err(|error| chain(&error))?;
            let status = answer.status();
            let read = Limited::new(answer.into_body(), ANSWER_MAX).collect().await;
            let bytes = read.map_err(|error| format!("its answer breaks off: {error}"))?.to_bytes();
            // A refusal is JSON, too, and says more than its status.
            match String::from_utf8(bytes.to_vec()) {
                Ok(text) if status.is_success() || text.starts_with('{') => Ok(text),
                _ => Err(format!("it answers with status {status}")),
            }
        };
        let late = |_| format!("no answer within {} s", DEADLINE.as_secs());
        timeout(DEADLINE, asked).await.map_err(late)?
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use std::convert::Infallible;
    use std::net::SocketAddr;

    use hyper::body::Incoming;
    use hyper::server::conn::http1;
    use hyper::service::service_fn;
    use hyper::{Response, StatusCode};
    use hyper_util::rt::TokioIo;
    use rcgen::{CertificateParams, Issuer, KeyPair};
    use serde_json::{Value, json};
    use shoal_identity::authority::{KeyAndCsr, NODE_VALIDITY, RootAuthority};
    use shoal_identity::external::{Wanted, issue};
    use shoal_identity::node_identity::NodeIdentity;
    use shoal_identity::peer::PeerIdentity;
    use shoal_identity::tls::provider;
    use shoal_model::id::NodeId;
    use shoal_model::object::RootCa;
    use shoal_model::spec::node::NodeRole;
    use shoal_model::time::Timestamp;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    fn now() -> Timestamp {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
        Timestamp::from_secs(i64::try_from(since.as_secs()).unwrap())
    }

    /// Whether the CA does what it is asked for, and what instead.
    #[derive(Clone, Copy, PartialEq)]
    enum Mood {
        Good,
        OtherSubject,
        OtherRoot,
        Refuses,
        Html,
        Endless,
    }

    /// A CA like cfssl's: its HTTPS certificate is of its root, and it issues by that.
    async fn ca(root: &RootCa, mood: Mood) -> SocketAddr {
        let issuer =
            Issuer::from_ca_cert_pem(&root.cert_pem, KeyPair::from_pem(&root.key_pem).unwrap())
                .unwrap();
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let cert = params.signed_by(&key, &issuer).unwrap();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![cert.der().clone()],
                rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let root = root.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(stream) = acceptor.accept(stream).await else { continue };
                let root = root.clone();
                let serve = service_fn(move |request: hyper::Request<Incoming>| {
                    let root = root.clone();
                    async move {
                        let body = request.into_body().collect().await.unwrap().to_bytes();
                        Ok::<_, Infallible>(answer(&root, &body, mood))
                    }
                });
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), serve));
            }
        });
        addr
    }

    fn answer(root: &RootCa, body: &[u8], mood: Mood) -> Response<Full<Bytes>> {
        let asked: Value = serde_json::from_slice(body).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let names = &asked["subject"]["names"][0];
        let role = match names["OU"].as_str().unwrap() {
            "swarm-manager" => NodeRole::Manager,
            _ => NodeRole::Worker,
        };
        let id = match mood {
            Mood::OtherSubject => NodeId::new("somebody"),
            _ => NodeId::new(text(&asked["subject"]["CN"])),
        };
        let authority = match mood {
            Mood::OtherRoot => RootAuthority::create(now()).unwrap().0,
            _ => RootAuthority::load(root).unwrap(),
        };
        let cluster = text(&names["O"]).as_str().into();
        let csr = text(&asked["certificate_request"]);
        let cert = authority.issue(&csr, &id, role, &cluster, now(), NODE_VALIDITY).unwrap();
        let (status, said) = match mood {
            Mood::Refuses => {
                let errors = json!([{ "code": 1, "message": "not today" }]);
                (500, json!({ "success": false, "errors": errors }).to_string())
            }
            Mood::Html => (404, "<html>".to_owned()),
            Mood::Endless => (200, "x".repeat(ANSWER_MAX + 1)),
            _ => {
                let result = json!({ "certificate": cert });
                (200, json!({ "success": true, "result": result, "errors": [] }).to_string())
            }
        };
        let mut answer = Response::new(Full::new(Bytes::from(said)));
        *answer.status_mut() = StatusCode::from_u16(status).unwrap();
        answer
    }

    #[tokio::test]
    async fn a_ca_like_cfssl_is_asked_over_https() {
        let (own, own_root) = RootAuthority::create(now()).unwrap();
        let (_, root) = RootAuthority::create(now()).unwrap();
        let key = KeyAndCsr::generate().unwrap();
        let role = NodeRole::Manager;
        let cert = own
            .issue(&key.csr_pem, &"m1".into(), role, &"c1".into(), now(), NODE_VALIDITY)
            .unwrap();
        let manager = NodeIdentity::new(cert, key.key_pem, own_root.cert_pem).unwrap();
        let csr_pem = KeyAndCsr::generate().unwrap().csr_pem;
        let wanted = Wanted {
            node_id: "n1".into(),
            role: NodeRole::Worker,
            cluster_id: "c1".into(),
            csr_pem,
        };
        for (mood, part) in [
            (Mood::Good, ""),
            (Mood::OtherSubject, "another subject"),
            (Mood::OtherRoot, "not issued by the swarm's root"),
            (Mood::Refuses, "not today"),
            (Mood::Html, "status 404"),
            (Mood::Endless, "breaks off"),
        ] {
            let url = format!("https://{}/api/v1/cfssl/sign", ca(&root, mood).await);
            let said = issue(&Https, &url, &root, &manager, &wanted, now()).await;
            match said {
                Ok(leaf) if mood == Mood::Good => {
                    let peer = PeerIdentity::from_pem(&leaf).unwrap();
                    assert_eq!((peer.node_id, peer.role), ("n1".into(), NodeRole::Worker));
                }
                Ok(_) => panic!("{part}: taken"),
                Err(error) => {
                    let said = error.to_string();
                    assert!(!part.is_empty() && said.contains(part), "{part}: {said}");
                    assert!(said.contains(&url), "{said}");
                }
            }
        }
        // Somebody whose HTTPS certificate is of neither root.
        let (_, other) = RootAuthority::create(now()).unwrap();
        let url = format!("https://{}/", ca(&other, Mood::Good).await);
        let said = issue(&Https, &url, &root, &manager, &wanted, now()).await.unwrap_err();
        assert!(said.to_string().contains("certificate"), "{said}");
        let said = issue(&Https, "https://127.0.0.1:1/", &root, &manager, &wanted, now()).await;
        assert!(said.unwrap_err().to_string().contains("127.0.0.1:1"));
    }
}
