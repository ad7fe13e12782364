//! Rules, built match by match.

use std::net::IpAddr;

use ipnet::IpNet;
use shoal_model::net::Mac;

use crate::attr::ip_bytes;

use super::expr::{CmpOp, Expr, Load, Reg, Reject, SetRef, Verdict};

/// Where matches put what they read; keys begin here.
const FIRST: Reg = Reg(0);
/// IPv4 and IPv6 as `meta nfproto` has them.
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;

/// A rule: matches from left to right, then what to do. Each method adds to its end.
///
/// In a table of both families, match [`Rule::ipv4`] or [`Rule::ipv6`] before addresses, and the
/// protocol before ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Its expressions.
    pub exprs: Vec<Expr>,
    /// Shown in listings, at most 250 bytes; how a rule is recognised later.
    pub comment: String,
}

impl Rule {
    /// A rule without matches.
    pub fn new(comment: impl Into<String>) -> Self {
        Self { exprs: Vec::new(), comment: comment.into() }
    }

    /// Any expression.
    #[must_use]
    pub fn push(mut self, expr: Expr) -> Self {
        self.exprs.push(expr);
        self
    }

    /// What is read equals these bytes.
    #[must_use]
    pub fn is(self, what: Load, bytes: impl Into<Vec<u8>>) -> Self {
        self.push(Expr::Load(what, FIRST)).push(Expr::Cmp(FIRST, CmpOp::Eq, bytes.into()))
    }

    /// What is read differs from these bytes.
    #[must_use]
    pub fn is_not(self, what: Load, bytes: impl Into<Vec<u8>>) -> Self {
        self.push(Expr::Load(what, FIRST)).push(Expr::Cmp(FIRST, CmpOp::Ne, bytes.into()))
    }

    /// What is read, under a mask, equals (or differs from) these bytes.
    #[must_use]
    pub fn masked(self, what: Load, mask: Vec<u8>, op: CmpOp, bytes: impl Into<Vec<u8>>) -> Self {
        let zero = vec![0; mask.len()];
        self.push(Expr::Load(what, FIRST)).push(Expr::Bitwise(FIRST, mask, zero)).push(Expr::Cmp(
            FIRST,
            op,
            bytes.into(),
        ))
    }

    /// Came in by that link; `p*` means every link whose name begins with `p`.
    #[must_use]
    pub fn iifname(self, name: &str) -> Self {
        self.is(Load::IifName, link_name(name))
    }

    /// Did not come in by that link.
    #[must_use]
    pub fn not_iifname(self, name: &str) -> Self {
        self.is_not(Load::IifName, link_name(name))
    }

    /// Goes out by that link; `p*` as above.
    #[must_use]
    pub fn oifname(self, name: &str) -> Self {
        self.is(Load::OifName, link_name(name))
    }

    /// Does not go out by that link.
    #[must_use]
    pub fn not_oifname(self, name: &str) -> Self {
        self.is_not(Load::OifName, link_name(name))
    }

    /// An IPv4 packet.
    #[must_use]
    pub fn ipv4(self) -> Self {
        self.is(Load::NfProto, [NFPROTO_IPV4])
    }

    /// An IPv6 packet.
    #[must_use]
    pub fn ipv6(self) -> Self {
        self.is(Load::NfProto, [NFPROTO_IPV6])
    }

    /// Of that transport protocol.
    #[must_use]
    pub fn l4proto(self, number: u8) -> Self {
        self.is(Load::L4Proto, [number])
    }

    /// From that address.
    #[must_use]
    pub fn saddr(self, ip: IpAddr) -> Self {
        self.is(if ip.is_ipv4() { Load::IpSaddr } else { Load::Ip6Saddr }, ip_bytes(ip))
    }

    /// To that address.
    #[must_use]
    pub fn daddr(self, ip: IpAddr) -> Self {
        self.is(if ip.is_ipv4() { Load::IpDaddr } else { Load::Ip6Daddr }, ip_bytes(ip))
    }

    /// From that prefix.
    #[must_use]
    pub fn saddr_in(self, net: IpNet) -> Self {
        let what = if net.addr().is_ipv4() { Load::IpSaddr } else { Load::Ip6Saddr };
        self.masked(what, ip_bytes(net.netmask()), CmpOp::Eq, ip_bytes(net.network()))
    }

    /// To that prefix.
    #[must_use]
    pub fn daddr_in(self, net: IpNet) -> Self {
        let what = if net.addr().is_ipv4() { Load::IpDaddr } else { Load::Ip6Daddr };
        self.masked(what, ip_bytes(net.netmask()), CmpOp::Eq, ip_bytes(net.network()))
    }

