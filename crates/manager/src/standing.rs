//! How the group of managers looks from here: who leads, who is missing, and in which words.

use std::sync::Arc;

use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::report;
use shoal_model::object::ManagerStatus;
use shoal_model::time::Timestamp;
use shoal_plan::level;
use shoal_store::{Lead, Member, StoreError};

use crate::error::ControlError;
use crate::join::too_old;
use crate::shared::Shared;

/// For so long after the last leader was lost the next one is awaited before anybody is told that
/// there is none.
const ELECTION_PATIENCE_S: u64 = 1;

impl Shared {
    /// The state, with who leads and who is reached as this manager sees it.
    pub(crate) fn seen(&self) -> Arc<ClusterState> {
        let state = self.state();
        let lead = self.store.lead().borrow().clone();
        let broken = self.store.health().is_err();
        let own = self.store.raft_id();
        let (leader, missing) = match &lead {
            Lead::Leading { .. } if !broken => (Some(own), Vec::new()),
            Lead::Following { leader, .. } => (Some(leader.raft_id), Vec::new()),
            Lead::Nobody { missing, .. } => (None, missing.iter().map(|m| m.raft_id).collect()),
            Lead::Leading { .. } | Lead::Closed => (None, Vec::new()),
        };
        let status = |known: &ManagerStatus| {
            let id = known.raft_id;
            let lost = missing.contains(&id) || (broken && id == own);
            let leads = leader == Some(id);
            let reachable = leads || (known.reachable && !lost);
            ManagerStatus { leader: leads, reachable, ..known.clone() }
        };
        let differs = |m: &ManagerStatus| *m != status(m);
        if !state.nodes.values().any(|node| node.manager.as_ref().is_some_and(differs)) {
            return state;
        }
        let mut seen = (*state).clone();
        for node in Arc::make_mut(&mut seen.nodes).values_mut() {
            if let Some(next) = node.manager.as_ref().filter(|m| differs(m)).map(status) {
                Arc::make_mut(node).manager = Some(next);
            }
        }
        Arc::new(seen)
    }

    /// What is wrong with the managers, a line each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut found: Vec<String> =
            self.store.health().err().iter().map(|error| report(error)).collect();
        let sealed = self.store.keyring().trouble();
        found.extend(Some(sealed).filter(|text| !text.is_empty()));
        let group = self.store.group().borrow().clone();
        let lead = self.store.lead().borrow().clone();
        if let Lead::Nobody { since, missing } = &lead {
            // One that is not wanted any more will never see a majority.
            if let Some(said) = self.store.stranger() {
                found.push(said);
            } else if self.store.health().is_ok() && group.voters.len() > 1 {
                found.push(report(&self.no_majority(Some(*since), missing)));
            }
        }
        let state = self.state();
        found.extend(level::too_old(&state).map(|node| {
            let name = state.node_name(&node.id);
            format!("node {name}: {}", report(&too_old(&state, &node.description)))
        }));
        let votes = group.voters.iter().any(|m| m.raft_id == self.store.raft_id());
        if !votes && !group.voters.is_empty() {
            found.push(format!(
                "this manager learns and does not vote yet; if it stays so, see that the other \
                 managers reach it at {}",
                self.advertise
            ));
        }
        let count = group.voters.len();
        if count > 1 && count.is_multiple_of(2) {
            found.push(format!(
                "the swarm has {count} managers: it can lose as many of them as with {}, so one \
                 more or one fewer is better",
                count - 1
            ));
        }
        found.extend(self.root_warnings());
        found
    }

    /// That nobody leads: only for a moment, perhaps.
    pub(crate) fn nobody_leads(&self, since: Timestamp, missing: &[Member]) -> ControlError {
        if (self.wall)().since(since).as_secs() < ELECTION_PATIENCE_S {
            return ControlError::NotLeading;
        }
        match self.store.health() {
            Err(why) => why.into(),
            Ok(()) => self.no_majority(Some(since), missing),
        }
    }

    fn no_majority(&self, since: Option<Timestamp>, missing: &[Member]) -> ControlError {
        let name = |member| self.name_of(member);
        ControlError::NoMajority { since, missing: missing.iter().map(name).collect() }
    }

    /// An error of the store in words that name nodes as users know them.
    pub(crate) fn named(&self, error: ControlError) -> ControlError {
        match error {
            ControlError::Store(StoreError::NoQuorum { missing, .. }) if !missing.is_empty() => {
                self.no_majority(None, &missing)
            }
            other => other,
        }
    }
}
