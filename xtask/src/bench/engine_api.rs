//! The Engine API as a benchmark asks it: one request for each connection, over the unix socket.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use shoal_lab::http::{Outcome, Request};

/// How long one answer may take.
const DEADLINE: Duration = Duration::from_secs(120);

/// The API of one daemon.
#[derive(Clone, Debug)]
pub struct EngineApi {
    socket: PathBuf,
}

impl EngineApi {
    /// The daemon that listens at `socket`.
    pub fn new(socket: &Path) -> Self {
        Self { socket: socket.to_owned() }
    }

    /// Sends a request with a JSON body, or without one; the answer's body.
    ///
    /// # Errors
    /// If the daemon does not answer, or answers with an error.
    pub fn ask(&self, method: &'static str, path: &str, body: &str) -> Result<String> {
        let mut request = Request::new(method, path);
        if !body.is_empty() {
            request.body = Some(("application/json", body.as_bytes().to_vec()));
        }
        match request.send_within(&self.socket, DEADLINE) {
            Outcome::Answered(200..=299 | 304, said) => Ok(said),
            other => bail!("{method} {path}: {other:?}"),
        }
    }
}
