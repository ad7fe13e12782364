//! Links: veth pairs, VXLAN devices, bridges, dummies; created, changed, listed, deleted. TAP
//! devices are made in [`crate::tap`].

use std::net::IpAddr;

use ipnet::IpNet;
use shoal_model::net::{Mac, Vni};

use crate::attr::{Writer, attrs, be16, find, ip_bytes, ip_of, text, u32_at};
use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;
use crate::socket::{F_CREATE, F_EXCL, Message};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_LINK: u16 = 3;
const IFLA_VXLAN_LOCAL: u16 = 4;
const IFLA_VXLAN_LEARNING: u16 = 7;
const IFLA_VXLAN_PORT: u16 = 15;
const IFLA_VXLAN_LOCAL6: u16 = 17;

const IFF_UP: u32 = libc::IFF_UP as u32;
/// Longest name of a link, in bytes (`IFNAMSIZ` less the closing zero).
pub const NAME_LEN_MAX: usize = 15;

/// A link as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its name, at most 15 bytes.
    pub name: String,
    /// Its number in this namespace.
    pub index: u32,
    /// Its alias: Shoal keeps the owner there. Empty if it has none.
    pub alias: String,
    /// Its driver: `veth`, `vxlan`, `bridge`; empty for `lo` and hardware.
    pub kind: String,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Its Ethernet address, if it has one.
    pub mac: Option<Mac>,
    /// Whether it is administratively up.
    pub up: bool,
    /// The bridge that it is a port of, by number.
    pub master: Option<u32>,
    /// The number of its peer or lower device, which may be in another namespace.
    pub lower: Option<u32>,
    /// Its addresses with prefix lengths.
    pub addresses: Vec<IpNet>,
    /// What only a VXLAN device has.
    pub vxlan: Option<VxlanInfo>,
}

/// The settings of a VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VxlanInfo {
    /// Its network identifier.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// The source address of its outer packets, if pinned.
    pub local: Option<IpAddr>,
    /// Whether it learns from received frames. Shoal's never do.
    pub learning: bool,
}

/// What every new link can be given. The alias is set by a second request: a link without it is a
/// leftover of a crash in between.
#[derive(Clone, Debug, Default)]
pub struct LinkOptions {
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// Alias, at most 255 bytes.
    pub alias: Option<String>,
    /// Bring it up at once.
    pub up: bool,
}

/// A VXLAN device to create.
#[derive(Clone, Debug)]
pub struct VxlanSpec {
    /// Its network identifier.
    pub vni: Vni,
    /// UDP destination port.
    pub port: u16,
    /// Source address of its outer packets.
    pub local: IpAddr,
    /// The device that carries them, by name in the creating namespace.
    pub underlay: Option<String>,
}

/// A change of an existing link; what is `None` stays.
#[derive(Clone, Debug, Default)]
pub struct LinkChange<'a> {
    /// New name; older kernels want the link down for that.
    pub name: Option<&'a str>,
    /// Up or down.
    pub up: Option<bool>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Ethernet address.
    pub mac: Option<Mac>,
    /// Alias.
    pub alias: Option<&'a str>,
    /// Move it into this namespace.
    pub netns: Option<&'a NetnsHandle>,
    /// Make it a port of this bridge, by name; empty text takes it out of its bridge.
    pub master: Option<&'a str>,
}

/// `struct ifinfomsg`.
fn header(index: u32, flags: u32, mask: u32) -> [u8; 16] {
    let mut h = [0; 16];
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..12].copy_from_slice(&flags.to_ne_bytes());
    h[12..16].copy_from_slice(&mask.to_ne_bytes());
    h
}

fn common(w: &mut Writer, name: &str, options: &LinkOptions, netns: Option<&NetnsHandle>) {
    w.attr_str(IFLA_IFNAME, name);
    if let Some(mtu) = options.mtu {
        w.attr_u32(IFLA_MTU, mtu);
    }
    if let Some(Mac(mac)) = options.mac {
        w.attr(IFLA_ADDRESS, &mac);
    }
    if let Some(ns) = netns {
        w.attr_u32(IFLA_NET_NS_FD, ns.raw_fd().cast_unsigned());
    }
}

impl NetnsHandle {
    /// Creates a veth pair: `name` here, its peer `peer` in the namespace `peer_ns`.
    ///
    /// # Errors
    /// A name is taken or the kernel lacks veth.
    pub fn create_veth(
        &self,
        name: &str,
        options: &LinkOptions,
        peer_ns: &NetnsHandle,
        peer: &str,
        peer_options: &LinkOptions,
    ) -> Result<(), NetlinkError> {
        let mut w = Writer::message(RTM_NEWLINK, F_CREATE | F_EXCL, &header(0, 0, 0));
        common(&mut w, name, options, None);
        w.nest(IFLA_LINKINFO, |w| {
            w.attr(IFLA_INFO_KIND, b"veth");
            w.nest(IFLA_INFO_DATA, |w| {
                w.nest(VETH_INFO_PEER, |w| {
                    w.raw(&header(0, 0, 0));
                    common(w, peer, peer_options, Some(peer_ns));
                });
            });
        });
        self.create(name, w)?;
        peer_ns
            .finish_link(peer, peer_options)
            .and_then(|()| self.finish_link(name, options))
            .inspect_err(|_| self.undo(name))
    }