    /// To an address outside that prefix.
    #[must_use]
    pub fn daddr_not_in(self, net: IpNet) -> Self {
        let what = if net.addr().is_ipv4() { Load::IpDaddr } else { Load::Ip6Daddr };
        self.masked(what, ip_bytes(net.netmask()), CmpOp::Ne, ip_bytes(net.network()))
    }

    /// To an address of this host.
    #[must_use]
    pub fn daddr_local(self) -> Self {
        self.is(Load::FibDaddrType, Load::LOCAL.to_ne_bytes())
    }

    /// To that port.
    #[must_use]
    pub fn dport(self, port: u16) -> Self {
        self.is(Load::Dport, port.to_be_bytes())
    }

    /// From that port.
    #[must_use]
    pub fn sport(self, port: u16) -> Self {
        self.is(Load::Sport, port.to_be_bytes())
    }

    /// To that Ethernet address.
    #[must_use]
    pub fn ether_daddr(self, mac: Mac) -> Self {
        self.is(Load::EtherDaddr, mac.0)
    }

    /// Of the TCP flags in `mask`, exactly those in `flags` are set (SYN is 2, RST 4, ACK 16).
    #[must_use]
    pub fn tcp_flags(self, mask: u8, flags: u8) -> Self {
        self.masked(Load::TcpFlags, vec![mask], CmpOp::Eq, [flags])
    }

    /// The connection is in one of the states of [`ct_state`](super::ct_state).
    #[must_use]
    pub fn ct_state(self, bits: u32) -> Self {
        self.masked(Load::CtState, bits.to_ne_bytes().to_vec(), CmpOp::Ne, [0; 4])
    }

    /// The connection has one of the bits of [`ct_status`](super::ct_status).
    #[must_use]
    pub fn ct_status(self, bits: u32) -> Self {
        self.masked(Load::CtStatus, bits.to_ne_bytes().to_vec(), CmpOp::Ne, [0; 4])
    }

    /// A packet of the reply direction of its connection.
    #[must_use]
    pub fn ct_reply(self) -> Self {
        self.is(Load::CtDirection, [1])
    }

    /// A packet of the first direction of its connection.
    #[must_use]
    pub fn ct_original(self) -> Self {
        self.is(Load::CtDirection, [0])
    }

    /// The connection has that mark.
    #[must_use]
    pub fn ct_mark(self, mark: u32) -> Self {
        self.is(Load::CtMark, mark.to_ne_bytes())
    }

    /// The packet has that mark.
    #[must_use]
    pub fn mark(self, mark: u32) -> Self {
        self.is(Load::Mark, mark.to_ne_bytes())
    }

    /// The packet has a mark.
    #[must_use]
    pub fn marked(self) -> Self {
        self.is_not(Load::Mark, [0; 4])
    }

    /// Reads the parts of a key one behind the other. Returns where it ends.
    fn load(mut self, key: &[Load]) -> (Self, Reg) {
        let mut reg = FIRST;
        for part in key {
            self.exprs.push(Expr::Load(*part, reg));
            reg = reg.after(part.len());
        }
        (self, reg)
    }

    /// What is read is in the set.
    #[must_use]
    pub fn in_set(self, key: &[Load], set: impl Into<SetRef>) -> Self {
        self.load(key).0.push(Expr::Lookup { set: set.into(), key: FIRST, invert: false })
    }

    /// What is read is not in the set.
    #[must_use]
    pub fn not_in_set(self, key: &[Load], set: impl Into<SetRef>) -> Self {
        self.load(key).0.push(Expr::Lookup { set: set.into(), key: FIRST, invert: true })
    }

    /// Looks up what is read; the value begins at register 0. Ends here if the map lacks the key.
    #[must_use]
    pub fn map(self, key: &[Load], map: impl Into<SetRef>) -> Self {
        self.load(key).0.push(Expr::Map { set: map.into(), key: FIRST, to: FIRST })
    }

    /// Takes the verdict that the map has for what is read.
    #[must_use]
    pub fn verdict_map(self, key: &[Load], map: impl Into<SetRef>) -> Self {
        self.load(key).0.push(Expr::VerdictMap { set: map.into(), key: FIRST })
    }

    /// Destination NAT to what the map has for the key: an address, with `port` address and port.
    /// The family is that of the first address in the key, IPv4 if it has none.
    #[must_use]
    pub fn dnat_map(self, key: &[Load], map: impl Into<SetRef>, port: bool) -> Self {
        let ipv6 = key.iter().any(|l| matches!(l, Load::Ip6Daddr | Load::Ip6Saddr));
        self.dnat_map_family(key, map, port, ipv6)
    }

