//! Routes.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::address::family;
use crate::attr::{Writer, attrs, ip_bytes, ip_of, u32_at};
use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;
use crate::socket::{F_CREATE, F_EXCL, F_REPLACE};

const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_TABLE: u16 = 15;
const RTNH_F_ONLINK: u32 = 4;
const RT_SCOPE_LINK: u8 = 253;
const RT_SCOPE_NOWHERE: u8 = 255;
const RTPROT_KERNEL: u8 = 2;
const RTM_F_CLONED: u32 = 0x200;

/// The main table.
pub const TABLE_MAIN: u32 = 254;
/// Who made the routes: `static`, an administrator's own. In a namespace of ours nobody else does.
const PROTOCOL_STATIC: u8 = 4;

/// What happens to packets that take a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RouteKind {
    /// They are sent on.
    #[default]
    Unicast,
    /// They are for this host.
    Local,
    /// They vanish.
    Blackhole,
    /// The sender is told that there is no way.
    Unreachable,
    /// The sender is told that it is not allowed.
    Prohibit,
}

impl RouteKind {
    const fn number(self) -> u8 {
        match self {
            Self::Unicast => 1,
            Self::Local => 2,
            Self::Blackhole => 6,
            Self::Unreachable => 7,
            Self::Prohibit => 8,
        }
    }

    const fn of(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Unicast,
            2 => Self::Local,
            6 => Self::Blackhole,
            7 => Self::Unreachable,
            8 => Self::Prohibit,
            _ => return None,
        })
    }
}

/// A route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// Where to.
    pub destination: IpNet,
    /// Through which neighbour.
    pub gateway: Option<IpAddr>,
    /// Over which link, by name.
    pub device: Option<String>,
    /// In which table.
    pub table: u32,
    /// The gateway is on the link although no address says so.
    pub onlink: bool,
    /// Preferred source address.
    pub source: Option<IpAddr>,
    /// Lower is preferred; 0 lets the kernel choose.
    pub metric: u32,
    /// What happens.
    pub kind: RouteKind,
}

impl Route {
    /// A route to `destination` over the link `device`, in the main table.
    #[must_use]
    pub fn dev(destination: IpNet, device: &str) -> Self {
        Self {
            destination,
            gateway: None,
            device: Some(device.to_owned()),
            table: TABLE_MAIN,
            onlink: false,
            source: None,
            metric: 0,
            kind: RouteKind::Unicast,
        }
    }

    /// A route to `destination` through `gateway` over the link `device`, in the main table.
    #[must_use]
    pub fn via(destination: IpNet, gateway: IpAddr, device: &str) -> Self {
        Self { gateway: Some(gateway), ..Self::dev(destination, device) }
    }

    /// The same with the gateway taken to be on the link.
    #[must_use]
    pub fn onlink(self) -> Self {
        Self { onlink: true, ..self }
    }

    /// The same in another table.
    #[must_use]
    pub fn in_table(self, table: u32) -> Self {
        Self { table, ..self }
    }

    /// `0.0.0.0/0` or `::/0`, of the family of `like`.
    #[must_use]
    pub fn default_of(like: IpAddr) -> IpNet {
        match like {
            IpAddr::V4(_) => IpNet::V4(ipnet::Ipv4Net::from(Ipv4Addr::UNSPECIFIED)).supernet_all(),
            IpAddr::V6(_) => IpNet::V6(ipnet::Ipv6Net::from(Ipv6Addr::UNSPECIFIED)).supernet_all(),
        }
    }
}

trait SupernetAll {
    fn supernet_all(self) -> Self;
}

impl SupernetAll for IpNet {
    fn supernet_all(self) -> Self {
        // A prefix length of 0 is right for both families.
        Self::new(self.addr(), 0).unwrap_or(self)
    }
}

