//! Addresses as the guest sees them, and as the host does. Pure.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};

use crate::config::Config;

/// Port of name servers.
const DNS_PORT: u16 = 53;

/// Where traffic of the guest to `to` goes on the host. None: nowhere.
pub(crate) fn outward(config: &Config, to: SocketAddrV4) -> Option<SocketAddr> {
    let address = *to.ip();
    if address == config.dns {
        return if to.port() == DNS_PORT { config.resolver } else { None };
    }
    if address == config.gateway {
        let loopback = SocketAddr::from((Ipv4Addr::LOCALHOST, to.port()));
        return config.host_loopback.then_some(loopback);
    }
    let ordinary = !(config.is_local(address)
        || address.is_loopback()
        || address.is_unspecified()
        || address.is_multicast()
        || address.is_broadcast());
    // 0.0.0.0/8 means "this network": the host would take it for itself.
    let reachable = ordinary && address.octets()[0] != 0;
    (reachable && config.outside).then_some(SocketAddr::V4(to))
}

/// The address under which the guest sees a client of a published port: its own, unless the guest
/// could not answer to it.
pub(crate) fn inward(config: &Config, client: SocketAddr) -> SocketAddrV4 {
    let address = match client.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(address) => address.to_ipv4_mapped(),
    };
    let usable = address.filter(|a| {
        !a.is_loopback() && !a.is_unspecified() && !a.is_multicast() && !config.is_local(*a)
    });
    SocketAddrV4::new(usable.unwrap_or(config.gateway), client.port())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check_outward(config: &Config, to: &str, expected: Option<&str>) {
        let expected = expected.map(|text| text.parse::<SocketAddr>().unwrap());
        assert_eq!(outward(config, to.parse().unwrap()), expected, "{to}");
    }

    #[test]
    fn the_guest_reaches_the_world_and_the_host() {
        let config =
            Config { resolver: Some("192.0.2.53:53".parse().unwrap()), ..Config::default() };
        check_outward(&config, "198.51.100.1:443", Some("198.51.100.1:443"));
        check_outward(&config, "10.0.2.2:5432", Some("127.0.0.1:5432"));
        check_outward(&config, "10.0.2.3:53", Some("192.0.2.53:53"));
        check_outward(&config, "10.0.2.3:80", None);
        for nowhere in
            ["127.0.0.1:1", "10.0.2.9:1", "224.0.0.1:1", "255.255.255.255:1", "0.0.0.0:1"]
        {
            check_outward(&config, nowhere, None);
        }
    }

    #[test]
    fn doors_can_be_shut() {
        let config = Config { host_loopback: false, outside: false, ..Config::default() };
        check_outward(&config, "198.51.100.1:443", None);
        check_outward(&config, "10.0.2.2:5432", None);
    }

    #[test]
    fn clients_keep_their_address_where_possible() {
        let config = Config::default();
        for (client, seen) in [
            ("198.51.100.9:4000", "198.51.100.9:4000"),
            ("[::ffff:198.51.100.9]:4000", "198.51.100.9:4000"),
            ("127.0.0.1:4000", "10.0.2.2:4000"),
            ("[::1]:4000", "10.0.2.2:4000"),
            ("10.0.2.15:4000", "10.0.2.2:4000"),
        ] {
            let seen: SocketAddrV4 = seen.parse().unwrap();
            assert_eq!(inward(&config, client.parse().unwrap()), seen, "{client}");
        }
    }
}
