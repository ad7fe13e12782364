//! UDP flows: which socket of the host belongs to which two ends in the guest's network.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use crate::frame::Key;

/// Flows at once: with the connections and the rest they stay below 1024, the file descriptors that
/// a process usually may open.
pub(crate) const FLOWS_MAX: usize = 256;
/// How long a flow lives without traffic (RFC 4787 asks for 2 minutes as a default; what resolvers
/// and health checks leave behind should go sooner, and RFC 4787 allows it where it is configured).
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(120);
/// The same for questions to the name server: they are answered at once or asked again.
const IDLE_DNS_MAX: Duration = Duration::from_secs(15);
/// How often flows are looked through for idle ones.
pub(crate) const SWEEP_EVERY: Duration = Duration::from_secs(5);
/// Port of name servers.
const DNS_PORT: u16 = 53;
/// Other ports that stand for a client whose own is taken in the guest's network.
const SUBSTITUTE_PORTS: std::ops::RangeInclusive<u16> = 49_152..=49_407;

/// How datagrams of a flow leave.
#[derive(Debug)]
pub(crate) enum Via {
    /// Through its own socket, connected to the other end.
    Own(UdpSocket),
    /// Through the socket of a published port, to this client.
    Published { index: usize, client: SocketAddr },
}

/// A flow.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(crate) key: Key,
    pub(crate) via: Via,
    pub(crate) used: Instant,
    /// The beginning of the guest's latest packet, for an ICMP error about it.
    pub(crate) quote: Vec<u8>,
}

/// All flows.
#[derive(Debug, Default)]
pub(crate) struct Flows {
    by_id: HashMap<u64, Flow>,
    by_key: HashMap<Key, u64>,
    by_client: HashMap<(usize, SocketAddr), u64>,
}

impl Flows {
    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Flow> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn with_key(&mut self, key: &Key) -> Option<&mut Flow> {
        self.by_id.get_mut(self.by_key.get(key)?)
    }

    pub(crate) fn with_client(&mut self, index: usize, client: SocketAddr) -> Option<&mut Flow> {
        self.by_id.get_mut(self.by_client.get(&(index, client))?)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    pub(crate) fn is_full(&self) -> bool {
        self.by_id.len() >= FLOWS_MAX
    }

    /// Adds a flow whose key is free.
    pub(crate) fn add(&mut self, id: u64, flow: Flow) {
        self.by_key.insert(flow.key, id);
        if let Via::Published { index, client } = flow.via {
            self.by_client.insert((index, client), id);
        }
        self.by_id.insert(id, flow);
    }

    /// A key like this one that is free, with another port of the other end if need be.
    pub(crate) fn free_key(&self, key: Key) -> Option<Key> {
        free_key(key, |key| self.by_key.contains_key(key))
    }

    fn remove(&mut self, id: u64) {
        let Some(flow) = self.by_id.remove(&id) else { return };
        self.by_key.remove(&flow.key);
        if let Via::Published { index, client } = flow.via {
            self.by_client.remove(&(index, client));
        }
    }

    /// Ends the flow that was idle longest.
    pub(crate) fn evict(&mut self) {
        let oldest = self.by_id.iter().min_by_key(|(_, flow)| flow.used).map(|(id, _)| *id);
        if let Some(id) = oldest {
            self.remove(id);
        }
    }

    /// Ends flows that are idle too long.
    pub(crate) fn sweep(&mut self, now: Instant) {
        let idle = |flow: &Flow| {
            let max = if flow.key.remote.port() == DNS_PORT { IDLE_DNS_MAX } else { IDLE_MAX };
            now.duration_since(flow.used) > max
        };
        let over: Vec<u64> =
            self.by_id.iter().filter(|(_, flow)| idle(flow)).map(|(id, _)| *id).collect();
        for id in over {
            self.remove(id);
        }
    }
}

/// A key like this one that is not `taken`, with another port of the other end if need be.
pub(crate) fn free_key(key: Key, taken: impl Fn(&Key) -> bool) -> Option<Key> {
    let mut candidate = key;
    let mut others = SUBSTITUTE_PORTS;
    while taken(&candidate) {
        candidate.remote.set_port(others.next()?);
    }
    Some(candidate)
}

/// A socket that speaks with `to` only.
pub(crate) fn connected(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any)?;
    socket.set_nonblocking(true)?;
    socket.connect(to)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn flow(port: u16, used: Instant) -> Flow {
        let client: SocketAddr = ([198, 51, 100, 1], port).into();
        let key = Key { guest_port: 53, remote: format!("198.51.100.1:{port}").parse().unwrap() };
        Flow { key, via: Via::Published { index: 0, client }, used, quote: Vec::new() }
    }

    #[test]
    fn the_flow_idle_longest_makes_room() {
        let start = Instant::now();
        let mut flows = Flows::default();
        for n in 0..FLOWS_MAX {
            let used = start + Duration::from_secs(if n == 7 { 0 } else { 1 });
            flows.add(n as u64, flow(1000 + n as u16, used));
        }
        assert!(flows.is_full());
        flows.evict();
        assert!(!flows.is_full());
        assert!(flows.get_mut(7).is_none());
        assert!(flows.with_client(0, ([198, 51, 100, 1], 1007).into()).is_none());
        assert!(flows.with_client(0, ([198, 51, 100, 1], 1008).into()).is_some());
    }

    #[test]
    fn idle_flows_end() {
        let start = Instant::now();
        let mut flows = Flows::default();
        flows.add(1, flow(1000, start));
        flows.add(2, flow(DNS_PORT, start));
        flows.sweep(start + IDLE_DNS_MAX + Duration::from_secs(1));
        assert!(flows.get_mut(1).is_some() && flows.get_mut(2).is_none());
        flows.sweep(start + IDLE_MAX + Duration::from_secs(1));
        assert!(flows.is_empty());
    }

    #[test]
    fn a_taken_port_is_replaced() {
        let mut flows = Flows::default();
        let first = flow(1000, Instant::now());
        let key = first.key;
        flows.add(1, first);
        let other = flows.free_key(key).unwrap();
        assert_ne!(other, key);
        assert_eq!(other.remote.ip(), key.remote.ip());
        assert!(free_key(key, |_| true).is_none());
    }
}
