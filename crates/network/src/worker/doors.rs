//! What the host keeps out: frames of strangers, packets between networks, packets from outside
//! that nobody published a port for, and what this host did not pass on before Shoal came.

use std::collections::BTreeSet;
use std::path::PathBuf;

use shoal_model::id::InstanceId;
use shoal_netlink::nft::{
    Base, Batch, Family, Field, FieldType, Hook, Load, Reject, Rule, Set, Table, ct_state,
    ct_status, priority,
};

use super::host::Host;
use super::tables::{Contents, change, fill};
use crate::error::NetworkError;
use crate::layout::doors::Senders;

const TCP: u8 = 6;
const UDP: u8 = 17;
/// Longest file of link names: some thousands.
const FILE_LEN_MAX: u64 = 1 << 20;

/// The guard's table: of both families, because an underlay may be of either.
pub(super) fn guard_table(instance: &InstanceId) -> Table {
    Table::new(Family::Inet, format!("shoal_{instance}"))
}

fn numbers_set() -> Set {
    Set::plain("numbers", [FieldType::Port, FieldType::Number])
}

fn members_set(ipv6: bool) -> Set {
    let (name, address) =
        if ipv6 { ("members6", FieldType::Ip6) } else { ("members4", FieldType::Ip) };
    Set::plain(name, [address, FieldType::Number])
}

fn contents(senders: &Senders) -> Contents {
    let numbers = senders.numbers.iter();
    let numbers = numbers.map(|(port, vni)| vec![Field::Port(*port), Field::vni(*vni)]);
    let members = |ipv6: bool| {
        let of = senders.members.iter().filter(move |(ip, _)| ip.is_ipv6() == ipv6);
        of.map(|(ip, vni)| (vec![Field::from(*ip), Field::vni(*vni)], Vec::new())).collect()
    };
    vec![
        (numbers_set(), numbers.map(|key| (key, Vec::new())).collect()),
        (members_set(false), members(false)),
        (members_set(true), members(true)),
    ]
}

/// Brings the guard of the underlay to `new`.
pub(super) fn apply_guard(
    host: &Host,
    instance: &InstanceId,
    old: Option<&Senders>,
    new: &Senders,
) -> Result<(), NetworkError> {
    let (mut batch, table) = (Batch::new(), guard_table(instance));
    match old {
        Some(old) => change(&mut batch, &table, &contents(old), &contents(new)),
        None => whole_guard(&mut batch, &table, new),
    }
    host.handle.commit(batch).map_err(|source| NetworkError::Nft {
        what: "guard of the underlay".to_owned(),
        source: source.into(),
    })
}

fn whole_guard(batch: &mut Batch, table: &Table, senders: &Senders) {
    batch.replace_table(table);
    fill(batch, table, &contents(senders));
    batch.add_chain(table, "strangers");
    let member = Rule::new("a node of that network").ipv4();
    let member = member.in_set(&[Load::IpSaddr, Load::VxlanVni], "members4").give_back();
    batch.add_rule(table, "strangers", &member);
    let member = Rule::new("a node of that network").ipv6();
    let member = member.in_set(&[Load::Ip6Saddr, Load::VxlanVni], "members6").give_back();
    batch.add_rule(table, "strangers", &member);
    batch.add_rule(table, "strangers", &Rule::new("a stranger").counter().drop_packet());
    // At this hook fragments are whole again, and it comes before every other table's verdict.
    batch.add_base_chain(table, "underlay", &Base::filter(Hook::Input, priority::RAW));
    let ours = Rule::new("a frame for one of our networks").l4proto(UDP);
    let ours = ours.in_set(&[Load::Dport, Load::VxlanVni], "numbers").jump("strangers");
    batch.add_rule(table, "underlay", &ours);
}

