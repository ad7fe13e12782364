//! Tracked connections and sockets of backends that are gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use shoal_netlink::conntrack::{self, Tuple};
use shoal_netlink::error::NetlinkError;
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::sockdiag::{SocketInfo, Transport};

use super::NetState;
use super::host::Host;
use crate::desired::SandboxId;
use crate::error::NetworkError;
use crate::layout::flows::{Flow, Members, Opener, Verdict};
use crate::layout::rules::HostRules;

const TCP: u8 = 6;
const UDP: u8 = 17;

/// A connection's opener and where it was addressed to.
type Ends = (SocketAddr, SocketAddr);

/// Forgets connections that the new members no longer serve, and destroys the sockets of this node
/// that hang on a lost one. Comes after the tables, so that nothing new goes the old way.
pub(super) fn sort_out(
    state: &mut NetState,
    members: Members,
    host: &Host,
    sandboxes: &BTreeMap<SandboxId, NetnsHandle>,
    network: &str,
) -> Result<(), NetworkError> {
    if state.members.as_ref().is_some_and(|old| !old.loses_to(&members)) {
        state.members = Some(members);
        return Ok(());
    }
    let refused = |source: NetlinkError| NetworkError::Nft {
        what: format!("removal of lost connections of network '{network}'"),
        source: source.into(),
    };
    state.members = None;
    let resets = forget(&state.namespace.handle, &members).map_err(refused)?;
    for (opener, lost) in resets {
        let exact = |socket: &SocketInfo| lost.contains(&(socket.local, socket.remote));
        // The host's own client knows the published address, not the link's.
        let same_port = |socket: &SocketInfo| {
            let port = socket.remote.port();
            lost.iter().any(|(from, to)| *from == socket.local && to.port() == port)
        };
        if opener == Opener::Remote {
            tell_outside(host, &lost).map_err(refused)?;
        }
        let done = match &opener {
            Opener::Sandbox(id) => match sandboxes.get(id) {
                Some(sandbox) => sandbox.destroy_sockets(Transport::Tcp, exact),
                None => Ok(Vec::new()),
            },
            Opener::Host | Opener::Remote => host.handle.destroy_sockets(Transport::Tcp, same_port),
        };
        match done {
            Ok(sockets) if sockets.is_empty() => {}
            Ok(sockets) => {
                tracing::info!(network, ?opener, count = sockets.len(), "lost connections reset");
            }
            // Without the kernel's help the opener is reset when it next sends.
            Err(error) if error.is_unsupported() => {}
            Err(error) => return Err(refused(error)),
        }
    }
    state.members = Some(members);
    Ok(())
}

/// Lets clients outside hear at once that their connection is lost. `lost` has them as the
/// network's namespace knew them: with the host link's address for where they were addressed to.
/// The host's own translation goes, so that what a client sends next is met by the host, which
/// knows no such connection, and it is made to send something now: left alone it would send again
/// only when its own timer runs out, seconds later.
fn tell_outside(host: &Host, lost: &BTreeSet<Ends>) -> Result<(), NetlinkError> {
    let translated = host.handle.flows_where(|flow| {
        let (first, reply) = (&flow.original, &flow.reply);
        let from = SocketAddr::new(first.source, first.source_port);
        let to = SocketAddr::new(reply.source, reply.source_port);
        first.protocol == TCP && lost.contains(&(from, to))
    })?;
    let mut clients = Vec::new();
    for flow in translated {
        host.handle.delete_flow(&flow)?;
        let Tuple { source, destination, source_port, destination_port, .. } = flow.original;
        if let (IpAddr::V4(client), IpAddr::V4(asked)) = (source, destination) {
            let asked = SocketAddrV4::new(asked, destination_port);
            clients.push((asked, SocketAddrV4::new(client, source_port)));
        }
    }
    if clients.is_empty() {
        return Ok(());
    }
    tracing::info!(count = clients.len(), "clients outside told of lost connections");
    host.handle.provoke(&clients)
}

/// Forgets what must go; returns the openers whose sockets must be told.
fn forget(
    handle: &NetnsHandle,
    members: &Members,
) -> Result<BTreeMap<Opener, BTreeSet<Ends>>, NetlinkError> {
    let mut resets: BTreeMap<Opener, BTreeSet<Ends>> = BTreeMap::new();
    let judge = |flow: &conntrack::Flow| members.verdict(&of(flow));
    for flow in handle.flows_where(|flow| judge(flow) != Verdict::Keep)? {
        handle.delete_flow(&flow)?;
        if let Verdict::Reset(opener) = judge(&flow) {
            let Tuple { source, destination, source_port, destination_port, .. } = flow.original;
            let ends = (
                SocketAddr::new(source, source_port),
                SocketAddr::new(destination, destination_port),
            );
            resets.entry(opener).or_default().insert(ends);
        }
    }
    Ok(resets)
}

fn of(flow: &conntrack::Flow) -> Flow {
    let (first, reply) = (&flow.original, &flow.reply);
    Flow {
        protocol: first.protocol,
        source: SocketAddr::new(first.source, first.source_port),
        destination: SocketAddr::new(first.destination, first.destination_port),
        answers: SocketAddr::new(reply.source, reply.source_port),
        replied: flow.seen_reply(),
    }
}

/// Forgets flows on the host that began under other ports than now: translations to a port that
/// leads elsewhere, and datagrams from before a port was published, which stay untranslated for as
/// long as they keep coming.
pub(super) fn forget_moved_ports(
    host: &Host,
    old: Option<&HostRules>,
    new: &HostRules,
) -> Result<(), NetworkError> {
    let (before, after) = (old.map(targets).unwrap_or_default(), targets(new));
    let gone: BTreeSet<_> = before.difference(&after).copied().collect();
    let come: BTreeSet<_> = after.difference(&before).map(|(key, _)| *key).collect();
    if gone.is_empty() && come.is_empty() {
        return Ok(());
    }
    let moved = |flow: &conntrack::Flow| {
        let (first, reply) = (&flow.original, &flow.reply);
        let key = (first.protocol, first.destination_port);
        let plain = reply.source == first.destination && reply.destination == first.source;
        let std::net::IpAddr::V4(answers) = reply.source else { return false };
        let led = gone.contains(&(key, (answers, reply.source_port)));
        (led && (first.protocol == UDP || !flow.seen_reply()))
            || (plain && first.protocol == UDP && come.contains(&key))
    };
    let forget = || {
        for flow in host.handle.flows_where(moved)? {
            host.handle.delete_flow(&flow)?;
        }
        Ok(())
    };
    forget().map_err(|source: NetlinkError| NetworkError::Nft {
        what: "removal of flows of moved ports on the host".to_owned(),
        source: source.into(),
    })
}

/// Protocol and port on the host, with the address and port on a host link that it leads to.
fn targets(rules: &HostRules) -> BTreeSet<((u8, u16), (Ipv4Addr, u16))> {
    let all = rules.ports.iter().map(|(key, to)| (*key, *to));
    let one = rules.address_ports.iter();
    all.chain(one.map(|((_, protocol, port), to)| ((*protocol, *port), *to))).collect()
}
