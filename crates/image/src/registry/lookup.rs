//! Addresses of host names: hosts file, then DNS servers of `resolv.conf`.
//!
//! The C library's look-up loads plug-ins at run time, which a statically linked program cannot
//! rely on; this needs two text files and a socket.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

/// How long one server may take. The caller bounds the whole.
const SERVER_DEADLINE: Duration = Duration::from_secs(2);
/// Servers that are asked, as in the C library.
const MAX_SERVERS: usize = 3;
/// The largest answer over UDP without extensions (RFC 1035).
const UDP_ANSWER: usize = 512;

/// The addresses of `host`, a name or an address, with or without brackets.
pub(super) async fn addresses(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = host.parse::<IpAddr>() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let found = match in_hosts(&read("/etc/hosts").await, host) {
        known if !known.is_empty() => known,
        _ if is_local(host) => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        _ => ask_all(&Resolver::parse(&read("/etc/resolv.conf").await), host).await?,
    };
    Ok(found.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

/// Whether a name always means this machine (RFC 6761).
fn is_local(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost")
}

/// Whether a registry's host is this machine.
pub(super) fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    is_local(host) || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn read(path: &str) -> String {
    // A machine without the file has nothing to say in it.
    tokio::fs::read_to_string(path).await.unwrap_or_default()
}

fn in_hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let address = |line: &str| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|name| name.eq_ignore_ascii_case(host)).then_some(address)
    };
    text.lines().filter_map(address).collect()
}

/// What `resolv.conf` says.
#[derive(Debug, PartialEq, Eq)]
struct Resolver {
    servers: Vec<IpAddr>,
    search: Vec<String>,
}

impl Resolver {
    fn parse(text: &str) -> Self {
        let mut resolver = Self { servers: Vec::new(), search: Vec::new() };
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("nameserver") => {
                    let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
                    resolver.servers.extend(address);
                }
                Some("search" | "domain") => {
                    resolver.search = words.map(str::to_owned).collect();
                }
                _ => {}
            }
        }
        if resolver.servers.is_empty() {
            resolver.servers.push(Ipv4Addr::LOCALHOST.into());
        }
        resolver.servers.truncate(MAX_SERVERS);
        resolver
    }

    /// The full names to try for `host`, in order: those with a dot are tried as they are first.
    fn candidates(&self, host: &str) -> Vec<String> {
        let plain = std::iter::once(format!("{}.", host.trim_end_matches('.')));
        let searched = self.search.iter().map(|d| format!("{host}.{}.", d.trim_end_matches('.')));
        if host.ends_with('.') {
            plain.collect()
        } else if host.contains('.') {
            plain.chain(searched).collect()
        } else {
            searched.chain(plain).collect()
        }
    }
}

async fn ask_all(resolver: &Resolver, host: &str) -> io::Result<Vec<IpAddr>> {
    for name in resolver.candidates(host) {
        let (four, six) = tokio::join!(
            ask(resolver, &name, RecordType::A),
            ask(resolver, &name, RecordType::AAAA)
        );
        let found = match (four, six) {
            (Ok(four), Ok(six)) => [four, six].concat(),
            // One family is enough to connect.
            (Ok(found), Err(_)) | (Err(_), Ok(found)) if !found.is_empty() => found,
            (Err(error), _) | (_, Err(error)) => return Err(error),
        };
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("no such host '{host}'")))
}

/// Asks the servers in turn until one answers.
async fn ask(resolver: &Resolver, name: &str, kind: RecordType) -> io::Result<Vec<IpAddr>> {
    let mut last = None;
    for server in &resolver.servers {
        let asked = ask_one(*server, name, kind);
        let failed = match timeout(SERVER_DEADLINE, asked).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => error,
            Err(_) => io::Error::new(io::ErrorKind::TimedOut, "no answer within 2 s"),
        };
        let text = format!("look up '{name}' at the DNS server {server}: {failed}");
        last = Some(io::Error::new(failed.kind(), text));
    }
    Err(last.unwrap_or_else(|| io::Error::other("no DNS server is configured")))
}

async fn ask_one(server: IpAddr, name: &str, kind: RecordType) -> io::Result<Vec<IpAddr>> {
    let mut question = Message::query();
    question.metadata.recursion_desired = true;
    let name = Name::from_str(name).map_err(io::Error::other)?;
    question.add_query(Query::query(name, kind));
    let bytes = question.to_vec().map_err(io::Error::other)?;
    let server = SocketAddr::new(server, 53);
    let local: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((local, 0)).await?;
    socket.connect(server).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; UDP_ANSWER];
    let answer = loop {
        let size = socket.recv(&mut buffer).await?;
        let answer = Message::from_vec(buffer.get(..size).unwrap_or_default());
        // Anything that is not the answer to this question is somebody else's.
        if let Ok(answer) = answer
            && answer.metadata.id == question.metadata.id
        {
            break answer;
        }
    };
    let answer = if answer.metadata.truncation { ask_tcp(server, &bytes).await? } else { answer };
    read_answer(&answer)
}

async fn ask_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect(server).await?;
    let size = u16::try_from(question.len()).map_err(io::Error::other)?;
    stream.write_all(&[&size.to_be_bytes(), question].concat()).await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Message::from_vec(&answer).map_err(io::Error::other)
}

fn read_answer(answer: &Message) -> io::Result<Vec<IpAddr>> {
    match answer.metadata.response_code {
        ResponseCode::NoError => {}
        ResponseCode::NXDomain => return Ok(Vec::new()),
        code => return Err(io::Error::other(format!("the server answered '{code}'"))),
    }
    let address = |data: &RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    Ok(answer.answers.iter().filter_map(|record| address(&record.data)).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn hosts_files_have_comments_and_aliases() {
        let text = "127.0.0.1 localhost\n10.0.0.7  reg.example  Reg # not.this\nnonsense\n";
        assert_eq!(in_hosts(text, "reg"), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert!(in_hosts(text, "not.this").is_empty());
    }

    #[test]
    fn names_without_a_dot_are_searched_first() {
        let resolver = Resolver::parse("search a.example b.example\nnameserver 10.0.0.1\n");
        assert_eq!(resolver.candidates("reg"), ["reg.a.example.", "reg.b.example.", "reg."]);
        assert_eq!(resolver.candidates("reg.io")[0], "reg.io.");
        assert_eq!(Resolver::parse("").servers, [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    }

    #[test]
    fn this_machine_is_known() {
        for host in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]", "a.localhost"] {
            assert!(is_loopback(host), "{host}");
        }
        assert!(!is_loopback("registry.example"));
    }
}
