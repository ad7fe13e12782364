//! The zones, compiled: a hash table of names, and answers that are already encoded.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ops::Range;

use crate::builder::{Body, Builder, Mark, Owner, Section};
use crate::message::Code;
use crate::name::{Key, Name, suffixes};
use crate::rdata;
use crate::zone::{Record, Type, Zone, ZoneSet};

/// Aliases that are followed in one answer; longer chains are cut there and the client goes on.
const ALIASES_MAX: usize = 10;
/// No node, no answer.
const NONE: u32 = u32::MAX;

/// A name that exists.
#[derive(Debug)]
struct Node {
    /// In wire form and lower case.
    name: Box<[u8]>,
    /// Its zone.
    zone: u32,
    /// Its records in the zone.
    records: Range<u32>,
    /// Its answers: places in [`Database::answers`].
    answers: Range<u32>,
    /// The node `*` below it, or [`NONE`].
    wildcard: u32,
    /// Another zone begins here that is not served.
    cut: bool,
    /// What to say then for names at or below it.
    referral: u32,
}

/// An answer that is ready but for the question's place.
#[derive(Debug)]
pub(crate) struct Answer {
    pub body: Body,
    pub code: Code,
    pub authoritative: bool,
    /// Records in each section.
    pub counts: [u16; 3],
}

/// Where a name leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// It exists, or a wildcard stands for it.
    Node(u32),
    /// It does not; the nearest name above it does.
    Missing(u32),
    /// Another zone that is not served.
    Cut(u32),
}

