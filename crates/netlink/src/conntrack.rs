//! Connection tracking: flows listed by filter and deleted.

use std::net::{IpAddr, Ipv4Addr};

use crate::attr::{Writer, attrs, be16, be32, find, ip_of};
use crate::error::{Cause, NetlinkError};
use crate::netns::NetnsHandle;
use crate::nft::{ct_status, sys};
use crate::socket::Message;

const SUBSYS_CTNETLINK: u16 = 1;
const MSG_NEW: u16 = SUBSYS_CTNETLINK << 8;
const MSG_GET: u16 = SUBSYS_CTNETLINK << 8 | 1;
const MSG_DELETE: u16 = SUBSYS_CTNETLINK << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_STATUS: u16 = 3;
const CTA_PROTOINFO: u16 = 4;
const CTA_TIMEOUT: u16 = 7;
const CTA_MARK: u16 = 8;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;
const NESTED: u16 = 0x8000;

/// One direction of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// From.
    pub source: IpAddr,
    /// To.
    pub destination: IpAddr,
    /// Transport protocol's number.
    pub protocol: u8,
    /// From port, 0 if the protocol has none.
    pub source_port: u16,
    /// To port, 0 if the protocol has none.
    pub destination_port: u16,
}

/// A tracked flow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Its first packet, before translation.
    pub original: Tuple,
    /// The packets that answer it: its source is whom the flow really goes to.
    pub reply: Tuple,
    /// Bits of [`ct_status`].
    pub status: u32,
    /// Its mark.
    pub mark: u32,
    /// Seconds until it is forgotten.
    pub timeout_s: u32,
    /// TCP state (1 SYN_SENT, 2 SYN_RECV, 3 ESTABLISHED, …).
    pub tcp_state: Option<u8>,
    /// What names it to the kernel: the original tuple as it came, its number, its zone.
    name: Vec<(u16, Vec<u8>)>,
    family: u8,
}

impl Flow {
    /// Whether it was answered.
    #[must_use]
    pub fn seen_reply(&self) -> bool {
        self.status & ct_status::SEEN_REPLY != 0
    }

    /// Whether its destination was translated.
    #[must_use]
    pub fn is_dnat(&self) -> bool {
        self.status & ct_status::DNAT != 0
    }
}

/// Which flows; what is `None` or false does not matter. The default is all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Transport protocol's number.
    pub protocol: Option<u8>,
    /// Where the first packet was sent, before translation.
    pub original_destination: Option<IpAddr>,
    /// To which port, before translation.
    pub original_port: Option<u16>,
    /// Who sent the first packet.
    pub original_source: Option<IpAddr>,
    /// Who answers: the backend.
    pub backend: Option<IpAddr>,
    /// From which port the backend answers.
    pub backend_port: Option<u16>,
    /// Only flows that were not answered yet.
    pub unreplied: bool,
    /// Only flows with a translated destination.
    pub dnat: bool,
}

impl Filter {
    /// Flows to that backend, whatever they asked for.
    #[must_use]
    pub fn backend(address: IpAddr) -> Self {
        Self { backend: Some(address), ..Self::default() }
    }

    /// Whether the flow is one of them.
    #[must_use]
    pub fn matches(&self, flow: &Flow) -> bool {
        fn fits<T: PartialEq>(want: &Option<T>, have: T) -> bool {
            want.as_ref().is_none_or(|want| *want == have)
        }
        fits(&self.protocol, flow.original.protocol)
            && fits(&self.original_destination, flow.original.destination)
            && fits(&self.original_port, flow.original.destination_port)
            && fits(&self.original_source, flow.original.source)
            && fits(&self.backend, flow.reply.source)
            && fits(&self.backend_port, flow.reply.source_port)
            && !(self.unreplied && flow.seen_reply())
            && (!self.dnat || flow.is_dnat())
    }
}

