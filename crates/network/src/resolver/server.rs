//! The sockets in the namespaces: each question is answered from the current snapshot, as seen by
//! the workload of the namespace where it arrived.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use shoal_netlink::error::NetlinkError;
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::nft::{Base, Batch, Family, Hook, Rule, Table, priority};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::forward::{self, HostServers};
use super::lookup::{Outcome, lookup};
use super::message::{Parsed, Question, parse};
use super::snapshot::{Listen, Snapshot, View};
use crate::desired::SandboxId;

/// The address that Docker promises in every container.
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
const PORT: u16 = 53;
/// Where the sockets on loopback really are, the first free one: port 53 of all addresses belongs
/// to the workload, and programs hardly ever bind these.
const HIDDEN_PORTS: std::ops::RangeInclusive<u16> = 1011..=1023;
/// Most questions that wait for outside at one time, of all workloads together.
const FORWARDS_MAX: usize = 1024;
/// Most TCP connections of one workload.
const CONNECTIONS_MAX: usize = 64;
/// A TCP connection without a question ends after this.
const IDLE: Duration = Duration::from_secs(10);
/// Longest question over UDP.
const QUESTION_LEN_MAX: usize = 4096;
/// After a failed accept (no more descriptors, say).
const PAUSE: Duration = Duration::from_millis(100);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// What all sockets share.
#[derive(Debug)]
pub(super) struct Shared {
    snapshot: RwLock<Arc<Snapshot>>,
    host: HostServers,
    resolv_conf: PathBuf,
    forwards: Arc<Semaphore>,
}

impl Shared {
    pub(super) fn new(resolv_conf: PathBuf) -> Self {
        Self {
            snapshot: RwLock::default(),
            host: HostServers::default(),
            resolv_conf,
            forwards: Arc::new(Semaphore::new(FORWARDS_MAX)),
        }
    }

    pub(super) fn set(&self, snapshot: Arc<Snapshot>) {
        *self.snapshot.write().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    /// Changes it in place; copied only while somebody still answers from it.
    pub(super) fn change(&self, change: impl FnOnce(&mut Snapshot)) {
        let mut snapshot = self.snapshot.write().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut snapshot));
    }

    pub(super) fn get(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whose questions arrive at a set of sockets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asker {
    /// One workload's: the sockets are in its own namespace.
    One(SandboxId),
    /// Those of every guest of a network, at its gateway's address in that namespace.
    Guests(PathBuf, IpAddr),
}

impl Asker {
    /// Where the questions of `id` arrive.
    pub(super) fn of(id: &SandboxId, view: &View) -> Self {
        match view.listen {
            Listen::Loopback => Self::One(id.clone()),
            Listen::Address(ip) => Self::Guests(view.netns.clone(), ip),
        }
    }

    /// Whose question from `client` it is.
    fn view<'a>(&self, snapshot: &'a Snapshot, client: IpAddr) -> Option<&'a View> {
        match self {
            Self::One(id) => snapshot.views.get(id),
            Self::Guests(netns, ip) => snapshot.views.get(snapshot.asker(netns, *ip, client)?),
        }
    }
}

/// What is to be done about a question.
enum Reaction {
    Answer(Vec<u8>),
    Forward(Box<Question>, Vec<IpAddr>),
    Nothing,
}

fn step(shared: &Shared, asker: &Asker, client: IpAddr, bytes: &[u8], tcp: bool) -> Reaction {
    let question = match parse(bytes) {
        Parsed::Question(question) => question,
        Parsed::Refused(answer) => return Reaction::Answer(answer),
        Parsed::Ignored => return Reaction::Nothing,
    };
    let snapshot = shared.get();
    let Some(view) = asker.view(&snapshot, client) else {
        return Reaction::Answer(question.failure(ResponseCode::ServFail));
    };
    match lookup(&snapshot, view, &question.name, question.kind) {
        Outcome::Forward => {
            let servers = match view.servers.as_slice() {
                [] => shared.host.get(&shared.resolv_conf),
                some => some.to_vec(),
            };
            Reaction::Forward(question, servers)
        }
        Outcome::Addresses { mut addresses, ttl_s } => {
            // Clients that take the first address shall not all take the same one.
            rand::seq::SliceRandom::shuffle(addresses.as_mut_slice(), &mut rand::rng());
            let outcome = Outcome::Addresses { addresses, ttl_s };
            Reaction::Answer(question.answer(&outcome, tcp, serial(&snapshot)))
        }
        outcome => Reaction::Answer(question.answer(&outcome, tcp, serial(&snapshot))),
    }
}

fn serial(snapshot: &Snapshot) -> u32 {
    // Serial numbers wrap by definition (RFC 1982).
    (snapshot.revision.0 & u64::from(u32::MAX)) as u32
}

async fn outside(
    shared: &Shared,
    question: &Question,
    servers: &[IpAddr],
    bytes: &[u8],
    tcp: bool,
) -> Vec<u8> {
    let Ok(_permit) = shared.forwards.try_acquire() else {
        return question.failure(ResponseCode::Refused);
    };
    let answer = forward::ask(servers, bytes, tcp).await;
    answer.unwrap_or_else(|| question.failure(ResponseCode::ServFail))
}

/// The sockets of one place.
pub(super) struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
}