/// What to answer.
pub(crate) enum Found<'a> {
    /// An answer, and the code instead of its own, if any.
    Ready(&'a Answer, Option<Code>),
    /// One that had to be made.
    Made(Box<Answer>),
    /// Nothing: none of the zones.
    Foreign,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Database {
    zones: Vec<Zone>,
    /// For each zone: its SOA record as an answer.
    negatives: Vec<Answer>,
    nodes: Vec<Node>,
    /// Open addressing; the hash and the node, [`NONE`] if free. A power of two, at most half full.
    table: Vec<(u32, u32)>,
    /// By node and type; the place in `ready`.
    answers: Vec<(Type, u32)>,
    ready: Vec<Answer>,
    /// Labels of the longest chain of labels in `nodes`: longer names need no look.
    labels_max: usize,
}

/// Adds one label to the hash of the name above it.
fn hash_label(above: u64, label: &[u8]) -> u64 {
    const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut hash = above;
    let mut chunks = label.chunks_exact(8);
    for chunk in &mut chunks {
        // Cannot fail: a chunk has eight bytes.
        let word = u64::from_le_bytes(chunk.try_into().unwrap_or_default());
        hash = (hash.rotate_left(23) ^ word).wrapping_mul(FACTOR);
    }
    let mut last = [0; 8];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    hash = (hash.rotate_left(23) ^ u64::from_le_bytes(last)).wrapping_mul(FACTOR);
    hash ^ (hash >> 29)
}

/// The bits of a hash that are kept.
#[allow(clippy::cast_possible_truncation)]
fn kept(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[allow(clippy::cast_possible_truncation)]
fn index(len: usize) -> u32 {
    // Cannot fail in practice: a zone file of 4 GB does not fit into an instance.
    debug_assert!(len < NONE as usize);
    len as u32
}

fn span(range: &Range<u32>) -> Range<usize> {
    range.start as usize..range.end as usize
}

impl Database {
    /// Compiles zones.
    #[must_use]
    pub fn new(set: ZoneSet) -> Self {
        let mut database = Self { zones: set.zones, ..Self::default() };
        database.grow();
        let apexes: Vec<Key> = database.zones.iter().map(|zone| zone.apex.key()).collect();
        let zones = core::mem::take(&mut database.zones);
        for (number, zone) in zones.iter().enumerate() {
            database.add_nodes(index(number), zone, &apexes);
        }
        database.zones = zones;
        for node in 0..database.nodes.len() {
            database.link_wildcard(node);
        }
        for number in 0..database.zones.len() {
            let negative = database.negative(number);
            database.negatives.push(negative);
        }
        for node in 0..database.nodes.len() {
            database.encode(node);
        }
        database
    }

    /// The zones.
    #[must_use]
    pub fn zones(&self) -> &[Zone] {
        &self.zones
    }

    /// Makes nodes of a zone's names, but not of those that lie beyond its end.
    fn add_nodes(&mut self, number: u32, zone: &Zone, apexes: &[Key]) {
        let apex = zone.apex.key();
        let inner: Vec<&Key> =
            apexes.iter().filter(|key| **key != apex && key.is_at_or_below(&apex)).collect();
        let mut cut: Option<&Key> = None;
        let mut start = 0;
        for set in zone.records.chunk_by(|a, b| a.key == b.key) {
            let records = index(start)..index(start + set.len());
            start += set.len();
            let [first, ..] = set else { continue };
            if cut.is_some_and(|cut| first.key.is_at_or_below(cut))
                || inner.iter().any(|inner| first.key.is_at_or_below(inner))
            {
                continue;
            }
            let is_cut = first.key != apex && set.iter().any(|record| record.rtype == Type::NS);
            if is_cut {
                cut = Some(&first.key);
            }
            let name = first.owner.wire().to_ascii_lowercase();
            // Names between it and the apex exist, too, even without records (RFC 4592).
            let above = zone.apex.wire().len();
            let starts: Vec<usize> =
                suffixes(&name).take_while(|start| name.len() - start >= above).collect();
            for start in starts.into_iter().skip(1).rev() {
                self.node(&name[start..], number);
            }
            let node = self.node(&name, number);
            self.nodes[node].records = records;
            self.nodes[node].cut = is_cut;
        }
    }

    /// The node of a name; it is made if there is none.
    fn node(&mut self, name: &[u8], zone: u32) -> usize {
        let starts: Vec<usize> = suffixes(name).collect();
        let labels = starts.len() - 1;
        let hash = starts[..labels]
            .iter()
            .rev()
            .fold(0, |hash, start| hash_label(hash, label(name, *start)));
        if let Some(found) = self.probe(kept(hash), name) {
            return found as usize;
        }
        if (self.nodes.len() + 1) * 2 > self.table.len() {
            self.grow();
        }
        let node = index(self.nodes.len());
        self.nodes.push(Node {
            name: name.into(),
            zone,
            records: 0..0,
            answers: 0..0,
            wildcard: NONE,
            cut: false,
            referral: NONE,
        });
        self.labels_max = self.labels_max.max(labels);
        self.insert(kept(hash), node);
        node as usize
    }

    fn grow(&mut self) {
        let len = (self.table.len() * 2).max(16);
        let old = core::mem::replace(&mut self.table, alloc::vec![(0, NONE); len]);
        for (hash, node) in old.into_iter().filter(|(_, node)| *node != NONE) {
            self.insert(hash, node);
        }
    }

    fn insert(&mut self, hash: u32, node: u32) {
        let mask = self.table.len() - 1;
        let mut at = hash as usize & mask;
        while self.table[at].1 != NONE {
            at = (at + 1) & mask;
        }
        self.table[at] = (hash, node);
    }

    fn probe(&self, hash: u32, name: &[u8]) -> Option<u32> {
        let mask = self.table.len().checked_sub(1)?;
        let mut at = hash as usize & mask;
        loop {
            let (other, node) = self.table[at];
            if node == NONE {
                return None;
            }
            if other == hash && *self.nodes[node as usize].name == *name {
                return Some(node);
            }
            at = (at + 1) & mask;
        }
    }

    fn link_wildcard(&mut self, node: usize) {
        let Some(above) = self.nodes[node].name.strip_prefix(b"\x01*") else { return };
        let above: Box<[u8]> = above.into();
        let starts: Vec<u8> = starts_of(&above);
        if let Some(Place::Node(parent)) = self.locate(&above, &starts)
            && self.nodes[parent as usize].name == above
        {
            self.nodes[parent as usize].wildcard = index(node);
        }
    }

    /// Where a name in lower case leads; `starts` are its labels' places without the root.
    fn locate(&self, name: &[u8], starts: &[u8]) -> Option<Place> {
        let mut hashes = [0_u32; 128];
        let mut hash = 0;
        for (at, start) in starts.iter().enumerate().rev() {
            hash = hash_label(hash, label(name, usize::from(*start)));
            hashes[at] = kept(hash);
        }
        let labels = starts.len();
        let first = labels.saturating_sub(self.labels_max);
        for (at, hash) in hashes.iter().enumerate().take(labels + 1).skip(first) {
            // The root has no start among `starts`.
            let start = starts.get(at).map_or(name.len() - 1, |start| usize::from(*start));
            let Some(found) = self.probe(*hash, &name[start..]) else { continue };
            let node = &self.nodes[found as usize];
            if node.cut {
                return Some(Place::Cut(found));
            }
            if start == 0 {
                return Some(Place::Node(found));
            }
            if node.wildcard != NONE {
                return Some(Place::Node(node.wildcard));
            }
            return Some(Place::Missing(found));
        }
        None
    }

    fn records(&self, node: &Node) -> &[Record] {
        self.zones
            .get(node.zone as usize)
            .and_then(|zone| zone.records.get(span(&node.records)))
            .unwrap_or_default()
    }

    /// A zone's SOA record, to say that something is not there (RFC 2308, section 3).
    fn negative(&self, zone: usize) -> Answer {
        let apex = self.zones[zone].apex.wire();
        let mut builder = Builder::new(apex);
        self.add_negative(&mut builder, zone);
        Answer::new(builder.finish(), Code::NoError, true)
    }

    fn add_negative(&self, builder: &mut Builder, zone: usize) {
        let zone = &self.zones[zone];
        let soa = &zone.records[..1.min(zone.records.len())];
        let minimum = soa.first().and_then(|soa| rdata::soa_minimum(&soa.data)).unwrap_or(0);
        let ttl = soa.first().map(|soa| soa.ttl.min(minimum));
        builder.set(Section::Authority, Owner::Name(zone.apex.wire()), soa, ttl, true);
    }

    /// Encodes the answers of a node.
    fn encode(&mut self, at: usize) {
        let node = &self.nodes[at];
        if node.cut {
            let mut builder = Builder::new(&node.name);
            self.add_referral(&mut builder, at);
            self.nodes[at].referral = index(self.ready.len());
            self.ready.push(Answer::new(builder.finish(), Code::NoError, false));
            return;
        }
        let mut types: Vec<Type> = self.records(node).iter().map(|record| record.rtype).collect();
        types.dedup();
        if self.is_followed_for_all(node) {
            types.extend([Type::A, Type::AAAA]);
        }
        let first = index(self.answers.len());
        for rtype in types {
            let node = &self.nodes[at];
            let common = match node.name.strip_prefix(b"\x01*") {
                Some(above) => above,
                None => &node.name,
            };
            let answer = self.make(common, Place::Node(index(at)), rtype);
            self.answers.push((rtype, index(self.ready.len())));
            self.ready.push(answer);
        }
        self.nodes[at].answers = first..index(self.answers.len());
    }

    /// Whether the node is an alias, and one that leads all names for which it stands the same way:
    /// a wildcard's may lead back below the wildcard.
    fn is_followed_for_all(&self, node: &Node) -> bool {
        let [alias, ..] = self.records(node) else { return false };
        let Some(target) = rdata::target(alias.rtype, &alias.data) else { return false };
        let above = node.name.strip_prefix(b"\x01*").map(Name::from_wire);
        alias.rtype == Type::CNAME && above.is_none_or(|above| !target.is_at_or_below(&above))
    }

    /// Makes an answer for all questions whose names end in `common` and lead to `place`.
    fn make(&self, common: &[u8], mut place: Place, qtype: Type) -> Answer {
        let mut builder = Builder::new(common);
        let mut code = Code::NoError;
        let mut owner: Option<Name> = None;
        // The question's own name, unless many names share this answer.
        let mut seen: Vec<Key> = alloc::vec![Name::from_wire(common).key()];
        let mut authoritative = true;
        loop {
            let whose = owner.as_ref().map_or(Owner::Question, |name| Owner::Name(name.wire()));
            let at = match place {
                Place::Node(at) => at as usize,
                Place::Missing(at) => {
                    code = Code::NxDomain;
                    self.add_negative(&mut builder, self.nodes[at as usize].zone as usize);
                    break;
                }
                Place::Cut(at) => {
                    authoritative = owner.is_some();
                    self.add_referral(&mut builder, at as usize);
                    break;
                }
            };
            let node = &self.nodes[at];
            let records = self.records(node);
            let mut sets = records.chunk_by(|a, b| a.rtype == b.rtype);
            if let Some(set) = sets.find(|set| set[0].rtype == qtype) {
                builder.set(Section::Answer, whose, set, None, true);
                if qtype == Type::NS {
                    self.add_addresses(&mut builder, node.zone as usize, records, None);
                }
                break;
            }
            let alias = records.first().filter(|record| record.rtype == Type::CNAME);
            let Some(alias) = alias else {
                self.add_negative(&mut builder, node.zone as usize);
                break;
            };
            builder.set(Section::Answer, whose, &records[..1], None, true);
            let Some(target) = rdata::target(alias.rtype, &alias.data) else { break };
            let wire = target.wire().to_ascii_lowercase();
            let key = target.key();
            if seen.len() > ALIASES_MAX || seen.contains(&key) {
                break;
            }
            seen.push(key);
            match self.locate(&wire, &starts_of(&wire)) {
                Some(next) => place = next,
                None => break,
            }
            owner = Some(target);
        }
        Answer::new(builder.finish(), code, authoritative)
    }

    /// Names the servers of a zone that is not served, and their addresses as far as they are
    /// known.
    fn add_referral(&self, builder: &mut Builder, at: usize) {
        let node = &self.nodes[at];
        let records = self.records(node);
        let from = records.iter().position(|record| record.rtype == Type::NS).unwrap_or(0);
        let servers = &records[from..];
        let len = servers.partition_point(|record| record.rtype == Type::NS);
        let servers = &servers[..len];
        let Some(first) = servers.first() else { return };
        builder.set(Section::Authority, Owner::Name(first.owner.wire()), servers, None, true);
        self.add_addresses(builder, node.zone as usize, servers, Some(&first.key));
    }

    /// Addresses of the servers that NS `records` name, as far as the zone has them. Those below
    /// `cut` are needed to reach it (RFC 9471, section 2.1).
    fn add_addresses(
        &self,
        builder: &mut Builder,
        zone: usize,
        records: &[Record],
        cut: Option<&Key>,
    ) {
        let targets: Vec<(Key, Name)> = records
            .iter()
            .filter(|record| record.rtype == Type::NS)
            .filter_map(|record| rdata::target(record.rtype, &record.data))
            .map(|name| (name.key(), name))
            .collect();
        let needed = |key: &Key| cut.is_some_and(|cut| key.is_at_or_below(cut));
        for required in [true, false] {
            for (key, name) in targets.iter().filter(|(key, _)| needed(key) == required) {
                let addresses = self.zones[zone].records_of(key);
                let sets = addresses.chunk_by(|a, b| a.rtype == b.rtype);
                let is_address = |set: &&[Record]| [Type::A, Type::AAAA].contains(&set[0].rtype);
                for set in sets.filter(is_address) {
                    let owner = Owner::Name(name.wire());
                    builder.set(Section::Additional, owner, set, None, required);
                }
            }
        }
    }

    /// What to answer to a question for a name in lower case.
    pub(crate) fn find(&self, name: &[u8], starts: &[u8], qtype: Type) -> Found<'_> {
        let Some(place) = self.locate(name, starts) else { return Found::Foreign };
        if qtype == Type::DS
            && let Some(zone) = self.zone_above(name, starts, place)
        {
            return Found::Ready(&self.negatives[zone as usize], None);
        }
        match place {
            Place::Cut(node) => {
                let referral = self.nodes[node as usize].referral;
                Found::Ready(&self.ready[referral as usize], None)
            }
            Place::Missing(node) => {
                let zone = self.nodes[node as usize].zone as usize;
                Found::Ready(&self.negatives[zone], Some(Code::NxDomain))
            }
            Place::Node(at) => {
                let node = &self.nodes[at as usize];
                let answers = &self.answers[span(&node.answers)];
                // RFC 8482, section 4.1: one set of records is enough for whoever wants any.
                let wanted = |rtype: Type| rtype == qtype || qtype == Type::ANY;
                if let Some((_, ready)) = answers.iter().find(|(rtype, _)| wanted(*rtype)) {
                    return Found::Ready(&self.ready[*ready as usize], None);
                }
                if answers.first().is_some_and(|(rtype, _)| *rtype == Type::CNAME) {
                    return Found::Made(Box::new(self.make(name, place, qtype)));
                }
                Found::Ready(&self.negatives[node.zone as usize], None)
            }
        }
    }

    /// DS records of a zone's apex belong to the zone above: if it is served, it has none of them.
    fn zone_above(&self, name: &[u8], starts: &[u8], place: Place) -> Option<u32> {
        let node = &self.nodes[place.node()];
        if *node.name != *name {
            return None;
        }
        if node.cut {
            return Some(node.zone);
        }
        let apex = self.zones[node.zone as usize].apex.wire();
        if matches!(place, Place::Missing(_)) || node.name.len() != apex.len() || starts.is_empty()
        {
            return None;
        }
        let above = &name[usize::from(name[0]) + 1..];
        match self.locate(above, &starts_of(above))? {
            Place::Node(node) | Place::Missing(node) => Some(self.nodes[node as usize].zone),
            Place::Cut(_) => None,
        }
    }

    /// The zone whose apex is `name` in lower case.
    pub(crate) fn zone_at(&self, name: &[u8], starts: &[u8]) -> Option<&Zone> {
        let place = self.locate(name, starts)?;
        let node = &self.nodes[place.node()];
        let zone = &self.zones[node.zone as usize];
        let is_apex = *node.name == *name && name.len() == zone.apex.wire().len();
        is_apex.then_some(zone)
    }
}

impl Place {
    fn node(self) -> usize {
        match self {
            Self::Node(node) | Self::Missing(node) | Self::Cut(node) => node as usize,
        }
    }
}

impl Answer {
    fn new(body: Body, code: Code, authoritative: bool) -> Self {
        let mut counts = [0_u16; 3];
        for Mark { records, section, .. } in &body.marks {
            counts[*section as usize] += records;
        }
        Self { body, code, authoritative, counts }
    }
}

/// The label that begins at `start`, its length included.
fn label(name: &[u8], start: usize) -> &[u8] {
    &name[start..=start + usize::from(name[start])]
}

/// Where the labels of a name in wire form begin, the root not counted.
pub(crate) fn starts_of(name: &[u8]) -> Vec<u8> {
    let mut starts: Vec<u8> = suffixes(name).filter_map(|start| u8::try_from(start).ok()).collect();
    starts.pop();
    starts
}