impl NetnsHandle {
    /// Adds a route.
    ///
    /// # Errors
    /// It exists already (`EEXIST`), the link does not exist, or the gateway is out of reach.
    pub fn add_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.put_route("add the route", RTM_NEWROUTE, F_CREATE | F_EXCL, route)
    }

    /// Adds a route, or replaces the one with the same destination, table and metric.
    ///
    /// # Errors
    /// The link does not exist, or the gateway is out of reach.
    pub fn replace_route(&self, route: &Route) -> Result<(), NetlinkError> {
        self.put_route("replace the route", RTM_NEWROUTE, F_CREATE | F_REPLACE, route)
    }

    /// Deletes a route; succeeds if there is none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_route(&self, route: &Route) -> Result<(), NetlinkError> {
        match self.put_route("delete the route", RTM_DELROUTE, 0, route) {
            Err(e) if e.is_missing() => Ok(()),
            other => other,
        }
    }

    fn put_route(
        &self,
        action: &'static str,
        kind: u16,
        flags: u16,
        route: &Route,
    ) -> Result<(), NetlinkError> {
        let named = |c: Cause| c.of(action, self.object(&route.destination.to_string()));
        let index = route.device.as_deref().map(|d| self.link_index(d)).transpose()?;
        let mut h = [0; 12];
        h[0] = family(route.destination.addr());
        h[1] = route.destination.prefix_len();
        if kind == RTM_NEWROUTE {
            h[5] = PROTOCOL_STATIC;
            h[6] = match (route.kind, route.gateway) {
                (RouteKind::Local, _) => 254,
                (RouteKind::Unicast, None) => RT_SCOPE_LINK,
                _ => 0,
            };
        } else {
            h[6] = RT_SCOPE_NOWHERE;
        }
        h[7] = route.kind.number();
        let onlink = if route.onlink { RTNH_F_ONLINK } else { 0 };
        h[8..12].copy_from_slice(&onlink.to_ne_bytes());
        let mut w = Writer::message(kind, flags, &h);
        w.attr(RTA_DST, &ip_bytes(route.destination.network()));
        w.attr_u32(RTA_TABLE, route.table);
        if let Some(gateway) = route.gateway {
            w.attr(RTA_GATEWAY, &ip_bytes(gateway));
        }
        if let Some(index) = index {
            w.attr_u32(RTA_OIF, index);
        }
        if let Some(source) = route.source {
            w.attr(RTA_PREFSRC, &ip_bytes(source));
        }
        if route.metric != 0 {
            w.attr_u32(RTA_PRIORITY, route.metric);
        }
        self.route_socket().request(w).map_err(named)
    }

    /// All routes that somebody configured: of both families and all tables, without those that
    /// the kernel derives from addresses by itself.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        let named = |c: Cause| c.of("list the routes", self.object("all"));
        let names: BTreeMap<u32, String> =
            self.links()?.into_iter().map(|link| (link.index, link.name)).collect();
        let request = Writer::message(RTM_GETROUTE, 0, &[0; 12]);
        let answers = self.route_socket().dump(request).map_err(named)?;
        Ok(answers.iter().filter_map(|m| parse(&m.payload, &names)).collect())
    }
}

fn parse(payload: &[u8], names: &BTreeMap<u32, String>) -> Option<Route> {
    let flags = u32_at(payload, 8)?;
    if *payload.get(5)? == RTPROT_KERNEL || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let any: IpAddr = match i32::from(*payload.first()?) {
        libc::AF_INET => Ipv4Addr::UNSPECIFIED.into(),
        libc::AF_INET6 => Ipv6Addr::UNSPECIFIED.into(),
        _ => return None,
    };
    let mut route = Route {
        destination: IpNet::new(any, *payload.get(1)?).ok()?,
        gateway: None,
        device: None,
        table: u32::from(*payload.get(4)?),
        onlink: flags & RTNH_F_ONLINK != 0,
        source: None,
        metric: 0,
        kind: RouteKind::of(*payload.get(7)?)?,
    };
    for (kind, value) in attrs(payload.get(12..)?) {
        match kind {
            RTA_DST => {
                route.destination =
                    IpNet::new(ip_of(value)?, route.destination.prefix_len()).ok()?;
            }
            RTA_GATEWAY => route.gateway = ip_of(value),
            RTA_OIF => route.device = names.get(&u32_at(value, 0)?).cloned(),
            RTA_PREFSRC => route.source = ip_of(value),
            RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            RTA_TABLE => route.table = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(route)
}
