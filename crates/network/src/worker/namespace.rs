//! One network's namespace: made or adopted, observed, brought to its plan by the difference.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use shoal_model::id::{InstanceId, NetworkId};
use shoal_netlink::error::NetlinkError;
use shoal_netlink::link::{LinkChange, LinkOptions, VxlanSpec};
use shoal_netlink::netns::{self, NetnsHandle};

use super::host::{Host, HostLink};
use super::ports;
use crate::desired::{PortKind, SandboxId};
use crate::error::NetworkError;
use crate::layout::diff::{Diff, Observed};
use crate::layout::{NsLayout, UPLINK, VXLAN};

/// A packet is routed between ports, never filtered by where it came from: replies take another
/// way than the route to their source says.
const SYSCTLS: [(&str, &str); 6] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    // A refused UDP service is told so every time, not once a second.
    ("net/ipv4/icmp_ratelimit", "0"),
];
/// Settings that some kernels do not have.
const OPTIONAL_SYSCTLS: [(&str, &str); 2] = [
    // A segment out of the window must not escape translation.
    ("net/netfilter/nf_conntrack_tcp_be_liberal", "1"),
    ("net/ipv6/conf/default/disable_ipv6", "1"),
];

/// A network's namespace, opened.
#[derive(Debug)]
pub(crate) struct Namespace {
    pub(crate) handle: NetnsHandle,
    pub(crate) path: PathBuf,
    network: String,
}

/// Where and for whom a plan is carried out.
pub(crate) struct Surroundings<'a> {
    pub(crate) host: &'a Host,
    pub(crate) host_link: Option<&'a HostLink>,
    pub(crate) id: &'a NetworkId,
    pub(crate) instance: &'a InstanceId,
    pub(crate) sandboxes: &'a BTreeMap<SandboxId, NetnsHandle>,
}

impl Namespace {
    /// Opens the namespace at `path`, making it first if there is none.
    pub(crate) fn open(path: PathBuf, network: &str) -> Result<Self, NetworkError> {
        let refused = |source: NetlinkError| NetworkError::Namespace {
            path: path.clone(),
            source: source.into(),
        };
        let handle = if netns::exists(&path) {
            let handle = NetnsHandle::open(&path).map_err(refused)?;
            settle(&handle, &SYSCTLS, &OPTIONAL_SYSCTLS)?;
            handle
        } else {
            netns::create_with(&path, &SYSCTLS, &OPTIONAL_SYSCTLS).map_err(refused)?
        };
        Ok(Self { handle, path, network: network.to_owned() })
    }

    /// Writes the settings again that a first table may have brought along: connection tracking is
    /// a module of many kernels, and its settings come with it.
    pub(crate) fn settle_tracking(&self) -> Result<(), NetworkError> {
        settle(&self.handle, &[], &OPTIONAL_SYSCTLS)
    }

    /// What it has.
    pub(crate) fn observe(&self, host_link: Option<&HostLink>) -> Result<Observed, NetworkError> {
        let read = || {
            let links = self.handle.links()?;
            let vxlan = links.iter().any(|link| link.name == VXLAN);
            Ok(Observed {
                routes: self.handle.routes()?,
                rules: self.handle.rules()?,
                neighbours: if vxlan { self.handle.neighbours(VXLAN)? } else { Vec::new() },
                fdb: if vxlan { self.handle.fdb(VXLAN)? } else { Vec::new() },
                host_end: host_link.is_some_and(|link| link.up && link.pair.is_some()),
                links,
            })
        };
        read().map_err(|source: NetlinkError| NetworkError::Observe {
            what: format!("namespace of network '{}'", self.network),
            source: source.into(),
        })
    }