    /// Creates a VXLAN device `name` in the namespace `home`; its outer packets travel in this
    /// one. It never learns: its forwarding entries are all given to it.
    ///
    /// # Errors
    /// The name, or the VNI on this port, is taken (`EEXIST`); the underlay does not exist.
    pub fn create_vxlan(
        &self,
        name: &str,
        spec: &VxlanSpec,
        options: &LinkOptions,
        home: &NetnsHandle,
    ) -> Result<(), NetlinkError> {
        let underlay = match &spec.underlay {
            Some(device) => Some(self.link_index(device)?),
            None => None,
        };
        let mut w = Writer::message(RTM_NEWLINK, F_CREATE | F_EXCL, &header(0, 0, 0));
        common(&mut w, name, options, Some(home));
        w.nest(IFLA_LINKINFO, |w| {
            w.attr(IFLA_INFO_KIND, b"vxlan");
            w.nest(IFLA_INFO_DATA, |w| {
                w.attr_u32(IFLA_VXLAN_ID, spec.vni.0);
                if let Some(index) = underlay {
                    w.attr_u32(IFLA_VXLAN_LINK, index);
                }
                let local = if spec.local.is_ipv4() { IFLA_VXLAN_LOCAL } else { IFLA_VXLAN_LOCAL6 };
                w.attr(local, &ip_bytes(spec.local));
                w.attr(IFLA_VXLAN_PORT, &spec.port.to_be_bytes());
                w.attr_u8(IFLA_VXLAN_LEARNING, 0);
            });
        });
        self.create(name, w)?;
        home.finish_link(name, options).inspect_err(|_| home.undo(name))
    }

    /// Creates a bridge.
    ///
    /// # Errors
    /// The name is taken or the kernel lacks bridges.
    pub fn create_bridge(&self, name: &str, options: &LinkOptions) -> Result<(), NetlinkError> {
        self.create_plain("bridge", name, options)
    }

    /// Creates a link that needs nothing but a driver's name.
    ///
    /// # Errors
    /// The name is taken or the kernel lacks the driver.
    pub fn create_plain(
        &self,
        kind: &str,
        name: &str,
        options: &LinkOptions,
    ) -> Result<(), NetlinkError> {
        let mut w = Writer::message(RTM_NEWLINK, F_CREATE | F_EXCL, &header(0, 0, 0));
        common(&mut w, name, options, None);
        w.nest(IFLA_LINKINFO, |w| w.attr(IFLA_INFO_KIND, kind.as_bytes()));
        self.create(name, w)?;
        self.finish_link(name, options).inspect_err(|_| self.undo(name))
    }

