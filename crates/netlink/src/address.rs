//! Addresses of links.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::attr::{Writer, find, ip_bytes, ip_of, u32_at};
use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;
use crate::socket::{F_CREATE, F_REPLACE};

const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
/// Skip duplicate address detection: addresses are allocated centrally, and a workload that starts
/// must be able to bind its IPv6 address at once.
const IFA_F_NODAD: u32 = 0x02;
/// No route to the whole prefix comes with the address.
const IFA_F_NOPREFIXROUTE: u32 = 0x200;

/// Address family number of an address.
pub(crate) fn family(ip: IpAddr) -> u8 {
    // Both constants are below 256.
    (if ip.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

/// `struct ifaddrmsg`.
fn message(kind: u16, flags: u16, index: u32, net: IpNet) -> Writer {
    let mut h = [0; 8];
    h[0] = family(net.addr());
    h[1] = net.prefix_len();
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut w = Writer::message(kind, flags, &h);
    w.attr(IFA_LOCAL, &ip_bytes(net.addr()));
    w.attr(IFA_ADDRESS, &ip_bytes(net.addr()));
    w
}

impl NetnsHandle {
    /// Gives a link an address; succeeds if it has it.
    ///
    /// # Errors
    /// There is no such link, or the kernel refuses the address.
    pub fn add_address(&self, link: &str, address: IpNet) -> Result<(), NetlinkError> {
        self.put_address(link, address, 0)
    }

    /// Gives a link an address without the route to its prefix; succeeds if it has it.
    ///
    /// # Errors
    /// There is no such link, or the kernel refuses the address.
    pub fn add_address_only(&self, link: &str, address: IpNet) -> Result<(), NetlinkError> {
        self.put_address(link, address, IFA_F_NOPREFIXROUTE)
    }

    fn put_address(&self, link: &str, address: IpNet, extra: u32) -> Result<(), NetlinkError> {
        let named = |c: Cause| c.of("add the address", self.object(&format!("{address}@{link}")));
        let index = self.link_index(link)?;
        let mut w = message(RTM_NEWADDR, F_CREATE | F_REPLACE, index, address);
        let nodad = if address.addr().is_ipv6() { IFA_F_NODAD } else { 0 };
        w.attr_u32(IFA_FLAGS, nodad | extra);
        match self.route_socket().request(w) {
            Err(Cause::Kernel { errno: libc::EEXIST, .. }) => Ok(()),
            other => other.map_err(named),
        }
    }

    /// Takes an address away; succeeds if the link does not have it.
    ///
    /// # Errors
    /// There is no such link, or the kernel refuses.
    pub fn delete_address(&self, link: &str, address: IpNet) -> Result<(), NetlinkError> {
        let named =
            |c: Cause| c.of("delete the address", self.object(&format!("{address}@{link}")));
        let index = self.link_index(link)?;
        match self.route_socket().request(message(RTM_DELADDR, 0, index, address)) {
            Err(Cause::Kernel { errno: libc::EADDRNOTAVAIL, .. }) => Ok(()),
            other => other.map_err(named),
        }
    }

    /// The addresses of a link, IPv6 link-local ones included.
    ///
    /// # Errors
    /// There is no such link.
    pub fn addresses(&self, link: &str) -> Result<Vec<IpNet>, NetlinkError> {
        let index = self.link_index(link)?;
        let all = self.all_addresses()?;
        Ok(all.into_iter().filter(|(of, _)| *of == index).map(|(_, net)| net).collect())
    }

    /// All addresses of the namespace, each with its link's number.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn all_addresses(&self) -> Result<Vec<(u32, IpNet)>, NetlinkError> {
        let request = Writer::message(RTM_GETADDR, 0, &[0; 8]);
        let answers = self
            .route_socket()
            .dump(request)
            .map_err(|c| c.of("list the addresses", self.object("all")))?;
        let parse = |payload: &[u8]| {
            let attrs = payload.get(8..)?;
            let ip = find(attrs, IFA_LOCAL).or_else(|| find(attrs, IFA_ADDRESS)).and_then(ip_of)?;
            let net = IpNet::new(ip, *payload.get(1)?).ok()?;
            Some((u32_at(payload, 4)?, net))
        };
        Ok(answers.iter().filter_map(|m| parse(&m.payload)).collect())
    }
}
