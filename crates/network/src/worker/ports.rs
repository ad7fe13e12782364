//! A workload's port: a veth pair between a network's namespace and the workload's own, or a TAP
//! device in the network's namespace.

use std::net::IpAddr;

use ipnet::IpNet;
use shoal_netlink::error::NetlinkError;
use shoal_netlink::link::{LinkChange, LinkOptions};
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::route::Route;
use shoal_netlink::rule::Rule;

use crate::desired::PortKind;
use crate::layout::PortLayout;

/// Makes the port `name` complete; its alias comes last and says so. What is half made goes.
pub(crate) fn create(
    network: &NetnsHandle,
    sandbox: &NetnsHandle,
    name: &str,
    plan: &PortLayout,
    mtu: u32,
) -> Result<(), NetlinkError> {
    let mac = Some(plan.gateway_mac());
    let outer = LinkOptions { mtu: Some(mtu), mac, up: true, ..LinkOptions::default() };
    let inner = LinkOptions { mtu: Some(mtu), mac: Some(plan.mac), ..LinkOptions::default() };
    // A failed attempt of an earlier life may have left the interface without its other end's name.
    sandbox.delete_link(&plan.interface)?;
    network.create_veth(name, &outer, sandbox, &plan.interface, &inner)?;
    finish(network, name, plan, || match plan.kind {
        PortKind::Guest => configure_for_guest(sandbox, plan),
        PortKind::Interface | PortKind::Tap { .. } => configure(sandbox, plan),
    })
}

/// Makes the TAP device `name` complete, in the network's namespace.
pub(crate) fn create_tap(
    network: &NetnsHandle,
    name: &str,
    owner: u32,
    plan: &PortLayout,
    mtu: u32,
) -> Result<(), NetlinkError> {
    let options = LinkOptions { mtu: Some(mtu), up: true, ..LinkOptions::default() };
    network.create_tap(name, owner, &options)?;
    finish(network, name, plan, || Ok(()))
}

fn finish(
    network: &NetnsHandle,
    name: &str,
    plan: &PortLayout,
    configure: impl FnOnce() -> Result<(), NetlinkError>,
) -> Result<(), NetlinkError> {
    let finish = || {
        // What comes by this link comes from its addresses: no workload speaks in another's name.
        let strict = format!("net/ipv4/conf/{name}/rp_filter");
        answer_for_others_and(network, name, &[(&strict, "1")])?;
        // The machine's table of neighbours that were learnt is small and shared by all its
        // namespaces (gc_thresh3 in arp(7)); what is set does not count.
        for address in &plan.addresses {
            network.set_neighbour(name, address.addr(), plan.mac)?;
        }
        configure()?;
        let done = LinkChange { alias: Some(&plan.alias), ..LinkChange::default() };
        network.set_link(name, &done)
    };
    finish().inspect_err(|_| {
        // Ignored because: the failure that led here is the one to report.
        let _ = network.delete_link(name);
    })
}

/// Lets a link answer at once for every address that is reached by another link.
pub(crate) fn answer_for_others(handle: &NetnsHandle, link: &str) -> Result<(), NetlinkError> {
    answer_for_others_and(handle, link, &[])
}

fn answer_for_others_and(
    handle: &NetnsHandle,
    link: &str,
    further: &[(&str, &str)],
) -> Result<(), NetlinkError> {
    let proxy_arp = format!("net/ipv4/conf/{link}/proxy_arp");
    let proxy_delay = format!("net/ipv4/neigh/{link}/proxy_delay");
    let mut settings = vec![(proxy_arp.as_str(), "1"), (proxy_delay.as_str(), "0")];
    settings.extend(further);
    handle.set_sysctls(&settings)
}

/// Gives the interface inside its addresses and routes. All lead to the gateway, which routes
/// between the ports anyway: it is the only neighbour, however many workloads are spoken to.
fn configure(sandbox: &NetnsHandle, plan: &PortLayout) -> Result<(), NetlinkError> {
    for address in &plan.addresses {
        sandbox.add_address_only(&plan.interface, *address)?;
    }
    reach_gateway(sandbox, plan)?;
    if !plan.leads_out {
        return Ok(());
    }
    // With several ports, what leaves from this one's address goes this way.
    sandbox.replace_route(&way_out(plan).in_table(plan.table))?;
    for address in &plan.addresses {
        let rule = Rule {
            ipv6: false,
            priority: plan.table,
            mark: None,
            from: Some(IpNet::from(address.addr())),
            iif: None,
            table: plan.table,
        };
        sandbox.add_rule(&rule)?;
    }
    Ok(())
}

/// Makes the interface inside the way to the home network of a guest, which has the addresses.
fn configure_for_guest(sandbox: &NetnsHandle, plan: &PortLayout) -> Result<(), NetlinkError> {
    answer_for_others(sandbox, &plan.interface)?;
    reach_gateway(sandbox, plan)
}

/// Sets the interface up, the gateway as its neighbour, and the routes by it.
fn reach_gateway(sandbox: &NetnsHandle, plan: &PortLayout) -> Result<(), NetlinkError> {
    sandbox.set_up(&plan.interface)?;
    sandbox.set_neighbour(&plan.interface, IpAddr::V4(plan.gateway), plan.gateway_mac())?;
    for address in &plan.addresses {
        sandbox.replace_route(&plan.by_gateway(address.trunc()))?;
    }
    if plan.default_route { sandbox.replace_route(&way_out(plan)) } else { Ok(()) }
}

fn way_out(plan: &PortLayout) -> Route {
    plan.by_gateway(Route::default_of(IpAddr::V4(plan.gateway)))
}
