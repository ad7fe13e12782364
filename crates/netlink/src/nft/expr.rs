//! The building blocks of rules: what is read into registers, compared, looked up, done.

use crate::attr::{Writer, be32, find, text};

use super::set::{Element, Set};
use super::sys;

/// One of sixteen 32-bit registers, 0 to 15. A value of more than four bytes fills the next ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reg(pub u8);

/// The register that holds a verdict.
const REG_VERDICT: u32 = 0;
/// The number of the first 32-bit register.
const REG32_00: u32 = 8;

impl Reg {
    fn number(self) -> u32 {
        REG32_00 + u32::from(self.0)
    }

    /// The register `bytes` further, rounded up to whole registers.
    pub(super) fn after(self, bytes: usize) -> Self {
        // Keys are at most 64 bytes.
        Self(self.0 + bytes.div_ceil(4) as u8)
    }
}

/// Bits of [`Load::CtState`].
pub mod ct_state {
    /// Belongs to no connection that makes sense.
    pub const INVALID: u32 = 1;
    /// Both directions were seen.
    pub const ESTABLISHED: u32 = 2;
    /// Belongs to a connection that another one announced.
    pub const RELATED: u32 = 4;
    /// The first packet.
    pub const NEW: u32 = 8;
    /// Deliberately not tracked.
    pub const UNTRACKED: u32 = 64;
}

/// Bits of [`Load::CtStatus`] and of a tracked flow.
pub mod ct_status {
    /// A packet of the reply direction was seen.
    pub const SEEN_REPLY: u32 = 2;
    /// The flow is not forgotten early.
    pub const ASSURED: u32 = 4;
    /// Its source was translated.
    pub const SNAT: u32 = 16;
    /// Its destination was translated.
    pub const DNAT: u32 = 32;
}

/// What can be read from a packet, its connection or its surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Load {
    /// The link it came in by, 16 bytes.
    IifName,
    /// The link it goes out by, 16 bytes.
    OifName,
    /// Its mark.
    Mark,
    /// Its transport protocol, a byte.
    L4Proto,
    /// Its family (2 or 10), a byte.
    NfProto,
    /// IPv4 source.
    IpSaddr,
    /// IPv4 destination.
    IpDaddr,
    /// IPv6 source.
    Ip6Saddr,
    /// IPv6 destination.
    Ip6Daddr,
    /// Source port.
    Sport,
    /// Destination port.
    Dport,
    /// TCP flags, a byte.
    TcpFlags,
    /// Ethernet source.
    EtherSaddr,
    /// Ethernet destination.
    EtherDaddr,
    /// State of its connection: [`ct_state`].
    CtState,
    /// Status of its connection: [`ct_status`].
    CtStatus,
    /// Mark of its connection.
    CtMark,
    /// 0 for the direction of the first packet, 1 for replies; a byte.
    CtDirection,
    /// IPv4 destination of the connection's first packet, before translation.
    CtOriginalIpDaddr,
    /// IPv6 destination of the connection's first packet, before translation.
    CtOriginalIp6Daddr,
    /// Destination port of the connection's first packet, before translation.
    CtOriginalDport,
    /// Kind of the destination address ([`Load::LOCAL`] and others).
    FibDaddrType,
    /// The network number of a VXLAN packet over UDP; three bytes, see
    /// [`Field::vni`](super::Field::vni).
    VxlanVni,
    /// A number from `offset` on, below `offset + modulus`.
    Numgen {
        /// By chance, or counting up.
        random: bool,
        /// How many different ones.
        modulus: u32,
        /// The lowest one.
        offset: u32,
    },
}

enum Source {
    Meta(u32),
    Payload { base: u32, offset: u32 },
    Ct { key: u32, original: bool },
    Fib,
    Numgen { random: bool, modulus: u32, offset: u32 },
}

const LINK_HEADER: u32 = 0;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const META_MARK: u32 = 3;
const CT_MARK: u32 = 3;

impl Load {
    /// The kind of an address of this host ([`Load::FibDaddrType`]).
    pub const LOCAL: u32 = 2;

    /// A bucket by chance, below `modulus`.
    #[must_use]
    pub const fn random(modulus: u32) -> Self {
        Self::Numgen { random: true, modulus, offset: 0 }
    }

    /// The buckets below `modulus` in turn.
    #[must_use]
    pub const fn in_turn(modulus: u32) -> Self {
        Self::Numgen { random: false, modulus, offset: 0 }
    }

