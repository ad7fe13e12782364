//! TCP connections, carried byte by byte, each direction until it ends.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Target;
use super::socket::HostNetns;

/// Most connections of one port; further ones wait to be accepted.
const CONNECTIONS_MAX: usize = 1024;
/// The target is one hop away and answers or refuses at once, unless its node is lost.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// After a failed accept (no more descriptors, say).
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes under way in one direction.
const BUFFER_LEN: usize = 16 * 1024;

/// Accepts and carries connections for ever.
pub(super) async fn serve(netns: Arc<HostNetns>, listener: TcpListener, target: Arc<Target>) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // Cannot fail: the semaphore is never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((client, _)) => {
                let (netns, target) = (Arc::clone(&netns), target.get());
                connections.spawn(async move {
                    carry(netns, client, target).await;
                    drop(slot);
                });
            }
            // That client is gone, or descriptors are short: later ones may come.
            Err(error) => {
                tracing::warn!(%error, "accept a connection of a published port");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn carry(netns: Arc<HostNetns>, mut client: TcpStream, target: Option<SocketAddr>) {
    let server = match target {
        Some(target) => timeout(CONNECT_DEADLINE, connect(netns, target)).await,
        None => Ok(Err(io::ErrorKind::ConnectionRefused.into())),
    };
    let Ok(Ok(mut server)) = server else {
        // Ignored because: the reset that this asks for is itself the report to the client.
        let _ = client.set_zero_linger();
        return;
    };
    for stream in [&client, &server] {
        // Ignored because: it only costs time to wait for more bytes.
        let _ = stream.set_nodelay(true);
    }
    // Ignored because: both ends see the end of the connection; nobody else wants to know.
    let _ = copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER_LEN, BUFFER_LEN).await;
}

async fn connect(netns: Arc<HostNetns>, target: SocketAddr) -> io::Result<TcpStream> {
    let open = move || if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() };
    let socket = match netns.0 {
        None => open()?,
        Some(_) => tokio::task::spawn_blocking(move || netns.run(open)).await???,
    };
    socket.connect(target).await
}
