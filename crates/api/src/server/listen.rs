//! Where the server listens: unix sockets and TCP.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::TlsAcceptor;

use crate::server::fault::ServeError;

/// The group that may use the socket beside root, if it exists.
const SOCKET_GROUP: &str = "docker";
/// Rights of the socket: root and its group.
const SOCKET_MODE: u32 = 0o660;
/// Port of a `tcp://` host without one, with TLS.
const PORT_TLS: u16 = 2376;
/// Port of a `tcp://` host without one, without TLS.
const PORT_PLAIN: u16 = 2375;

/// A place to listen, parsed from `--host`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// `unix:///path`.
    Unix(PathBuf),
    /// `tcp://address[:port]`.
    Tcp(String, Option<u16>),
}

impl Host {
    /// Reads `unix:///path` or `tcp://address[:port]`.
    ///
    /// # Errors
    /// [`ServeError::BadHost`].
    pub fn parse(text: &str) -> Result<Self, ServeError> {
        let bad = |reason| ServeError::BadHost { host: text.to_owned(), reason };
        if let Some(path) = text.strip_prefix("unix://") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err(bad("a unix socket needs an absolute path"))
            };
        }
        let rest = text.strip_prefix("tcp://").ok_or_else(|| bad("only unix:// and tcp://"))?;
        let rest = rest.trim_end_matches('/');
        let (name, port) = match rest.rsplit_once(':') {
            Some((name, port)) if !name.ends_with(':') && !port.ends_with(']') => {
                (name, Some(port.parse().map_err(|_| bad("the port is not a number"))?))
            }
            _ => (rest, None),
        };
        let name = name.trim_start_matches('[').trim_end_matches(']');
        Ok(Self::Tcp(if name.is_empty() { "127.0.0.1" } else { name }.to_owned(), port))
    }
}

/// A place that is listened on. A unix socket's file goes away with it.
pub struct Listener {
    name: String,
    kind: Kind,
}

enum Kind {
    Unix(UnixListener, PathBuf),
    Tcp(TcpListener),
    Tls(TcpListener, TlsAcceptor),
}

/// A connection that was accepted.
pub enum Accepted {
    /// On a unix socket.
    Unix(UnixStream),
    /// On TCP without TLS.
    Tcp(TcpStream),
    /// On TCP, before the handshake.
    Tls(TcpStream, TlsAcceptor),
}

impl Listener {
    /// Begins to listen. `tls` is needed for TCP beyond loopback, and used on loopback if given.
    ///
    /// # Errors
    /// The socket is in use, the address is taken, TLS is missing.
    pub async fn bind(host: &Host, tls: Option<TlsAcceptor>) -> Result<Self, ServeError> {
        match host {
            Host::Unix(path) => {
                let name = format!("unix://{}", path.display());
                Ok(Self { name, kind: Kind::Unix(bind_unix(path)?, path.clone()) })
            }
            Host::Tcp(name, port) => bind_tcp(name, *port, tls).await,
        }
    }

    /// The address in use, if this is TCP: tests listen on port 0.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Unix(..) => None,
            Kind::Tcp(listener) | Kind::Tls(listener, _) => listener.local_addr().ok(),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Accepted> {
        match &self.kind {
            Kind::Unix(listener, _) => Ok(Accepted::Unix(listener.accept().await?.0)),
            Kind::Tcp(listener) => Ok(Accepted::Tcp(no_delay(listener.accept().await?.0)?)),
            Kind::Tls(listener, acceptor) => {
                Ok(Accepted::Tls(no_delay(listener.accept().await?.0)?, acceptor.clone()))
            }
        }
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix(_, path) = &self.kind {
            // Ignored because: a stale socket is replaced at the next start.
            let _ = std::fs::remove_file(path);
        }
    }
}

fn no_delay(stream: TcpStream) -> io::Result<TcpStream> {
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn bind_unix(path: &Path) -> Result<UnixListener, ServeError> {
    let failed = |action| {
        let path = path.to_owned();
        move |source| ServeError::Socket { action, path, source }
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed("create the directory of"))?;
    }
    if path.exists() {
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(ServeError::SocketInUse { path: path.to_owned() });
        }
        std::fs::remove_file(path).map_err(failed("remove the stale"))?;
    }
    let listener = UnixListener::bind(path).map_err(failed("listen on"))?;
    if let Some(group) = group_id(SOCKET_GROUP) {
        chown(path, None, Some(group)).map_err(failed("set the group of"))?;
    }
    let rights = std::fs::Permissions::from_mode(SOCKET_MODE);
    std::fs::set_permissions(path, rights).map_err(failed("set the rights of"))?;
    Ok(listener)
}

fn group_id(name: &str) -> Option<u32> {
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    groups.lines().find_map(|line| {
        let mut parts = line.split(':');
        (parts.next() == Some(name)).then(|| parts.nth(1)?.parse().ok())?
    })
}

async fn bind_tcp(
    name: &str,
    port: Option<u16>,
    tls: Option<TlsAcceptor>,
) -> Result<Listener, ServeError> {
    let port = port.unwrap_or(if tls.is_some() { PORT_TLS } else { PORT_PLAIN });
    let address = format!("{name}:{port}");
    let failed = |source| ServeError::Tcp { address: address.clone(), source };
    let mut found = tokio::net::lookup_host((name, port)).await.map_err(failed)?;
    let target = found.next().ok_or_else(|| {
        failed(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
    })?;
    if tls.is_none() && !target.ip().is_loopback() {
        return Err(ServeError::NeedsTls { address });
    }
    let listener = TcpListener::bind(target).await.map_err(failed)?;
    let kind = match tls {
        Some(acceptor) => Kind::Tls(listener, acceptor),
        None => Kind::Tcp(listener),
    };
    Ok(Listener { name: format!("tcp://{address}"), kind })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_are_read() {
        assert_eq!(Host::parse("unix:///a/b").unwrap(), Host::Unix("/a/b".into()));
        let tcp = |t: &str| Host::parse(t).unwrap();
        assert_eq!(tcp("tcp://127.0.0.1:2375"), Host::Tcp("127.0.0.1".into(), Some(2375)));
        assert_eq!(tcp("tcp://[::1]:1"), Host::Tcp("::1".into(), Some(1)));
        assert_eq!(tcp("tcp://:99"), Host::Tcp("127.0.0.1".into(), Some(99)));
        assert_eq!(tcp("tcp://h"), Host::Tcp("h".into(), None));
        for bad in ["unix://a", "http://x", "tcp://x:y", ""] {
            assert!(Host::parse(bad).is_err(), "{bad}");
        }
    }
}
