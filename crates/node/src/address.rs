//! Addresses: what to listen on, what to tell other nodes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::error::NodeError;
use crate::node::{AddressOptions, NodeConfig};

/// The port of managers.
pub const MANAGER_PORT: u16 = 2377;

/// Where the `docker` CLI wants a manager to listen if its user says nothing.
pub const LISTEN_DEFAULT: &str = "0.0.0.0:2377";

/// The addresses of this machine that other nodes could reach, with their interfaces.
#[must_use]
pub fn own_addresses() -> Vec<(String, IpAddr)> {
    let all = nix::ifaddrs::getifaddrs().into_iter().flatten();
    let mut found: Vec<(String, IpAddr)> = all
        .filter_map(|interface| {
            let address = interface.address?;
            let ip = address
                .as_sockaddr_in()
                .map(|v4| IpAddr::V4(v4.ip()))
                .or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))?;
            Some((interface.interface_name, ip))
        })
        .filter(|(_, ip)| is_reachable(*ip))
        .collect();
    found.sort();
    found.dedup();
    found
}

fn is_reachable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        // fe80::/10 is link-local; an address without an interface cannot be told to others.
        IpAddr::V6(v6) => !v6.is_loopback() && (v6.segments()[0] & 0xffc0) != 0xfe80,
    }
}

/// The addresses of a membership.
pub(crate) struct Addresses {
    /// Where it listens as a manager.
    pub listen: SocketAddr,
    /// What other nodes are told.
    pub advertise: SocketAddr,
    /// Where its VXLAN frames come from.
    pub data_path: IpAddr,
}

impl Addresses {
    /// What a user says, or what this machine has.
    ///
    /// # Errors
    /// See [`listen`], [`advertise`] and [`data_path`].
    pub fn find(config: &NodeConfig, wanted: &AddressOptions) -> Result<Self, NodeError> {
        let (own, default) = (own_addresses(), config.default_advertise.as_deref());
        let listen = listen(&wanted.listen, &own)?;
        let advertise = advertise(&wanted.advertise, default, listen, &own)?;
        let data_path = data_path(&wanted.data_path, advertise.ip(), &own)?;
        Ok(Self { listen, advertise, data_path })
    }
}

/// Reads `ADDRESS`, `ADDRESS:PORT`, `INTERFACE` or `INTERFACE:PORT`.
///
/// # Errors
/// It is none of them, or the interface has no address or several.
pub fn parse(
    what: &'static str,
    text: &str,
    port: u16,
    own: &[(String, IpAddr)],
) -> Result<SocketAddr, NodeError> {
    let wrong = |problem: &str| NodeError::Address {
        what,
        text: text.to_owned(),
        problem: problem.to_owned(),
    };
    if let Ok(full) = text.parse::<SocketAddr>() {
        return Ok(full);
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SocketAddr::new(ip, port));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, digits)) => (name, digits.parse().map_err(|_| wrong("the port is no number"))?),
        None => (text, port),
    };
    let mut on: Vec<IpAddr> =
        own.iter().filter(|(link, _)| link == name).map(|(_, ip)| *ip).collect();
    // An interface usually has one address of each family; IPv4 is what the others expect.
    on.sort();
    match on.first() {
        Some(ip) => Ok(SocketAddr::new(*ip, port)),
        None => Err(wrong("neither an IP address nor an interface with one")),
    }
}

/// Where a manager listens.
///
/// # Errors
/// See [`parse`].
pub fn listen(text: &str, own: &[(String, IpAddr)]) -> Result<SocketAddr, NodeError> {
    if text.is_empty() {
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), MANAGER_PORT));
    }
    parse("listen", text, MANAGER_PORT, own)
}

/// What to tell other nodes: what the user says, else the daemon's default, else the listening
/// address, else the machine's only address.
///
/// # Errors
/// The address is not on this machine; or there is no choice, or more than one.
pub fn advertise(
    text: &str,
    default: Option<&str>,
    listen: SocketAddr,
    own: &[(String, IpAddr)],
) -> Result<SocketAddr, NodeError> {
    let said = if text.is_empty() { default.unwrap_or_default() } else { text };
    if !said.is_empty() {
        let address = parse("advertise", said, listen.port(), own)?;
        if address.ip().is_unspecified() {
            let problem = "other nodes cannot use it".to_owned();
            return Err(NodeError::Address { what: "advertise", text: said.to_owned(), problem });
        }
        return Ok(address);
    }
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    match own {
        [(_, only)] => Ok(SocketAddr::new(*only, listen.port())),
        several => Err(NodeError::NoAdvertiseAddress { candidates: several.to_vec() }),
    }
}

/// Where this node's VXLAN frames come from: the address must be on this machine.
///
/// # Errors
/// It is not.
pub fn data_path(
    text: &str,
    advertise: IpAddr,
    own: &[(String, IpAddr)],
) -> Result<IpAddr, NodeError> {
    let address = if text.is_empty() { advertise } else { parse("data path", text, 0, own)?.ip() };
    if own.iter().any(|(_, ip)| *ip == address) || address.is_loopback() {
        Ok(address)
    } else {
        Err(NodeError::NotOwnAddress { address })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn own(list: &[(&str, &str)]) -> Vec<(String, IpAddr)> {
        list.iter().map(|(link, ip)| ((*link).to_owned(), ip.parse().unwrap())).collect()
    }

    #[test]
    fn the_only_address_is_advertised_and_several_are_named() {
        let any = listen("", &[]).unwrap();
        let one = own(&[("eth0", "192.0.2.1")]);
        assert_eq!(advertise("", None, any, &one).unwrap().to_string(), "192.0.2.1:2377");
        let two = own(&[("eth0", "192.0.2.1"), ("eth1", "198.51.100.1")]);
        let error = advertise("", None, any, &two).unwrap_err().to_string();
        assert!(error.contains("192.0.2.1 on eth0"), "{error}");
        let said = advertise("eth1", None, any, &two).unwrap();
        assert_eq!(said.to_string(), "198.51.100.1:2377");
        let said = advertise("", Some("192.0.2.1:99"), any, &two).unwrap();
        assert_eq!(said.to_string(), "192.0.2.1:99");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["0.0.0.0", "nosuch0", "1.2.3.4:x", "1.2.3"] {
            let any = listen("", &[]).unwrap();
            assert!(advertise(text, None, any, &[]).is_err(), "{text}");
        }
        let foreign = data_path("192.0.2.9", "192.0.2.1".parse().unwrap(), &[]);
        assert!(matches!(foreign, Err(NodeError::NotOwnAddress { .. })));
    }
}
