//! A small client of the Engine API over a unix socket: commands that ask the daemon, and the
//! demonstration, use what users use.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::UnixStream;

/// How long one request may take: loading an image is the slowest.
const REQUEST_DEADLINE: Duration = Duration::from_secs(60);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A node's API.
#[derive(Clone, Debug)]
pub struct Api {
    socket: PathBuf,
}

/// One request.
struct Ask<'a> {
    method: &'a str,
    path: &'a str,
    /// What the body is.
    kind: &'a str,
    body: Bytes,
    /// Longest answer that is read.
    most: usize,
}

impl Api {
    /// The API behind a socket.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_path_buf() }
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Result<Value> {
        let body = self.send("GET", path, "application/json", Bytes::new()).await?;
        parse(&body, path)
    }

    /// `POST` with a JSON body; an empty answer is `null`.
    pub async fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let body = Bytes::from(body.to_string());
        let answer = self.send("POST", path, "application/json", body).await?;
        parse(&answer, path)
    }

    /// `POST` of an archive; the answer is a stream of messages.
    pub async fn upload(&self, path: &str, archive: Bytes) -> Result<String> {
        let answer = self.send("POST", path, "application/x-tar", archive).await?;
        let text = String::from_utf8_lossy(&answer).into_owned();
        if text.contains("errorDetail") {
            bail!("POST {path}: {text}");
        }
        Ok(text)
    }

    /// `GET` of at most `most` bytes.
    pub async fn download(&self, path: &str, most: u64) -> Result<Bytes> {
        let most = usize::try_from(most).unwrap_or(usize::MAX);
        let (kind, body) = ("application/json", Bytes::new());
        self.ask(Ask { method: "GET", path, kind, body, most }).await
    }

    /// `POST` of bytes; the answer is JSON.
    pub async fn post_bytes(&self, path: &str, body: Bytes) -> Result<Value> {
        parse(&self.send("POST", path, "application/octet-stream", body).await?, path)
    }

    /// `DELETE`.
    pub async fn delete(&self, path: &str) -> Result<()> {
        self.send("DELETE", path, "application/json", Bytes::new()).await.map(drop)
    }

    /// Runs a command in a container; its output and exit status.
    pub async fn exec(&self, container: &str, command: &[&str]) -> Result<(String, i64)> {
        let body = json!({"AttachStdout": true, "AttachStderr": true, "Cmd": command});
        let made = self.post(&format!("/containers/{container}/exec"), &body).await?;
        let id = made["Id"].as_str().context("the exec has no id")?.to_owned();
        let path = format!("/exec/{id}/start");
        let start = Bytes::from(json!({"Detach": false, "Tty": false}).to_string());
        let raw = self.send("POST", &path, "application/json", start).await?;
        let state = self.get(&format!("/exec/{id}/json")).await?;
        Ok((unframe(&raw), state["ExitCode"].as_i64().unwrap_or(-1)))
    }

    async fn send(&self, method: &str, path: &str, kind: &str, body: Bytes) -> Result<Bytes> {
        self.ask(Ask { method, path, kind, body, most: ANSWER_BYTES_MAX }).await
    }

    async fn ask(&self, ask: Ask<'_>) -> Result<Bytes> {
        let (method, path) = (ask.method, ask.path);
        match tokio::time::timeout(REQUEST_DEADLINE, self.exchange(ask)).await {
            Ok(answer) => answer.with_context(|| format!("{method} {path}")),
            Err(_) => bail!("{method} {path}: no answer within {} s", REQUEST_DEADLINE.as_secs()),
        }
    }

    async fn exchange(&self, ask: Ask<'_>) -> Result<Bytes> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .with_context(|| format!("connect to '{}'", self.socket.display()))?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(ask.method)
            .uri(format!("/v1.50{}", ask.path))
            .header("host", "shoal")
            .header("content-type", ask.kind)
            .body(Full::new(ask.body))?;
        let answer = sender.send_request(request).await?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ask.most).collect().await;
        driver.abort();
        let body = body.map_err(|error| anyhow::anyhow!(error))?.to_bytes();
        if status.is_success() {
            return Ok(body);
        }
        let said: Value = serde_json::from_slice(&body).unwrap_or_default();
        let message = said["message"].as_str().map(str::to_owned);
        bail!("{status}: {}", message.unwrap_or_else(|| String::from_utf8_lossy(&body).into()))
    }
}

fn parse(body: &[u8], path: &str) -> Result<Value> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).with_context(|| format!("understand the answer to {path}"))
}

/// Takes the frames off a multiplexed stream: 8 bytes before each piece, the last four its length.
fn unframe(mut raw: &[u8]) -> String {
    let mut text = Vec::new();
    while let Some((head, rest)) = raw.split_first_chunk::<8>() {
        let [.., a, b, c, d] = *head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let (piece, rest) = rest.split_at(length.min(rest.len()));
        text.extend_from_slice(piece);
        raw = rest;
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_off() {
        let raw = [&[1, 0, 0, 0, 0, 0, 0, 2][..], b"ab", &[2, 0, 0, 0, 0, 0, 0, 1], b"c"].concat();
        assert_eq!(unframe(&raw), "abc");
        assert_eq!(unframe(&raw[..9]), "a");
    }
}