/// Opens them in the view's namespace. Blocks.
pub(super) fn open(view: &View) -> Result<Sockets, OpenError> {
    let ns = NetnsHandle::open(&view.netns).map_err(OpenError::Netlink)?;
    let sockets = match view.listen {
        Listen::Address(ip) => {
            let at = SocketAddr::new(ip, PORT);
            ns.run(|| Ok((UdpSocket::bind(at)?, TcpListener::bind(at)?)))
        }
        Listen::Loopback => ns.run(|| Ok((hidden(UdpSocket::bind)?, hidden(TcpListener::bind)?))),
    };
    let opened = sockets.map_err(OpenError::Netlink)?.and_then(|(udp, tcp)| {
        udp.set_nonblocking(true)?;
        tcp.set_nonblocking(true)?;
        let ports = (udp.local_addr()?.port(), tcp.local_addr()?.port());
        Ok((Sockets { udp, tcp }, ports))
    });
    let (sockets, (udp, tcp)) = opened.map_err(OpenError::Bind)?;
    if view.listen == Listen::Loopback {
        ns.commit(redirection(udp, tcp)).map_err(OpenError::Netlink)?;
    }
    Ok(sockets)
}

/// Why a namespace cannot be served.
#[derive(Debug, thiserror::Error)]
pub(super) enum OpenError {
    #[error("open the resolver's sockets")]
    Bind(#[source] io::Error),
    #[error("reach the sandbox")]
    Netlink(#[source] NetlinkError),
}

fn hidden<T>(bind: impl Fn(SocketAddr) -> io::Result<T>) -> io::Result<T> {
    for port in HIDDEN_PORTS {
        match bind(SocketAddr::new(LOOPBACK.into(), port)) {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse => {}
            other => return other,
        }
    }
    bind(SocketAddr::new(LOOPBACK.into(), 0))
}

/// Rules that make the hidden ports look like port 53, both ways, without connection tracking.
fn redirection(udp: u16, tcp: u16) -> Batch {
    let table = Table::new(Family::Ip, "shoal_resolver");
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_base_chain(&table, "output", &Base::filter(Hook::Output, priority::RAW));
    for (protocol, port) in [(UDP, udp), (TCP, tcp)] {
        let question = Rule::new("questions to the resolver")
            .daddr(LOOPBACK.into())
            .l4proto(protocol)
            .dport(PORT)
            .set_port(protocol, true, port);
        let answer = Rule::new("answers of the resolver")
            .saddr(LOOPBACK.into())
            .l4proto(protocol)
            .sport(port)
            .set_port(protocol, false, PORT);
        batch.add_rule(&table, "output", &question);
        batch.add_rule(&table, "output", &answer);
    }
    batch
}

/// Serves a place until the set is dropped. Must be called inside the runtime.
pub(super) fn serve(
    shared: &Arc<Shared>,
    asker: &Asker,
    sockets: Sockets,
) -> io::Result<JoinSet<()>> {
    let udp = Arc::new(tokio::net::UdpSocket::from_std(sockets.udp)?);
    let tcp = tokio::net::TcpListener::from_std(sockets.tcp)?;
    let mut tasks = JoinSet::new();
    tasks.spawn(serve_udp(Arc::clone(shared), asker.clone(), udp));
    tasks.spawn(serve_tcp(Arc::clone(shared), asker.clone(), tcp));
    Ok(tasks)
}

async fn serve_udp(shared: Arc<Shared>, asker: Asker, socket: Arc<tokio::net::UdpSocket>) {
    let mut forwards = JoinSet::new();
    let mut buf = vec![0; QUESTION_LEN_MAX];
    loop {
        while forwards.try_join_next().is_some() {}
        // Ignored because: an error here is about an answer that its client did not wait for.
        let Ok((len, client)) = socket.recv_from(&mut buf).await else { continue };
        match step(&shared, &asker, client.ip(), &buf[..len], false) {
            Reaction::Nothing => {}
            Reaction::Answer(answer) => {
                // Ignored because: an answer that cannot be sent is like one that gets lost; the
                // client asks again.
                let _ = socket.send_to(&answer, client).await;
            }
            Reaction::Forward(question, servers) => {
                let (shared, socket) = (Arc::clone(&shared), Arc::clone(&socket));
                let bytes = buf[..len].to_vec();
                forwards.spawn(async move {
                    let answer = outside(&shared, &question, &servers, &bytes, false).await;
                    // Ignored because: as above.
                    let _ = socket.send_to(&answer, client).await;
                });
            }
        }
    }
}

async fn serve_tcp(shared: Arc<Shared>, asker: Asker, listener: tokio::net::TcpListener) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        // Cannot fail: the semaphore is never closed; without a slot nobody is accepted.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let (shared, asker) = (Arc::clone(&shared), asker.clone());
                connections.spawn(async move {
                    // Ignored because: the client is gone, and with it whoever wanted to know.
                    let _ = converse(&shared, &asker, client.ip(), stream).await;
                    drop(slot);
                });
            }
            // Ignored because: the client is gone, or descriptors are short: later ones may come.
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
    }
}

async fn converse(
    shared: &Shared,
    asker: &Asker,
    client: IpAddr,
    mut stream: TcpStream,
) -> io::Result<()> {
    loop {
        let len = timeout(IDLE, stream.read_u16()).await??;
        let mut bytes = vec![0; usize::from(len)];
        timeout(IDLE, stream.read_exact(&mut bytes)).await??;
        let answer = match step(shared, asker, client, &bytes, true) {
            Reaction::Answer(answer) => answer,
            Reaction::Forward(question, servers) => {
                outside(shared, &question, &servers, &bytes, true).await
            }
            Reaction::Nothing => return Ok(()),
        };
        let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let mut framed = len.to_be_bytes().to_vec();
        framed.extend(answer);
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}
