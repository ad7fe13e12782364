//! Sets and maps: what their keys and values are made of, and their elements.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shoal_model::net::{Mac, Vni};

use crate::attr::{Writer, be32, find, text};

use super::expr::Verdict;
use super::sys;

/// What one part of a key or value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FieldType {
    /// An IPv4 address.
    Ip,
    /// An IPv6 address.
    Ip6,
    /// An Ethernet address.
    Mac,
    /// A port.
    Port,
    /// A transport protocol's number.
    Protocol,
    /// A 32-bit number: a mark or a bucket.
    Number,
    /// A link's name.
    Link,
}

impl FieldType {
    /// Length in bytes, without padding.
    pub(super) const fn len(self) -> usize {
        match self {
            Self::Ip | Self::Number => 4,
            Self::Ip6 | Self::Link => 16,
            Self::Mac => 6,
            Self::Port => 2,
            Self::Protocol => 1,
        }
    }

    /// The type's number in the nft tool: only for its listings, the kernel does not care.
    const fn number(self) -> u32 {
        match self {
            Self::Ip => 7,
            Self::Ip6 => 8,
            Self::Mac => 9,
            Self::Protocol => 12,
            Self::Port => 13,
            Self::Number => 19,
            Self::Link => 41,
        }
    }

    fn decode(self, bytes: &[u8]) -> Option<Field> {
        let bytes = bytes.get(..self.len())?;
        Some(match self {
            Self::Ip => Field::Ip(<[u8; 4]>::try_from(bytes).ok()?.into()),
            Self::Ip6 => Field::Ip6(<[u8; 16]>::try_from(bytes).ok()?.into()),
            Self::Mac => Field::Mac(Mac(bytes.try_into().ok()?)),
            Self::Port => Field::Port(u16::from_be_bytes(bytes.try_into().ok()?)),
            Self::Protocol => Field::Protocol(bytes[0]),
            Self::Number => Field::Number(u32::from_ne_bytes(bytes.try_into().ok()?)),
            Self::Link => Field::Link(text(bytes)),
        })
    }
}

/// One part of a key or value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Field {
    /// An IPv4 address.
    Ip(Ipv4Addr),
    /// An IPv6 address.
    Ip6(Ipv6Addr),
    /// An Ethernet address.
    Mac(Mac),
    /// A port.
    Port(u16),
    /// A transport protocol's number.
    Protocol(u8),
    /// A 32-bit number.
    Number(u32),
    /// A link's name.
    Link(String),
}

impl From<IpAddr> for Field {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => Self::Ip(v4),
            IpAddr::V6(v6) => Self::Ip6(v6),
        }
    }
}

impl Field {
    /// A VXLAN network number as [`Load::VxlanVni`](super::Load::VxlanVni) leaves it in a
    /// register: its three bytes, then a zero.
    #[must_use]
    pub const fn vni(vni: Vni) -> Self {
        let [_, a, b, c] = vni.0.to_be_bytes();
        Self::Number(u32::from_ne_bytes([a, b, c, 0]))
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> FieldType {
        match self {
            Self::Ip(_) => FieldType::Ip,
            Self::Ip6(_) => FieldType::Ip6,
            Self::Mac(_) => FieldType::Mac,
            Self::Port(_) => FieldType::Port,
            Self::Protocol(_) => FieldType::Protocol,
            Self::Number(_) => FieldType::Number,
            Self::Link(_) => FieldType::Link,
        }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Ip(ip) => ip.octets().to_vec(),
            Self::Ip6(ip) => ip.octets().to_vec(),
            Self::Mac(mac) => mac.0.to_vec(),
            Self::Port(port) => port.to_be_bytes().to_vec(),
            Self::Protocol(number) => vec![*number],
            Self::Number(number) => number.to_ne_bytes().to_vec(),
            Self::Link(name) => {
                let mut bytes = name.as_bytes().to_vec();
                bytes.resize(FieldType::Link.len(), 0);
                bytes
            }
        }
    }
}

