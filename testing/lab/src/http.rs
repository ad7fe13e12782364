//! A client that is small, fast, and rude: it can hang up at any moment.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

/// How long the daemon may take to answer anything. Stops have a grace of at most two seconds here.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// One request.
#[derive(Clone, Debug)]
pub struct Request {
    /// `POST`…
    pub method: &'static str,
    /// With the query.
    pub path: String,
    /// With its content type.
    pub body: Option<(&'static str, Vec<u8>)>,
    /// Hang up after so long, without waiting for the answer.
    pub cut: Option<Duration>,
}

/// What came of it.
#[derive(Debug)]
pub enum Outcome {
    /// Status and body.
    Answered(u16, String),
    /// We hung up.
    Cut,
    /// There was nobody, or the connection broke.
    Gone,
    /// No answer in time.
    Silent,
}

impl Request {
    /// A request without a body.
    #[must_use]
    pub fn new(method: &'static str, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), body: None, cut: None }
    }

    /// With a JSON body.
    #[must_use]
    pub fn json(mut self, body: &Value) -> Self {
        self.body = Some(("application/json", body.to_string().into_bytes()));
        self
    }

    /// With an archive.
    #[must_use]
    pub fn tar(mut self, body: Vec<u8>) -> Self {
        self.body = Some(("application/x-tar", body));
        self
    }

    /// Sends it to the daemon that listens on `socket`.
    #[must_use]
    pub fn send(&self, socket: &Path) -> Outcome {
        self.send_within(socket, ANSWER_MAX)
    }

    /// As [`Self::send`], with another patience.
    #[must_use]
    pub fn send_within(&self, socket: &Path, patience: Duration) -> Outcome {
        let Ok(mut stream) = UnixStream::connect(socket) else { return Outcome::Gone };
        if stream.set_read_timeout(Some(patience)).is_err() {
            return Outcome::Gone;
        }
        let (kind, body) = self.body.clone().unwrap_or(("", Vec::new()));
        let mut head = format!("{} {} HTTP/1.1\r\nHost: x\r\n", self.method, self.path);
        if !kind.is_empty() {
            head.push_str(&format!("Content-Type: {kind}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\nConnection: close\r\n\r\n", body.len()));
        if let Some(after) = self.cut {
            // A cut at no time at all leaves within the body.
            let sent = if after.is_zero() { body.len() / 2 } else { body.len() };
            let bytes = [head.as_bytes(), body.get(..sent).unwrap_or_default()].concat();
            // Ignored because: we hang up anyway.
            let _ = stream.write_all(&bytes);
            std::thread::sleep(after);
            return Outcome::Cut;
        }
        // Ignored because: a server that answers before it has read all may close its end.
        let _ = stream.write_all(&[head.as_bytes(), &body].concat());
        read_answer(&mut stream)
    }
}

fn read_answer(stream: &mut UnixStream) -> Outcome {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        if matches!(error.kind(), TimedOut | WouldBlock) {
            return Outcome::Silent;
        }
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    match (status, text.split_once("\r\n\r\n")) {
        (Some(status), Some((_, body))) => Outcome::Answered(status, body.to_owned()),
        _ => Outcome::Gone,
    }
}

/// `GET path` as JSON; `None` unless it is answered with 200.
#[must_use]
pub fn get(socket: &Path, path: &str) -> Option<Value> {
    match Request::new("GET", path).send(socket) {
        Outcome::Answered(200, body) => serde_json::from_str(&body).ok(),
        _ => None,
    }
}
