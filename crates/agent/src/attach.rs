//! Containers' networks: the engine's [`Attacher`], over local networks and the manager.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use async_trait::async_trait;
use ipnet::IpNet;
use shoal_engine::attacher::{
    AttachError, Attacher, Attachment, ContainerNetworking, DnsRequest, EndpointInfo, NetworkName,
    PublishRequest, PublishedPort, TapPlace,
};
use shoal_model::fault::{Fault, FaultKind, chain, report};
use shoal_model::id::{ContainerId, NetworkId};
use shoal_model::net::{Mac, Port, Protocol};
use shoal_model::spec::container::EndpointSettings;
use shoal_model::spec::task::NodeNetwork;
use shoal_network::claims::{self, HostPort};
use shoal_network::desired::{SandboxId, SandboxSpec};
use tokio::net::TcpStream;

use crate::agent::Agent;
use crate::desired::{Attached, Place, guest, place_of, spans_nodes};
use crate::error::AgentError;
use crate::local::DEFAULT_NETWORK;

/// First port that is chosen for a container that names none (as Linux does for clients).
const PORT_FIRST: u16 = 32768;
/// Last one.
const PORT_LAST: u16 = 60999;

#[async_trait]
impl Attacher for Agent {
    async fn attach(&self, request: ContainerNetworking) -> Result<Attachment, AttachError> {
        if request.network_mode == "host" {
            return Ok(Attachment { resolv_conf: host_resolv_conf(), ..Attachment::default() });
        }
        let container = request.container_id.clone();
        let attached = self.place(&request).await.map_err(refuse)?;
        self.inner.attachments.insert(attached);
        match self.settle(&container).await {
            Ok(()) => {}
            Err(error) => {
                // The failure that matters is `error`; what is left goes with the next detach.
                self.drop_attached(&container).await;
                return Err(refuse(error));
            }
        }
        self.attachment(&container, &request).map_err(refuse)
    }

    async fn detach(&self, container: &ContainerId) -> Result<(), AttachError> {
        self.drop_attached(container).await;
        Ok(())
    }

    async fn readopt(
        &self,
        request: ContainerNetworking,
        attachment: Attachment,
    ) -> Result<Attachment, AttachError> {
        if attachment.netns.is_none() && attachment.tap.is_none() {
            return Ok(attachment);
        }
        for endpoint in &attachment.endpoints {
            self.local().restore(endpoint, (self.inner.config.clock)());
        }
        let tasks = self.remembered_places(&request.container_id);
        let here = |network: &NetworkId| self.local().find(network.as_str()).is_ok();
        let attached = readopted(&request, &attachment, &tasks, here);
        for place in &attached.places {
            for address in &place.addresses {
                match self.local().lease(&place.network_id, Some(address.addr())) {
                    // An overlay's address is the manager's to give, and it still holds the task;
                    // only local networks have leases here.
                    Ok(_) | Err(AgentError::NoNetwork { .. }) => {}
                    Err(error) => tracing::warn!(container = %request.container_id,
                        cause = report(&error), "an address is used without a lease"),
                }
            }
        }
        self.inner.attachments.insert(attached);
        self.changed();
        Ok(attachment)
    }

    async fn check_network(&self, word: &str) -> Result<NetworkName, AttachError> {
        self.find_network(word).map_err(refuse)
    }

    async fn connect(
        &self,
        container: &ContainerId,
        network: &str,
        settings: EndpointSettings,
    ) -> Result<Attachment, AttachError> {
        let mut attached =
            self.inner.attachments.get(container).ok_or_else(|| not_running(container))?;
        let place = self.join(&attached.container_id, &attached.name, network, &settings).await;
        let place = place.map_err(refuse)?;
        let before = attached.clone();
        attached.places.push(place.clone());
        self.inner.attachments.insert(attached);
        if let Err(error) = self.settle(container).await {
            // A failed connect leaves the container as it was.
            self.inner.attachments.insert(before);
            self.changed();
            self.leave(&place).await;
            return Err(refuse(error));
        }
        self.attachment_of(container, &DnsRequest::default(), &BTreeMap::new()).map_err(refuse)
    }

    async fn disconnect(
        &self,
        container: &ContainerId,
        network: &str,
    ) -> Result<Attachment, AttachError> {
        let mut attached =
            self.inner.attachments.get(container).ok_or_else(|| not_running(container))?;
        let name = self.find_network(network).map_err(refuse)?;
        let Some(at) = attached.places.iter().position(|p| p.network_id == name.id) else {
            let word = format!("{network} (container {} is not on it)", attached.name);
            return Err(refuse(AgentError::NoNetwork { word }));
        };
        let place = attached.places.remove(at);
        self.inner.attachments.insert(attached);
        self.settle(container).await.map_err(refuse)?;
        self.leave(&place).await;
        self.attachment_of(container, &DnsRequest::default(), &BTreeMap::new()).map_err(refuse)
    }

