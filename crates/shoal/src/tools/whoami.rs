//! `shoal try whoami`: tells who answers and whom it sees.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;

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
    let delay = Duration::from_millis(args.delay_ms);
    tokio::select! {
        done = serve_tcp(tcp, &name, delay) => done,
        done = serve_udp(udp, &name) => done,
        done = super::stop_signal() => done.context("wait for a signal"),
    }
}

async fn serve_tcp(listener: TcpListener, name: &str, delay: Duration) -> Result<()> {
    let name: Arc<str> = name.into();
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let place = Arc::clone(&places).acquire_owned().await.context("wait for a place")?;
        let (stream, peer) = listener.accept().await.context("accept a connection")?;
        let name = Arc::clone(&name);
        // Owned by the connection itself: it ends with the client, the timeout or the process.
        tokio::spawn(async move {
            // Ignored because: a client that goes away or dawdles is its own business.
            let _ = tokio::time::timeout(REQUEST_TIMEOUT, answer(stream, peer, &name, delay)).await;
            drop(place);
        });
    }
}

async fn answer(
    mut stream: TcpStream,
    peer: SocketAddr,
    name: &str,
    delay: Duration,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|w| w == b"\r\n\r\n") {
        if head.len() > HEAD_BYTES_MAX || stream.read_buf(&mut head).await? == 0 {
            return Ok(());
        }
    }
    tokio::time::sleep(delay).await;
    let me = stream.local_addr()?.ip();
    let body = format!("{name} at {me} sees {}\n", peer.ip());
    println!("{} asked", peer.ip());
    let reply = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(reply.as_bytes()).await?;
    stream.shutdown().await
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