/// The rules about what passes through the host, in the daemon's own table: into its links comes
/// what answers or what was published, and nothing between the `closed` links of the host.
pub(super) fn forward_rules(
    batch: &mut Batch,
    table: &Table,
    links: &str,
    closed: &BTreeSet<String>,
) {
    let chain = "between";
    batch.add_base_chain(table, chain, &Base::filter(Hook::Forward, priority::FILTER));
    let inwards = |text: &str| Rule::new(text).oifname(links);
    let answers = ct_state::ESTABLISHED | ct_state::RELATED;
    batch.add_rule(table, chain, &inwards("answers").ct_state(answers).accept());
    let published = inwards("published ports").ct_status(ct_status::DNAT).accept();
    batch.add_rule(table, chain, &published);
    let apart = || inwards("networks are apart").iifname(links);
    batch.add_rule(table, chain, &apart().l4proto(TCP).reject(Reject::TcpReset));
    batch.add_rule(table, chain, &apart().reject(Reject::IcmpProhibited));
    let outside = inwards("outside reaches published ports only").counter().drop_packet();
    batch.add_rule(table, chain, &outside);
    if closed.is_empty() {
        return;
    }
    batch.add_chain(table, "closed");
    for link in closed {
        let from = Rule::new("this host passed nothing on before").iifname(link).jump("closed");
        batch.add_rule(table, chain, &from);
        let to = Rule::new("this host passed nothing on before").oifname(link);
        batch.add_rule(table, "closed", &to.counter().drop_packet());
    }
}

/// Links of the host between which nothing passed before this daemon switched forwarding on.
///
/// The kernel has one switch for all links, and Shoal needs it; so the daemon that finds it off
/// remembers which links there were, and goes on keeping them apart. Links that come later belong
/// to somebody who saw that the host forwards, and are left alone.
#[derive(Debug)]
pub(super) struct Closed {
    file: PathBuf,
    links: BTreeSet<String>,
}

impl Closed {
    /// What an earlier life of this daemon has remembered since the machine was started.
    pub(super) fn open(file: PathBuf) -> Self {
        let links = shoal_durable::read_json(&file, FILE_LEN_MAX).unwrap_or_else(|error| {
            // A damaged list keeps no daemon from starting.
            tracing::error!(%error, file = %file.display(), "list of closed links is damaged: links are not kept \
                apart; set net.ipv4.ip_forward to 0 and start the daemon again to keep them apart");
            None
        });
        Self { file, links: links.unwrap_or_default() }
    }

    pub(super) fn links(&self) -> &BTreeSet<String> {
        &self.links
    }

    /// Before forwarding is switched on: remembers the host's links if it is off. Says whether the
    /// list is another one now.
    pub(super) fn remember(&mut self, host: &Host) -> Result<bool, NetworkError> {
        if host.forwards()? {
            return Ok(false);
        }
        let foreign = host.foreign_links()?;
        shoal_durable::replace_json(&self.file, &foreign).map_err(|source| {
            NetworkError::Files { path: self.file.clone(), source: source.into() }
        })?;
        let other = self.links != foreign;
        self.links = foreign;
        Ok(other)
    }

    /// With the daemon's tables gone, nothing is kept apart any more: if nobody else has come who
    /// may count on forwarding, it is switched off again.
    pub(super) fn forget(&mut self, host: &Host) -> Result<(), NetworkError> {
        if !self.links.is_empty() && host.foreign_links()?.is_subset(&self.links) {
            let others = host.handle.nft_tables().map_err(|source| NetworkError::Observe {
                what: "nftables of the host".to_owned(),
                source: source.into(),
            })?;
            if !others.iter().any(|table| table.name.starts_with("shoal_")) {
                host.set_forwarding(false)?;
            }
        }
        self.links.clear();
        // With one that stayed, the next daemon would keep links apart between which somebody else
        // has switched forwarding on.
        match std::fs::remove_file(&self.file) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(NetworkError::Files { path: self.file.clone(), source: source.into() })
            }
            _ => Ok(()),
        }
    }
}