    async fn connect_to(
        &self,
        container: &ContainerId,
        port: u16,
        limit: Duration,
    ) -> Result<TcpStream, AttachError> {
        let attached = self.inner.attachments.get(container);
        let tap = attached.and_then(|attached| self.tap_place(&attached));
        let missing = || AttachError::new(FaultKind::Unavailable, "it is on no network");
        let tap = tap.ok_or_else(missing)?;
        let to = (tap.address.0, port).into();
        self.network().connect_from(&tap.netns, to, limit).await.map_err(|source| AttachError {
            kind: FaultKind::Unavailable,
            message: format!("connect to port {port}"),
            id: None,
            remedy: None,
            source: Some(Box::new(source)),
        })
    }
}

fn refuse(error: AgentError) -> AttachError {
    AttachError {
        kind: error.kind(),
        message: chain(&error),
        id: error.id(),
        remedy: shoal_model::fault::remedy(&error),
        source: None,
    }
}

fn not_running(container: &ContainerId) -> AttachError {
    refuse(AgentError::NotImplemented {
        what: format!("changing the networks of a container that does not run ({container})"),
    })
}

impl Agent {
    /// Finds addresses and ports for a container.
    async fn place(&self, request: &ContainerNetworking) -> Result<Attached, AgentError> {
        let mut attached = Attached {
            container_id: request.container_id.clone(),
            name: request.name.clone(),
            sandbox: sandbox_spec(request),
            places: Vec::new(),
            published: Vec::new(),
            task_id: request.task.as_ref().map(|t| t.task_id.clone()),
            ended: false,
            tap_owner: request.tap_owner,
        };
        if let Some(task) = &request.task {
            attached.places = task
                .networks
                .iter()
                .map(|n| Place {
                    network_id: n.network_id.clone(),
                    addresses: n.addresses.clone(),
                    aliases: n.aliases.clone(),
                    task_id: Some(task.task_id.clone()),
                })
                .collect();
        }
        // A task on a node's own network may have a place on the ingress network besides.
        let on_own = NodeNetwork::named(&request.network_mode) == Some(NodeNetwork::Bridge);
        if on_own || attached.places.is_empty() && request.network_mode != "none" {
            for (word, settings) in words(request) {
                match self.join(&request.container_id, &request.name, &word, &settings).await {
                    Ok(place) => attached.places.push(place),
                    Err(error) => {
                        for place in &attached.places {
                            self.leave(place).await;
                        }
                        return Err(error);
                    }
                }
            }
        }
        match self.open_ports(&request.published) {
            Ok(ports) => attached.published = ports,
            Err(error) => {
                for place in &attached.places {
                    self.leave(place).await;
                }
                return Err(error);
            }
        }
        Ok(attached)
    }

    /// Joins one network, local or of the swarm.
    async fn join(
        &self,
        container: &ContainerId,
        name: &str,
        word: &str,
        settings: &EndpointSettings,
    ) -> Result<Place, AgentError> {
        let aliases = settings.aliases.clone().unwrap_or_default();
        let wanted: Option<IpAddr> = settings
            .ipam_config
            .as_ref()
            .and_then(|ipam| ipam.ipv4_address.as_deref())
            .filter(|text| !text.is_empty())
            .map(|text| {
                let invalid = || AgentError::Option { what: "address", text: text.to_owned() };
                text.parse().map_err(|_| invalid())
            })
            .transpose()?;
        match self.local().find(word) {
            Ok(network) => {
                let address = self.local().lease(&network.id, wanted)?;
                Ok(Place {
                    network_id: network.id,
                    addresses: vec![address],
                    aliases,
                    task_id: None,
                })
            }
            Err(AgentError::NoNetwork { .. }) => {
                self.join_swarm(container, name, word, aliases, wanted).await
            }
            Err(other) => Err(other),
        }
    }

