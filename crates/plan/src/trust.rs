//! How one root certificate takes another's place: a machine whose whole state is in the cluster's,
//! so that another leader goes on from wherever the last one was stopped.
//!
//! First every node that is up learns to trust the next root too, then certificates are issued by
//! it and every node asks for one, and when all have theirs it is the root, and the old one is of
//! the past. At every moment each node's certificate is of a root that every other node trusts, or
//! knows by the old root's word for it.

use std::sync::Arc;

use shoal_model::cluster_state::ClusterState;
use shoal_model::object::{Cluster, JoinTokens, Node, NodeState, RootCa};
use shoal_model::time::{Nanos, Timestamp};
use shoal_model::trust::{FormerRoot, NextRoot, Trust, TrustStage};

use crate::validate::SpecError;

/// Most former roots that are remembered: a node that was off comes back by itself unless the root
/// was replaced more often meanwhile.
pub const FORMER_MAX: usize = 4;
/// Most rotations that may be given up for another before one has come to its end.
pub const GIVEN_UP_MAX: usize = 3;
/// How long a former root is remembered: as long as an expired certificate proves whose it is.
pub const FORMER_KEPT: Nanos = Nanos(90 * 24 * 3600 * 1_000_000_000);

/// What the leader does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustStep {
    /// Issue by the next root from here on.
    Issue,
    /// Make it the root.
    Finish,
}

/// The next step of the rotation that is under way; `None` if there is none, or nodes are awaited.
#[must_use]
pub fn next_step(state: &ClusterState) -> Option<TrustStep> {
    let next = state.cluster.as_ref()?.trust.next.as_ref()?;
    if !awaited(state).is_empty() {
        return None;
    }
    Some(match next.stage {
        TrustStage::Announcing => TrustStep::Issue,
        TrustStage::Issuing => TrustStep::Finish,
    })
}

/// The nodes that the rotation waits for.
///
/// Workers that are down are not waited for. Managers are, before the old root goes: without it one
/// that comes back could not vote, and the others might be too few without it. Where the old root
/// cannot say a word for the next one, they must hear of that too.
#[must_use]
pub fn awaited(state: &ClusterState) -> Vec<&Arc<Node>> {
    let Some(cluster) = &state.cluster else { return Vec::new() };
    let Some(next) = &cluster.trust.next else { return Vec::new() };
    let known_anyway = !next.cross_pem.is_empty() || next.digest == cluster.trust.digest;
    let has = |node: &&Arc<Node>| match next.stage {
        TrustStage::Announcing => node.tls.trusts == next.all,
        TrustStage::Issuing => node.tls.issuer == next.digest,
    };
    let counts = |node: &&Arc<Node>| {
        let up = matches!(node.status.state, NodeState::Ready | NodeState::Unknown);
        let must_know = next.stage == TrustStage::Issuing || !known_anyway;
        up || (node.manager.is_some() && must_know)
    };
    state.nodes.values().filter(counts).filter(|node| !has(node)).collect()
}

/// What a rotation needs that is made or checked with keys in hand.
#[derive(Clone, Debug)]
pub struct Begin {
    /// The root that is to be.
    pub root: RootCa,
    /// Its digest.
    pub digest: String,
    /// The digest of the root of today.
    pub present: String,
    /// The root of today's word for the next one; may be empty.
    pub cross_pem: String,
}

/// Begins a rotation. One that is under way is given up for it; nodes go on trusting what that one
/// made them trust until this one ends. `all` gives the digest of several roots' PEM.
///
/// # Errors
/// Too many were given up already.
pub fn begin<E: From<SpecError>>(
    cluster: &Cluster,
    begin: Begin,
    now: Timestamp,
    all: impl FnOnce(&str) -> Result<String, E>,
) -> Result<Trust, E> {
    let Begin { root, digest, present, cross_pem } = begin;
    let before = cluster.trust.next.as_ref();
    let mut given_up: Vec<FormerRoot> = before
        .map(|next| FormerRoot {
            cert_pem: next.root.cert_pem.clone(),
            digest: next.digest.clone(),
            cross_pem: String::new(),
            since: now,
        })
        .into_iter()
        .chain(before.map(|next| next.given_up.clone()).unwrap_or_default())
        .collect();
    given_up.retain(|it| it.digest != digest && it.digest != present);
    // Taking them all back is always possible.
    if given_up.len() > GIVEN_UP_MAX && digest != present {
        return Err(SpecError::conflict(format!(
            "{GIVEN_UP_MAX} rotations of the root certificate were given up for others already: \
             wait until the last one is complete"
        ))
        .into());
    }
    let stage = TrustStage::Announcing;
    let next =
        NextRoot { root, digest, all: String::new(), cross_pem, given_up, stage, since: now };
    let mut after = cluster.clone();
    after.trust = Trust { digest: present, next: Some(next), ..cluster.trust.clone() };
    let all = all(&after.trusted_pem())?;
    if let Some(next) = &mut after.trust.next {
        next.all = all;
    }
    Ok(after.trust)
}

/// The cluster once certificates are issued by the next root.
#[must_use]
pub fn issuing(cluster: &Cluster) -> Cluster {
    let mut after = cluster.clone();
    if let Some(next) = &mut after.trust.next {
        next.stage = TrustStage::Issuing;
    }
    after
}

/// The cluster once the next root is the root. Tokens name it: `tokens` are new ones.
#[must_use]
pub fn finished(cluster: &Cluster, tokens: JoinTokens, now: Timestamp) -> Cluster {
    let mut after = cluster.clone();
    let Some(next) = after.trust.next.take() else { return after };
    let mut former = next.given_up;
    if next.digest != cluster.trust.digest {
        let old = FormerRoot {
            cert_pem: cluster.root_ca.cert_pem.clone(),
            digest: cluster.trust.digest.clone(),
            cross_pem: next.cross_pem,
            since: now,
        };
        former.insert(0, old);
        after.join_tokens = tokens;
    }
    for known in &cluster.trust.former {
        if former.iter().all(|it| it.digest != known.digest) {
            former.push(known.clone());
        }
    }
    // A root that is back is none that was replaced.
    former.retain(|it| it.digest != next.digest && !is_forgotten(it, now));
    former.truncate(FORMER_MAX);
    after.trust = Trust { digest: next.digest, forced: cluster.trust.forced, next: None, former };
    after.root_ca = next.root;
    after
}

fn is_forgotten(root: &FormerRoot, now: Timestamp) -> bool {
    root.since.plus(FORMER_KEPT.duration()) <= now
}

/// The cluster without former roots that are remembered no longer, if there are any.
#[must_use]
pub fn pruned(cluster: &Cluster, now: Timestamp) -> Option<Cluster> {
    if !cluster.trust.former.iter().any(|root| is_forgotten(root, now)) {
        return None;
    }
    let mut after = cluster.clone();
    after.trust.former.retain(|root| !is_forgotten(root, now));
    Some(after)
}
