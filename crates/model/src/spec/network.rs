//! What a network should be: the body of `POST /networks/create`.

use serde::{Deserialize, Serialize};

use super::{Extra, StringMap};
use crate::spec::service::null_as_default;

/// The body of `POST /networks/create`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkSpec {
    /// Unique within its scope.
    pub name: String,
    /// `overlay`, `bridge`, `host`, `null`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// `swarm` or `local`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scope: Option<String>,
    /// Whether it has no way to the outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub internal: Option<bool>,
    /// Whether containers started by hand may join. Shoal: yes, unless the client says no.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub attachable: Option<bool>,
    /// Whether it carries the routing mesh.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ingress: Option<bool>,
    /// Whether it only holds settings for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_only: Option<bool>,
    /// Whether tasks get IPv4 addresses.
    #[serde(rename = "EnableIPv4", skip_serializing_if = "Option::is_none")]
    pub enable_ipv4: Option<bool>,
    /// Whether tasks get IPv6 addresses.
    #[serde(rename = "EnableIPv6", skip_serializing_if = "Option::is_none")]
    pub enable_ipv6: Option<bool>,
    /// Address ranges.
    #[serde(rename = "IPAM", skip_serializing_if = "Option::is_none")]
    pub ipam: Option<Ipam>,
    /// Driver options.
    #[serde(deserialize_with = "null_as_default")]
    pub options: StringMap,
    /// Labels.
    #[serde(deserialize_with = "null_as_default")]
    pub labels: StringMap,
    /// What Shoal does not know.
    #[serde(flatten)]
    pub extra: Extra,
}

/// Address management of a network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Ipam {
    /// `default`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Driver options.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub options: Option<StringMap>,
    /// Subnets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<Vec<IpamConfig>>,
}

/// One subnet, as the client asks for it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct IpamConfig {
    /// CIDR.
    #[serde(rename = "Subnet", skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// The part that addresses are given from, CIDR.
    #[serde(rename = "IPRange", skip_serializing_if = "Option::is_none")]
    pub ip_range: Option<String>,
    /// The gateway's address.
    #[serde(rename = "Gateway", skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
    /// Addresses that are taken, by name.
    #[serde(
        rename = "AuxiliaryAddresses",
        alias = "AuxAddress",
        skip_serializing_if = "Option::is_none"
    )]
    pub auxiliary_addresses: Option<StringMap>,
}

/// Driver option that sets a network's MTU.
pub const OPTION_MTU: &str = "com.docker.network.driver.mtu";
/// Driver option that lists wanted VNIs.
pub const OPTION_VNI_LIST: &str = "com.docker.network.driver.overlay.vxlanid_list";