    /// Chooses and checks host ports. The daemon's own holder of the port reports a clash when it
    /// binds; here only ports that Shoal itself has given out are passed over.
    fn open_ports(&self, wanted: &[PublishRequest]) -> Result<Vec<PublishedPort>, AgentError> {
        let taken = self.published_ports();
        let mut given: Vec<PublishedPort> = Vec::new();
        for request in wanted {
            let protocol = request.container.protocol;
            let (first, last) = match (request.host_port, request.host_port_last) {
                (Some(first), last) => (first, last.unwrap_or(first)),
                (None, _) => (PORT_FIRST, PORT_LAST),
            };
            let own = given.iter().map(|p| (place_of(p), "this container itself"));
            let known: Vec<_> =
                taken.iter().map(|(place, holder)| (*place, holder.as_str())).chain(own).collect();
            let holder = |port: Port| {
                let wanted = HostPort::new(port, request.host_ip);
                claims::holder(wanted, known.iter().copied()).map(str::to_owned)
            };
            let chosen = (first..=last).find(|number| {
                // A single wanted port is not probed here: its holder's name belongs in the error,
                // and the host-port holder finds that out.
                holder(Port { protocol, number: *number }).is_none()
                    && (first == last || is_free(protocol, *number))
            });
            let Some(host_port) = chosen else {
                let port = Port { protocol, number: first };
                return Err(match holder(port).filter(|_| first == last) {
                    Some(holder) => AgentError::PortTaken { port, holder },
                    None => AgentError::NoPort { first, last, protocol: protocol.as_str() },
                });
            };
            let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
            let host_ip = request.host_ip.unwrap_or(any);
            given.push(PublishedPort { container: request.container, host_ip, host_port });
        }
        Ok(given)
    }

    fn attachment(
        &self,
        container: &ContainerId,
        request: &ContainerNetworking,
    ) -> Result<Attachment, AgentError> {
        self.attachment_of(container, &request.dns, &request.endpoints)
    }

    fn attachment_of(
        &self,
        container: &ContainerId,
        dns: &DnsRequest,
        asked: &BTreeMap<String, EndpointSettings>,
    ) -> Result<Attachment, AgentError> {
        let attached = self
            .inner
            .attachments
            .get(container)
            .ok_or_else(|| AgentError::NoNetwork { word: container.to_string() })?;
        let sandbox = SandboxId::from(container);
        let endpoints = attached
            .places
            .iter()
            .map(|place| self.endpoint_info(&attached, place, asked))
            .collect();
        let tap = self.tap_place(&attached);
        Ok(Attachment {
            netns: tap.is_none().then(|| self.network().sandbox_path(&sandbox)),
            tap,
            sandbox_id: container.to_string(),
            endpoints,
            published: attached.published.clone(),
            resolv_conf: resolv_conf(dns),
        })
    }

    /// Where a unikernel's TAP device is; nothing for containers.
    fn tap_place(&self, attached: &Attached) -> Option<TapPlace> {
        let guest = guest(attached, &|id| self.is_ingress(id))?;
        let (netns, name) =
            self.network().tap_place(&SandboxId::from(&attached.container_id), &guest);
        let home = attached.places.iter().find(|place| place.network_id == guest.home)?;
        let address = home.addresses.iter().find_map(|address| match address {
            IpNet::V4(net) => Some((net.addr(), net.prefix_len())),
            IpNet::V6(_) => None,
        })?;
        let (_, subnets) = self.network_facts(&guest.home);
        let own = subnets.iter().find(|s| s.subnet.contains(&IpAddr::V4(address.0)));
        let gateway = own.and_then(|subnet| match subnet.gateway {
            IpAddr::V4(gateway) => Some(gateway),
            IpAddr::V6(_) => None,
        });
        let mtus = attached.places.iter().map(|place| self.network_mtu(&place.network_id));
        Some(TapPlace {
            netns,
            name,
            mtu: mtus.min()?,
            address,
            mac: Mac::of_port(IpAddr::V4(address.0)),
            gateway,
        })
    }

    fn endpoint_info(
        &self,
        attached: &Attached,
        place: &Place,
        asked: &BTreeMap<String, EndpointSettings>,
    ) -> EndpointInfo {
        let (name, subnets) = self.network_facts(&place.network_id);
        let v4 = place.addresses.iter().find_map(|a| match a {
            IpNet::V4(net) => Some((net.addr(), net.prefix_len())),
            IpNet::V6(_) => None,
        });
        let v6 = place.addresses.iter().find_map(|a| match a {
            IpNet::V6(net) => Some((net.addr(), net.prefix_len())),
            IpNet::V4(_) => None,
        });
        let gateway = subnets.iter().find_map(|s| match s.gateway {
            IpAddr::V4(gateway) => Some(gateway),
            IpAddr::V6(_) => None,
        });
        let gateway6 = subnets.iter().find_map(|s| match s.gateway {
            IpAddr::V6(gateway) => Some(gateway),
            IpAddr::V4(_) => None,
        });
        let settings = asked.get(&name).or_else(|| asked.get(place.network_id.as_str()));
        let mut dns_names = attached.sandbox.names.clone();
        dns_names.extend(place.aliases.iter().cloned());
        EndpointInfo {
            network_id: place.network_id.clone(),
            network_name: name,
            driver: if spans_nodes(&place.network_id) { "overlay" } else { "bridge" }.to_owned(),
            endpoint_id: endpoint_id(&attached.container_id, &place.network_id),
            ipv4: v4,
            ipv6: v6,
            gateway: v4.and(gateway),
            gateway6: v6.and(gateway6),
            mac: place.addresses.first().map(|a| Mac::of_port(a.addr())),
            aliases: place.aliases.clone(),
            dns_names,
            ipam: settings.and_then(|s| s.ipam_config.clone()),
        }
    }
}