    /// The same with the family given.
    #[must_use]
    pub fn dnat_map_family(
        self,
        key: &[Load],
        map: impl Into<SetRef>,
        port: bool,
        ipv6: bool,
    ) -> Self {
        let port = port.then(|| FIRST.after(if ipv6 { 16 } else { 4 }));
        self.map(key, map).push(Expr::Nat { destination: true, ipv6, address: Some(FIRST), port })
    }

    /// Destination NAT to that address and port.
    #[must_use]
    pub fn dnat(self, ip: IpAddr, port: Option<u16>) -> Self {
        self.nat(true, ip, port)
    }

    /// Source NAT to that address.
    #[must_use]
    pub fn snat(self, ip: IpAddr) -> Self {
        self.nat(false, ip, None)
    }

    fn nat(mut self, destination: bool, ip: IpAddr, port: Option<u16>) -> Self {
        let bytes = ip_bytes(ip);
        let behind = FIRST.after(bytes.len());
        self.exprs.push(Expr::Immediate(FIRST, bytes));
        if let Some(port) = port {
            self.exprs.push(Expr::Immediate(behind, port.to_be_bytes().to_vec()));
        }
        self.push(Expr::Nat {
            destination,
            ipv6: ip.is_ipv6(),
            address: Some(FIRST),
            port: port.map(|_| behind),
        })
    }

    /// Gives it the address of the link it leaves by as source.
    #[must_use]
    pub fn masquerade(self) -> Self {
        self.push(Expr::Masquerade)
    }

    /// Refuses it with an answer.
    #[must_use]
    pub fn reject(self, how: Reject) -> Self {
        self.push(Expr::Reject(how))
    }

    /// Counts it.
    #[must_use]
    pub fn counter(self) -> Self {
        self.push(Expr::Counter)
    }

    /// Applies a named timeout policy to a new connection; match the protocol before.
    #[must_use]
    pub fn ct_timeout(self, name: &str) -> Self {
        self.push(Expr::CtTimeout(name.to_owned()))
    }

    /// Sets the packet's mark.
    #[must_use]
    pub fn set_mark(self, mark: u32) -> Self {
        self.push(Expr::Immediate(FIRST, mark.to_ne_bytes().to_vec())).push(Expr::SetMark(FIRST))
    }

    /// Sets the connection's mark.
    #[must_use]
    pub fn set_ct_mark(self, mark: u32) -> Self {
        self.push(Expr::Immediate(FIRST, mark.to_ne_bytes().to_vec())).push(Expr::SetCtMark(FIRST))
    }

    /// Copies the connection's mark to the packet.
    #[must_use]
    pub fn mark_from_ct(self) -> Self {
        self.push(Expr::Load(Load::CtMark, FIRST)).push(Expr::SetMark(FIRST))
    }

    /// Sets the connection's mark to what the map has for the key.
    #[must_use]
    pub fn ct_mark_map(self, key: &[Load], map: impl Into<SetRef>) -> Self {
        self.map(key, map).push(Expr::SetCtMark(FIRST))
    }

    /// Writes the Ethernet destination that the map has for the key.
    #[must_use]
    pub fn ether_daddr_map(self, key: &[Load], map: impl Into<SetRef>) -> Self {
        self.map(key, map).push(Expr::SetEtherDaddr(FIRST))
    }

    /// Writes the destination port (or the source port) of a packet of that protocol, 6 or 17.
    #[must_use]
    pub fn set_port(self, protocol: u8, destination: bool, port: u16) -> Self {
        let udp = protocol == 17;
        self.push(Expr::Immediate(FIRST, port.to_be_bytes().to_vec())).push(Expr::SetPort {
            destination,
            udp,
            from: FIRST,
        })
    }

    /// Leaves it out of connection tracking.
    #[must_use]
    pub fn notrack(self) -> Self {
        self.push(Expr::Notrack)
    }

    /// Decides.
    #[must_use]
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.push(Expr::Verdict(verdict))
    }

    /// Lets it pass.
    #[must_use]
    pub fn accept(self) -> Self {
        self.verdict(Verdict::Accept)
    }

    /// Drops it.
    #[must_use]
    pub fn drop_packet(self) -> Self {
        self.verdict(Verdict::Drop)
    }

    /// Goes through the rules of that chain.
    #[must_use]
    pub fn jump(self, chain: &str) -> Self {
        self.verdict(Verdict::Jump(chain.to_owned()))
    }

    /// Goes back to the calling chain.
    #[must_use]
    pub fn give_back(self) -> Self {
        self.verdict(Verdict::Return)
    }
}

/// A whole name is compared with its padding, a beginning without.
fn link_name(name: &str) -> Vec<u8> {
    match name.strip_suffix('*') {
        Some(prefix) => prefix.as_bytes().to_vec(),
        None => {
            let mut bytes = name.as_bytes().to_vec();
            bytes.resize(Load::IifName.len(), 0);
            bytes
        }
    }
}
