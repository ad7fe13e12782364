//! Published ports on the host: each is bound, so that nobody else takes it, and connections that
//! arrive on loopback are carried into the network's namespace.
//!
//! Clients from elsewhere never come here: the host's nftables translate their packets before. If
//! they do come (the rules are gone for a moment), they are carried all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use shoal_model::net::{Port, Protocol};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use crate::claims::{self, HostPort};
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

impl HostListen {
    pub(crate) fn place(&self) -> HostPort {
        HostPort::new(self.port, self.host_ip)
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
    held: Mutex<BTreeMap<HostPort, Held>>,
}

impl HostPorts {
    /// Holds nothing yet. Sockets are opened in `host_netns` (absent: this process's own), and
    /// connections carried by tasks on `runtime`.
    #[must_use]
    pub fn new(host_netns: Option<PathBuf>, runtime: Handle) -> Self {
        Self { netns: Arc::new(HostNetns(host_netns)), runtime, held: Mutex::default() }
    }

    /// Holds exactly `wanted`, of which [`claims::decide`] has left no two that meet: opens what is
    /// new, keeps what is unchanged (a changed target keeps the socket), closes the rest. Blocks.
    /// Returns the ports that the system does not give, with the reason.
    ///
    /// Must not be called on a thread of the runtime itself.
    pub fn apply(&self, wanted: &[HostListen]) -> Vec<(HostListen, NetworkError)> {
        let mut held = self.held();
        let places: BTreeSet<HostPort> = wanted.iter().map(HostListen::place).collect();
        let gone: Vec<HostPort> =
            held.keys().filter(|place| !places.contains(place)).copied().collect();
        self.end(gone.iter().filter_map(|place| held.remove(place)).collect());
        let mut failed = Vec::new();
        for want in wanted {
            if let Some(old) = held.get_mut(&want.place()) {
                old.holder.clone_from(&want.holder);
                old.target.set(want.target);
                continue;
            }
            match self.hold(want) {
                Ok(new) => {
                    held.insert(want.place(), new);
                }
                Err(error) => failed.push((want.clone(), error)),
            }
        }
        failed
    }

    /// Every port that is open, with its holder.
    #[must_use]
    pub fn holders(&self) -> BTreeMap<HostPort, String> {
        self.held().iter().map(|(place, held)| (*place, held.holder.clone())).collect()
    }

    /// Closes everything.
    pub fn close(&self) {
        let all = std::mem::take(&mut *self.held());
        self.end(all.into_values().collect());
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<HostPort, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes ports and waits until their sockets are really gone, so that the next ones find
    /// the place free.
    fn end(&self, gone: Vec<Held>) {
        for mut held in gone {
            self.runtime.block_on(held.tasks.shutdown());
        }
    }

    fn hold(&self, want: &HostListen) -> Result<Held, NetworkError> {
        let target = Arc::new(Target::default());
        target.set(want.target);
        let mut tasks = JoinSet::new();
        let opened = self.open(want, &target, &mut tasks);
        if let Err(source) = opened {
            return Err(self.explain(want, source));
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

    fn explain(&self, want: &HostListen, source: io::Error) -> NetworkError {
        if source.kind() != io::ErrorKind::AddrInUse {
            return NetworkError::PortRefused {
                port: want.port,
                host_ip: want.host_ip,
                holder: want.holder.clone(),
                source: source.into(),
            };
        }
        let who = holder::find(&self.netns, want.port).unwrap_or_else(|| source.to_string());
        claims::taken(want.port, &want.holder, who)
    }
}
