//! A port of the host that leads to the guest.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use crate::error::Error;

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// `[ADDRESS:]HOST_PORT:GUEST_PORT[/tcp|/udp]`. Without an address it is 127.0.0.1: what runs on a
/// developer's machine is nobody else's business unless said otherwise. Host port 0 takes any free
/// one. An IPv6 address stands in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publish {
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Where the host listens.
    pub host: SocketAddr,
    /// The guest's port.
    pub guest_port: u16,
}

impl fmt::Display for Publish {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}:{}/{}", self.host, self.guest_port, self.protocol)
    }
}

impl FromStr for Publish {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        parse(text).ok_or_else(|| Error::InvalidPublish { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Publish> {
    let (ports, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((ports, "tcp")) => (ports, Protocol::Tcp),
        Some((ports, "udp")) => (ports, Protocol::Udp),
        Some(_) => return None,
    };
    let (host, guest_port) = ports.rsplit_once(':')?;
    let guest_port: u16 = guest_port.parse().ok().filter(|port| *port != 0)?;
    let (address, host_port) = match host.rsplit_once(':') {
        None => (IpAddr::V4(Ipv4Addr::LOCALHOST), host),
        Some((address, port)) => (parse_address(address)?, port),
    };
    let host = SocketAddr::new(address, host_port.parse().ok()?);
    Some(Publish { protocol, host, guest_port })
}

fn parse_address(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(v6) => v6.parse().ok().map(IpAddr::V6),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn check(text: &str, host: &str, guest_port: u16, protocol: Protocol) {
        let expected = Publish { protocol, host: host.parse().unwrap(), guest_port };
        assert_eq!(text.parse::<Publish>().unwrap(), expected, "{text}");
        assert_eq!(expected.to_string().parse::<Publish>().unwrap(), expected, "{expected}");
    }

    #[test]
    fn descriptions() {
        check("8080:80", "127.0.0.1:8080", 80, Protocol::Tcp);
        check("0:80/tcp", "127.0.0.1:0", 80, Protocol::Tcp);
        check("0.0.0.0:53:5353/udp", "0.0.0.0:53", 5353, Protocol::Udp);
        check("[::1]:8080:80", "[::1]:8080", 80, Protocol::Tcp);
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "80", ":80", "80:", "80:0", "1:2:3:4", "x:80:80", "80:80/sctp", "::1:1:1"]
        {
            assert!(text.parse::<Publish>().is_err(), "'{text}' was taken");
        }
    }
}
