//! The small network that the guest sees.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use crate::error::Error;
use crate::publish::Publish;

/// Smallest packet size that every host must take (RFC 791).
const MTU_MIN: u16 = 576;
/// Largest packet size: a frame must fit a ring record with its headers.
const MTU_MAX: u16 = 65_520;
/// Where the C library reads its name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Port of name servers.
const DNS_PORT: u16 = 53;

/// Addresses and rules. The default is what most users of such networks know: 10.0.2.15 behind
/// 10.0.2.2.
#[derive(Clone, Debug)]
pub struct Config {
    /// The guest's address.
    pub guest: Ipv4Addr,
    /// Bits of the network's prefix.
    pub prefix_len: u8,
    /// The router's address. Connections to it reach the host's loopback.
    pub gateway: Ipv4Addr,
    /// The name server's address. Requests to its port 53 reach the host's resolver.
    pub dns: Ipv4Addr,
    /// Hardware address of router and name server.
    pub gateway_mac: [u8; 6],
    /// Largest IP packet in bytes. More than 1500 makes large transfers cheaper: no wire is
    /// involved.
    pub mtu: u16,
    /// Ports of the host that lead to the guest.
    pub published: Vec<Publish>,
    /// The host's resolver. None: requests to the name server are refused.
    pub resolver: Option<SocketAddr>,
    /// Whether the gateway's address stands for the host's loopback.
    pub host_loopback: bool,
    /// Whether the guest may open connections beyond the host.
    pub outside: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            guest: Ipv4Addr::new(10, 0, 2, 15),
            prefix_len: 24,
            gateway: Ipv4Addr::new(10, 0, 2, 2),
            dns: Ipv4Addr::new(10, 0, 2, 3),
            // Locally administered; the last three bytes spell the gateway's place.
            gateway_mac: [0x02, 0x53, 0x48, 0x00, 0x02, 0x02],
            mtu: 1500,
            published: Vec::new(),
            resolver: host_resolver(),
            host_loopback: true,
            outside: true,
        }
    }
}

impl Config {
    /// Whether an address lies in the guest's own network.
    #[must_use]
    pub fn is_local(&self, address: Ipv4Addr) -> bool {
        let shift = 32_u32.saturating_sub(u32::from(self.prefix_len));
        let prefix = |a: Ipv4Addr| a.to_bits().checked_shr(shift).unwrap_or(0);
        prefix(address) == prefix(self.guest)
    }

    /// Whether the gateway answers for an address.
    #[must_use]
    pub fn is_own(&self, address: Ipv4Addr) -> bool {
        address == self.gateway || address == self.dns
    }

    /// # Errors
    /// [`Error::InvalidConfig`].
    pub(crate) fn check(&self) -> Result<(), Error> {
        let reason = if !(8..=30).contains(&self.prefix_len) {
            "its prefix must have 8 to 30 bits"
        } else if !self.is_local(self.gateway) || !self.is_local(self.dns) {
            "gateway and name server must lie in the guest's network"
        } else if self.guest == self.gateway || self.guest == self.dns {
            "the guest needs an address of its own"
        } else if !(MTU_MIN..=MTU_MAX).contains(&self.mtu) {
            "its packet size must be 576 to 65520 bytes"
        } else if self.gateway_mac[0] & 1 != 0 {
            "the gateway's hardware address must not be a group's"
        } else {
            return Ok(());
        };
        Err(Error::InvalidConfig { reason })
    }
}

/// The first name server that this host uses.
#[must_use]
pub fn host_resolver() -> Option<SocketAddr> {
    let text = std::fs::read_to_string(Path::new(RESOLV_CONF)).ok()?;
    first_nameserver(&text)
}

fn first_nameserver(text: &str) -> Option<SocketAddr> {
    text.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            return None;
        }
        words.next()?.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, DNS_PORT))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_first_nameserver_counts() {
        let text = "# nameserver 192.0.2.1\nsearch x\nnameserver ::1\nnameserver 192.0.2.2\n";
        assert_eq!(first_nameserver(text).unwrap().to_string(), "[::1]:53");
        assert_eq!(first_nameserver("options x"), None);
    }

    #[test]
    fn contradictions_are_refused() {
        assert!(Config::default().check().is_ok());
        let base = Config::default();
        for wrong in [
            Config { prefix_len: 32, ..base.clone() },
            Config { gateway: Ipv4Addr::new(192, 0, 2, 1), ..base.clone() },
            Config { guest: base.gateway, ..base.clone() },
            Config { mtu: 100, ..base.clone() },
            Config { gateway_mac: [1; 6], ..base.clone() },
        ] {
            assert!(wrong.check().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_prefix_decides_what_is_local() {
        let config = Config { prefix_len: 24, ..Config::default() };
        assert!(config.is_local(Ipv4Addr::new(10, 0, 2, 200)));
        assert!(!config.is_local(Ipv4Addr::new(10, 0, 3, 1)));
    }
}