    /// How many bytes it reads.
    pub(super) const fn len(self) -> usize {
        match self {
            Self::IifName
            | Self::OifName
            | Self::Ip6Saddr
            | Self::Ip6Daddr
            | Self::CtOriginalIp6Daddr => 16,
            Self::L4Proto | Self::NfProto | Self::TcpFlags | Self::CtDirection => 1,
            Self::Sport | Self::Dport | Self::CtOriginalDport => 2,
            Self::VxlanVni => 3,
            Self::EtherSaddr | Self::EtherDaddr => 6,
            Self::Mark
            | Self::IpSaddr
            | Self::IpDaddr
            | Self::CtState
            | Self::CtStatus
            | Self::CtMark
            | Self::CtOriginalIpDaddr
            | Self::FibDaddrType
            | Self::Numgen { .. } => 4,
        }
    }

    const fn source(self) -> Source {
        const fn payload(base: u32, offset: u32) -> Source {
            Source::Payload { base, offset }
        }
        match self {
            Self::Mark => Source::Meta(META_MARK),
            Self::IifName => Source::Meta(6),
            Self::OifName => Source::Meta(7),
            Self::NfProto => Source::Meta(15),
            Self::L4Proto => Source::Meta(16),
            Self::IpSaddr => payload(NETWORK_HEADER, 12),
            Self::IpDaddr => payload(NETWORK_HEADER, 16),
            Self::Ip6Saddr => payload(NETWORK_HEADER, 8),
            Self::Ip6Daddr => payload(NETWORK_HEADER, 24),
            Self::Sport => payload(TRANSPORT_HEADER, 0),
            Self::Dport => payload(TRANSPORT_HEADER, 2),
            Self::TcpFlags => payload(TRANSPORT_HEADER, 13),
            // Behind the UDP header: flags, three reserved bytes, then the number (RFC 7348).
            Self::VxlanVni => payload(TRANSPORT_HEADER, 12),
            Self::EtherDaddr => payload(LINK_HEADER, 0),
            Self::EtherSaddr => payload(LINK_HEADER, 6),
            Self::CtState => Source::Ct { key: 0, original: false },
            Self::CtDirection => Source::Ct { key: 1, original: false },
            Self::CtStatus => Source::Ct { key: 2, original: false },
            Self::CtMark => Source::Ct { key: CT_MARK, original: false },
            Self::CtOriginalIpDaddr => Source::Ct { key: 20, original: true },
            Self::CtOriginalIp6Daddr => Source::Ct { key: 22, original: true },
            Self::CtOriginalDport => Source::Ct { key: 12, original: true },
            Self::FibDaddrType => Source::Fib,
            Self::Numgen { random, modulus, offset } => Source::Numgen { random, modulus, offset },
        }
    }

    fn encode(self, to: Reg, w: &mut Writer) {
        match self.source() {
            Source::Meta(key) => expr(w, "meta", |w| {
                w.attr_be32(1, to.number());
                w.attr_be32(2, key);
            }),
            Source::Payload { base, offset } => expr(w, "payload", |w| {
                w.attr_be32(1, to.number());
                w.attr_be32(2, base);
                w.attr_be32(3, offset);
                w.attr_be32(4, self.len() as u32);
            }),
            Source::Ct { key, original } => expr(w, "ct", |w| {
                w.attr_be32(1, to.number());
                w.attr_be32(2, key);
                if original {
                    w.attr_u8(3, 0);
                }
            }),
            Source::Fib => expr(w, "fib", |w| {
                const RESULT_ADDRTYPE: u32 = 3;
                const OF_DESTINATION: u32 = 2;
                w.attr_be32(1, to.number());
                w.attr_be32(2, RESULT_ADDRTYPE);
                w.attr_be32(3, OF_DESTINATION);
            }),
            Source::Numgen { random, modulus, offset } => expr(w, "numgen", |w| {
                w.attr_be32(1, to.number());
                w.attr_be32(2, modulus);
                w.attr_be32(3, u32::from(random));
                w.attr_be32(4, offset);
            }),
        }
    }
}

/// What becomes of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Goes on, at this hook.
    Accept,
    /// Vanishes.
    Drop,
    /// The rules of that chain, then the next rule.
    Jump(String),
    /// The rules of that chain instead of the rest of this one.
    Goto(String),
    /// Back to the calling chain.
    Return,
}

impl Verdict {
    pub(super) fn encode(&self, w: &mut Writer) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5_i32, None),
        };
        w.nest(sys::DATA_VERDICT, |w| {
            w.attr_be32(sys::VERDICT_CODE, code.cast_unsigned());
            if let Some(chain) = chain {
                w.attr_str(sys::VERDICT_CHAIN, chain);
            }
        });
    }

    pub(super) fn decode(attrs: &[u8]) -> Option<Self> {
        let chain = || find(attrs, sys::VERDICT_CHAIN).map(text);
        Some(match find(attrs, sys::VERDICT_CODE).and_then(be32)?.cast_signed() {
            0 => Self::Drop,
            1 => Self::Accept,
            -3 => Self::Jump(chain()?),
            -4 => Self::Goto(chain()?),
            -5 => Self::Return,
            _ => return None,
        })
    }
}

