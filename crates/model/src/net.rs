//! Small network values: VNIs, protocols, ports, MAC addresses, a node's place in the transit
//! range.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

/// A VXLAN network identifier, 24 bits (RFC 7348).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Vni(pub u32);

impl Vni {
    /// The first one given out; lower ones are left to whatever the site uses by hand.
    pub const FIRST: Self = Self(4096);
    /// The last one that 24 bits can hold.
    pub const LAST: Self = Self((1 << 24) - 1);
}

/// A transport protocol that a service can publish.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// RFC 9293.
    #[default]
    Tcp,
    /// RFC 768.
    Udp,
    /// RFC 9260.
    Sctp,
}

impl Protocol {
    /// Its number in an IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// Its name in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A port with its protocol, as in `8080/tcp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Port {
    /// The protocol.
    pub protocol: Protocol,
    /// The number, 1 to 65535.
    pub number: u16,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Mac(pub [u8; 6]);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Mac {
    /// The address of a port that owns `ip`: Docker's scheme, `02:42` and the four bytes of an IPv4
    /// address; of IPv6 the last four.
    #[must_use]
    pub fn of_port(ip: IpAddr) -> Self {
        let [a, b, c, d] = match ip {
            IpAddr::V4(v4) => v4.octets(),
            IpAddr::V6(v6) => {
                let o = v6.octets();
                [o[12], o[13], o[14], o[15]]
            }
        };
        Self([0x02, 0x42, a, b, c, d])
    }
}

/// A node's number within its cluster, from 1. It fixes the node's transit address and MAC on every
/// overlay and the connection mark that means "came in through this node", so it must be unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeIndex(pub u16);

impl NodeIndex {
    /// The largest index: the lower half of 169.254/16 is the transit range between nodes, the
    /// upper half belongs to the links between a host and its network namespaces.
    pub const MAX: Self = Self(0x7eff);

    /// The node's address on the VXLAN device of every overlay (link-local, RFC 3927).
    #[must_use]
    pub fn transit_address(self) -> Ipv4Addr {
        let [hi, lo] = self.0.to_be_bytes();
        Ipv4Addr::new(169, 254, hi, lo)
    }

    /// The MAC of the node's VXLAN device in every overlay.
    #[must_use]
    pub fn transit_mac(self) -> Mac {
        let [hi, lo] = self.0.to_be_bytes();
        Mac([0x02, 0xfe, 0xa9, 0xfe, hi, lo])
    }

    /// The connection mark that means "this flow came in through that node".
    #[must_use]
    pub fn mark(self) -> u32 {
        u32::from(self.0)
    }
}
