//! Checks of what Shoal needs from the kernel's network. Each tries the thing itself in a scratch
//! namespace, which vanishes with everything in it: neither versions nor module lists are believed.

use std::net::{IpAddr, Ipv4Addr, UdpSocket};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, process};

use shoal_model::check::{Check, CheckResult, Need, Verdict};
use shoal_model::fault::chain;
use shoal_model::net::{Mac, Vni};

use crate::conntrack::Filter;
use crate::error::{Cause, NetlinkError};
use crate::link::{LinkOptions, VxlanSpec};
use crate::netns::{self, NetnsHandle};
use crate::nft::{
    Base, Batch, CtTimeout, Element, Family, Field, FieldType, Hook, Load, Rule, Set, Table,
    priority,
};
use crate::sockdiag::Transport;

/// A namespace for one check.
struct Scratch {
    path: PathBuf,
    ns: NetnsHandle,
}

impl Scratch {
    fn new() -> Result<Self, NetlinkError> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("shoal-check-{}-{count}", process::id()));
        netns::create(&path)?;
        match NetnsHandle::open(&path) {
            Ok(ns) => Ok(Self { path, ns }),
            Err(error) => {
                // Ignored because: the failure to open it is the one to report.
                let _ = netns::delete(&path);
                Err(error)
            }
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Ignored because: the check's verdict must not depend on its clean-up; what stays is a
        // namespace that nobody uses, held by a file in the temporary directory.
        let _ = netns::delete(&self.path);
    }
}

/// One thing to try.
struct Trial {
    id: &'static str,
    name: &'static str,
    remedy: &'static str,
    need: Need,
    /// The verdict if it does not work.
    otherwise: Verdict,
    attempt: fn(&NetnsHandle) -> Result<(), NetlinkError>,
}

impl Check for Trial {
    fn label(&self) -> String {
        self.name.to_owned()
    }

    fn run(&self) -> CheckResult {
        let tried = Scratch::new().and_then(|scratch| (self.attempt)(&scratch.ns));
        let (verdict, detail, remedy) = match &tried {
            Ok(()) => (Verdict::Ok, String::new(), String::new()),
            Err(error) => (self.otherwise, chain(error), self.remedy.to_owned()),
        };
        CheckResult {
            id: self.id.to_owned(),
            name: self.name.to_owned(),
            verdict,
            detail,
            remedy,
            needed_for: self.need,
        }
    }
}

/// All checks of this crate.
#[must_use]
pub fn all() -> Vec<Box<dyn Check>> {
    let need = |id, name, remedy, need, attempt| {
        Box::new(Trial { id, name, remedy, need, otherwise: Verdict::Fail, attempt }) as Box<_>
    };
    let wish = |id, name, remedy, attempt| {
        let need = Need::Nothing;
        Box::new(Trial { id, name, remedy, need, otherwise: Verdict::Warn, attempt }) as Box<_>
    };
    let root = "run the daemon as root, with CAP_SYS_ADMIN and CAP_NET_ADMIN";
    let nft = "use a kernel with nftables and NAT (modules nf_tables, nft_nat, nft_numgen)";
    vec![
        need("SH-DOC-040", "network namespace", root, Need::Containers, |_| Ok(())),
        need("SH-DOC-041", "veth", "load the kernel module 'veth'", Need::Containers, veth),
        need("SH-DOC-042", "vxlan device", "load the kernel module 'vxlan'", Need::Overlay, vxlan),
        need("SH-DOC-043", "nftables NAT", nft, Need::Containers, nat),
        need("SH-DOC-044", "nftables balancing", nft, Need::Overlay, balance),
        wish(
            "SH-DOC-045",
            "short timeouts for unanswered connections",
            "use a kernel with CONFIG_NF_CONNTRACK_TIMEOUT, or accept slower fail-over",
            ct_timeout,
        ),
        need(
            "SH-DOC-046",
            "nftables egress hook",
            "use Linux 5.16 or later",
            Need::Overlay,
            egress,
        ),
        need(
            "SH-DOC-047",
            "connection tracking over netlink",
            "load the kernel module 'nf_conntrack_netlink'",
            Need::Overlay,
            conntrack,
        ),
        wish(
            "SH-DOC-048",
            "ending sockets of lost connections",
            "use a kernel with CONFIG_INET_DIAG_DESTROY, or accept slower fail-over",
            sock_destroy,
        ),
        wish("SH-DOC-049", "tap device", "load the kernel module 'tun'", tap),
    ]
}

fn up() -> LinkOptions {
    LinkOptions { up: true, ..LinkOptions::default() }
}

fn veth(ns: &NetnsHandle) -> Result<(), NetlinkError> {
    ns.create_veth("a", &up(), ns, "b", &up())
}

