//! The host's own network: forwarding, connection tracking, other people's firewalls, addresses.

use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use ipnet::{IpNet, Ipv4Net};
use shoal_model::check::Need;
use shoal_model::fault::chain;
use shoal_netlink::netns::NetnsHandle;

use super::{Finding, HostCheck, HostConfig, read, read_number};

/// Tracked connections above this percentage of the maximum: new ones are about to be dropped.
const FULL_CONNTRACK: u64 = 80;
/// The hook for packets that pass through (`NF_INET_FORWARD`).
const FORWARD_HOOK: u32 = 2;
/// Where the legacy tool is, if it is installed.
const LEGACY_TOOLS: [&str; 2] = ["/usr/sbin/iptables-legacy", "/sbin/iptables-legacy"];
/// Names of Shoal's own tables and links.
const OWN_TABLE: &str = "shoal_";
const OWN_LINK: &str = "sh";

pub(super) fn checks(config: &HostConfig) -> Vec<HostCheck> {
    let pools = config.pools.clone();
    vec![
        HostCheck::new("SH-DOC-130", "IP forwarding", Need::Containers, forwarding),
        HostCheck::new("SH-DOC-131", "connection tracking", Need::Nothing, conntrack),
        HostCheck::new("SH-DOC-132", "other firewalls", Need::Nothing, firewalls),
        HostCheck::new("SH-DOC-133", "bridged frames in firewalls", Need::Nothing, bridge_nf),
        HostCheck::new("SH-DOC-134", "address ranges", Need::Nothing, move || overlaps(&pools)),
        HostCheck::new("SH-DOC-135", "name servers", Need::Nothing, name_servers),
    ]
}

fn forwarding() -> Finding {
    let path = "/proc/sys/net/ipv4/ip_forward";
    // Opened for writing, but not written: a check changes nothing.
    match OpenOptions::new().write(true).open(path) {
        Ok(_) if read(path).is_ok_and(|value| value == "1") => Finding::ok("on"),
        Ok(_) => Finding::ok("off now; the daemon turns it on"),
        Err(_) if read(path).is_ok_and(|value| value == "1") => {
            Finding::ok("on, and cannot change")
        }
        Err(error) => Finding::fail(
            format!("it is off, and '{path}' cannot be written: {error}"),
            "run 'sysctl -w net.ipv4.ip_forward=1', or make /proc/sys writable for the daemon",
        ),
    }
}

fn conntrack() -> Finding {
    let number = |name: &str| read_number(&format!("/proc/sys/net/netfilter/{name}"));
    match (number("nf_conntrack_count"), number("nf_conntrack_max")) {
        (Some(count), Some(most)) => judge_conntrack(count, most),
        _ => Finding::skipped("not in use yet"),
    }
}

fn judge_conntrack(count: u64, most: u64) -> Finding {
    let text = format!("{count} of at most {most} connections");
    if most > 0 && count.saturating_mul(100) / most >= FULL_CONNTRACK {
        let remedy = "raise 'net.netfilter.nf_conntrack_max': new connections are dropped when it \
                      is reached";
        return Finding::warn(text, remedy);
    }
    Finding::ok(text)
}

fn firewalls() -> Finding {
    let chains = match dropping_chains() {
        Ok(chains) => chains,
        Err(error) => return Finding::skipped(format!("list the firewall's tables: {error}")),
    };
    let legacy = legacy_policy();
    let mut seen = chains;
    if legacy == Some(true) {
        seen.push("table 'filter' of iptables-legacy, chain 'FORWARD'".into());
    }
    if !seen.is_empty() {
        return Finding::warn(
            format!("packets that pass through are dropped by {}", seen.join(", ")),
            "let Shoal's links pass there ('iptables -I FORWARD -i sh+ -j ACCEPT' and the same \
             with '-o'), or published ports and ways out of containers do not work",
        );
    }
    if legacy.is_none() && legacy_in_use() {
        let text = "iptables-legacy has a table 'filter' whose policy cannot be seen";
        return Finding::warn(text, "check that its chain 'FORWARD' lets Shoal's links pass");
    }
    Finding::ok("none drops packets that pass through")
}

/// Base chains of others that drop what they do not know, at the hook for passing packets.
fn dropping_chains() -> Result<Vec<String>, String> {
    let host = NetnsHandle::current().map_err(|error| chain(&error))?;
    let mut dropping = Vec::new();
    for table in host.nft_tables().map_err(|error| chain(&error))? {
        if table.name.starts_with(OWN_TABLE) {
            continue;
        }
        for found in host.nft_chains(&table).map_err(|error| chain(&error))? {
            let passing = found
                .base
                .as_ref()
                .is_some_and(|(hook, _, device)| *hook == FORWARD_HOOK && device.is_none());
            if passing && found.policy_drop {
                dropping.push(format!("table '{}', chain '{}'", table.name, found.name));
            }
        }
    }
    Ok(dropping)
}