impl NetnsHandle {
    /// The tracked flows that the filter names, of both families.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn flows(&self, filter: &Filter) -> Result<Vec<Flow>, NetlinkError> {
        self.flows_where(|flow| filter.matches(flow))
    }

    /// The tracked flows that `wanted` picks, of both families.
    ///
    /// # Errors
    /// The kernel refuses to tell.
    pub fn flows_where(
        &self,
        mut wanted: impl FnMut(&Flow) -> bool,
    ) -> Result<Vec<Flow>, NetlinkError> {
        let request = Writer::message(MSG_GET, 0, &sys::header(0, 0));
        let answers = self
            .netfilter_socket()
            .dump(request)
            .map_err(|c| c.of("list the tracked flows", self.object("all")))?;
        Ok(answers.iter().filter_map(parse).filter(|flow| wanted(flow)).collect())
    }

    /// Forgets a flow. Says whether it was still there.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_flow(&self, flow: &Flow) -> Result<bool, NetlinkError> {
        let mut w = Writer::message(MSG_DELETE, 0, &sys::header(flow.family, 0));
        for (kind, value) in &flow.name {
            w.attr(*kind, value);
        }
        match self.netfilter_socket().request(w) {
            Ok(()) => Ok(true),
            Err(Cause::Kernel { errno: libc::ENOENT, .. }) => Ok(false),
            Err(cause) => {
                let Tuple { source, destination, .. } = flow.original;
                let object = format!("{source} to {destination}");
                Err(cause.of("delete the tracked flow", self.object(&object)))
            }
        }
    }

    /// Forgets all flows that the filter names and returns those that were still there.
    ///
    /// # Errors
    /// The kernel refuses; some may be forgotten already.
    pub fn delete_flows(&self, filter: &Filter) -> Result<Vec<Flow>, NetlinkError> {
        let mut deleted = Vec::new();
        for flow in self.flows(filter)? {
            if self.delete_flow(&flow)? {
                deleted.push(flow);
            }
        }
        Ok(deleted)
    }
}

fn parse(message: &Message) -> Option<Flow> {
    if message.kind != MSG_NEW {
        return None;
    }
    let body = message.payload.get(4..)?;
    let number = |kind| find(body, kind).and_then(be32);
    let mut name = Vec::new();
    for (kind, value) in attrs(body) {
        match kind {
            CTA_TUPLE_ORIG => name.push((kind | NESTED, value.to_vec())),
            CTA_ID | CTA_ZONE => name.push((kind, value.to_vec())),
            _ => {}
        }
    }
    let tcp = |info: &[u8]| find(find(info, 1)?, 1)?.first().copied();
    Some(Flow {
        original: tuple(find(body, CTA_TUPLE_ORIG)?)?,
        reply: tuple(find(body, CTA_TUPLE_REPLY)?)?,
        status: number(CTA_STATUS).unwrap_or(0),
        mark: number(CTA_MARK).unwrap_or(0),
        timeout_s: number(CTA_TIMEOUT).unwrap_or(0),
        tcp_state: find(body, CTA_PROTOINFO).and_then(tcp),
        name,
        family: *message.payload.first()?,
    })
}

fn tuple(body: &[u8]) -> Option<Tuple> {
    let mut tuple = Tuple {
        source: Ipv4Addr::UNSPECIFIED.into(),
        destination: Ipv4Addr::UNSPECIFIED.into(),
        protocol: 0,
        source_port: 0,
        destination_port: 0,
    };
    for (kind, value) in attrs(find(body, CTA_TUPLE_IP)?) {
        match kind {
            1 | 3 => tuple.source = ip_of(value)?,
            2 | 4 => tuple.destination = ip_of(value)?,
            _ => {}
        }
    }
    for (kind, value) in attrs(find(body, CTA_TUPLE_PROTO)?) {
        match kind {
            CTA_PROTO_NUM => tuple.protocol = *value.first()?,
            CTA_PROTO_SRC_PORT => tuple.source_port = be16(value)?,
            CTA_PROTO_DST_PORT => tuple.destination_port = be16(value)?,
            _ => {}
        }
    }
    Some(tuple)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn flow(status: u32) -> Flow {
        let client = "10.7.0.2".parse().unwrap();
        let original = Tuple {
            source: client,
            destination: "10.9.0.2".parse().unwrap(),
            protocol: 6,
            source_port: 40000,
            destination_port: 80,
        };
        let reply = Tuple {
            source: "10.8.0.4".parse().unwrap(),
            destination: client,
            source_port: 8080,
            destination_port: 40000,
            ..original
        };
        let (mark, timeout_s, tcp_state) = (0, 10, Some(1));
        Flow { original, reply, status, mark, timeout_s, tcp_state, name: vec![], family: 2 }
    }

    #[test]
    fn a_filter_takes_what_agrees_in_all_that_it_names() {
        let backend = Filter::backend("10.8.0.4".parse().unwrap());
        assert!(Filter::default().matches(&flow(0)));
        assert!(backend.matches(&flow(0)));
        assert!(!Filter::backend("10.9.0.2".parse().unwrap()).matches(&flow(0)));
        let draining = Filter { unreplied: true, ..backend.clone() };
        assert!(draining.matches(&flow(0)));
        assert!(!draining.matches(&flow(ct_status::SEEN_REPLY)));
        assert!(!Filter { protocol: Some(17), ..backend.clone() }.matches(&flow(0)));
        assert!(Filter { original_port: Some(80), ..backend.clone() }.matches(&flow(0)));
        assert!(!Filter { dnat: true, ..backend }.matches(&flow(0)));
    }
}