fn tap(ns: &NetnsHandle) -> Result<(), NetlinkError> {
    ns.create_tap("t", 0, &up())?;
    let _attached = ns.attach_tap("t")?;
    ns.delete_link("t")
}

fn vxlan(ns: &NetnsHandle) -> Result<(), NetlinkError> {
    let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let spec = VxlanSpec { vni: Vni::FIRST, port: 4789, local, underlay: None };
    ns.create_vxlan("vx", &spec, &up(), ns)
}

fn table() -> (Table, Batch) {
    let table = Table::new(Family::Inet, "check");
    let mut batch = Batch::new();
    batch.replace_table(&table);
    (table, batch)
}

fn nat(ns: &NetnsHandle) -> Result<(), NetlinkError> {
    let (table, mut batch) = table();
    let to = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    for (name, base) in [("pre", Base::dstnat()), ("out", Base::dstnat_output())] {
        batch.add_base_chain(&table, name, &base);
        let rule = Rule::new("").ipv4().l4proto(6).daddr_local().dport(80).dnat(to, Some(81));
        batch.add_rule(&table, name, &rule);
    }
    batch.add_base_chain(&table, "post", &Base::srcnat());
    batch.add_rule(&table, "post", &Rule::new("").oifname("vx").masquerade());
    ns.commit(batch)
}

fn balance(ns: &NetnsHandle) -> Result<(), NetlinkError> {
    let (table, mut batch) = table();
    let map = Set::map("b", [FieldType::Ip, FieldType::Number], [FieldType::Ip, FieldType::Port]);
    let ip = Field::Ip(Ipv4Addr::new(10, 0, 0, 2));
    let entry = Element::entry([ip.clone(), Field::Number(0)], [ip, Field::Port(80)]);
    batch.add_set(&table, &map);
    batch.add_elements(&table, &map, &[entry]);
    batch.add_base_chain(&table, "pre", &Base::dstnat());
    let key = [Load::IpDaddr, Load::random(16)];
    batch.add_rule(&table, "pre", &Rule::new("").ipv4().l4proto(6).dnat_map(&key, "b", true));
    ns.commit(batch)
}

fn ct_timeout(ns: &NetnsHandle) -> Result<(), NetlinkError> {
    let (table, mut batch) = table();
    batch.add_ct_timeout(&table, &CtTimeout::syn_sent("fast", false, 1));
    let base = Base::filter(Hook::Prerouting, priority::MANGLE);
    batch.add_base_chain(&table, "pre", &base);
    batch.add_rule(&table, "pre", &Rule::new("").l4proto(6).ct_timeout("fast"));
    ns.commit(batch)
}

fn egress(ns: &NetnsHandle) -> Result<(), NetlinkError> {
    veth(ns)?;
    let table = Table::new(Family::Netdev, "check");
    let map = Set::map("m", [FieldType::Number], [FieldType::Mac]);
    let mut batch = Batch::new();
    batch.replace_table(&table);
    batch.add_set(&table, &map);
    batch.add_base_chain(&table, "out", &Base::egress("a"));
    let rule = Rule::new("").ether_daddr(Mac([2; 6])).ether_daddr_map(&[Load::Mark], "m");
    batch.add_rule(&table, "out", &rule);
    ns.commit(batch)
}

fn io(step: &'static str, error: std::io::Error) -> NetlinkError {
    Cause::system(step, error).of("try in", "a scratch namespace")
}

fn conntrack(ns: &NetnsHandle) -> Result<(), NetlinkError> {
    let (table, mut batch) = table();
    batch.add_base_chain(&table, "out", &Base::filter(Hook::Output, priority::FILTER));
    batch.add_rule(&table, "out", &Rule::new("").ct_state(crate::nft::ct_state::NEW).accept());
    ns.commit(batch)?;
    let sent = ns.run(|| UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", "127.0.0.1:9"))?;
    sent.map_err(|e| io("send a packet", e))?;
    let deleted = ns.delete_flows(&Filter { protocol: Some(17), ..Filter::default() })?;
    if deleted.is_empty() {
        return Err(Cause::Missing("flow after a packet").of("find", "a tracked flow"));
    }
    Ok(())
}

fn sock_destroy(ns: &NetnsHandle) -> Result<(), NetlinkError> {
    let bound = ns.run(|| UdpSocket::bind("127.0.0.1:0"))?;
    let _held = bound.map_err(|e| io("bind a socket", e))?;
    let destroyed = ns.destroy_sockets(Transport::Udp, |_| true)?;
    if destroyed.is_empty() {
        return Err(Cause::Missing("socket").of("destroy", "a socket"));
    }
    Ok(())
}
