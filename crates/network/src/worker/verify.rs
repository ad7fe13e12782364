//! The periodic comparison of kernel and desired state.

use super::{DRIFT_KEPT, Pass, Worker, doors, tables};
use crate::error::NetworkError;
use crate::layout::diff::Diff;
use crate::status::Drift;

impl Worker {
    /// Looks for what somebody else changed, repairs it, and says what it was.
    ///
    /// Returns nothing beside the drift if there was nothing to do.
    pub(crate) fn verify(&mut self) -> Result<(Vec<Drift>, Option<Pass>), NetworkError> {
        if self.closed {
            return Err(NetworkError::Closed);
        }
        if self.desired.is_none() {
            return Ok((Vec::new(), None));
        }
        let mut found = Vec::new();
        self.host_links = None;
        let links = self.host_links()?.clone();
        for (id, state) in &mut self.networks {
            let Some(layout) = &state.layout else { continue };
            let observed = state.namespace.observe(links.get(id))?;
            let mut lines = Diff::between(layout, &observed).describe();
            if tables::is_changed(state)? {
                lines.push("changed nftables rules".to_owned());
                state.rules = None;
            }
            if !lines.is_empty() {
                found.push((Some(id.clone()), state.status.name.clone(), lines));
            }
        }
        let missing = self.missing_tables()?;
        if !missing.is_empty() {
            self.host_rules = None;
            self.senders = None;
            found.push((None, "host".to_owned(), missing));
        }
        for (sandbox, line) in self.guest_drift()? {
            found.push((None, format!("guest '{sandbox}'"), vec![line]));
        }
        if found.is_empty() && self.applied.is_complete() {
            return Ok((Vec::new(), None));
        }
        self.forwarding = false;
        // A port that somebody else has is only tried again: the rest is as it should be.
        let thorough = !found.is_empty() || !self.applied.is_but_for_ports();
        let Some(desired) = &self.desired else { return Ok((Vec::new(), None)) };
        let (effective, conflicts) = self.effective(desired);
        let pass = self.run(&effective, conflicts, thorough)?;
        let done = &pass.done;
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
        Ok((drift, Some(pass)))
    }

    /// Tables of this daemon that somebody has taken off the host.
    fn missing_tables(&self) -> Result<Vec<String>, NetworkError> {
        let instance = &self.config.instance;
        let mut wanted = Vec::new();
        wanted.extend(self.host_rules.as_ref().map(|_| tables::host_table(instance)));
        wanted.extend(self.senders.as_ref().map(|_| doors::guard_table(instance)));
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        tables::missing_on_host(&self.host, &wanted)
    }
}
