//! Asks a daemon that speaks Docker's API for an image: what was pulled or loaded can be run here.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where the daemon listens unless `DOCKER_HOST` says otherwise.
const SOCKET: &str = "/var/run/docker.sock";
/// How long a daemon may be silent: it may have to read an image from a slow disk.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Longest head of an answer.
const HEAD_BYTES_MAX: u64 = 64 * 1024;
/// Largest archive that is taken: an image and what wraps it.
const ARCHIVE_BYTES_MAX: u64 = 1 << 30;

/// The daemon's socket: that of `DOCKER_HOST` if it is a Unix socket.
#[must_use]
pub fn socket() -> PathBuf {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    host.strip_prefix("unix://").unwrap_or(SOCKET).into()
}

/// Saves the image called `name` into `out`, as `docker save` does.
///
/// # Errors
/// No daemon, no such image, or an answer that cannot be read.
pub fn save(socket: &Path, name: &str, out: &mut impl Write) -> io::Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-@".contains(c);
    if name.is_empty() || !name.chars().all(plain) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not an image's name"));
    }
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    // Version 1.0 of HTTP: the answer is not in pieces and ends with the connection.
    write!(stream, "GET /images/{name}/get HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = BufReader::new(stream);
    let mut head = Vec::new();
    let mut line = Vec::new();
    while line != b"\r\n" {
        line.clear();
        let left = HEAD_BYTES_MAX.saturating_sub(head.len() as u64);
        if (&mut answer).take(left).read_until(b'\n', &mut line)? == 0 {
            return Err(io::Error::other("the answer has no end of its head"));
        }
        head.extend_from_slice(&line);
    }
    let head = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        let mut message = String::new();
        answer.take(HEAD_BYTES_MAX).read_to_string(&mut message)?;
        let parsed: Option<serde_json::Value> = serde_json::from_str(&message).ok();
        let said = parsed.as_ref().and_then(|value| value.get("message")?.as_str());
        return Err(io::Error::other(said.unwrap_or(message.trim()).to_owned()));
    }
    if head.contains("transfer-encoding: chunked") {
        return Err(io::Error::other("the answer is in pieces, which HTTP 1.0 does not have"));
    }
    let taken = io::copy(&mut answer.take(ARCHIVE_BYTES_MAX), out)?;
    if taken == ARCHIVE_BYTES_MAX {
        return Err(io::Error::other("the image is too large to be a unikernel"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn answer(text: &'static str) -> io::Result<Vec<u8>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 512];
            let bytes = stream.read(&mut request).unwrap();
            assert!(request[..bytes].starts_with(b"GET /images/web:1/get HTTP/1.0\r\n"));
            stream.write_all(text.as_bytes()).unwrap();
        });
        let mut out = Vec::new();
        let result = save(&path, "web:1", &mut out);
        server.join().unwrap();
        result.map(|()| out)
    }

    #[test]
    fn an_image_or_the_daemons_reason() {
        assert_eq!(answer("HTTP/1.0 200 OK\r\nA: b\r\n\r\narchive").unwrap(), b"archive");
        let error = answer("HTTP/1.0 404 Not Found\r\n\r\n{\"message\":\"no such image\"}");
        assert_eq!(error.unwrap_err().to_string(), "no such image");
        assert!(answer("HTTP/1.0 200 OK\r\n").is_err());
    }

    #[test]
    fn names_cannot_smuggle_requests() {
        let error = save(Path::new("/nowhere"), "a b\r\nX: y", &mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
