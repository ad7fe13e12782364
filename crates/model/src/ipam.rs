//! What users say of a network's addresses, read once for swarm networks and for bridges.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::object::Subnet;
use crate::spec::network::IpamConfig;

/// What makes no sense of what a user said of addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IpamError {
    /// No subnet in CIDR form.
    Subnet {
        /// What was given.
        text: String,
    },
    /// No address, or one that is not in the subnet.
    Address {
        /// Which one: `gateway`, `auxiliary address`.
        what: &'static str,
        /// What was given.
        text: String,
        /// The subnet.
        subnet: IpNet,
    },
    /// No range in CIDR form, or one that is not in the subnet.
    Range {
        /// What was given.
        text: String,
        /// The subnet.
        subnet: IpNet,
    },
}

impl std::fmt::Display for IpamError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Subnet { text } => write!(f, "invalid CIDR address: {text}"),
            Self::Address { what, text, subnet } => {
                write!(f, "{what} '{text}' is not an address of subnet {subnet}")
            }
            Self::Range { text, subnet } => {
                write!(f, "ip-range '{text}' is not a part of subnet {subnet}")
            }
        }
    }
}

impl std::error::Error for IpamError {}

/// The subnet that a user asks for; `None` if the user names none.
///
/// # Errors
/// Part of it is no address, or not in the subnet.
pub fn subnet_of(config: &IpamConfig) -> Result<Option<Subnet>, IpamError> {
    let Some(text) = said(config.subnet.as_deref()) else { return Ok(None) };
    let subnet: IpNet = text.parse().map_err(|_| IpamError::Subnet { text: text.to_owned() })?;
    let subnet = subnet.trunc();
    let inside = |what: &'static str, text: &str| {
        let address = text.parse::<IpAddr>().ok().filter(|address| subnet.contains(address));
        address.ok_or_else(|| IpamError::Address { what, text: text.to_owned(), subnet })
    };
    let gateway = match said(config.gateway.as_deref()) {
        Some(text) => inside("gateway", text)?,
        None => first_usable(&subnet),
    };
    let range = match said(config.ip_range.as_deref()) {
        Some(text) => {
            let range = text.parse::<IpNet>().ok().filter(|range| subnet.contains(range));
            let wrong = || IpamError::Range { text: text.to_owned(), subnet };
            Some(range.ok_or_else(wrong)?.trunc())
        }
        None => None,
    };
    let named = config.auxiliary_addresses.iter().flatten();
    let reserved = named.map(|(_, text)| inside("auxiliary address", text));
    let reserved = reserved.collect::<Result<Vec<_>, _>>()?;
    Ok(Some(Subnet { subnet, gateway, range, reserved }))
}

/// Whether two subnets have an address in common.
#[must_use]
pub fn overlaps(a: &IpNet, b: &IpNet) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The first address of a subnet that a host may have: by default the gateway's.
#[must_use]
pub fn first_usable(subnet: &IpNet) -> IpAddr {
    let network = subnet.network();
    subnet.hosts().find(|address| *address != network).unwrap_or(network)
}

fn said(text: Option<&str>) -> Option<&str> {
    text.filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn config(subnet: &str, gateway: &str, range: &str) -> IpamConfig {
        IpamConfig {
            subnet: Some(subnet.to_owned()),
            gateway: Some(gateway.to_owned()),
            ip_range: Some(range.to_owned()),
            ..IpamConfig::default()
        }
    }

    #[test]
    fn what_is_left_out_is_filled_in() {
        let subnet = subnet_of(&config("10.1.2.3/16", "", "")).unwrap().unwrap();
        assert_eq!(subnet.subnet.to_string(), "10.1.0.0/16");
        assert_eq!(subnet.gateway.to_string(), "10.1.0.1");
        assert_eq!(subnet_of(&config("", "", "")), Ok(None));
    }

    #[test]
    fn what_is_not_in_the_subnet_is_named() {
        for (config, part) in [
            (config("10.1.0.0", "", ""), "CIDR"),
            (config("10.1.0.0/16", "10.2.0.1", ""), "gateway '10.2.0.1'"),
            (config("10.1.0.0/16", "", "10.2.0.0/24"), "ip-range '10.2.0.0/24'"),
            (config("10.1.0.0/16", "x", ""), "gateway 'x'"),
        ] {
            let error = subnet_of(&config).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
