//! The router's part that knows UDP.

use std::net::{SocketAddr, UdpSocket};
use std::time::Instant;

use rustix::event::epoll::EventFlags;

use crate::frame::{self, Datagram, Key};
use crate::network::Door;
use crate::router::{Kind, Router, TAKEN_AT_ONCE};
use crate::translate;
use crate::udp::{self, Flow, Via};

impl Router {
    pub(super) fn client_datagram(
        &mut self,
        index: usize,
        client: SocketAddr,
        port: u16,
        data: &[u8],
    ) {
        let now = Instant::now();
        let known = self.flows.with_client(index, client).map(|flow| {
            flow.used = now;
            flow.key
        });
        let key = known.or_else(|| {
            let remote = translate::inward(&self.config, client);
            let key = self.flows.free_key(Key { guest_port: port, remote })?;
            let via = Via::Published { index, client };
            self.add_flow(Flow { key, via, used: now, quote: Vec::new() });
            Some(key)
        });
        match key {
            Some(key) => self.give_datagram(key, data),
            None => self.counters.datagrams_dropped.bump(),
        }
    }

    pub(super) fn add_flow(&mut self, flow: Flow) -> Option<u64> {
        if self.flows.is_full() {
            self.flows.evict();
            self.counters.flows_evicted.bump();
        }
        let id = self.new_id();
        if let Via::Own(socket) = &flow.via {
            self.watch(socket, Kind::Flow, id, EventFlags::IN).ok()?;
        }
        self.counters.flows.bump();
        self.flows.add(id, flow);
        Some(id)
    }

    /// A datagram of the guest.
    pub(super) fn datagram(&mut self, datagram: &Datagram<'_>) {
        if self.flows.with_key(&datagram.key).is_none() {
            let to = translate::outward(&self.config, datagram.key.remote);
            let Some(socket) = to.and_then(|to| udp::connected(to).ok()) else {
                frame::udp_unreachable(&self.config, datagram.quote, &mut self.outbox);
                return;
            };
            let (key, used) = (datagram.key, Instant::now());
            self.add_flow(Flow { key, via: Via::Own(socket), used, quote: Vec::new() });
        }
        let Some(flow) = self.flows.with_key(&datagram.key) else {
            self.counters.datagrams_dropped.bump();
            return;
        };
        flow.used = Instant::now();
        flow.quote.clear();
        flow.quote.extend_from_slice(datagram.quote);
        let sent = match &flow.via {
            Via::Own(socket) => socket.send(datagram.payload),
            Via::Published { index, client } => match self.doors.get(*index) {
                Some(Door::Udp(socket, _)) => socket.send_to(datagram.payload, client),
                _ => return,
            },
        };
        if sent.is_err() {
            self.counters.datagrams_dropped.bump();
        }
    }

    /// Answers have come for the guest.
    pub(super) fn flow_event(&mut self, id: u64, buffer: &mut [u8]) {
        for _ in 0..TAKEN_AT_ONCE {
            let Some(flow) = self.flows.get_mut(id) else { return };
            let Via::Own(socket) = &flow.via else { return };
            let key = flow.key;
            match receive(socket, buffer) {
                Ok(Some(bytes)) => {
                    flow.used = Instant::now();
                    self.give_datagram(key, &buffer[..bytes]);
                }
                Ok(None) => return,
                Err(()) => {
                    let quote = std::mem::take(&mut flow.quote);
                    frame::udp_unreachable(&self.config, &quote, &mut self.outbox);
                }
            }
        }
    }

    pub(super) fn give_datagram(&mut self, key: Key, data: &[u8]) {
        // 20 bytes of IPv4 header, 8 of UDP.
        if data.len() + 28 > usize::from(self.config.mtu) || !self.outbox.is_ready() {
            self.counters.datagrams_dropped.bump();
            return;
        }
        frame::udp_datagram(self.config.guest, key, data, &mut self.outbox);
    }
}

/// Receives a datagram. None: there is none; an error: nobody takes what was sent.
fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> Result<Option<usize>, ()> {
    match socket.recv(buffer) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(_) => Err(()),
    }
}
