//! Who may come in from the underlay. Pure.
//!
//! A VXLAN device takes frames from whoever knows its number and UDP port. The host lets only
//! those through that come from a node which the managers named as a peer of that very network.

use std::collections::BTreeSet;
use std::net::IpAddr;

use shoal_model::net::Vni;

use crate::desired::{DesiredNetwork, NetKind};

/// What the host's guard of the underlay must hold. Other numbers and ports are none of our
/// business: in one network namespace a number on a port belongs to one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Senders {
    /// UDP port and number of every overlay of this node.
    pub numbers: BTreeSet<(u16, Vni)>,
    /// Who may send to which.
    pub members: BTreeSet<(IpAddr, Vni)>,
}

impl Senders {
    /// From the desired network.
    #[must_use]
    pub fn of(want: &DesiredNetwork) -> Self {
        let mut out = Self::default();
        let Some(me) = &want.self_node else { return out };
        for net in want.networks.values().filter(|net| net.info.kind == NetKind::Overlay) {
            let vni = net.info.vni;
            out.numbers.insert((net.info.data_path_port, vni));
            let others = net.peers.iter().filter(|peer| peer.node_id != me.node_id);
            out.members.extend(others.map(|peer| (peer.underlay, vni)));
        }
        out
    }
}
