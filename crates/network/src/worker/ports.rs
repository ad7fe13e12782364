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
use crate::plan::PortPlan;

/// Makes the port `name` complete; its alias comes last and says so. What is half made goes.
pub(crate) fn create(
    network: &NetnsHandle,
    sandbox: &NetnsHandle,
    name: &str,
    plan: &PortPlan,
    mtu: u32,
) -> Result<(), NetlinkError> {
    let outer = LinkOptions { mtu: Some(mtu), up: true, ..LinkOptions::default() };
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
    plan: &PortPlan,
    mtu: u32,
) -> Result<(), NetlinkError> {
    let options = LinkOptions { mtu: Some(mtu), up: true, ..LinkOptions::default() };
    network.create_tap(name, owner, &options)?;
    finish(network, name, plan, || Ok(()))
}

fn finish(
    network: &NetnsHandle,
    name: &str,
    plan: &PortPlan,
    configure: impl FnOnce() -> Result<(), NetlinkError>,
) -> Result<(), NetlinkError> {
    let finish = || {
        answer_for_others(network, name)?;
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
    let proxy_arp = format!("net/ipv4/conf/{link}/proxy_arp");
    let proxy_delay = format!("net/ipv4/neigh/{link}/proxy_delay");
    handle.set_sysctls(&[(&proxy_arp, "1"), (&proxy_delay, "0")])
}

/// Gives the interface inside its addresses and routes.
fn configure(sandbox: &NetnsHandle, plan: &PortPlan) -> Result<(), NetlinkError> {
    for address in &plan.addresses {
        sandbox.add_address(&plan.interface, *address)?;
    }
    sandbox.set_up(&plan.interface)?;
    let Some(gateway) = plan.gateway.map(IpAddr::V4) else { return Ok(()) };
    let way_out = Route::via(Route::default_of(gateway), gateway, &plan.interface);
    if plan.default_route {
        sandbox.replace_route(&way_out)?;
    }
    // With several ports, what leaves from this one's address goes this way.
    sandbox.replace_route(&way_out.in_table(plan.table))?;
    for address in &plan.addresses {
        let subnet = Route::dev(address.trunc(), &plan.interface).in_table(plan.table);
        sandbox.replace_route(&subnet)?;
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
fn configure_for_guest(sandbox: &NetnsHandle, plan: &PortPlan) -> Result<(), NetlinkError> {
    sandbox.set_up(&plan.interface)?;
    answer_for_others(sandbox, &plan.interface)?;
    for address in &plan.addresses {
        sandbox.replace_route(&Route::dev(address.trunc(), &plan.interface))?;
    }
    match plan.gateway.map(IpAddr::V4) {
        Some(gateway) if plan.default_route => {
            sandbox.replace_route(&Route::via(Route::default_of(gateway), gateway, &plan.interface))
        }
        _ => Ok(()),
    }
}