    fn create(&self, name: &str, message: Writer) -> Result<(), NetlinkError> {
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            let cause = Cause::Malformed("a link's name has 1 to 15 bytes");
            return Err(cause.of("create the link", self.object(name)));
        }
        self.route_socket().request(message).map_err(|c| c.of("create the link", self.object(name)))
    }

    fn finish_link(&self, name: &str, options: &LinkOptions) -> Result<(), NetlinkError> {
        if options.alias.is_none() && !options.up {
            return Ok(());
        }
        let change = LinkChange {
            alias: options.alias.as_deref(),
            up: options.up.then_some(true),
            ..LinkChange::default()
        };
        self.set_link(name, &change)
    }

    /// What [`LinkOptions`] ask for, on a link that somebody else's request has made; if it fails,
    /// the link goes again.
    pub(crate) fn settle_link(
        &self,
        name: &str,
        options: &LinkOptions,
    ) -> Result<(), NetlinkError> {
        let change = LinkChange {
            mtu: options.mtu,
            mac: options.mac,
            alias: options.alias.as_deref(),
            up: options.up.then_some(true),
            ..LinkChange::default()
        };
        self.set_link(name, &change).inspect_err(|_| self.undo(name))
    }

    fn undo(&self, name: &str) {
        // Ignored because: the failure that led here is the one to report.
        let _ = self.delete_link(name);
    }

    /// Changes a link in one request.
    ///
    /// # Errors
    /// There is no such link, or the kernel refuses a value.
    pub fn set_link(&self, name: &str, change: &LinkChange<'_>) -> Result<(), NetlinkError> {
        let (flags, mask) = match change.up {
            Some(up) => (if up { IFF_UP } else { 0 }, IFF_UP),
            None => (0, 0),
        };
        let index = self.link_index(name)?;
        let mut w = Writer::message(RTM_NEWLINK, 0, &header(index, flags, mask));
        if let Some(new) = change.name {
            w.attr_str(IFLA_IFNAME, new);
        }
        if let Some(mtu) = change.mtu {
            w.attr_u32(IFLA_MTU, mtu);
        }
        if let Some(Mac(mac)) = change.mac {
            w.attr(IFLA_ADDRESS, &mac);
        }
        if let Some(alias) = change.alias {
            w.attr(IFLA_IFALIAS, alias.as_bytes());
        }
        if let Some(ns) = change.netns {
            w.attr_u32(IFLA_NET_NS_FD, ns.raw_fd().cast_unsigned());
        }
        match change.master {
            Some("") => w.attr_u32(IFLA_MASTER, 0),
            Some(bridge) => w.attr_u32(IFLA_MASTER, self.link_index(bridge)?),
            None => {}
        }
        self.route_socket().request(w).map_err(|c| c.of("change the link", self.object(name)))
    }

    /// Brings a link up.
    ///
    /// # Errors
    /// There is no such link.
    pub fn set_up(&self, name: &str) -> Result<(), NetlinkError> {
        self.set_link(name, &LinkChange { up: Some(true), ..LinkChange::default() })
    }

    /// Deletes a link; succeeds if there is none. The peer of a veth goes with it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_link(&self, name: &str) -> Result<(), NetlinkError> {
        let mut w = Writer::message(RTM_DELLINK, 0, &header(0, 0, 0));
        w.attr_str(IFLA_IFNAME, name);
        match self.route_socket().request(w) {
            Err(Cause::Kernel { errno: libc::ENODEV, .. }) => Ok(()),
            other => other.map_err(|c| c.of("delete the link", self.object(name))),
        }
    }

    /// The number of a link.
    ///
    /// # Errors
    /// There is no such link (see [`NetlinkError::is_missing`]).
    pub fn link_index(&self, name: &str) -> Result<u32, NetlinkError> {
        let found =
            self.link_message(name).map_err(|c| c.of("find the link", self.object(name)))?;
        let index = found.and_then(|m| u32_at(&m.payload, 4));
        index.ok_or_else(|| Cause::Missing("link").of("find the link", self.object(name)))
    }

    fn link_message(&self, name: &str) -> Result<Option<Message>, Cause> {
        let mut w = Writer::message(RTM_GETLINK, 0, &header(0, 0, 0));
        w.attr_str(IFLA_IFNAME, name);
        match self.route_socket().get(w) {
            Ok(mut answers) => Ok(answers.pop()),
            // EINVAL and ERANGE: no link can have such a name.
            Err(Cause::Kernel { errno: libc::ENODEV | libc::EINVAL | libc::ERANGE, .. }) => {
                Ok(None)
            }
            Err(cause) => Err(cause),
        }
    }

    /// The link of that name, with its addresses.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let found =
            self.link_message(name).map_err(|c| c.of("find the link", self.object(name)))?;
        let Some(mut link) = found.and_then(|m| parse(&m)) else { return Ok(None) };
        for (index, address) in self.all_addresses()? {
            if index == link.index {
                link.addresses.push(address);
            }
        }
        Ok(Some(link))
    }

    /// All links of the namespace with their addresses, by rising number.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let request = Writer::message(RTM_GETLINK, 0, &header(0, 0, 0));
        let answers = self
            .route_socket()
            .dump(request)
            .map_err(|c| c.of("list the links", self.object("all")))?;
        let mut links: Vec<Link> = answers.iter().filter_map(parse).collect();
        links.sort_by_key(|link| link.index);
        for (index, address) in self.all_addresses()? {
            if let Ok(at) = links.binary_search_by_key(&index, |link| link.index) {
                links[at].addresses.push(address);
            }
        }
        Ok(links)
    }
}

fn parse(message: &Message) -> Option<Link> {
    if message.kind != RTM_NEWLINK {
        return None;
    }
    let payload = &message.payload;
    let mut link = Link {
        name: String::new(),
        index: u32_at(payload, 4)?,
        alias: String::new(),
        kind: String::new(),
        mtu: 0,
        mac: None,
        up: u32_at(payload, 8)? & IFF_UP != 0,
        master: None,
        lower: None,
        addresses: Vec::new(),
        vxlan: None,
    };
    for (kind, value) in attrs(payload.get(16..)?) {
        match kind {
            IFLA_IFNAME => link.name = text(value),
            IFLA_IFALIAS => link.alias = text(value),
            IFLA_MTU => link.mtu = u32_at(value, 0)?,
            IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
            IFLA_MASTER => link.master = u32_at(value, 0),
            IFLA_LINK => link.lower = u32_at(value, 0),
            IFLA_LINKINFO => {
                link.kind = find(value, IFLA_INFO_KIND).map(text).unwrap_or_default();
                if link.kind == "vxlan" {
                    link.vxlan = find(value, IFLA_INFO_DATA).and_then(vxlan);
                }
            }
            _ => {}
        }
    }
    Some(link)
}

fn vxlan(data: &[u8]) -> Option<VxlanInfo> {
    let local = find(data, IFLA_VXLAN_LOCAL).or_else(|| find(data, IFLA_VXLAN_LOCAL6));
    Some(VxlanInfo {
        vni: Vni(u32_at(find(data, IFLA_VXLAN_ID)?, 0)?),
        port: be16(find(data, IFLA_VXLAN_PORT)?)?,
        local: local.and_then(ip_of),
        learning: find(data, IFLA_VXLAN_LEARNING).is_some_and(|v| v != [0]),
    })
}
