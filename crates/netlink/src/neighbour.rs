//! Neighbours (address → MAC) and forwarding entries of VXLAN devices (MAC → outer destination).

use std::net::IpAddr;

use shoal_model::net::Mac;

use crate::address::family;
use crate::attr::{Writer, find, ip_bytes, ip_of, u16_at, u32_at};
use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;
use crate::socket::{F_APPEND, F_CREATE, F_REPLACE};

const RTM_NEWNEIGH: u16 = 28;
const RTM_DELNEIGH: u16 = 29;
const RTM_GETNEIGH: u16 = 30;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
const NTF_SELF: u8 = 0x02;
const AF_BRIDGE: u8 = libc::AF_BRIDGE as u8;

/// A neighbour of a link.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Neighbour {
    /// Its address.
    pub address: IpAddr,
    /// Its MAC; nothing while the kernel is still asking.
    pub mac: Option<Mac>,
    /// Whether it was configured and stays.
    pub permanent: bool,
}

/// Where a VXLAN device sends frames for a MAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FdbEntry {
    /// The inner destination.
    pub mac: Mac,
    /// The outer destination.
    pub destination: IpAddr,
}

/// `struct ndmsg`.
fn header(family: u8, index: u32, state: u16, flags: u8) -> [u8; 12] {
    let mut h = [0; 12];
    h[0] = family;
    h[4..8].copy_from_slice(&index.to_ne_bytes());
    h[8..10].copy_from_slice(&state.to_ne_bytes());
    h[10] = flags;
    h
}

impl NetnsHandle {
    /// Sets a permanent neighbour, replacing whatever is known about that address.
    ///
    /// # Errors
    /// There is no such link.
    pub fn set_neighbour(&self, link: &str, address: IpAddr, mac: Mac) -> Result<(), NetlinkError> {
        let named = |c: Cause| c.of("set the neighbour", self.object(&format!("{address}@{link}")));
        let index = self.link_index(link)?;
        let h = header(family(address), index, NUD_PERMANENT, 0);
        let mut w = Writer::message(RTM_NEWNEIGH, F_CREATE | F_REPLACE, &h);
        w.attr(NDA_DST, &ip_bytes(address));
        w.attr(NDA_LLADDR, &mac.0);
        self.route_socket().request(w).map_err(named)
    }

    /// Deletes a neighbour; succeeds if there is none.
    ///
    /// # Errors
    /// There is no such link.
    pub fn delete_neighbour(&self, link: &str, address: IpAddr) -> Result<(), NetlinkError> {
        let named =
            |c: Cause| c.of("delete the neighbour", self.object(&format!("{address}@{link}")));
        let index = self.link_index(link)?;
        let mut w = Writer::message(RTM_DELNEIGH, 0, &header(family(address), index, 0, 0));
        w.attr(NDA_DST, &ip_bytes(address));
        match self.route_socket().request(w) {
            Err(Cause::Kernel { errno: libc::ENOENT, .. }) => Ok(()),
            other => other.map_err(named),
        }
    }

    /// The neighbours of a link, of both families.
    ///
    /// # Errors
    /// There is no such link.
    pub fn neighbours(&self, link: &str) -> Result<Vec<Neighbour>, NetlinkError> {
        let named = |c: Cause| c.of("list the neighbours", self.object(link));
        let index = self.link_index(link)?;
        let request = Writer::message(RTM_GETNEIGH, 0, &header(0, 0, 0, 0));
        let answers = self.route_socket().dump(request).map_err(named)?;
        let parse = |payload: &[u8]| {
            let attrs = payload.get(12..)?;
            let state = u16_at(payload, 8)?;
            (u32_at(payload, 4)? == index && state & NUD_NOARP == 0).then_some(())?;
            Some(Neighbour {
                address: find(attrs, NDA_DST).and_then(ip_of)?,
                mac: find(attrs, NDA_LLADDR).and_then(|v| v.try_into().ok()).map(Mac),
                permanent: state & NUD_PERMANENT != 0,
            })
        };
        Ok(answers.iter().filter_map(|m| parse(&m.payload)).collect())
    }

    /// Sends frames for `mac` to `destination` and nowhere else.
    ///
    /// # Errors
    /// There is no such VXLAN device.
    pub fn set_fdb(&self, link: &str, entry: FdbEntry) -> Result<(), NetlinkError> {
        self.put_fdb("set the forwarding entry", link, entry, RTM_NEWNEIGH, F_CREATE | F_REPLACE)
    }

    /// Sends frames for `mac` to `destination` too; succeeds if it is so already. Broadcasts go to
    /// all destinations of the zero MAC; of any other MAC only the first one counts.
    ///
    /// # Errors
    /// There is no such VXLAN device.
    pub fn append_fdb(&self, link: &str, entry: FdbEntry) -> Result<(), NetlinkError> {
        let flags = F_CREATE | F_APPEND;
        match self.put_fdb("append the forwarding entry", link, entry, RTM_NEWNEIGH, flags) {
            Err(e) if e.is_exists() => Ok(()),
            other => other,
        }
    }

    /// Deletes a forwarding entry; succeeds if there is none.
    ///
    /// # Errors
    /// There is no such VXLAN device.
    pub fn delete_fdb(&self, link: &str, entry: FdbEntry) -> Result<(), NetlinkError> {
        match self.put_fdb("delete the forwarding entry", link, entry, RTM_DELNEIGH, 0) {
            Err(e) if e.errno() == Some(libc::ENOENT) => Ok(()),
            other => other,
        }
    }

    fn put_fdb(
        &self,
        action: &'static str,
        link: &str,
        entry: FdbEntry,
        kind: u16,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let index = self.link_index(link)?;
        let h = header(AF_BRIDGE, index, NUD_NOARP | NUD_PERMANENT, NTF_SELF);
        let mut w = Writer::message(kind, flags, &h);
        w.attr(NDA_LLADDR, &entry.mac.0);
        w.attr(NDA_DST, &ip_bytes(entry.destination));
        self.route_socket()
            .request(w)
            .map_err(|c| c.of(action, self.object(&format!("{}@{link}", entry.mac))))
    }

    /// The forwarding entries of a VXLAN device that have a destination.
    ///
    /// # Errors
    /// There is no such link.
    pub fn fdb(&self, link: &str) -> Result<Vec<FdbEntry>, NetlinkError> {
        let named = |c: Cause| c.of("list the forwarding entries", self.object(link));
        let index = self.link_index(link)?;
        let request = Writer::message(RTM_GETNEIGH, 0, &header(AF_BRIDGE, 0, 0, 0));
        let answers = self.route_socket().dump(request).map_err(named)?;
        let parse = |payload: &[u8]| {
            let attrs = payload.get(12..)?;
            (u32_at(payload, 4)? == index).then_some(())?;
            Some(FdbEntry {
                mac: Mac(find(attrs, NDA_LLADDR)?.try_into().ok()?),
                destination: find(attrs, NDA_DST).and_then(ip_of)?,
            })
        };
        Ok(answers.iter().filter_map(|m| parse(&m.payload)).collect())
    }
}
