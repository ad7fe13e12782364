//! What the network needs of this host, tried; and what on this host gets in its way.

use std::path::PathBuf;

use shoal_model::check::{Check, CheckResult, Need, Verdict};
use shoal_model::fault::chain;
use shoal_netlink::error::NetlinkError;
use shoal_netlink::netns::NetnsHandle;

use crate::node_network::NetworkConfig;

/// Hook number of "what passes through" in nftables.
const FORWARD: u32 = 2;

/// Every check of this crate and of netlink below it.
#[must_use]
pub fn all(config: &NetworkConfig) -> Vec<Box<dyn Check>> {
    let mut checks = shoal_netlink::checks::all();
    let host = config.host_netns.clone();
    checks.push(Box::new(HostCheck {
        id: "SH-DOC-050",
        name: "ip forwarding",
        remedy: "let the daemon write 'net.ipv4.ip_forward' (no read-only /proc/sys)",
        need: Need::Containers,
        otherwise: Verdict::Fail,
        host: host.clone(),
        attempt: forwarding,
    }));
    checks.push(Box::new(HostCheck {
        id: "SH-DOC-051",
        name: "forward filter",
        remedy: "accept forwarding from and to interfaces whose names begin with 'sh' in the \
                 firewall, or set its forward policy to accept",
        need: Need::Nothing,
        otherwise: Verdict::Warn,
        host,
        attempt: forward_filter,
    }));
    checks
}

/// A check in the host's own namespace.
struct HostCheck {
    id: &'static str,
    name: &'static str,
    remedy: &'static str,
    need: Need,
    otherwise: Verdict,
    host: Option<PathBuf>,
    attempt: fn(&NetnsHandle) -> Result<Option<String>, NetlinkError>,
}

impl Check for HostCheck {
    fn run(&self) -> CheckResult {
        let handle = match &self.host {
            Some(path) => NetnsHandle::open(path),
            None => NetnsHandle::current(),
        };
        let found = match handle.and_then(|host| (self.attempt)(&host)) {
            Ok(found) => found,
            Err(error) => Some(chain(&error)),
        };
        let bad = found.is_some();
        CheckResult {
            id: self.id.to_owned(),
            name: self.name.to_owned(),
            verdict: if bad { self.otherwise } else { Verdict::Ok },
            detail: found.unwrap_or_default(),
            remedy: if bad { self.remedy.to_owned() } else { String::new() },
            needed_for: self.need,
        }
    }
}

/// Writes the value that is there already: it tells whether the daemon may.
fn forwarding(host: &NetnsHandle) -> Result<Option<String>, NetlinkError> {
    let path = "/proc/sys/net/ipv4/ip_forward";
    let written = host.run(|| std::fs::read(path).and_then(|value| std::fs::write(path, value)))?;
    Ok(written.err().map(|error| format!("'{path}' is not writable: {error}")))
}

/// Looks for chains that drop what is forwarded unless a rule says otherwise.
fn forward_filter(host: &NetnsHandle) -> Result<Option<String>, NetlinkError> {
    let mut found = Vec::new();
    for table in host.nft_tables()? {
        for chain in host.nft_chains(&table)? {
            let forward = chain.base.is_some_and(|(hook, ..)| hook == FORWARD);
            if forward && chain.policy_drop {
                let family = table.family.as_str();
                found.push(format!("'{family} {} {}'", table.name, chain.name));
            }
        }
    }
    let list = found.join(", ");
    Ok((!found.is_empty()).then(|| format!("forwarded packets are dropped by default in {list}")))
}