    /// Carries out `diff`. Failures of single ports are returned beside the others' success.
    pub(crate) fn execute(
        &self,
        plan: &NsLayout,
        diff: &Diff,
        around: &Surroundings<'_>,
    ) -> Result<BTreeMap<SandboxId, NetworkError>, NetworkError> {
        for link in &diff.delete_links {
            self.link("remove", link, self.handle.delete_link(link))?;
        }
        if diff.create_vxlan {
            self.create_vxlan(plan, around)?;
        }
        if diff.create_uplink {
            self.create_uplink(plan, around)?;
        }
        for link in &diff.fix_links {
            let change =
                LinkChange { mtu: Some(plan.mtu), up: Some(true), ..LinkChange::default() };
            self.link("repair", link, self.handle.set_link(link, &change))?;
        }
        let mut failed = BTreeMap::new();
        for name in &diff.create_ports {
            let Some(port) = plan.ports.get(name) else { continue };
            let made = match (port.kind, around.sandboxes.get(&port.sandbox)) {
                (PortKind::Tap { owner }, _) => {
                    ports::create_tap(&self.handle, name, owner, port, plan.mtu)
                        .map_err(|source| self.link_error(&format!("create '{name}'"), source))
                }
                (_, Some(sandbox)) => ports::create(&self.handle, sandbox, name, port, plan.mtu)
                    .map_err(|source| self.link_error(&format!("create '{name}'"), source)),
                (_, None) => Err(NetworkError::Invalid {
                    what: format!("port of unknown sandbox '{}'", port.sandbox),
                }),
            };
            if let Err(error) = made {
                failed.insert(port.sandbox.clone(), error);
            }
        }
        self.change(diff, plan, &failed)?;
        Ok(failed)
    }

    fn change(
        &self,
        diff: &Diff,
        plan: &NsLayout,
        failed: &BTreeMap<SandboxId, NetworkError>,
    ) -> Result<(), NetworkError> {
        let apply = || {
            for (link, address) in &diff.delete_addresses {
                self.handle.delete_address(link, *address)?;
            }
            for (link, address) in &diff.add_addresses {
                self.handle.add_address(link, *address)?;
            }
            for address in &diff.delete_neighbours {
                self.handle.delete_neighbour(VXLAN, *address)?;
            }
            for (address, mac) in &diff.set_neighbours {
                self.handle.set_neighbour(VXLAN, *address, *mac)?;
            }
            for entry in &diff.delete_fdb {
                self.handle.delete_fdb(VXLAN, *entry)?;
            }
            for entry in &diff.set_fdb {
                self.handle.append_fdb(VXLAN, *entry)?;
            }
            for route in &diff.delete_routes {
                self.handle.delete_route(route)?;
            }
            for route in &diff.put_routes {
                let port = route.device.as_ref().and_then(|device| plan.ports.get(device));
                if port.is_some_and(|port| failed.contains_key(&port.sandbox)) {
                    continue;
                }
                self.handle.replace_route(route)?;
            }
            for rule in &diff.delete_rules {
                self.handle.delete_rule(rule)?;
            }
            diff.add_rules.iter().try_for_each(|rule| self.handle.add_rule(rule))
        };
        apply().map_err(|source| self.link_error("change addresses and routes", source))
    }

    fn create_vxlan(&self, plan: &NsLayout, around: &Surroundings<'_>) -> Result<(), NetworkError> {
        let Some(vxlan) = &plan.vxlan else { return Ok(()) };
        let refused = |source: Box<dyn std::error::Error + Send + Sync>| NetworkError::Vxlan {
            network: self.network.clone(),
            vni: vxlan.vni.0,
            port: vxlan.port,
            underlay: vxlan.local,
            source,
        };
        if !around.host.has_address(vxlan.local)? {
            return Err(refused("the address is on no interface of this host".into()));
        }
        let spec = VxlanSpec {
            vni: vxlan.vni,
            port: vxlan.port,
            local: vxlan.local,
            // Peers may be behind different interfaces: the host's routes decide.
            underlay: None,
        };
        let options = LinkOptions {
            mtu: Some(plan.mtu),
            mac: Some(vxlan.mac),
            alias: Some(format!("shoal:{}:vxlan:{}", around.instance, around.id)),
            up: true,
        };
        around
            .host
            .handle
            .create_vxlan(VXLAN, &spec, &options, &self.handle)
            .map_err(|source| refused(source.into()))
    }