/// The bytes of a key or value: a single field as it is, of several each fills whole registers.
fn encode(fields: &[Field]) -> Vec<u8> {
    if let [only] = fields {
        return only.bytes();
    }
    let mut out = Vec::new();
    for field in fields {
        out.extend(field.bytes());
        out.resize(out.len().next_multiple_of(4), 0);
    }
    out
}

fn decode(types: &[FieldType], bytes: &[u8]) -> Option<Vec<Field>> {
    let mut rest = bytes;
    let mut fields = Vec::with_capacity(types.len());
    for kind in types {
        fields.push(kind.decode(rest)?);
        rest = rest.get(kind.len().next_multiple_of(4)..).unwrap_or_default();
    }
    Some(fields)
}

fn len(types: &[FieldType]) -> usize {
    match types {
        [only] => only.len(),
        many => many.iter().map(|t| t.len().next_multiple_of(4)).sum(),
    }
}

fn number(types: &[FieldType]) -> u32 {
    // The tool keeps six bits for each part.
    types.iter().fold(0, |all, t| all << 6 | t.number())
}

/// What a set's elements carry beside their key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SetData {
    /// Nothing: a plain set.
    Nothing,
    /// A value.
    Fields(Vec<FieldType>),
    /// A verdict.
    Verdict,
}

/// A set or map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Set {
    /// Its name; ignored for an anonymous one.
    pub name: String,
    /// What keys are made of.
    pub key: Vec<FieldType>,
    /// What elements carry.
    pub data: SetData,
    /// Keys may be ranges.
    pub interval: bool,
}

impl Set {
    /// A plain set.
    pub fn plain(name: impl Into<String>, key: impl Into<Vec<FieldType>>) -> Self {
        Self { name: name.into(), key: key.into(), data: SetData::Nothing, interval: false }
    }

    /// A map from keys to values.
    pub fn map(
        name: impl Into<String>,
        key: impl Into<Vec<FieldType>>,
        value: impl Into<Vec<FieldType>>,
    ) -> Self {
        Self { data: SetData::Fields(value.into()), ..Self::plain(name, key) }
    }

    /// A map from keys to verdicts.
    pub fn verdicts(name: impl Into<String>, key: impl Into<Vec<FieldType>>) -> Self {
        Self { data: SetData::Verdict, ..Self::plain(name, key) }
    }

    /// The same with ranges as keys.
    #[must_use]
    pub fn interval(self) -> Self {
        Self { interval: true, ..self }
    }

    /// `anonymous`: how many elements it will have, for one that belongs to a rule.
    pub(super) fn encode(&self, w: &mut Writer, id: u32, anonymous: Option<usize>) {
        let mut flags = 0;
        if anonymous.is_some() {
            flags |= sys::SET_F_ANONYMOUS | sys::SET_F_CONSTANT;
        }
        if self.interval {
            flags |= sys::SET_F_INTERVAL;
        }
        if self.data != SetData::Nothing {
            flags |= sys::SET_F_MAP;
        }
        if self.key.len() > 1 {
            flags |= sys::SET_F_CONCAT;
        }
        w.attr_be32(sys::SET_FLAGS, flags);
        w.attr_be32(sys::SET_KEY_TYPE, number(&self.key));
        w.attr_be32(sys::SET_KEY_LEN, small(len(&self.key)));
        match &self.data {
            SetData::Nothing => {}
            SetData::Fields(types) => {
                w.attr_be32(sys::SET_DATA_TYPE, number(types));
                w.attr_be32(sys::SET_DATA_LEN, small(len(types)));
            }
            SetData::Verdict => w.attr_be32(sys::SET_DATA_TYPE, sys::DATA_TYPE_VERDICT),
        }
        if anonymous.is_some() || self.key.len() > 1 {
            w.nest(sys::SET_DESC, |w| {
                if let Some(size) = anonymous {
                    w.attr_be32(sys::SET_DESC_SIZE, small(size));
                }
                if self.key.len() > 1 {
                    w.nest(sys::SET_DESC_CONCAT, |w| {
                        for part in &self.key {
                            w.nest(sys::LIST_ELEM, |w| {
                                w.attr_be32(sys::SET_FIELD_LEN, small(part.len()));
                            });
                        }
                    });
                }
            });
        }
        w.attr_be32(sys::SET_ID, id);
        w.attr(sys::SET_USERDATA, &self.userdata());
    }

