//! Tables, base chains and stateful objects.

use crate::attr::Writer;

use super::sys;

/// What a table is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Frames of one device.
    Netdev,
}

impl Family {
    pub(super) const fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Netdev => 5,
            Self::Ip6 => 10,
        }
    }

    pub(super) const fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Inet,
            2 => Self::Ip,
            5 => Self::Netdev,
            10 => Self::Ip6,
            _ => return None,
        })
    }

    /// Its name in the nft language.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Netdev => "netdev",
        }
    }
}

/// A table, by family and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    /// What it is about.
    pub family: Family,
    /// Its name within the family.
    pub name: String,
}

impl Table {
    /// The table of that family and name.
    #[must_use]
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }

    pub(super) fn describe(&self) -> String {
        format!("{} {}", self.family.as_str(), self.name)
    }
}

/// Usual places in the order of base chains on one hook; lower runs first.
pub mod priority {
    /// Before connection tracking.
    pub const RAW: i32 = -300;
    /// After connection tracking, before destination NAT.
    pub const MANGLE: i32 = -150;
    /// Destination NAT.
    pub const DSTNAT: i32 = -100;
    /// Filtering.
    pub const FILTER: i32 = 0;
    /// Source NAT.
    pub const SRCNAT: i32 = 100;
}

/// Where in a packet's way a base chain sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Hook {
    /// Everything that comes in, before routing.
    Prerouting,
    /// What is for this host.
    Input,
    /// What passes through.
    Forward,
    /// What this host sends.
    Output,
    /// Everything that goes out, after routing.
    Postrouting,
    /// Frames that a device received (netdev).
    Ingress,
    /// Frames that a device is about to send (netdev, Linux 5.16).
    Egress,
}

impl Hook {
    const fn number(self) -> u32 {
        match self {
            Self::Prerouting | Self::Ingress => 0,
            Self::Input | Self::Egress => 1,
            Self::Forward => 2,
            Self::Output => 3,
            Self::Postrouting => 4,
        }
    }
}

/// What the rules of a base chain may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ChainKind {
    /// Judge packets.
    Filter,
    /// Translate the addresses of connections; sees the first packet of each.
    Nat,
    /// Change what decides the route of locally made packets.
    Route,
}

/// What makes a chain a base chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Base {
    /// What it may do.
    pub kind: ChainKind,
    /// Where it sits.
    pub hook: Hook,
    /// Its place among the chains there.
    pub priority: i32,
    /// Drop what no rule decided, instead of accepting it.
    pub policy_drop: bool,
    /// The device of a netdev chain. The chain goes when its device goes.
    pub device: Option<String>,
}

impl Base {
    /// A chain that accepts what its rules let pass.
    #[must_use]
    pub const fn new(kind: ChainKind, hook: Hook, priority: i32) -> Self {
        Self { kind, hook, priority, policy_drop: false, device: None }
    }

    /// Destination NAT of what comes in.
    #[must_use]
    pub const fn dstnat() -> Self {
        Self::new(ChainKind::Nat, Hook::Prerouting, priority::DSTNAT)
    }

    /// Destination NAT of what this host sends.
    #[must_use]
    pub const fn dstnat_output() -> Self {
        Self::new(ChainKind::Nat, Hook::Output, priority::DSTNAT)
    }

    /// Source NAT of what goes out.
    #[must_use]
    pub const fn srcnat() -> Self {
        Self::new(ChainKind::Nat, Hook::Postrouting, priority::SRCNAT)
    }

    /// A filter on that hook.
    #[must_use]
    pub const fn filter(hook: Hook, priority: i32) -> Self {
        Self::new(ChainKind::Filter, hook, priority)
    }

    /// Frames that `device` is about to send.
    #[must_use]
    pub fn egress(device: &str) -> Self {
        let base = Self::new(ChainKind::Filter, Hook::Egress, 0);
        Self { device: Some(device.to_owned()), ..base }
    }

    pub(super) fn encode(&self, w: &mut Writer) {
        w.nest(sys::CHAIN_HOOK, |w| {
            w.attr_be32(sys::HOOK_NUM, self.hook.number());
            w.attr_be32(sys::HOOK_PRIORITY, self.priority.cast_unsigned());
            if let Some(device) = &self.device {
                w.attr_str(sys::HOOK_DEV, device);
            }
        });
        w.attr_be32(sys::CHAIN_POLICY, u32::from(!self.policy_drop));
        let kind = match self.kind {
            ChainKind::Filter => "filter",
            ChainKind::Nat => "nat",
            ChainKind::Route => "route",
        };
        w.attr_str(sys::CHAIN_TYPE, kind);
    }
}

/// Other than usual life times of tracked connections, applied by
/// [`Rule::ct_timeout`](super::Rule::ct_timeout) to new ones. In seconds; `None` stays usual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CtTimeout {
    /// Its name.
    pub name: String,
    /// For IPv6 instead of IPv4.
    pub ipv6: bool,
    /// What it is for.
    pub timeouts: Timeouts,
}

/// The life times themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Timeouts {
    /// Of TCP connections.
    Tcp {
        /// After a SYN, until the answer.
        syn_sent_s: Option<u32>,
        /// After the answer, until the handshake is done.
        syn_recv_s: Option<u32>,
        /// Idle.
        established_s: Option<u32>,
    },
    /// Of UDP flows.
    Udp {
        /// Until the first answer.
        unreplied_s: Option<u32>,
        /// Idle.
        replied_s: Option<u32>,
    },
}

impl CtTimeout {
    /// TCP connections whose SYN is not answered are forgotten after `syn_sent_s` seconds.
    #[must_use]
    pub fn syn_sent(name: &str, ipv6: bool, syn_sent_s: u32) -> Self {
        let timeouts =
            Timeouts::Tcp { syn_sent_s: Some(syn_sent_s), syn_recv_s: None, established_s: None };
        Self { name: name.to_owned(), ipv6, timeouts }
    }

    pub(super) fn encode(&self, w: &mut Writer) {
        const L3PROTO: u16 = 1;
        const L4PROTO: u16 = 2;
        const DATA: u16 = 3;
        w.attr_str(sys::OBJ_NAME, &self.name);
        w.attr_be32(sys::OBJ_TYPE, sys::OBJECT_CT_TIMEOUT);
        let (protocol, values) = match self.timeouts {
            Timeouts::Tcp { syn_sent_s, syn_recv_s, established_s } => {
                (6, vec![syn_sent_s, syn_recv_s, established_s])
            }
            Timeouts::Udp { unreplied_s, replied_s } => (17, vec![unreplied_s, replied_s]),
        };
        let l3: u16 = if self.ipv6 { 10 } else { 2 };
        w.nest(sys::OBJ_DATA, |w| {
            w.attr(L3PROTO, &l3.to_be_bytes());
            w.attr_u8(L4PROTO, protocol);
            w.nest(DATA, |w| {
                for (kind, value) in (1..).zip(values) {
                    if let Some(seconds) = value {
                        w.attr_be32(kind, seconds);
                    }
                }
            });
        });
    }
}
