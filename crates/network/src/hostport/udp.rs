//! UDP flows: one socket towards the target for each client, forgotten after a while of silence.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UdpSocket;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, timeout};

use super::Target;
use super::socket::HostNetns;

/// Most flows of one port; packets of further clients are dropped until one ends.
const FLOWS_MAX: usize = 1024;
/// A flow without a packet in either direction ends after this, like the kernel's own after a
/// conversation.
const IDLE: Duration = Duration::from_secs(120);
/// Longest datagram.
const DATAGRAM_LEN_MAX: usize = 65_535;

struct Flow {
    socket: Arc<UdpSocket>,
    /// When the client last sent something.
    seen: Arc<Mutex<Instant>>,
    answers: AbortHandle,
}

/// Carries datagrams for ever.
pub(super) async fn serve(netns: Arc<HostNetns>, socket: UdpSocket, target: Arc<Target>) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<SocketAddr, Flow> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut used = target.get();
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    loop {
        let (len, client) = tokio::select! {
            Some(ended) = tasks.join_next() => {
                if let Ok(client) = ended {
                    flows.remove(&client);
                }
                continue;
            }
            received = socket.recv_from(&mut buf) => match received {
                Ok(received) => received,
                // Ignored because: it is about an answer that its client did not wait for.
                Err(_) => continue,
            },
        };
        if target.get() != used {
            used = target.get();
            for (_, flow) in flows.drain() {
                flow.answers.abort();
            }
        }
        let Some(to) = used else { continue };
        if !flows.contains_key(&client) {
            if flows.len() >= FLOWS_MAX {
                continue;
            }
            // Ignored because: to the client it is a lost datagram, which it must expect.
            let Ok(upstream) = connect(Arc::clone(&netns), to).await else { continue };
            let upstream = Arc::new(upstream);
            let seen = Arc::new(Mutex::new(Instant::now()));
            let work =
                answer(Arc::clone(&upstream), Arc::clone(&socket), client, Arc::clone(&seen));
            let answers = tasks.spawn(work);
            flows.insert(client, Flow { socket: upstream, seen, answers });
        }
        if let Some(flow) = flows.get(&client) {
            *flow.seen.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            // Ignored because: as above.
            let _ = flow.socket.send(&buf[..len]).await;
        }
    }
}

/// Carries answers to one client until both are silent.
async fn answer(
    upstream: Arc<UdpSocket>,
    socket: Arc<UdpSocket>,
    client: SocketAddr,
    seen: Arc<Mutex<Instant>>,
) -> SocketAddr {
    let mut buf = vec![0; DATAGRAM_LEN_MAX];
    loop {
        match timeout(IDLE, upstream.recv(&mut buf)).await {
            Ok(Ok(len)) => {
                // Ignored because: to the client it is a lost datagram, which it must expect.
                let _ = socket.send_to(&buf[..len], client).await;
            }
            // The target refuses: the next datagram of the client begins anew.
            Ok(Err(_)) => return client,
            Err(_) => {
                let silent = seen.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
                if silent >= IDLE {
                    return client;
                }
            }
        }
    }
}

async fn connect(netns: Arc<HostNetns>, target: SocketAddr) -> io::Result<UdpSocket> {
    let any: IpAddr = match target {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let open = move || {
        let socket = std::net::UdpSocket::bind((any, 0))?;
        socket.connect(target)?;
        socket.set_nonblocking(true)?;
        Ok::<_, io::Error>(socket)
    };
    let socket = match netns.0 {
        None => open()?,
        Some(_) => tokio::task::spawn_blocking(move || netns.run(open)).await???,
    };
    UdpSocket::from_std(socket)
}
