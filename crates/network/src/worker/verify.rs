//! The periodic comparison of kernel and desired state.

use super::{DRIFT_KEPT, Worker, tables};
use crate::error::NetworkError;
use crate::plan::diff::Diff;
use crate::status::Drift;

impl Worker {
    /// Looks for what somebody else changed, repairs it, and says what it was.
    pub(crate) fn verify(&mut self) -> Result<Vec<Drift>, NetworkError> {
        if self.closed {
            return Err(NetworkError::Closed);
        }
        let Some(desired) = self.desired.clone() else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        let links = self.host.host_links()?;
        for (id, state) in &mut self.networks {
            let Some(plan) = &state.plan else { continue };
            let observed = state.namespace.observe(links.get(id))?;
            let mut lines = Diff::between(plan, &observed).describe();
            if tables::is_changed(state)? {
                lines.push("changed nftables rules".to_owned());
                state.rules = None;
            }
            if !lines.is_empty() {
                found.push((Some(id.clone()), state.status.name.clone(), lines));
            }
        }
        if self.host_rules.is_some() && !tables::has_host(&self.host, &self.config.instance)? {
            self.host_rules = None;
            found.push((None, "host".to_owned(), vec!["missing nftables table".to_owned()]));
        }
        for (sandbox, line) in self.guest_drift()? {
            found.push((None, format!("guest '{sandbox}'"), vec![line]));
        }
        let incomplete = !self.applied.is_complete();
        if found.is_empty() && !incomplete {
            return Ok(Vec::new());
        }
        self.forwarding = false;
        let effective = self.without_lost(&desired);
        let done = self.run(&effective, true)?;
        let mut drift = Vec::new();
        for (network, place, lines) in found {
            let failed = match &network {
                Some(id) => done.networks.contains_key(id),
                None => done.host.is_some() || !done.sandboxes.is_empty(),
            };
            tracing::warn!(%place, found = ?lines, repaired = !failed, "kernel state had drifted");
            drift.push(Drift { place, found: lines, repaired: !failed });
        }
        self.drift.extend(drift.iter().cloned());
        while self.drift.len() > DRIFT_KEPT {
            self.drift.pop_front();
        }
        Ok(drift)
    }
}
