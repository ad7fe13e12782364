//! Routing rules: which table answers for which packets.

use ipnet::IpNet;

use crate::attr::{Writer, attrs, ip_bytes, ip_of, u32_at};
use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;
use crate::socket::{F_CREATE, F_EXCL};

const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;
const RTM_GETRULE: u16 = 34;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FR_ACT_TO_TBL: u8 = 1;

/// A rule that sends matching packets to a table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    /// For IPv6 instead of IPv4.
    pub ipv6: bool,
    /// Lower comes first; the main table's is 32766.
    pub priority: u32,
    /// Packets with this mark under this mask.
    pub mark: Option<(u32, u32)>,
    /// Packets from here.
    pub from: Option<IpNet>,
    /// Packets that came in by this link.
    pub iif: Option<String>,
    /// The table that answers.
    pub table: u32,
}

impl Rule {
    fn message(&self, kind: u16, flags: u16) -> Writer {
        let mut h = [0; 12];
        h[0] = (if self.ipv6 { libc::AF_INET6 } else { libc::AF_INET }) as u8;
        h[2] = self.from.map_or(0, |net| net.prefix_len());
        h[7] = FR_ACT_TO_TBL;
        let mut w = Writer::message(kind, flags, &h);
        w.attr_u32(FRA_PRIORITY, self.priority);
        w.attr_u32(FRA_TABLE, self.table);
        if let Some((mark, mask)) = self.mark {
            w.attr_u32(FRA_FWMARK, mark);
            w.attr_u32(FRA_FWMASK, mask);
        }
        if let Some(net) = self.from {
            w.attr(FRA_SRC, &ip_bytes(net.network()));
        }
        if let Some(iif) = &self.iif {
            w.attr_str(FRA_IIFNAME, iif);
        }
        w
    }

    fn describe(&self) -> String {
        format!("{} to table {}", self.priority, self.table)
    }
}

impl NetnsHandle {
    /// Adds a rule; succeeds if it exists.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let named = |c: Cause| c.of("add the rule", self.object(&rule.describe()));
        match self.route_socket().request(rule.message(RTM_NEWRULE, F_CREATE | F_EXCL)) {
            Err(Cause::Kernel { errno: libc::EEXIST, .. }) => Ok(()),
            other => other.map_err(named),
        }
    }

    /// Deletes a rule; succeeds if there is none.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_rule(&self, rule: &Rule) -> Result<(), NetlinkError> {
        let named = |c: Cause| c.of("delete the rule", self.object(&rule.describe()));
        match self.route_socket().request(rule.message(RTM_DELRULE, 0)) {
            Err(Cause::Kernel { errno: libc::ENOENT, .. }) => Ok(()),
            other => other.map_err(named),
        }
    }

    /// All rules of both families that send packets to a table, the kernel's own three included.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn rules(&self) -> Result<Vec<Rule>, NetlinkError> {
        let request = Writer::message(RTM_GETRULE, 0, &[0; 12]);
        let answers = self
            .route_socket()
            .dump(request)
            .map_err(|c| c.of("list the rules", self.object("all")))?;
        Ok(answers.iter().filter_map(|m| parse(&m.payload)).collect())
    }
}

fn parse(payload: &[u8]) -> Option<Rule> {
    if *payload.get(7)? != FR_ACT_TO_TBL {
        return None;
    }
    let mut rule = Rule {
        ipv6: i32::from(*payload.first()?) == libc::AF_INET6,
        priority: 0,
        mark: None,
        from: None,
        iif: None,
        table: u32::from(*payload.get(4)?),
    };
    let (mut mark, mut mask) = (None, u32::MAX);
    for (kind, value) in attrs(payload.get(12..)?) {
        match kind {
            FRA_PRIORITY => rule.priority = u32_at(value, 0)?,
            FRA_TABLE => rule.table = u32_at(value, 0)?,
            FRA_FWMARK => mark = u32_at(value, 0),
            FRA_FWMASK => mask = u32_at(value, 0)?,
            FRA_SRC => rule.from = IpNet::new(ip_of(value)?, *payload.get(2)?).ok(),
            FRA_IIFNAME => rule.iif = Some(crate::attr::text(value)),
            _ => {}
        }
    }
    rule.mark = mark.map(|mark| (mark, mask));
    Some(rule)
}
