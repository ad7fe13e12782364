//! The router's part that knows TCP connections and clients of published ports.

use std::hash::BuildHasher;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use rustix::event::epoll::{self, EventFlags};

use crate::frame::{self, Body, Key, Segment};
use crate::host;
use crate::network::Door;
use crate::router::{CONNECTIONS_MAX, Kind, Router, TAKEN_AT_ONCE, event_data};
use crate::stack::Stack;
use crate::tcp::{Connection, Fate, Surroundings};
use crate::translate;
use crate::udp;

impl Router {
    pub(super) fn segment(&mut self, segment: &Segment<'_>) {
        if let Some(id) = self.by_key.get(&segment.key).copied() {
            self.with_connection(id, |connection, with| {
                connection.guest_packet(segment.packet, segment.resets, with)
            });
        } else if !segment.opens || self.connect(segment).is_none() {
            frame::tcp_reset(self.config.guest, segment, &mut self.outbox);
        }
    }

    /// Opens on the host what the guest asks for.
    pub(super) fn connect(&mut self, segment: &Segment<'_>) -> Option<()> {
        let to = translate::outward(&self.config, segment.key.remote)?;
        if self.connections.len() >= CONNECTIONS_MAX {
            self.counters.connections_over_limit.bump();
            return None;
        }
        let socket = host::connect(to).ok()?;
        let now = self.now();
        let connection = Connection::outward(segment.key, socket, segment.packet, now);
        self.add_connection(connection)
    }

    pub(super) fn add_connection(&mut self, connection: Connection) -> Option<()> {
        let id = self.new_id();
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        self.watch(&connection, Kind::Connection, id, flags).ok()?;
        self.counters.connections.bump();
        self.by_key.insert(connection.key, id);
        self.connections.insert(id, connection);
        self.with_connection(id, |connection, with| connection.advance(None, with));
        Some(())
    }

    pub(super) fn connection_event(&mut self, id: u64, flags: EventFlags) {
        let broken = flags.intersects(EventFlags::ERR | EventFlags::HUP);
        let readable = broken || flags.intersects(EventFlags::IN | EventFlags::RDHUP);
        let writable = broken || flags.contains(EventFlags::OUT);
        self.with_connection(id, |connection, with| {
            connection.host_event(readable, writable, with)
        });
    }

    /// Does something with a connection, and what follows from it.
    pub(super) fn with_connection(
        &mut self,
        id: u64,
        act: impl FnOnce(&mut Connection, &mut Surroundings<'_>) -> Fate,
    ) {
        let now = self.now();
        let Some(connection) = self.connections.get_mut(&id) else { return };
        if let Some(at) = connection.noted.take() {
            self.timers.remove(&(at, id));
        }
        let mut with = Surroundings {
            now,
            outbox: &mut self.outbox,
            mtu: self.config.mtu,
            seed: self.seeds.hash_one(id),
        };
        match act(connection, &mut with) {
            Fate::Lives if !self.outbox.is_ready() => {
                self.held.insert(id);
            }
            Fate::Lives => {
                connection.noted = connection.due(now);
                self.timers.extend(connection.noted.map(|at| (at, id)));
            }
            Fate::Over => self.end_connection(id),
            Fate::Refused(opening) => {
                self.end_connection(id);
                self.refuse(&opening);
            }
        }
    }

    /// Answers an opening packet, kept until the host had decided, with a reset.
    pub(super) fn refuse(&mut self, opening: &[u8]) {
        if let Some(Body::Tcp(segment)) = frame::parse_packet(&self.config, opening) {
            frame::tcp_reset(self.config.guest, &segment, &mut self.outbox);
        }
    }

    pub(super) fn end_connection(&mut self, id: u64) {
        self.held.remove(&id);
        let Some(connection) = self.connections.remove(&id) else { return };
        self.by_key.remove(&connection.key);
        connection.finish();
        self.reopen_doors();
    }

    /// Listens again if there was no room for clients.
    pub(super) fn reopen_doors(&mut self) {
        if self.doors_shut {
            self.shut_doors(false);
        }
    }

    /// Stops or resumes listening for clients.
    pub(super) fn shut_doors(&mut self, shut: bool) {
        let flags = if shut { EventFlags::empty() } else { EventFlags::IN };
        for (index, door) in self.doors.iter().enumerate() {
            if let Door::Tcp(listener, _) = door {
                let data = event_data(Kind::Door, index as u64);
                // Ignored because: it is watched, and a change of what is watched cannot fail.
                let _ = epoll::modify(&self.poller, listener, data, flags);
            }
        }
        self.doors_shut = shut;
    }

    /// Somebody is at a published port.
    pub(super) fn open_door(&mut self, id: u64, buffer: &mut [u8]) {
        let index = usize::try_from(id).unwrap_or(usize::MAX);
        for _ in 0..TAKEN_AT_ONCE {
            let taken = match self.doors.get(index) {
                Some(Door::Tcp(..)) if self.connections.len() >= CONNECTIONS_MAX => {
                    self.counters.connections_over_limit.bump();
                    self.shut_doors(true);
                    return;
                }
                Some(Door::Tcp(listener, port)) => {
                    let port = *port;
                    listener.accept().map(|(socket, client)| self.client(socket, client, port))
                }
                Some(Door::Udp(socket, port)) => {
                    let port = *port;
                    socket.recv_from(buffer).map(|(bytes, client)| {
                        self.client_datagram(index, client, port, &buffer[..bytes]);
                    })
                }
                None => return,
            };
            match taken.map_err(|error| error.kind()) {
                Ok(()) | Err(ErrorKind::ConnectionAborted | ErrorKind::Interrupted) => {}
                Err(ErrorKind::WouldBlock) => return,
                // The host has no room: try again when a connection ended, or after a while.
                Err(_) => return self.shut_doors(true),
            }
        }
    }

    pub(super) fn client(&mut self, socket: TcpStream, client: SocketAddr, guest_port: u16) {
        let key = Key { guest_port, remote: translate::inward(&self.config, client) };
        let key = udp::free_key(key, |key| self.by_key.contains_key(key));
        let usable = socket.set_nonblocking(true).is_ok();
        let (Some(key), true) = (key, usable) else { return host::reset(socket) };
        let seed = self.seeds.hash_one(self.next_id);
        let now = self.now();
        match Stack::connecting(key, self.config.guest, self.config.mtu, seed, now) {
            None => host::reset(socket),
            Some(stack) => {
                // Ignored because: what cannot be watched is dropped, and so closed.
                let _ = self.add_connection(Connection::inward(key, socket, stack));
            }
        }
    }
}
