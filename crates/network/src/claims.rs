//! Who gets a port of this host: the one place that decides it. Pure.
//!
//! Whoever has a port keeps it; otherwise the first in the list of publications gets it. Two
//! publications meet when number and protocol are the same and one of them is for every address,
//! or both are for the same one. What the system itself says (a program outside Shoal listens
//! there) comes from [`crate::hostport`] in the same words.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use shoal_model::fault::report;
use shoal_model::net::Port;

use crate::desired::Published;
use crate::error::NetworkError;

/// A port, on one address of the host or on all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HostPort {
    /// Number and protocol.
    pub port: Port,
    /// Absent: every address.
    pub address: Option<IpAddr>,
}

impl HostPort {
    /// The unspecified address means all of them.
    #[must_use]
    pub fn new(port: Port, address: Option<IpAddr>) -> Self {
        Self { port, address: address.filter(|ip| !ip.is_unspecified()) }
    }

    /// Whether only one of both can be open.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        self.port == other.port
            && (self.address.is_none() || other.address.is_none() || self.address == other.address)
    }
}

impl Published {
    /// The port that it is about.
    #[must_use]
    pub fn place(&self) -> HostPort {
        HostPort::new(self.port, self.host_ip)
    }
}

/// A port that somebody did not get.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortConflict {
    /// Which port.
    pub place: HostPort,
    /// Who wants it: `service 'web'`, `container 'x'`.
    pub wanted_by: String,
    /// Who has it: `container 'x'`, `'nginx' (pid 77) listens on 0.0.0.0:80`. Absent if nobody
    /// has it, and the system refuses it for another reason.
    pub held_by: Option<String>,
    /// The whole of it, for messages: what, for whom, why.
    pub cause: String,
}

impl PortConflict {
    /// From the error that says it.
    #[must_use]
    pub fn of(place: HostPort, wanted_by: &str, error: &NetworkError) -> Self {
        let held_by = match error {
            NetworkError::PortTaken { source, .. } => Some(source.to_string()),
            _ => None,
        };
        Self { place, wanted_by: wanted_by.to_owned(), held_by, cause: report(error) }
    }
}

/// Who has a port, among those who publish one.
#[must_use]
pub fn holder<'a>(
    wanted: HostPort,
    given: impl IntoIterator<Item = (HostPort, &'a str)>,
) -> Option<&'a str> {
    given.into_iter().find(|(place, _)| place.meets(&wanted)).map(|(_, holder)| holder)
}

/// Why `wanted_by` does not get `port`: `who` has it.
#[must_use]
pub fn taken(port: Port, wanted_by: &str, who: String) -> NetworkError {
    NetworkError::PortTaken { port, holder: wanted_by.to_owned(), source: HeldBy(who).into() }
}

/// Who has a port.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct HeldBy(String);

/// Gives each port to one holder. `held` are the ports that are open now, with their holders.
#[must_use]
pub fn decide(
    published: &[Published],
    held: &BTreeMap<HostPort, String>,
) -> (Vec<Published>, Vec<PortConflict>) {
    let keeps =
        |publication: &Published| held.get(&publication.place()) == Some(&publication.holder);
    let mut given: BTreeMap<Port, Vec<(HostPort, &str)>> = BTreeMap::new();
    let mut lost: BTreeMap<usize, PortConflict> = BTreeMap::new();
    let in_order = published.iter().enumerate();
    let (first, rest): (Vec<_>, Vec<_>) = in_order.partition(|(_, one)| keeps(one));
    for (at, publication) in first.into_iter().chain(rest) {
        let place = publication.place();
        let others = given.entry(publication.port).or_default();
        // The same port of the same holder twice is one port with two lists of backends.
        let same = (place, publication.holder.as_str());
        match holder(place, others.iter().copied().filter(|other| *other != same)) {
            None => others.push(same),
            Some(other) => {
                let who = format!("{other} publishes it on this node already");
                let error = taken(publication.port, &publication.holder, who);
                let mut conflict = PortConflict::of(place, &publication.holder, &error);
                conflict.held_by = Some(other.to_owned());
                lost.insert(at, conflict);
            }
        }
    }
    let won = |(at, publication): (usize, &Published)| {
        (!lost.contains_key(&at)).then(|| publication.clone())
    };
    let given = published.iter().enumerate().filter_map(won).collect();
    (given, lost.into_values().collect())
}

#[cfg(test)]
mod tests {
    use shoal_model::id::NetworkId;
    use shoal_model::net::Protocol;

    use super::*;

    fn published(number: u16, address: Option<&str>, holder: &str) -> Published {
        Published {
            port: Port { protocol: Protocol::Tcp, number },
            host_ip: address.and_then(|text| text.parse().ok()),
            network: NetworkId::from("n"),
            backends: Vec::new(),
            holder: holder.to_owned(),
        }
    }

    fn decided(list: &[Published], held: &[&Published]) -> (Vec<String>, Vec<String>) {
        let held = held.iter().map(|one| (one.place(), one.holder.clone())).collect();
        let (given, lost) = decide(list, &held);
        (
            given.into_iter().map(|one| one.holder).collect(),
            lost.into_iter().map(|c| c.cause).collect(),
        )
    }

    #[test]
    fn who_has_a_port_keeps_it_and_the_other_hears_who() {
        let web = published(80, None, "service 'web'");
        let own = published(80, None, "container 'x'");
        let both = [web.clone(), own.clone()];
        let (given, lost) = decided(&both, &[&own]);
        assert_eq!(given, ["container 'x'"]);
        assert!(lost[0].starts_with("port 80/tcp is taken: cannot publish it for service 'web'"));
        assert!(lost[0].contains("container 'x' publishes it on this node already"), "{lost:?}");
        assert_eq!(decided(&both, &[&web]).0, ["service 'web'"]);
        assert_eq!(decided(&both, &[]).0, ["service 'web'"], "else the first one");
    }

    #[test]
    fn addresses_keep_publications_apart() {
        let a = published(80, Some("198.51.100.1"), "a");
        let b = published(80, Some("198.51.100.2"), "b");
        assert_eq!(decided(&[a.clone(), b.clone()], &[]).0, ["a", "b"]);
        let all = published(80, Some("0.0.0.0"), "all");
        let (given, lost) = decided(&[a, all, b], &[]);
        assert_eq!((given.len(), lost.len()), (2, 1));
    }

    #[test]
    fn one_holder_may_have_two_lists_of_backends() {
        let a = published(80, None, "a");
        assert_eq!(decided(&[a.clone(), a], &[]).0, ["a", "a"]);
    }
}
