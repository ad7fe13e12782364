//! `shoal try resolve`: asks the container's own name server and shows the answer whole.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::net::UdpSocket;

/// How long one name server gets.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a server is asked before the look-up fails.
const TRIES: u32 = 2;

/// Options of `shoal try resolve`.
#[derive(Args, Debug)]
pub struct ResolveArgs {
    /// The name.
    name: String,
}

/// Prints the answer; fails if there is none.
pub async fn resolve(args: ResolveArgs) -> Result<()> {
    let (server, message) = query(&args.name, RecordType::A).await?;
    println!("server {server}, answer {}", message.metadata.response_code);
    for record in &message.answers {
        println!("{record}");
    }
    if message.answers.is_empty() {
        bail!("name '{}' has no address", args.name);
    }
    Ok(())
}

/// The IPv4 addresses of `name`.
pub async fn lookup(name: &str) -> Result<Vec<IpAddr>> {
    let (server, message) = query(name, RecordType::A).await?;
    let code = message.metadata.response_code;
    if code != ResponseCode::NoError {
        bail!("name server {server} says of '{name}': {code}");
    }
    let address = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        _ => None,
    };
    Ok(message.answers.iter().filter_map(|record| address(&record.data)).collect())
}

async fn query(name: &str, kind: RecordType) -> Result<(SocketAddr, Message)> {
    let config = tokio::fs::read_to_string("/etc/resolv.conf").await.context("read resolv.conf")?;
    let server = config
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .find_map(|rest| rest.trim().parse::<IpAddr>().ok())
        .context("no name server in resolv.conf")?;
    let server = SocketAddr::new(server, 53);
    let mut name = Name::from_utf8(name).with_context(|| format!("read the name '{name}'"))?;
    name.set_fqdn(true);
    let mut message = Message::new(rand::random(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name, kind));
    let bytes = message.to_vec().context("write the question")?;
    for _ in 0..TRIES {
        let asked = tokio::time::timeout(ANSWER_TIMEOUT, exchange(server, &bytes)).await;
        if let Ok(reply) = asked {
            return Ok((server, reply?));
        }
    }
    bail!("name server {server} does not answer")
}

async fn exchange(server: SocketAddr, question: &[u8]) -> Result<Message> {
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await.context("open a socket")?;
    socket.connect(server).await.with_context(|| format!("reach {server}"))?;
    socket.send(question).await.with_context(|| format!("ask {server}"))?;
    let mut buffer = vec![0; 4096];
    let length = socket.recv(&mut buffer).await.with_context(|| format!("hear from {server}"))?;
    buffer.truncate(length);
    Message::from_vec(&buffer).context("read the answer")
}
