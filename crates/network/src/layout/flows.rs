//! Which tracked connections of a network's namespace must go, now that its backends are what they
//! are. Pure: one connection at a time, against the table.
//!
//! A workload that is gone loses every connection; one that only gets no new ones (draining) keeps
//! what is established. UDP has no end of its own, so its balanced flows always move.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use shoal_model::assignment::BackendState;

use crate::desired::{DesiredNet, Published, SandboxId};

/// A tracked connection, as far as the decision needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// Who opened it.
    pub source: SocketAddr,
    /// Where it was addressed to.
    pub destination: SocketAddr,
    /// Who answers: the backend.
    pub answers: SocketAddr,
    /// Whether an answer was seen.
    pub replied: bool,
}

/// Where the opening socket of a lost connection is, if it is on this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Opener {
    /// In this workload.
    Sandbox(SandboxId),
    /// On the host, behind the host link.
    Host,
    /// Elsewhere.
    Remote,
}

/// What becomes of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// It is forgotten: the next packet begins anew.
    Forget,
    /// It is forgotten, and the socket that opened it is destroyed.
    Reset(Opener),
}

const TCP: u8 = 6;

/// Who is on a network now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    subnets: Vec<IpNet>,
    fixed: BTreeSet<IpAddr>,
    present: BTreeSet<IpAddr>,
    serving: BTreeSet<IpAddr>,
    local: BTreeMap<IpAddr, SandboxId>,
    host: Option<IpAddr>,
}

impl Members {
    /// From the desired network.
    #[must_use]
    pub fn of(net: &DesiredNet, published: &[Published], host: Option<IpAddr>) -> Self {
        let mut out = Self { host, ..Self::default() };
        for subnet in &net.info.subnets {
            out.subnets.push(subnet.subnet);
            out.fixed.insert(subnet.gateway);
        }
        for port in &net.local_ports {
            for address in &port.address {
                out.local.insert(address.addr(), port.sandbox.clone());
                out.present.insert(address.addr());
            }
        }
        out.present.extend(net.endpoints.iter().map(|e| e.address));
        for backend in net.services.iter().flat_map(|s| &s.backends) {
            if backend.state == BackendState::Serving {
                out.serving.insert(backend.address);
            }
        }
        for publication in published.iter().filter(|p| p.network == net.info.id) {
            out.serving.extend(publication.backends.iter().map(|(address, _)| *address));
        }
        out
    }

    /// Counts `address` as gone, although its port is still there.
    pub fn remove(&mut self, address: IpAddr) {
        self.present.remove(&address);
        self.serving.remove(&address);
    }

    /// Whether connections that were right under `self` may be wrong under `next`.
    #[must_use]
    pub fn loses_to(&self, next: &Self) -> bool {
        !self.present.is_subset(&next.present) || !self.serving.is_subset(&next.serving)
    }

    /// What becomes of `flow`.
    #[must_use]
    pub fn verdict(&self, flow: &Flow) -> Verdict {
        if self.is_gone(flow.answers.ip()) {
            return if flow.protocol == TCP && flow.replied {
                Verdict::Reset(self.opener(flow.source.ip()))
            } else {
                Verdict::Forget
            };
        }
        if self.is_gone(flow.source.ip()) {
            return Verdict::Forget;
        }
        let balanced = flow.destination != flow.answers;
        let backend = flow.answers.ip();
        let drained = self.present.contains(&backend) && !self.serving.contains(&backend);
        if balanced && drained && (flow.protocol != TCP || !flow.replied) {
            return Verdict::Forget;
        }
        Verdict::Keep
    }

    fn is_gone(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|net| net.contains(&address))
            && !self.present.contains(&address)
            && !self.fixed.contains(&address)
    }

    fn opener(&self, source: IpAddr) -> Opener {
        match self.local.get(&source) {
            Some(sandbox) => Opener::Sandbox(sandbox.clone()),
            None if self.host == Some(source) => Opener::Host,
            None => Opener::Remote,
        }
    }
}