    /// Tells the nft tool, for its listings, in which byte order numbers are kept.
    fn userdata(&self) -> Vec<u8> {
        const HOST: u32 = 1;
        const NETWORK: u32 = 2;
        let order = |types: &[FieldType]| match types {
            [FieldType::Number] => HOST,
            _ => NETWORK,
        };
        let mut out = vec![0, 4];
        out.extend(order(&self.key).to_ne_bytes());
        if let SetData::Fields(types) = &self.data {
            out.extend([1, 4]);
            out.extend(order(types).to_ne_bytes());
        }
        out
    }

    /// Whether the element's parts are what this set is made of.
    pub(super) fn fits(&self, element: &Element) -> bool {
        let same = |fields: &[Field], types: &[FieldType]| {
            fields.iter().map(Field::kind).eq(types.iter().copied())
        };
        let data = match (&self.data, &element.data) {
            (SetData::Nothing, Data::Nothing) | (SetData::Verdict, Data::Verdict(_)) => true,
            (SetData::Fields(types), Data::Fields(fields)) => same(fields, types),
            _ => false,
        };
        let end = element.end.as_ref().is_none_or(|end| self.interval && same(end, &self.key));
        data && end && same(&element.key, &self.key)
    }

    pub(super) fn decode(&self, attrs: &[u8]) -> Option<Decoded> {
        let value = |kind| find(find(attrs, kind)?, sys::DATA_VALUE);
        let flags = find(attrs, sys::ELEM_FLAGS).and_then(be32).unwrap_or(0);
        let key = decode(&self.key, value(sys::ELEM_KEY)?)?;
        if flags & sys::ELEM_F_INTERVAL_END != 0 {
            return Some(Decoded::End(key));
        }
        let data = match &self.data {
            SetData::Nothing => Data::Nothing,
            SetData::Fields(types) => Data::Fields(decode(types, value(sys::ELEM_DATA)?)?),
            SetData::Verdict => {
                let data = find(find(attrs, sys::ELEM_DATA)?, sys::DATA_VERDICT)?;
                Data::Verdict(Verdict::decode(data)?)
            }
        };
        let end = match value(sys::ELEM_KEY_END) {
            Some(bytes) => Some(decode(&self.key, bytes)?),
            None => None,
        };
        Some(Decoded::Element(Element { key, end, data }))
    }
}

/// What the kernel lists: elements, and of plain ranges separate first keys behind them.
pub(super) enum Decoded {
    Element(Element),
    End(Vec<Field>),
}

/// Lengths and counts here are far below 2^32.
fn small(value: usize) -> u32 {
    u32::try_from(value).unwrap_or(u32::MAX)
}

/// What an element carries.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Data {
    /// Nothing.
    Nothing,
    /// A value.
    Fields(Vec<Field>),
    /// A verdict.
    Verdict(Verdict),
}

/// An element of a set or map.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Element {
    /// Its key, or the first of a range.
    pub key: Vec<Field>,
    /// The last key of a range; in an interval set, none means the single key.
    pub end: Option<Vec<Field>>,
    /// What it carries.
    pub data: Data,
}

impl Element {
    /// A member of a plain set.
    pub fn member(key: impl Into<Vec<Field>>) -> Self {
        Self { key: key.into(), end: None, data: Data::Nothing }
    }

    /// An entry of a map.
    pub fn entry(key: impl Into<Vec<Field>>, value: impl Into<Vec<Field>>) -> Self {
        Self { key: key.into(), end: None, data: Data::Fields(value.into()) }
    }

    /// An entry of a verdict map.
    pub fn verdict(key: impl Into<Vec<Field>>, verdict: Verdict) -> Self {
        Self { key: key.into(), end: None, data: Data::Verdict(verdict) }
    }

