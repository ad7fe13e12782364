//! `shoal try whoami`: tells who answers and whom it sees.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};

/// Connections served at a time; more wait in the kernel's queue.
const CONNECTIONS_MAX: usize = 1024;
/// Longest request head that is read.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Options of `shoal try whoami`.
#[derive(Args, Debug)]
pub struct WhoamiArgs {
    /// TCP and UDP port to answer on.
    #[arg(long, default_value_t = 80)]
    port: u16,
    /// The name to answer with; the host name if unsaid.
    #[arg(long)]
    name: Option<String>,
    /// Wait this long before each answer, in milliseconds.
    #[arg(long, default_value_t = 0)]
    delay_ms: u64,
    /// Take more than one request on a connection, and once told to stop, go on for at most so many
    /// seconds: each open connection gets its next answer and is closed with it.
    #[arg(long, value_name = "SECONDS")]
    keep_alive: Option<u64>,
}

/// What every connection needs.
struct Server {
    name: String,
    delay: Duration,
    keep_alive: bool,
    /// Whether each answer is its connection's last.
    stopping: watch::Receiver<bool>,
}

/// Serves until told to stop.
pub async fn serve(args: WhoamiArgs) -> Result<()> {
    let name = match args.name {
        Some(name) => name,
        None => rustix::system::uname().nodename().to_string_lossy().into_owned(),
    };
    let tcp = TcpListener::bind(("0.0.0.0", args.port))
        .await
        .with_context(|| format!("listen on TCP port {}", args.port))?;
    let udp = UdpSocket::bind(("0.0.0.0", args.port))
        .await
        .with_context(|| format!("listen on UDP port {}", args.port))?;
    println!("{name} answers on port {}", args.port);
    let (stop, stopping) = watch::channel(false);
    let delay = Duration::from_millis(args.delay_ms);
    let keep_alive = args.keep_alive.is_some();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let server = Arc::new(Server { name, delay, keep_alive, stopping });
    tokio::select! {
        done = serve_tcp(tcp, &server, &places) => done?,
        done = serve_udp(udp, &server.name) => done?,
        done = super::stop_signal() => done.context("wait for a signal")?,
    }
    stop.send_replace(true);
    let rest = Duration::from_secs(args.keep_alive.unwrap_or_default());
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    // Ignored because: whoever has not asked by then is hung up on, as `--keep-alive` says, and
    // nobody closes the semaphore.
    let _ = tokio::time::timeout(rest, places.acquire_many(all)).await;
    Ok(())
}

async fn serve_tcp(
    listener: TcpListener,
    server: &Arc<Server>,
    places: &Arc<Semaphore>,
) -> Result<()> {
    loop {
        let place = Arc::clone(places).acquire_owned().await.context("wait for a place")?;
        let (stream, peer) = listener.accept().await.context("accept a connection")?;
        let server = Arc::clone(server);
        // Owned by the connection itself: it ends with the client, the timeout or the process.
        tokio::spawn(async move {
            // Ignored because: a client that goes away or dawdles is its own business.
            let _ = server.converse(stream, peer).await;
            drop(place);
        });
    }
}

impl Server {
    /// Answers on one connection until it is to be closed.
    async fn converse(&self, mut stream: TcpStream, peer: SocketAddr) -> std::io::Result<()> {
        let mut read = Vec::new();
        loop {
            let asked = tokio::time::timeout(REQUEST_TIMEOUT, head(&mut stream, &mut read)).await;
            let Some(head) = asked?? else { return Ok(()) };
            tokio::time::sleep(self.delay).await;
            let last = !self.keep_alive || *self.stopping.borrow() || !keeps_alive(&head);
            let me = stream.local_addr()?.ip();
            let body = format!("{} at {me} sees {}\n", self.name, peer.ip());
            println!("{} asked", peer.ip());
            let reply = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
                 connection: {}\r\n\r\n{body}",
                body.len(),
                if last { "close" } else { "keep-alive" }
            );
            stream.write_all(reply.as_bytes()).await?;
            if last {
                return stream.shutdown().await;
            }
        }
    }
}

/// The next request's head; what comes behind it stays in `read`. None if there is no more, or too
/// much of it.
async fn head(stream: &mut TcpStream, read: &mut Vec<u8>) -> std::io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = read.windows(4).position(|w| w == b"\r\n\r\n") {
            let rest = read.split_off(end + 4);
            return Ok(Some(std::mem::replace(read, rest)));
        }
        if read.len() > HEAD_BYTES_MAX || stream.read_buf(read).await? == 0 {
            return Ok(None);
        }
    }
}

/// Whether whoever sent this head goes on on the same connection: HTTP/1.1 does if nothing is said.
fn keeps_alive(head: &[u8]) -> bool {
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let says = |what: &str| {
        let field = |line: &str| line.strip_prefix("connection:").is_some_and(|v| v.contains(what));
        text.lines().any(field)
    };
    let newest = text.lines().next().is_some_and(|line| line.ends_with("http/1.1"));
    if newest { !says("close") } else { says("keep-alive") }
}

async fn serve_udp(socket: UdpSocket, name: &str) -> Result<()> {
    let mut buffer = [0; 2048];
    loop {
        let (_, peer) = socket.recv_from(&mut buffer).await.context("receive a datagram")?;
        let reply = format!("{name} sees {}\n", peer.ip());
        // Ignored because: an unreachable client shows up here as an error of the next send.
        let _ = socket.send_to(reply.as_bytes(), peer).await;
    }
}
