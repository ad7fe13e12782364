//! Health of unikernels: nothing can be run in one, so it is asked over its network. A label of the
//! container says how: `shoal.health.tcp=PORT` (it accepts a connection) or
//! `shoal.health.http=[PORT]/PATH` (it answers with a status of 200 to 399).

use std::time::Duration;

use shoal_model::spec::StringMap;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;

/// Label: the port that must accept connections.
const TCP: &str = "shoal.health.tcp";
/// Label: port and path that must answer.
const HTTP: &str = "shoal.health.http";
/// The port of a path without one.
const HTTP_PORT: u16 = 80;
/// How much of an answer is read: the status line of any server fits.
const ANSWER_BYTES_MAX: usize = 512;

/// How a unikernel is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Probe {
    /// By a connection.
    Tcp { port: u16 },
    /// By a request.
    Http { port: u16, path: String },
}

/// Reads the labels; nothing if they ask for no probe.
pub(crate) fn read(labels: Option<&StringMap>) -> Option<Probe> {
    let labels = labels?;
    if let Some(text) = labels.get(HTTP) {
        return http(text);
    }
    let port = labels.get(TCP)?.parse().ok().filter(|port| *port != 0)?;
    Some(Probe::Tcp { port })
}

fn http(text: &str) -> Option<Probe> {
    let slash = text.find('/')?;
    let (port, path) = text.split_at(slash);
    let port = if port.is_empty() { HTTP_PORT } else { port.parse().ok().filter(|p| *p != 0)? };
    let plain = path.bytes().all(|byte| byte.is_ascii_graphic());
    plain.then(|| Probe::Http { port, path: path.to_owned() })
}

/// Refuses labels that nobody can follow.
pub(crate) fn check(labels: Option<&StringMap>) -> Result<(), EngineError> {
    let given = |name: &str| labels.and_then(|labels| labels.get(name));
    let said = given(HTTP).map(|text| (HTTP, text)).or(given(TCP).map(|text| (TCP, text)));
    match said {
        Some((name, text)) if read(labels).is_none() => Err(EngineError::invalid(format!(
            "invalid label {name}='{text}': it wants {}",
            if name == TCP { "a port, as in 80" } else { "a path, as in /health or 8080/health" }
        ))),
        _ => Ok(()),
    }
}

/// Asks once; gives what a health command would: an exit status and an output.
pub(crate) async fn ask(
    engine: &Engine,
    container: &Container,
    probe: &Probe,
    limit: Duration,
) -> (i64, Vec<u8>) {
    let asked = tokio::time::timeout(limit, attempt(engine, container, probe, limit)).await;
    match asked {
        Ok(Ok(said)) => (0, said.into_bytes()),
        Ok(Err(said)) => (1, said.into_bytes()),
        Err(_) => (-1, format!("no answer within {limit:?}").into_bytes()),
    }
}

async fn attempt(
    engine: &Engine,
    container: &Container,
    probe: &Probe,
    limit: Duration,
) -> Result<String, String> {
    let (Probe::Tcp { port } | Probe::Http { port, .. }) = probe;
    let connected = engine.inner.attacher.connect_to(&container.id, *port, limit).await;
    let stream = connected.map_err(|error| shoal_model::fault::chain(&error))?;
    match probe {
        Probe::Tcp { port } => Ok(format!("port {port} accepts connections")),
        Probe::Http { path, .. } => request(stream, path).await,
    }
}

async fn request(mut stream: TcpStream, path: &str) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("ask for '{path}': {e}");
    let text = format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: shoal\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(text.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    let mut part = [0; ANSWER_BYTES_MAX];
    while !answer.contains(&b'\n') && answer.len() < ANSWER_BYTES_MAX {
        match stream.read(&mut part).await.map_err(failed)? {
            0 => break,
            len => answer.extend(part.iter().take(len)),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    let line = answer.lines().next().unwrap_or_default().trim();
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    match status.and_then(|word| word.parse::<u16>().ok()) {
        Some(200..=399) => Ok(format!("'{path}' answers {line}")),
        Some(_) => Err(format!("'{path}' answers {line}")),
        None => Err(format!("'{path}' gives no HTTP answer: '{line}'")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn labels(name: &str, value: &str) -> StringMap {
        StringMap::from([(name.to_owned(), value.to_owned())])
    }

    #[test]
    fn labels_say_how_to_ask() {
        let of = |name: &str, value: &str| read(Some(&labels(name, value)));
        assert_eq!(of(TCP, "80"), Some(Probe::Tcp { port: 80 }));
        assert_eq!(of(HTTP, "/"), Some(Probe::Http { port: 80, path: "/".into() }));
        assert_eq!(of(HTTP, "8080/up"), Some(Probe::Http { port: 8080, path: "/up".into() }));
        assert_eq!(of("other", "80"), None);
        for (name, value) in [(TCP, "0"), (TCP, "x"), (HTTP, "up"), (HTTP, "0/"), (HTTP, "/a b")] {
            assert_eq!(of(name, value), None);
            assert!(check(Some(&labels(name, value))).is_err(), "{name}={value}");
        }
        check(None).unwrap();
    }

    async fn answered(answer: &'static str) -> Result<String, String> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut asked = [0; 256];
            let len = stream.read(&mut asked).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&asked[..len]).into_owned()
        });
        let stream = TcpStream::connect(address).await.unwrap();
        let got = request(stream, "/up").await;
        assert!(server.await.unwrap().starts_with("GET /up HTTP/1.1\r\nHost: "));
        got
    }

    #[tokio::test]
    async fn the_status_line_decides() {
        assert!(answered("HTTP/1.1 200 OK\r\n\r\n").await.is_ok());
        assert!(answered("HTTP/1.1 302 Found\r\n").await.is_ok());
        assert!(answered("HTTP/1.1 503 Busy\r\n\r\n").await.unwrap_err().contains("503 Busy"));
        assert!(answered("SSH-2.0\r\n").await.unwrap_err().contains("no HTTP answer"));
    }
}