/// A container's endpoint on a network needs an id that is stable over daemon restarts: the first
/// half of the container's, and the network's.
fn endpoint_id(container: &ContainerId, network: &NetworkId) -> String {
    let half: String = container.as_str().chars().take(32).collect();
    let bytes: String = network.as_str().bytes().map(|b| format!("{b:02x}")).collect();
    let mut id: String = format!("{half}{bytes}").chars().take(64).collect();
    while id.len() < 64 {
        id.push('0');
    }
    id
}

fn words(request: &ContainerNetworking) -> Vec<(String, EndpointSettings)> {
    if !request.endpoints.is_empty() {
        return request
            .endpoints
            .iter()
            .map(|(word, settings)| (usual(word), settings.clone()))
            .collect();
    }
    vec![(usual(&request.network_mode), EndpointSettings::default())]
}

fn usual(word: &str) -> String {
    match word {
        "" | "default" => DEFAULT_NETWORK.to_owned(),
        other => other.to_owned(),
    }
}

fn sandbox_spec(request: &ContainerNetworking) -> SandboxSpec {
    let short: String = request.container_id.as_str().chars().take(12).collect();
    SandboxSpec {
        container_id: Some(request.container_id.clone()),
        hostname: request.hostname.clone(),
        dns_servers: request.dns.servers.iter().filter_map(|s| s.parse().ok()).collect(),
        dns_search: request.dns.search.clone(),
        dns_options: request.dns.options.clone(),
        names: vec![request.name.clone(), short],
        guest: None,
    }
}

/// `here` tells this node's own networks: a task's address there is this node's to take back.
fn readopted(
    request: &ContainerNetworking,
    attachment: &Attachment,
    tasks: &[Place],
    here: impl Fn(&NetworkId) -> bool,
) -> Attached {
    let places = attachment.endpoints.iter().map(|endpoint| {
        let v4 = endpoint.ipv4.and_then(|(a, p)| IpNet::new(a.into(), p).ok());
        let v6 = endpoint.ipv6.and_then(|(a, p)| IpNet::new(a.into(), p).ok());
        let remembered = tasks.iter().find(|p| p.network_id == endpoint.network_id);
        let task = request.task.as_ref().filter(|_| !here(&endpoint.network_id));
        let task = task.map(|t| t.task_id.clone());
        Place {
            network_id: endpoint.network_id.clone(),
            addresses: v4.into_iter().chain(v6).collect(),
            aliases: endpoint.aliases.clone(),
            task_id: task.or_else(|| remembered.and_then(|p| p.task_id.clone())),
        }
    });
    Attached {
        container_id: request.container_id.clone(),
        name: request.name.clone(),
        sandbox: sandbox_spec(request),
        places: places.collect(),
        published: attachment.published.clone(),
        task_id: request.task.as_ref().map(|t| t.task_id.clone()),
        ended: false,
        tap_owner: request.tap_owner,
    }
}

/// `resolv.conf` of a container: our resolver, and what the user added.
fn resolv_conf(dns: &DnsRequest) -> String {
    let mut text = String::from("nameserver 127.0.0.11\n");
    if !dns.search.is_empty() {
        text.push_str(&format!("search {}\n", dns.search.join(" ")));
    }
    let mut options = dns.options.clone();
    if !options.iter().any(|o| o.starts_with("ndots:")) {
        options.push("ndots:0".to_owned());
    }
    text.push_str(&format!("options {}\n", options.join(" ")));
    text
}

fn host_resolv_conf() -> String {
    std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default()
}

fn is_free(protocol: Protocol, port: u16) -> bool {
    let any = (Ipv4Addr::UNSPECIFIED, port);
    match protocol {
        Protocol::Tcp => std::net::TcpListener::bind(any).is_ok(),
        Protocol::Udp => std::net::UdpSocket::bind(any).is_ok(),
        Protocol::Sctp => true,
    }
}
