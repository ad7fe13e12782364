//! As much of an HTTP client as a benchmark of the Engine API needs: one request for each
//! connection, over the unix socket.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

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

    /// Sends a request; the answer's body.
    ///
    /// # Errors
    /// If the daemon does not answer, or answers with an error.
    pub fn ask(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let said = self.talk(method, path, body).with_context(|| format!("{method} {path}"))?;
        let (head, body) = said.split_once("\r\n\r\n").context("an answer without a head")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        ensure!(status.starts_with('2') || status == "304", "{method} {path}: {status}: {body}");
        let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
        if chunked { unchunk(body) } else { Ok(body.to_owned()) }
    }

    fn talk(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let mut stream = UnixStream::connect(&self.socket)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    }
}

fn unchunk(mut body: &str) -> Result<String> {
    let mut out = String::new();
    loop {
        let (len, rest) = body.split_once("\r\n").context("half a chunk")?;
        let len = usize::from_str_radix(len.trim(), 16).context("the length of a chunk")?;
        if len == 0 {
            return Ok(out);
        }
        match (rest.get(..len), rest.get(len + 2..)) {
            (Some(piece), Some(behind)) => {
                out.push_str(piece);
                body = behind;
            }
            _ => bail!("half a chunk"),
        }
    }
}