/// How two values are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CmpOp {
    /// Equal.
    Eq,
    /// Different.
    Ne,
    /// Less, as bytes.
    Lt,
    /// Less or equal, as bytes.
    Le,
    /// Greater, as bytes.
    Gt,
    /// Greater or equal, as bytes.
    Ge,
}

/// How a refused packet is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reject {
    /// With a TCP reset; only for TCP.
    TcpReset,
    /// With ICMP "port unreachable", in a table for IPv4.
    IcmpPort,
    /// With ICMP "administratively prohibited", in a table for IPv4.
    IcmpProhibited,
    /// With ICMPv6 "port unreachable", in a table for IPv6.
    Icmp6Port,
    /// With either, in a table for both.
    IcmpxPort,
}

/// The set that a rule looks into.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetRef {
    /// One of the table, by name.
    Named(String),
    /// The rule's own.
    Own(Set, Vec<Element>),
}

impl From<&str> for SetRef {
    fn from(name: &str) -> Self {
        Self::Named(name.to_owned())
    }
}

/// One expression of a rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Reads something into registers.
    Load(Load, Reg),
    /// Goes on only if the register compares so with the bytes.
    Cmp(Reg, CmpOp, Vec<u8>),
    /// `register = (register & mask) ^ xor`; both of the same length.
    Bitwise(Reg, Vec<u8>, Vec<u8>),
    /// Puts bytes into registers.
    Immediate(Reg, Vec<u8>),
    /// Sets the packet's mark.
    SetMark(Reg),
    /// Sets the connection's mark.
    SetCtMark(Reg),
    /// Writes the Ethernet destination.
    SetEtherDaddr(Reg),
    /// Writes a port, without connection tracking; the checksum follows. Match TCP or UDP before.
    SetPort {
        /// The destination's instead of the source's.
        destination: bool,
        /// In a UDP header instead of a TCP one.
        udp: bool,
        /// Where the port is.
        from: Reg,
    },
    /// Goes on only if the set has the key (or has not, if inverted).
    Lookup {
        /// Which set.
        set: SetRef,
        /// Where the key begins.
        key: Reg,
        /// Go on if it is not there.
        invert: bool,
    },
    /// Goes on only if the map has the key; its value goes into registers.
    Map {
        /// Which map.
        set: SetRef,
        /// Where the key begins.
        key: Reg,
        /// Where the value goes.
        to: Reg,
    },
    /// Takes the verdict that the map has for the key, if any.
    VerdictMap {
        /// Which map.
        set: SetRef,
        /// Where the key begins.
        key: Reg,
    },
    /// Translates an address and a port.
    Nat {
        /// The destination's instead of the source's.
        destination: bool,
        /// Of IPv6.
        ipv6: bool,
        /// Where the address is.
        address: Option<Reg>,
        /// Where the port is.
        port: Option<Reg>,
    },
    /// Gives the packet the address of the link it leaves by as source.
    Masquerade,
    /// Refuses it.
    Reject(Reject),
    /// Counts packets and bytes.
    Counter,
    /// Applies a named [`CtTimeout`](super::CtTimeout) to a new connection.
    CtTimeout(String),
    /// Goes on for that many packets in a second.
    Limit {
        /// Packets in a second.
        per_second: u64,
        /// How many at once.
        burst: u32,
    },
    /// Leaves the packet out of connection tracking.
    Notrack,
    /// Decides.
    Verdict(Verdict),
}

fn expr(w: &mut Writer, name: &str, fill: impl FnOnce(&mut Writer)) {
    w.nest(sys::LIST_ELEM, |w| {
        w.attr_str(sys::EXPR_NAME, name);
        w.nest(sys::EXPR_DATA, fill);
    });
}

fn value(w: &mut Writer, kind: u16, bytes: &[u8]) {
    w.nest(kind, |w| w.attr(sys::DATA_VALUE, bytes));
}

/// The set's name, and its number if it was made in the same transaction.
pub(super) struct Resolved<'a> {
    pub(super) name: &'a str,
    pub(super) id: Option<u32>,
}

impl Expr {
    /// The set that it looks into.
    pub(super) fn set(&self) -> Option<&SetRef> {
        match self {
            Self::Lookup { set, .. } | Self::Map { set, .. } | Self::VerdictMap { set, .. } => {
                Some(set)
            }
            _ => None,
        }
    }

