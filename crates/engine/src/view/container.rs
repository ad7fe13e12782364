//! `GET /containers/{id}/json`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use shoal_model::spec::container::{ContainerConfig, EndpointIpam, HostConfig};
use shoal_model::time::Timestamp;

/// A container, in full.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct ContainerInspect {
    /// 64 hex digits.
    pub id: String,
    /// When it was made.
    pub created: Timestamp,
    /// The program.
    pub path: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Where it is in its life.
    pub state: State,
    /// The image's id, `sha256:…`.
    pub image: String,
    /// `resolv.conf` on the host.
    pub resolv_conf_path: String,
    /// `hostname` on the host.
    pub hostname_path: String,
    /// `hosts` on the host.
    pub hosts_path: String,
    /// The log file on the host.
    pub log_path: String,
    /// With a leading slash.
    pub name: String,
    /// How often the engine restarted it.
    pub restart_count: i64,
    /// `overlay2`: what Docker's clients know.
    pub driver: String,
    /// `linux`.
    pub platform: String,
    /// SELinux label; empty.
    pub mount_label: String,
    /// SELinux label; empty.
    pub process_label: String,
    /// AppArmor profile; empty.
    pub app_armor_profile: String,
    /// Ids of the running execs; `null` if none.
    #[serde(rename = "ExecIDs")]
    pub exec_ids: Option<Vec<String>>,
    /// What the client asked of the host, with defaults filled in.
    pub host_config: HostConfig,
    /// The storage of its root.
    pub graph_driver: GraphDriver,
    /// Bytes that it wrote, with `size=1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_rw: Option<i64>,
    /// Those and its image's, with `size=1`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_root_fs: Option<i64>,
    /// Its mounts.
    pub mounts: Vec<MountPoint>,
    /// The portable part, image and request merged.
    pub config: ContainerConfig,
    /// Its networks.
    pub network_settings: NetworkSettings,
    /// Of unikernels only: Shoal's own addition.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unikernel: Option<UnikernelView>,
}

/// What only a unikernel has.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct UnikernelView {
    /// The user that its tender is on the host.
    #[serde(rename = "UID")]
    pub uid: u32,
    /// `kvm` or `process`, and what else is known of the run; absent while it does not run.
    #[serde(flatten)]
    pub running: Option<shoal_runtime::unikernel::GuestFacts>,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct State {
    /// `created`, `running`, `paused`, `restarting`, `removing`, `exited` or `dead`.
    pub status: String,
    /// Whether its process lives (also while paused or between restarts).
    pub running: bool,
    /// Whether it is frozen.
    pub paused: bool,
    /// Whether it ended and will be started again.
    pub restarting: bool,
    /// Whether the kernel killed it for lack of memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: bool,
    /// Whether a removal failed halfway.
    pub dead: bool,
    /// Its first process on the host; 0 when none.
    pub pid: i64,
    /// Exit status of the last run.
    pub exit_code: i64,
    /// Why it could not start.
    pub error: String,
    /// Last start.
    pub started_at: Timestamp,
    /// Last end.
    pub finished_at: Timestamp,
    /// Its health, if it is checked.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,
}

/// A container's health.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Health {
    /// `starting`, `healthy` or `unhealthy`.
    pub status: String,
    /// Failures in a row.
    pub failing_streak: i64,
    /// The last checks, oldest first.
    pub log: Vec<HealthResult>,
}

/// One health check.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct HealthResult {
    /// When it began.
    pub start: Timestamp,
    /// When it ended.
    pub end: Timestamp,
    /// Its exit status; -1 when it ran too long.
    pub exit_code: i64,
    /// What it printed, cut.
    pub output: String,
}

/// The storage of a container's root.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct GraphDriver {
    /// Directories of the overlay.
    pub data: BTreeMap<String, String>,
    /// `overlay2`.
    pub name: String,
}

/// One mount of a container.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct MountPoint {
    /// `bind`, `volume` or `tmpfs`.
    #[serde(rename = "Type")]
    pub kind: String,
    /// A volume's name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The path on the host; empty for tmpfs.
    pub source: String,
    /// The path inside.
    pub destination: String,
    /// A volume's driver.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub driver: String,
    /// Options as the client wrote them.
    pub mode: String,
    /// Whether it may be written.
    #[serde(rename = "RW")]
    pub rw: bool,
    /// `rprivate`…; empty for volumes and tmpfs.
    pub propagation: String,
}

/// A container's networks.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NetworkSettings {
    /// Unused; kept for clients.
    #[serde(rename = "Bridge")]
    pub bridge: String,
    /// The sandbox's id.
    #[serde(rename = "SandboxID")]
    pub sandbox_id: String,
    /// The network namespace on the host.
    #[serde(rename = "SandboxKey")]
    pub sandbox_key: String,
    /// Ports: exposed ones are `null`, published ones have bindings.
    #[serde(rename = "Ports")]
    pub ports: BTreeMap<String, Option<Vec<HostPort>>>,
    /// Unused; kept for clients.
    #[serde(rename = "HairpinMode")]
    pub hairpin_mode: bool,
    /// Unused; kept for clients.
    #[serde(rename = "LinkLocalIPv6Address")]
    pub link_local_ipv6_address: String,
    /// Unused; kept for clients.
    #[serde(rename = "LinkLocalIPv6PrefixLen")]
    pub link_local_ipv6_prefix_len: i64,
    /// Unused; kept for clients.
    #[serde(rename = "SecondaryIPAddresses")]
    pub secondary_ip_addresses: Option<Vec<String>>,
    /// Unused; kept for clients.
    #[serde(rename = "SecondaryIPv6Addresses")]
    pub secondary_ipv6_addresses: Option<Vec<String>>,
    /// Of the default bridge only.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// Of the default bridge only.
    #[serde(rename = "Gateway")]
    pub gateway: String,
    /// Of the default bridge only.
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    /// Of the default bridge only.
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: i64,
    /// Of the default bridge only.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// Of the default bridge only.
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: i64,
    /// Of the default bridge only.
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    /// Of the default bridge only.
    #[serde(rename = "MacAddress")]
    pub mac_address: String,
    /// By network name.
    #[serde(rename = "Networks")]
    pub networks: BTreeMap<String, EndpointView>,
}

/// One binding of a published port.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HostPort {
    /// The address on the host.
    pub host_ip: String,
    /// The port on the host.
    pub host_port: String,
}

/// One network of a container.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct EndpointView {
    /// The addresses that the client asked for.
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Option<EndpointIpam>,
    /// Legacy; always `null`.
    #[serde(rename = "Links")]
    pub links: Option<Vec<String>>,
    /// Further names.
    #[serde(rename = "Aliases")]
    pub aliases: Option<Vec<String>>,
    /// The Ethernet address.
    #[serde(rename = "MacAddress")]
    pub mac_address: String,
    /// Driver options.
    #[serde(rename = "DriverOpts")]
    pub driver_opts: Option<BTreeMap<String, String>>,
    /// Which of several gateways wins.
    #[serde(rename = "GwPriority")]
    pub gw_priority: i64,
    /// The network.
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    /// The endpoint.
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    /// IPv4 gateway.
    #[serde(rename = "Gateway")]
    pub gateway: String,
    /// IPv4 address.
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    /// IPv4 prefix length.
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: i64,
    /// IPv6 gateway.
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    /// IPv6 address.
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    /// IPv6 prefix length.
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: i64,
    /// Names that resolve to it.
    #[serde(rename = "DNSNames")]
    pub dns_names: Option<Vec<String>>,
}