/// Whether the old interface has a filter table at all.
fn legacy_in_use() -> bool {
    read("/proc/net/ip_tables_names").is_ok_and(|names| names.lines().any(|name| name == "filter"))
}

/// Whether the old interface drops what passes through; `None` if that cannot be found out.
fn legacy_policy() -> Option<bool> {
    if !legacy_in_use() {
        return Some(false);
    }
    let tool = LEGACY_TOOLS.iter().find(|tool| Path::new(tool).exists())?;
    let output = Command::new(tool).args(["-w", "1", "-S", "FORWARD"]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    output.status.success().then(|| text.lines().any(|line| line == "-P FORWARD DROP"))
}

fn bridge_nf() -> Finding {
    match read("/proc/sys/net/bridge/bridge-nf-call-iptables").as_deref() {
        Ok("1") => Finding::ok("on; Shoal's networks have no bridges, so it does not matter"),
        Ok(_) => Finding::ok("off"),
        Err(_) => Finding::ok("not in use"),
    }
}

fn overlaps(pools: &[IpNet]) -> Finding {
    let routes = parse_routes(&read("/proc/net/route").unwrap_or_default());
    let mut seen: Vec<String> = Vec::new();
    for (link, route) in routes {
        let clash = |pool: &&IpNet| match pool {
            IpNet::V4(pool) => pool.contains(&route) || route.contains(pool),
            IpNet::V6(_) => false,
        };
        if let Some(pool) = pools.iter().find(clash) {
            seen.push(format!("{route} on '{link}' overlaps with the pool {pool}"));
        }
    }
    if seen.is_empty() {
        return Finding::ok("no route of this host lies in the pools of overlay networks");
    }
    seen.dedup();
    Finding::warn(
        seen.join(", "),
        "give networks other subnets ('swarm init --default-addr-pool', 'network create \
         --subnet'), or tasks on them may not reach those hosts",
    )
}

/// Routes of the main table but the default one and our own: link and destination.
fn parse_routes(text: &str) -> Vec<(String, Ipv4Net)> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let link = (*words.first()?).to_owned();
        let address = |word: Option<&&str>| {
            let number = u32::from_str_radix(word?, 16).ok()?;
            Some(Ipv4Addr::from(number.swap_bytes()))
        };
        let (to, mask) = (address(words.get(1))?, address(words.get(7))?);
        let prefix = ipnet::ip_mask_to_prefix(IpAddr::V4(mask)).ok()?;
        let own = link.starts_with(OWN_LINK) && link.len() > 6;
        (prefix > 0 && !own).then_some((link, Ipv4Net::new(to, prefix).ok()?))
    };
    text.lines().skip(1).filter_map(parse).collect()
}

fn name_servers() -> Finding {
    let servers = parse_servers(&read("/etc/resolv.conf").unwrap_or_default());
    if servers.is_empty() {
        return Finding::warn(
            "'/etc/resolv.conf' names none",
            "name one, or tasks cannot look up outside names and images cannot be pulled by name",
        );
    }
    Finding::ok(servers.join(", "))
}

fn parse_servers(text: &str) -> Vec<String> {
    let server = |line: &str| {
        let address = line.trim().strip_prefix("nameserver")?.trim().to_owned();
        address.parse::<IpAddr>().is_ok().then_some(address)
    };
    text.lines().filter_map(server).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use shoal_model::check::Verdict;

    use super::*;

    #[test]
    fn routes_are_read() {
        let text = "Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT\n\
                    eth0 00000000 0102000A 0003 0 0 0 00000000 0 0 0\n\
                    eth0 0002000A 00000000 0001 0 0 0 00FFFFFF 0 0 0\n\
                    sh1a2bh0 000080A9 00000000 0001 0 0 0 FEFFFFFF 0 0 0\n";
        assert_eq!(parse_routes(text), [("eth0".into(), "10.0.2.0/24".parse().unwrap())]);
    }

    #[test]
    fn a_full_table_is_a_warning() {
        assert_eq!(judge_conntrack(10, 100).verdict, Verdict::Ok);
        assert_eq!(judge_conntrack(80, 100).verdict, Verdict::Warn);
        assert_eq!(judge_conntrack(1, 0).verdict, Verdict::Ok);
    }

    #[test]
    fn name_servers_are_read() {
        let text = "# none\nnameserver 10.0.0.1\nnameserver ::1\nnameserver x\n";
        assert_eq!(parse_servers(text), ["10.0.0.1", "::1"]);
    }
}
