//! Records and zones as they were read.

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::name::{Key, Name};
use crate::parser::Problem;

/// A record type's number (IANA's registry of resource record types).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Type(pub u16);

impl Type {
    /// Address, version 4.
    pub const A: Self = Self(1);
    /// Name server.
    pub const NS: Self = Self(2);
    /// Another name.
    pub const CNAME: Self = Self(5);
    /// Beginning of a zone.
    pub const SOA: Self = Self(6);
    /// Name of an address.
    pub const PTR: Self = Self(12);
    /// Mail server.
    pub const MX: Self = Self(15);
    /// Text.
    pub const TXT: Self = Self(16);
    /// Address, version 6.
    pub const AAAA: Self = Self(28);
    /// Place of a service.
    pub const SRV: Self = Self(33);
    /// EDNS.
    pub const OPT: Self = Self(41);
    /// Delegation signer: belongs to the zone above.
    pub const DS: Self = Self(43);
    /// Incremental transfer.
    pub const IXFR: Self = Self(251);
    /// Transfer of a zone.
    pub const AXFR: Self = Self(252);
    /// All types.
    pub const ANY: Self = Self(255);
    /// Which authorities may sign.
    pub const CAA: Self = Self(257);

    /// The type with this name, or `TYPEn`.
    #[must_use]
    pub fn from_name(text: &[u8]) -> Option<Self> {
        const NAMES: [(&str, Type); 10] = [
            ("A", Type::A),
            ("AAAA", Type::AAAA),
            ("NS", Type::NS),
            ("SOA", Type::SOA),
            ("MX", Type::MX),
            ("TXT", Type::TXT),
            ("CNAME", Type::CNAME),
            ("SRV", Type::SRV),
            ("PTR", Type::PTR),
            ("CAA", Type::CAA),
        ];
        let known = NAMES.iter().find(|(name, _)| text.eq_ignore_ascii_case(name.as_bytes()));
        if let Some((_, found)) = known {
            return Some(*found);
        }
        let (start, number) = text.split_at_checked(4)?;
        if !start.eq_ignore_ascii_case(b"TYPE") || !number.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let number = core::str::from_utf8(number).ok()?.parse().ok()?;
        Some(Self(number)).filter(Self::can_be_stored)
    }

    /// Whether records of the type can be in a zone: not meta types (RFC 6895, section 3.1).
    fn can_be_stored(&self) -> bool {
        self.0 != 0 && *self != Self::OPT && !(128..=255).contains(&self.0)
    }
}

/// A resource record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// `owner`'s sort key.
    pub key: Key,
    /// Its name.
    pub owner: Name,
    /// Its type.
    pub rtype: Type,
    /// Seconds.
    pub ttl: u32,
    /// Wire form, names not compressed.
    pub data: Box<[u8]>,
}

/// A zone.
#[derive(Clone, Debug)]
pub struct Zone {
    /// Its name.
    pub apex: Name,
    /// Sorted by name and type, the SOA first.
    pub records: Vec<Record>,
    /// Lines of `records`, while they are being read.
    lines: Vec<u32>,
    /// What a reader of the log should know.
    pub warnings: Vec<Warning>,
}

/// Something that is served, but probably not meant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// RFC 2181, section 5.2.
    #[error("'{0}' has records of one type with different TTLs: the lowest is used")]
    DifferentTtls(Name),
    /// RFC 1034, section 4.2.1.
    #[error("the zone '{0}' has no NS record: no one can delegate to it")]
    NoNameServer(Name),
}

/// All zones that are served.
#[derive(Clone, Debug, Default)]
pub struct ZoneSet {
    /// In the order in which they were read.
    pub zones: Vec<Zone>,
}

impl Zone {
    pub(crate) fn new(apex: Name) -> Self {
        Self { apex, records: Vec::new(), lines: Vec::new(), warnings: Vec::new() }
    }

    pub(crate) fn push(&mut self, record: Record, line: u32) {
        self.records.push(record);
        self.lines.push(line);
    }

    /// Sorts and checks what was read; answers the line and what is wrong there.
    pub(crate) fn finish(&mut self) -> Result<(), (u32, Problem)> {
        let mut order: Vec<(Record, u32)> = core::mem::take(&mut self.records)
            .into_iter()
            .zip(core::mem::take(&mut self.lines))
            .collect();
        // Stable: records of one type stay in the order of the file.
        order.sort_by(|(a, _), (b, _)| {
            a.key
                .cmp(&b.key)
                .then((b.rtype == Type::SOA).cmp(&(a.rtype == Type::SOA)))
                .then(a.rtype.cmp(&b.rtype))
        });
        for (record, line) in order {
            let same_set = self
                .records
                .iter()
                .rev()
                .take_while(|other| other.rtype == record.rtype && other.key == record.key);
            // RFC 2181, section 5: a set has no duplicates.
            if same_set.clone().any(|other| other.data == record.data) {
                continue;
            }
            if record.rtype == Type::SOA && same_set.count() > 0 {
                return Err((line, Problem::TwoZones(record.owner)));
            }
            let before = self.records.last().filter(|before| before.key == record.key);
            let is_alias = |record: &Record| record.rtype == Type::CNAME;
            if before.is_some_and(|before| is_alias(before) || is_alias(&record)) {
                return Err((line, Problem::CnameAndOther(record.owner)));
            }
            if record.rtype == Type::NS && record.owner.wire().starts_with(b"\x01*") {
                return Err((line, Problem::WildcardCut(record.owner)));
            }
            self.records.push(record);
        }
        self.level_ttls();
        let has_servers = self
            .records
            .iter()
            .any(|record| record.rtype == Type::NS && record.key == self.apex.key());
        if !has_servers {
            self.warnings.push(Warning::NoNameServer(self.apex.clone()));
        }
        Ok(())
    }

    /// Gives all records of a set the lowest TTL among them.
    fn level_ttls(&mut self) {
        let sets = self.records.chunk_by_mut(|a, b| a.rtype == b.rtype && a.key == b.key);
        for set in sets {
            let lowest = set.iter().map(|record| record.ttl).min().unwrap_or_default();
            if set.iter().any(|record| record.ttl != lowest) {
                self.warnings.push(Warning::DifferentTtls(set[0].owner.clone()));
                set.iter_mut().for_each(|record| record.ttl = lowest);
            }
        }
    }

    /// All records of a name.
    #[must_use]
    pub fn records_of(&self, key: &Key) -> &[Record] {
        let start = self.records.partition_point(|record| record.key < *key);
        let len = self.records[start..].partition_point(|record| record.key == *key);
        &self.records[start..start + len]
    }

    /// The zone's serial number.
    #[must_use]
    pub fn serial(&self) -> u32 {
        let data = self.records.first().map(|soa| &*soa.data).unwrap_or_default();
        // SOA data ends with five numbers of four bytes; the serial is the first.
        data.len()
            .checked_sub(20)
            .and_then(|at| data.get(at..at + 4)?.try_into().ok())
            .map_or(0, u32::from_be_bytes)
    }
}
