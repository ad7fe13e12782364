//! What the leader says of root certificates: whom to trust, and whose the node's own is to be.

use std::time::Duration;

use shoal_identity::node_identity::NodeIdentity;
use shoal_model::fault::report;
use shoal_wire::message::TrustWish;

use super::Owner;
use crate::node::Member;
use crate::renewal::Begin;
use crate::start;

/// At least within this time a certificate of another root is asked for, so that an answer that is
/// not what was wanted makes no endless loop.
const SPREAD_MIN: Duration = Duration::from_secs(1);

/// What was said, and what is done about it.
#[derive(Default)]
pub(super) struct Heeded {
    wish: Option<TrustWish>,
    /// The root by which a certificate is being asked for; empty if any will do.
    asking: Option<String>,
}

impl Heeded {
    /// A renewal begins: for whatever reason unless it is for another root.
    pub(super) fn begins(&mut self, begin: Begin) {
        if !matches!(begin, Begin::Within(_)) {
            self.asking = None;
        }
    }
}

impl Owner {
    /// The leader has spoken.
    pub(super) async fn heed(&mut self, wish: Option<TrustWish>) {
        self.trust.wish = wish;
        self.heed_again().await;
    }

    /// Sees that this node trusts whom it is to trust, and that its certificate is of the root that
    /// it is to be of, or on its way.
    pub(super) async fn heed_again(&mut self) {
        let (Some(wish), Some(member)) = (self.trust.wish.clone(), &self.member) else { return };
        let now = member.identity.tls();
        if now.trusts != wish.trusts && !wish.roots_pem.is_empty() {
            match member.identity.trusting(wish.roots_pem) {
                Ok(identity) => self.take_trust(identity).await,
                Err(error) => {
                    let cause = report(&error);
                    tracing::error!(cause, "the roots that the manager named cannot be used");
                }
            }
        }
        let is_asking = self.trust.asking.as_ref() == Some(&wish.issuer);
        if now.issuer != wish.issuer && !wish.issuer.is_empty() && !is_asking {
            self.trust.asking = Some(wish.issuer);
            let spread = Duration::from_millis(wish.spread_ms);
            self.renew(Begin::Within(spread.max(SPREAD_MIN)));
        }
    }

    /// A manager takes this node's certificate for nothing but asking for another one.
    pub(super) fn renew_at_once(&mut self) {
        if self.trust.asking.is_none() && self.member.is_some() {
            tracing::info!("a manager takes this node's certificate for the next one only");
            self.trust.asking = Some(String::new());
            self.renew(Begin::Within(Duration::ZERO));
        }
    }

    /// Trusts other roots from here on.
    async fn take_trust(&mut self, identity: NodeIdentity) {
        match self.folder.keep_identity(identity.clone()).await {
            Ok(()) => {
                tracing::info!("this node trusts other root certificates");
                self.take(identity);
            }
            // Said of nobody who could forget it with the next start.
            Err(error) => {
                let cause = report(&error);
                tracing::error!(cause, "the roots that this node is to trust could not be kept");
            }
        }
    }
}

/// Every manager that a member knows of.
pub(super) fn managers_of(member: &Member) -> Vec<String> {
    let mut known = start::membership(member).managers;
    if let Some((_, store)) = &member.manager {
        let state = store.state();
        let others =
            state.nodes.values().filter_map(|node| Some(node.manager.as_ref()?.addr.clone()));
        let news: Vec<String> = others.filter(|addr| !known.contains(addr)).collect();
        known.extend(news);
    }
    known
}
