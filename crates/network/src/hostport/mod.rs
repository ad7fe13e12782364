//! Published ports on the host: each is bound, so that nobody else takes it, and connections that
//! arrive on loopback are carried into the network's namespace.
//!
//! Clients from elsewhere never come here: the host's nftables translate their packets before. If
//! they do come (the rules are gone for a moment), they are carried all the same.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use shoal_model::net::{Port, Protocol};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::error::NetworkError;

mod holder;
mod socket;
mod tcp;
mod udp;

use socket::HostNetns;

/// One port to hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostListen {
    /// Which port.
    pub port: Port,
    /// Only on this address; absent: on all.
    pub host_ip: Option<IpAddr>,
    /// Where its connections go: an address of the network's namespace on its host link. Absent
    /// while the network is not there: the port is held, connections are refused.
    pub target: Option<SocketAddr>,
    /// Who publishes it, for messages.
    pub holder: String,
}

type Place = (Port, Option<IpAddr>);

/// Where connections go at present.
#[derive(Debug, Default)]
struct Target(RwLock<Option<SocketAddr>>);

impl Target {
    fn get(&self) -> Option<SocketAddr> {
        *self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, target: Option<SocketAddr>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = target;
    }
}

/// A port that is held.
#[derive(Debug)]
struct Held {
    holder: String,
    target: Arc<Target>,
    /// Its socket and connections, closed when this is dropped or shut down.
    tasks: JoinSet<()>,
}

/// The ports that this daemon holds.
#[derive(Debug)]
pub struct HostPorts {
    netns: Arc<HostNetns>,
    runtime: Handle,
    held: Mutex<BTreeMap<Place, Held>>,
}

impl HostPorts {
    /// Holds nothing yet. Sockets are opened in `host_netns` (absent: this process's own), and
    /// connections carried by tasks on `runtime`.
    #[must_use]
    pub fn new(host_netns: Option<PathBuf>, runtime: Handle) -> Self {
        Self { netns: Arc::new(HostNetns(host_netns)), runtime, held: Mutex::default() }
    }

    /// Holds exactly `wanted`: opens what is new, keeps what is unchanged (a changed target keeps
    /// the socket), closes the rest. Blocks. Returns the ports that could not be held.
    ///
    /// Must not be called on a thread of the runtime itself.
    pub fn apply(&self, wanted: &[HostListen]) -> Vec<(HostListen, NetworkError)> {
        let mut held = self.held();
        let keep = |place: &Place| wanted.iter().any(|w| (w.port, w.host_ip) == *place);
        let mut gone: Vec<Held> = Vec::new();
        let places: Vec<Place> = held.keys().filter(|place| !keep(place)).copied().collect();
        gone.extend(places.iter().filter_map(|place| held.remove(place)));
        self.end(gone);
        let mut failed = Vec::new();
        let mut done: BTreeMap<Place, &str> = BTreeMap::new();
        for want in wanted {
            let place = (want.port, want.host_ip);
            if let Some(first) = done.get(&place) {
                failed.push((want.clone(), taken(want, ours(first))));
                continue;
            }
            done.insert(place, &want.holder);
            if let Some(old) = held.get_mut(&place) {
                old.holder.clone_from(&want.holder);
                old.target.set(want.target);
                continue;
            }
            match self.hold(want, &held) {
                Ok(new) => {
                    held.insert(place, new);
                }
                Err(error) => failed.push((want.clone(), error)),
            }
        }
        failed
    }

    /// Closes everything.
    pub fn close(&self) {
        let all = std::mem::take(&mut *self.held());
        self.end(all.into_values().collect());
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Place, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes ports and waits until their sockets are really gone, so that the next ones find
    /// the place free.
    fn end(&self, gone: Vec<Held>) {
        for mut held in gone {
            self.runtime.block_on(held.tasks.shutdown());
        }
    }

    fn hold(&self, want: &HostListen, held: &BTreeMap<Place, Held>) -> Result<Held, NetworkError> {
        let target = Arc::new(Target::default());
        target.set(want.target);
        let mut tasks = JoinSet::new();
        let opened = self.open(want, &target, &mut tasks);
        if let Err(source) = opened {
            return Err(self.explain(want, held, source));
        }
        Ok(Held { holder: want.holder.clone(), target, tasks })
    }

    fn open(
        &self,
        want: &HostListen,
        target: &Arc<Target>,
        tasks: &mut JoinSet<()>,
    ) -> io::Result<()> {
        let (ip, port) = (want.host_ip, want.port.number);
        let _runtime = self.runtime.enter();
        match want.port.protocol {
            Protocol::Tcp => {
                let listener = self.netns.run(|| socket::listen_tcp(ip, port))??;
                let listener = tokio::net::TcpListener::from_std(listener)?;
                let (netns, target) = (Arc::clone(&self.netns), Arc::clone(target));
                tasks.spawn(tcp::serve(netns, listener, target));
            }
            Protocol::Udp => {
                let socket = self.netns.run(|| socket::bind_udp(ip, port))??;
                let socket = tokio::net::UdpSocket::from_std(socket)?;
                let (netns, target) = (Arc::clone(&self.netns), Arc::clone(target));
                tasks.spawn(udp::serve(netns, socket, target));
            }
            // Nobody proxies SCTP: its clients must not use loopback, and the kernel may lack it.
            Protocol::Sctp => {}
        }
        Ok(())
    }

    fn explain(
        &self,
        want: &HostListen,
        held: &BTreeMap<Place, Held>,
        source: io::Error,
    ) -> NetworkError {
        if source.kind() != io::ErrorKind::AddrInUse {
            let (port, holder) = (want.port, want.holder.clone());
            return NetworkError::PortRefused {
                port,
                host_ip: want.host_ip,
                holder,
                source: source.into(),
            };
        }
        let other = held.iter().find(|((port, _), _)| *port == want.port);
        let who = match other {
            Some((_, other)) => ours(&other.holder),
            None => holder::find(&self.netns, want.port).unwrap_or_else(|| source.to_string()),
        };
        taken(want, who)
    }
}

/// Why a port is taken: who has it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct HeldBy(String);

fn ours(holder: &str) -> String {
    format!("{holder} publishes it on this node already")
}

fn taken(want: &HostListen, who: String) -> NetworkError {
    NetworkError::PortTaken {
        port: want.port,
        holder: want.holder.clone(),
        source: HeldBy(who).into(),
    }
}
