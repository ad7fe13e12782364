//! What the server is told by arguments and environment.

use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::IpAddr;

/// Clients by address: all that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix_len: u8,
}

/// What cannot be understood.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// Not an address or network.
    #[error(
        "'{0}' is not an address or network: give --transfer or DNS_TRANSFER for example \
         192.0.2.7 or 192.0.2.0/24"
    )]
    Network(String),
    /// An argument that there is not.
    #[error(
        "unknown argument '{0}': known are --port N, --zones PATH, --zone TEXT, \
         --transfer NETWORK[,...]"
    )]
    Argument(String),
    /// An argument without its value.
    #[error("'{0}' needs a value behind it")]
    Value(String),
    /// Not a port.
    #[error("'{0}' is not a port: give --port or DNS_PORT a number from 1 to 65535")]
    Port(String),
}

impl Network {
    /// Reads an address, or an address and the length of its prefix.
    ///
    /// # Errors
    /// The text is neither.
    pub fn parse(text: &str) -> Result<Self, SettingError> {
        let bad = || SettingError::Network(text.to_string());
        let (address, len) = match text.split_once('/') {
            Some((address, len)) => (address, Some(len)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix_len = match len {
            Some(len) => len.parse().map_err(|_| bad())?,
            None => longest,
        };
        if prefix_len > longest {
            return Err(bad());
        }
        Ok(Self { address, prefix_len })
    }

    /// Whether `client` belongs to it.
    #[must_use]
    pub fn contains(&self, client: IpAddr) -> bool {
        match (self.address, client) {
            (IpAddr::V4(own), IpAddr::V4(client)) => {
                let differs = own.to_bits() ^ client.to_bits();
                differs.checked_shr(32 - u32::from(self.prefix_len)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(client)) => {
                let differs = own.to_bits() ^ client.to_bits();
                differs.checked_shr(128 - u32::from(self.prefix_len)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// All settings. Arguments go before the environment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// UDP and TCP port.
    pub port: u16,
    /// A zone file, or a folder all of whose files are zone files.
    pub zones: String,
    /// The text of a zone file itself, beside those in `zones`.
    pub zone: Option<String>,
    /// Who may have whole zones.
    pub transfer_to: Vec<Network>,
}

impl Settings {
    /// Reads the arguments after the program's name, and the variables `DNS_PORT`, `DNS_ZONES`,
    /// `DNS_ZONE` and `DNS_TRANSFER`.
    ///
    /// # Errors
    /// The first one that is not understood.
    pub fn read<'a>(
        mut arguments: impl Iterator<Item = &'a str>,
        variable: impl Fn(&str) -> Option<&'a str>,
    ) -> Result<Self, SettingError> {
        let mut port = variable("DNS_PORT");
        let mut zones = variable("DNS_ZONES");
        let mut zone = variable("DNS_ZONE");
        let mut transfer = variable("DNS_TRANSFER");
        while let Some(argument) = arguments.next() {
            let to = match argument {
                "--port" => &mut port,
                "--zones" => &mut zones,
                "--zone" => &mut zone,
                "--transfer" => &mut transfer,
                other => return Err(SettingError::Argument(other.to_string())),
            };
            let value = arguments.next();
            *to = Some(value.ok_or_else(|| SettingError::Value(argument.to_string()))?);
        }
        let port = port.unwrap_or("53");
        let port = port
            .parse()
            .ok()
            .filter(|port| *port != 0)
            .ok_or_else(|| SettingError::Port(port.to_string()))?;
        let transfer_to = transfer
            .unwrap_or("")
            .split([',', ' '])
            .filter(|text| !text.is_empty())
            .map(Network::parse)
            .collect::<Result<_, _>>()?;
        let zones = zones.unwrap_or("/zones").to_string();
        Ok(Self { port, zones, zone: zone.map(ToString::to_string), transfer_to })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn networks_contain_their_clients() {
        let cases = [
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("192.0.2.0/24", "192.0.2.255", true),
            ("192.0.2.0/24", "192.0.3.0", false),
            ("0.0.0.0/0", "198.51.100.1", true),
            ("0.0.0.0/0", "2001:db8::1", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "2001:db9::1", true),
        ];
        for (network, client, inside) in cases {
            let network = Network::parse(network).unwrap();
            assert_eq!(network.contains(client.parse().unwrap()), inside, "{network:?} {client}");
        }
        for bad in ["", "192.0.2", "192.0.2.0/33", "2001:db8::/129", "192.0.2.0/", "all"] {
            assert_eq!(Network::parse(bad), Err(SettingError::Network(bad.to_string())));
        }
    }

    #[test]
    fn arguments_go_before_the_environment() {
        let none = |_: &str| None;
        let some = |name: &str| match name {
            "DNS_PORT" => Some("5353"),
            "DNS_TRANSFER" => Some("192.0.2.0/24,198.51.100.1"),
            _ => None,
        };
        let settings = Settings::read([].into_iter(), none).unwrap();
        assert_eq!((settings.port, settings.zones.as_str()), (53, "/zones"));
        assert!(settings.transfer_to.is_empty());
        let settings = Settings::read(["--port", "54"].into_iter(), some).unwrap();
        assert_eq!((settings.port, settings.transfer_to.len()), (54, 2));
        let wrong = Settings::read(["--prot", "54"].into_iter(), none);
        assert_eq!(wrong, Err(SettingError::Argument("--prot".to_string())));
        let wrong = Settings::read(["--port"].into_iter(), none);
        assert_eq!(wrong, Err(SettingError::Value("--port".to_string())));
        let wrong = Settings::read(["--port", "0"].into_iter(), none);
        assert_eq!(wrong, Err(SettingError::Port("0".to_string())));
    }
}
