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