    /// All addresses of a prefix, as a member of an interval set.
    #[must_use]
    pub fn prefix(net: ipnet::IpNet) -> Self {
        let end = Some(vec![net.broadcast().into()]);
        Self { key: vec![net.network().into()], end, data: Data::Nothing }
    }

    /// Writes it as one list element; of a plain interval set (`ranges`) as two.
    pub(super) fn encode(&self, ranges: bool, w: &mut Writer) {
        let value = |w: &mut Writer, kind: u16, bytes: &[u8]| {
            w.nest(kind, |w| w.attr(sys::DATA_VALUE, bytes));
        };
        w.nest(sys::LIST_ELEM, |w| {
            value(w, sys::ELEM_KEY, &encode(&self.key));
            if let Some(end) = self.end.as_ref().filter(|_| !ranges) {
                value(w, sys::ELEM_KEY_END, &encode(end));
            }
            match &self.data {
                Data::Nothing => {}
                Data::Fields(fields) => value(w, sys::ELEM_DATA, &encode(fields)),
                Data::Verdict(verdict) => w.nest(sys::ELEM_DATA, |w| verdict.encode(w)),
            }
        });
        if !ranges {
            return;
        }
        let [last] = self.end.as_deref().unwrap_or(&self.key) else { return };
        // A plain range ends before the next key; the one that reaches the top has no end.
        if let Some(next) = successor(last.bytes()) {
            w.nest(sys::LIST_ELEM, |w| {
                value(w, sys::ELEM_KEY, &next);
                w.attr_be32(sys::ELEM_FLAGS, sys::ELEM_F_INTERVAL_END);
            });
        }
    }
}

fn successor(mut bytes: Vec<u8>) -> Option<Vec<u8>> {
    for byte in bytes.iter_mut().rev() {
        let (next, carry) = byte.overflowing_add(1);
        *byte = next;
        if !carry {
            return Some(bytes);
        }
    }
    None
}

/// The highest key: where a range ends that the kernel lists without an end.
pub(super) fn highest(key: &[Field]) -> Option<Vec<Field>> {
    let [only] = key else { return None };
    decode(&[only.kind()], &vec![0xff; only.kind().len()])
}

/// The key before this one: turns the kernel's "range ends before" into the last key.
pub(super) fn before(key: &[Field]) -> Option<Vec<Field>> {
    let [only] = key else { return None };
    let mut bytes = only.bytes();
    for byte in bytes.iter_mut().rev() {
        let (next, borrow) = byte.overflowing_sub(1);
        *byte = next;
        if !borrow {
            break;
        }
    }
    decode(&[only.kind()], &bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn several_parts_fill_whole_registers_and_one_stays_as_it_is() {
        assert_eq!(encode(&[Field::Port(80)]), [0, 80]);
        let key = [Field::Protocol(6), Field::Port(80), Field::Mac(Mac([1, 2, 3, 4, 5, 6]))];
        let bytes = encode(&key);
        assert_eq!(bytes, [6, 0, 0, 0, 0, 80, 0, 0, 1, 2, 3, 4, 5, 6, 0, 0]);
        let types: Vec<_> = key.iter().map(Field::kind).collect();
        assert_eq!(len(&types), bytes.len());
        assert_eq!(decode(&types, &bytes).unwrap(), key);
    }

    #[test]
    fn a_range_ends_before_the_next_key() {
        assert_eq!(successor(vec![10, 0, 255]), Some(vec![10, 1, 0]));
        assert_eq!(successor(vec![255, 255]), None);
        let next = [Field::Ip(Ipv4Addr::new(10, 1, 0, 0))];
        assert_eq!(before(&next), Some(vec![Field::Ip(Ipv4Addr::new(10, 0, 255, 255))]));
    }

    #[test]
    fn an_element_of_other_parts_does_not_fit() {
        let set = Set::map("m", [FieldType::Number], [FieldType::Mac]);
        let mac = Field::Mac(Mac([0; 6]));
        assert!(set.fits(&Element::entry([Field::Number(1)], [mac.clone()])));
        assert!(!set.fits(&Element::entry([Field::Port(1)], [mac])));
        assert!(!set.fits(&Element::member([Field::Number(1)])));
    }
}
