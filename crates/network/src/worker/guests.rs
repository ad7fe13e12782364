//! Namespaces of guests on several networks: device, routes and translation, from their plans.

use shoal_model::fault::report;
use shoal_netlink::error::NetlinkError;
use shoal_netlink::link::LinkOptions;
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::nft::{Base, Batch, Family, Hook, Rule, Table, ct_state, priority};

use super::{Worker, ports};
use crate::desired::{DesiredNetwork, SandboxId};
use crate::error::NetworkError;
use crate::layout::guest::{GuestLayout, TAP};
use crate::status::Applied;

/// The translation's table.
const TABLE: &str = "shoal_guest";
/// Settings that some kernels do not have: a segment out of the window must not escape translation.
const LIBERAL: &str = "net/netfilter/nf_conntrack_tcp_be_liberal";

impl Worker {
    /// Brings every guest's namespace to its plan; comes after the ports.
    pub(super) fn apply_guests(
        &mut self,
        want: &DesiredNetwork,
        thorough: bool,
        done: &mut Applied,
    ) {
        self.guests.retain(|id, _| self.sandboxes.contains_key(id));
        for (id, spec) in &want.sandboxes {
            let Some(plan) = GuestLayout::of(id, spec, want, &self.config.instance) else {
                continue;
            };
            let Some(handle) = self.sandboxes.get(id) else { continue };
            let known = self.guests.get(id) == Some(&plan);
            // Without its ports there is nothing to route between.
            if (known && !thorough) || done.sandboxes.contains_key(id) {
                continue;
            }
            match apply(handle, &plan) {
                Ok(()) => {
                    self.guests.insert(id.clone(), plan);
                }
                Err(source) => {
                    self.guests.remove(id);
                    done.sandboxes.insert(id.clone(), report(&failed(id, source)));
                }
            }
        }
    }

    /// Whether somebody took away what a guest needs.
    pub(super) fn guest_drift(&self) -> Result<Vec<(SandboxId, String)>, NetworkError> {
        let mut found = Vec::new();
        for (id, plan) in &self.guests {
            let Some(handle) = self.sandboxes.get(id) else { continue };
            let look = || Ok((handle.link(TAP)?, handle.nft_tables()?, handle.routes()?));
            let (link, tables, routes) = look().map_err(|source| failed(id, source))?;
            if link.is_none_or(|link| link.alias != plan.alias || !link.up) {
                found.push((id.clone(), format!("missing link {TAP}")));
            }
            if !tables.contains(&table()) {
                found.push((id.clone(), "missing nftables table".to_owned()));
            }
            if !routes.contains(&plan.route()) {
                found.push((id.clone(), format!("missing route {}", plan.route().destination)));
            }
        }
        Ok(found)
    }
}

fn failed(id: &SandboxId, source: NetlinkError) -> NetworkError {
    NetworkError::Guest { sandbox: id.to_string(), source: source.into() }
}

fn table() -> Table {
    Table::new(Family::Ip, TABLE)
}

fn apply(handle: &NetnsHandle, plan: &GuestLayout) -> Result<(), NetlinkError> {
    handle.set_sysctls(&[("net/ipv4/ip_forward", "1")])?;
    if handle.link(TAP)?.is_none_or(|link| link.alias != plan.alias) {
        handle.delete_link(TAP)?;
        let options = LinkOptions {
            mtu: Some(plan.mtu),
            up: true,
            alias: Some(plan.alias.clone()),
            mac: None,
        };
        handle.create_tap(TAP, plan.owner, &options)?;
    }
    handle.set_up(TAP)?;
    ports::answer_for_others(handle, TAP)?;
    handle.replace_route(&plan.route())?;
    let have = handle.rules()?;
    for rule in plan.rules().filter(|rule| !have.contains(rule)) {
        handle.add_rule(&rule)?;
    }
    handle.commit(translation(plan))?;
    // After the table, which brings connection tracking along where that is a module.
    // Ignored because: a kernel without the feature has no such setting, and needs none.
    let _ = handle.set_sysctls(&[(LIBERAL, "1")]);
    Ok(())
}

fn translation(plan: &GuestLayout) -> Batch {
    let (mut batch, table) = (Batch::new(), table());
    batch.replace_table(&table);
    batch.add_base_chain(&table, "marks", &Base::filter(Hook::Prerouting, priority::MANGLE));
    batch.add_base_chain(&table, "arriving", &Base::dstnat());
    batch.add_base_chain(&table, "leaving", &Base::srcnat());
    for other in &plan.others {
        let rule = Rule::new("remember the network that a connection came from")
            .iifname(&other.interface)
            .ct_state(ct_state::NEW)
            .set_ct_mark(other.table);
        batch.add_rule(&table, "marks", &rule);
        let rule = Rule::new("to the guest").iifname(&other.interface);
        let rule = rule.daddr(other.address.into()).dnat(plan.target(), None);
        batch.add_rule(&table, "arriving", &rule);
        let rule = Rule::new("from the guest").oifname(&other.interface);
        let rule = rule.saddr(plan.target()).snat(other.address.into());
        batch.add_rule(&table, "leaving", &rule);
    }
    let rule = Rule::new("answers go back the way of the first packet");
    batch.add_rule(&table, "marks", &rule.iifname(TAP).ct_reply().mark_from_ct());
    batch
}
