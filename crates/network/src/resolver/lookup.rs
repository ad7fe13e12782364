//! What a question means to one workload: answered from the snapshot, denied, or asked outside.
//! Pure.

use std::net::IpAddr;

use super::snapshot::{Entry, Snapshot, View, Zone};

/// How long clients may keep the virtual address of a service, in seconds.
const STABLE_TTL_S: u32 = 30;
/// How long clients may keep addresses of tasks, in seconds: tasks come and go.
const TASK_TTL_S: u32 = 5;

/// What a question is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// IPv4 addresses.
    A,
    /// IPv6 addresses.
    Aaaa,
    /// The name of an address.
    Ptr,
    /// Anything else.
    Other,
}

/// What becomes of a question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The name has these addresses. Without any, it exists but has nothing of this kind.
    Addresses { addresses: Vec<IpAddr>, ttl_s: u32 },
    /// The address has this name.
    Name { name: String, ttl_s: u32 },
    /// There is no such name, and nobody outside is asked for it.
    Missing,
    /// Somebody outside may know.
    Forward,
}

/// Looks up `name` (lower case, without the closing dot).
pub(super) fn lookup(snapshot: &Snapshot, view: &View, name: &str, kind: Kind) -> Outcome {
    let zones: Vec<&Zone> =
        view.networks.iter().filter_map(|network| snapshot.zones.get(network)).collect();
    if let Some(address) = reverse(name) {
        return pointer(&zones, view, address, kind);
    }
    if let Some(addresses) = view.local.get(name) {
        return addresses_of(addresses, kind, TASK_TTL_S);
    }
    if let Some(entry) = find(&zones, name) {
        let ttl_s = if entry.stable { STABLE_TTL_S } else { TASK_TTL_S };
        return addresses_of(&entry.addresses, kind, ttl_s);
    }
    let ours = |zone: &&Zone| {
        name.strip_suffix(zone.suffix.as_str()).is_some_and(|rest| rest.ends_with('.'))
    };
    // Names of one part and names of our networks never leave the cluster. (The root, `.`, and
    // names of its own right below it that are asked for by kind, such as `com NS`, are not ours.)
    let single = !name.is_empty() && !name.contains('.') && matches!(kind, Kind::A | Kind::Aaaa);
    if single || zones.iter().any(ours) || !view.forward {
        return Outcome::Missing;
    }
    Outcome::Forward
}

/// The name as a whole in each network, then with its end taken as a network's name.
fn find<'a>(zones: &[&'a Zone], name: &str) -> Option<&'a Entry> {
    if let Some(entry) = zones.iter().find_map(|zone| zone.names.get(name)) {
        return Some(entry);
    }
    name.rmatch_indices('.').find_map(|(dot, _)| {
        let (first, network) = (&name[..dot], &name[dot + 1..]);
        zones.iter().filter(|zone| zone.suffix == network).find_map(|zone| zone.names.get(first))
    })
}

fn addresses_of(all: &[IpAddr], kind: Kind, ttl_s: u32) -> Outcome {
    let wanted = |ip: &&IpAddr| match kind {
        Kind::A => ip.is_ipv4(),
        Kind::Aaaa => ip.is_ipv6(),
        Kind::Ptr | Kind::Other => false,
    };
    Outcome::Addresses { addresses: all.iter().filter(wanted).copied().collect(), ttl_s }
}

fn pointer(zones: &[&Zone], view: &View, address: IpAddr, kind: Kind) -> Outcome {
    let named = zones.iter().find_map(|zone| Some((zone.pointers.get(&address)?, &zone.suffix)));
    if let Some((name, suffix)) = named {
        if kind != Kind::Ptr {
            return Outcome::Addresses { addresses: Vec::new(), ttl_s: TASK_TTL_S };
        }
        return Outcome::Name { name: format!("{name}.{suffix}."), ttl_s: TASK_TTL_S };
    }
    let ours = zones.iter().any(|zone| zone.subnets.iter().any(|net| net.contains(&address)));
    if ours || !view.forward { Outcome::Missing } else { Outcome::Forward }
}

/// The address in `4.3.2.1.in-addr.arpa` and its like for IPv6.
fn reverse(name: &str) -> Option<IpAddr> {
    if let Some(digits) = name.strip_suffix(".in-addr.arpa") {
        let mut octets = [0_u8; 4];
        let mut parts = digits.split('.').rev();
        for octet in &mut octets {
            *octet = parts.next()?.parse().ok()?;
        }
        return parts.next().is_none().then(|| octets.into());
    }
    let digits = name.strip_suffix(".ip6.arpa")?;
    let mut value = 0_u128;
    let mut count = 0;
    for digit in digits.split('.').rev() {
        count += 1;
        if digit.len() != 1 || count > 32 {
            return None;
        }
        value = value << 4 | u128::from(u8::from_str_radix(digit, 16).ok()?);
    }
    (count == 32).then(|| IpAddr::V6(value.into()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reverse_names_give_addresses() {
        assert_eq!(reverse("2.1.0.10.in-addr.arpa"), Some("10.0.1.2".parse().unwrap()));
        assert_eq!(reverse("1.0.10.in-addr.arpa"), None);
        assert_eq!(reverse("9.2.1.0.10.in-addr.arpa"), None);
        assert_eq!(reverse("999.1.0.10.in-addr.arpa"), None);
        let six = "2.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.1.0.0.0.0.0.d.f.ip6.arpa";
        assert_eq!(reverse(six), Some("fd00:1::2".parse().unwrap()));
        assert_eq!(reverse("2.0.ip6.arpa"), None);
        assert_eq!(reverse("web"), None);
    }
}