    pub(super) fn encode(&self, set: Option<&Resolved<'_>>, w: &mut Writer) {
        match self {
            Self::Load(what, to) => what.encode(*to, w),
            Self::Cmp(reg, op, bytes) => expr(w, "cmp", |w| {
                w.attr_be32(1, reg.number());
                w.attr_be32(2, *op as u32);
                value(w, 3, bytes);
            }),
            Self::Bitwise(reg, mask, xor) => expr(w, "bitwise", |w| {
                w.attr_be32(1, reg.number());
                w.attr_be32(2, reg.number());
                w.attr_be32(3, mask.len() as u32);
                value(w, 4, mask);
                value(w, 5, xor);
            }),
            Self::Immediate(reg, bytes) => expr(w, "immediate", |w| {
                w.attr_be32(1, reg.number());
                value(w, 2, bytes);
            }),
            Self::Verdict(verdict) => expr(w, "immediate", |w| {
                w.attr_be32(1, REG_VERDICT);
                w.nest(2, |w| verdict.encode(w));
            }),
            Self::SetMark(_)
            | Self::SetCtMark(_)
            | Self::SetEtherDaddr(_)
            | Self::SetPort { .. } => self.encode_write(w),
            Self::Lookup { .. } | Self::Map { .. } | Self::VerdictMap { .. } => {
                self.encode_lookup(set, w);
            }
            _ => self.encode_statement(w),
        }
    }

    fn encode_write(&self, w: &mut Writer) {
        match self {
            Self::SetMark(from) => expr(w, "meta", |w| {
                w.attr_be32(2, META_MARK);
                w.attr_be32(3, from.number());
            }),
            Self::SetCtMark(from) => expr(w, "ct", |w| {
                w.attr_be32(2, CT_MARK);
                w.attr_be32(4, from.number());
            }),
            Self::SetEtherDaddr(from) => expr(w, "payload", |w| {
                w.attr_be32(5, from.number());
                w.attr_be32(2, LINK_HEADER);
                w.attr_be32(3, 0);
                w.attr_be32(4, 6);
                // The Ethernet header is under no checksum.
                w.attr_be32(6, 0);
                w.attr_be32(7, 0);
                w.attr_be32(8, 0);
            }),
            Self::SetPort { destination, udp, from } => expr(w, "payload", |w| {
                const INTERNET_CHECKSUM: u32 = 1;
                w.attr_be32(5, from.number());
                w.attr_be32(2, TRANSPORT_HEADER);
                w.attr_be32(3, if *destination { 2 } else { 0 });
                w.attr_be32(4, 2);
                w.attr_be32(6, INTERNET_CHECKSUM);
                w.attr_be32(7, if *udp { 6 } else { 16 });
                w.attr_be32(8, 0);
            }),
            _ => {}
        }
    }

    fn encode_lookup(&self, set: Option<&Resolved<'_>>, w: &mut Writer) {
        let (key, to, invert) = match self {
            Self::Lookup { key, invert, .. } => (key, None, *invert),
            Self::Map { key, to, .. } => (key, Some(to.number()), false),
            Self::VerdictMap { key, .. } => (key, Some(REG_VERDICT), false),
            _ => return,
        };
        expr(w, "lookup", |w| {
            if let Some(set) = set {
                w.attr_str(1, set.name);
                if let Some(id) = set.id {
                    w.attr_be32(4, id);
                }
            }
            w.attr_be32(2, key.number());
            if let Some(to) = to {
                w.attr_be32(3, to);
            }
            if invert {
                w.attr_be32(5, 1);
            }
        });
    }

    fn encode_statement(&self, w: &mut Writer) {
        match self {
            Self::Nat { destination, ipv6, address, port } => expr(w, "nat", |w| {
                w.attr_be32(1, u32::from(*destination));
                w.attr_be32(2, if *ipv6 { 10 } else { 2 });
                if let Some(address) = address {
                    w.attr_be32(3, address.number());
                }
                if let Some(port) = port {
                    w.attr_be32(5, port.number());
                }
            }),
            Self::Masquerade => expr(w, "masq", |_| {}),
            Self::Reject(how) => expr(w, "reject", |w| {
                let (kind, code) = match how {
                    Reject::TcpReset => (1, None),
                    Reject::IcmpPort => (0, Some(3)),
                    Reject::IcmpProhibited => (0, Some(13)),
                    Reject::Icmp6Port => (0, Some(4)),
                    Reject::IcmpxPort => (2, Some(1)),
                };
                w.attr_be32(1, kind);
                if let Some(code) = code {
                    w.attr_u8(2, code);
                }
            }),
            Self::Counter => expr(w, "counter", |_| {}),
            Self::CtTimeout(name) => expr(w, "objref", |w| {
                w.attr_be32(1, sys::OBJECT_CT_TIMEOUT);
                w.attr_str(2, name);
            }),
            Self::Limit { per_second, burst } => expr(w, "limit", |w| {
                w.attr_be64(1, *per_second);
                w.attr_be64(2, 1);
                w.attr_be32(3, *burst);
                w.attr_be32(4, 0);
            }),
            Self::Notrack => expr(w, "notrack", |_| {}),
            _ => {}
        }
    }
}