    fn create_uplink(
        &self,
        plan: &NsLayout,
        around: &Surroundings<'_>,
    ) -> Result<(), NetworkError> {
        let Some(pair) = plan.link else { return Ok(()) };
        if let Some(old) = around.host_link {
            self.link("remove", &old.name, around.host.handle.delete_link(&old.name))?;
        }
        let made = around.host.create_link(around.id, pair, plan.mtu, &self.handle);
        self.link("create", UPLINK, made)
    }

    fn link(
        &self,
        action: &str,
        link: &str,
        done: Result<(), NetlinkError>,
    ) -> Result<(), NetworkError> {
        done.map_err(|source| self.link_error(&format!("{action} '{link}'"), source))
    }

    fn link_error(&self, what: &str, source: NetlinkError) -> NetworkError {
        NetworkError::Link {
            what: what.to_owned(),
            network: self.network.clone(),
            source: source.into(),
        }
    }

    /// Removes the namespace. Its links go first and by name: the kernel takes its time with the
    /// rest, and a VNI must be free at once.
    pub(crate) fn remove(self, host: &Host, link: Option<&HostLink>) -> Result<(), NetworkError> {
        let path = self.path.clone();
        let clear = || {
            for old in self.handle.links()?.iter().filter(|old| old.name != "lo") {
                let ours = [VXLAN, UPLINK].contains(&old.name.as_str())
                    || old.name.starts_with(crate::layout::PORT_PREFIX);
                if ours {
                    self.handle.delete_link(&old.name)?;
                }
            }
            link.map_or(Ok(()), |link| host.handle.delete_link(&link.name))
        };
        let cleared = clear().map_err(|source| self.link_error("remove all links", source));
        drop(self);
        delete(&path)?;
        cleared
    }
}

/// Unmounts a namespace.
pub(crate) fn delete(path: &Path) -> Result<(), NetworkError> {
    netns::delete(path)
        .map_err(|source| NetworkError::Namespace { path: path.to_owned(), source: source.into() })
}

/// Makes or opens a workload's namespace.
pub(crate) fn open_sandbox(path: &Path) -> Result<NetnsHandle, NetworkError> {
    const SANDBOX: [(&str, &str); 3] = [
        ("net/ipv4/conf/all/rp_filter", "0"),
        // As Docker has it: no privilege is needed for low ports and for ping.
        ("net/ipv4/ip_unprivileged_port_start", "0"),
        ("net/ipv4/ping_group_range", "0\t2147483647"),
    ];
    const OPTIONAL: [(&str, &str); 1] = [("net/ipv6/conf/default/disable_ipv6", "1")];
    let refused = |source: NetlinkError| NetworkError::Namespace {
        path: path.to_owned(),
        source: source.into(),
    };
    if netns::exists(path) {
        // Its settings are the workload's own business by now.
        return NetnsHandle::open(path).map_err(refused);
    }
    netns::create_with(path, &SANDBOX, &OPTIONAL).map_err(refused)
}

fn settle(
    handle: &NetnsHandle,
    needed: &[(&str, &str)],
    optional: &[(&str, &str)],
) -> Result<(), NetworkError> {
    let write = |key: &str, value: &str| {
        handle.set_sysctls(&[(key, value)]).map_err(|source| NetworkError::Sysctl {
            key: key.replace('/', "."),
            value: value.to_owned(),
            source: source.into(),
        })
    };
    for (key, value) in needed {
        write(key, value)?;
    }
    for (key, value) in optional {
        // Ignored because: a kernel without the feature has no such setting, and needs none.
        let _ = write(key, value);
    }
    Ok(())
}
