//! A session with one manager, for as long as that one leads: opened anew, without a gap, whenever
//! certificates are others than those with which it was opened.

use std::sync::Arc;
use std::time::Duration;

use shoal_identity::tls::Shown;
use shoal_model::fault::report;
use shoal_model::id::{NodeId, Revision};
use shoal_model::time::Timestamp;
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::{Hello, OLDEST_VERSION, PROTOCOL_VERSION};
use shoal_wire::session::ClientSession;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::agent::{Agent, Membership};
use crate::session::{End, serve};

/// The manager's word that this node's certificate is of a root that was replaced.
const FORMER_ROOT: &str = "SH-IDN-014";
/// The same, that it has expired.
const EXPIRED: &str = "SH-IDN-005";
/// The manager's word that this node was removed: there is nothing to come back for.
const REMOVED: &str = "SH-MGR-007";
/// By as much clocks may differ before anybody is told.
const SKEW_MAX: Duration = Duration::from_secs(5);
/// Between looks at whether a session's certificates are good still, at most.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// A session that is to be opened anew before it has lasted so long is not without a pause.
const RENEW_REST: Duration = Duration::from_secs(1);

/// A session with the manager at `addr`, and its successors; why the last one is over, and whether
/// there was one at all.
pub(crate) async fn attend(agent: &Agent, member: &Membership, addr: &str) -> (End, bool) {
    // The session of before, until its successor stands: nobody sees this node without one.
    let mut held: Option<Opened> = None;
    loop {
        let mut opened = match open(agent, member, addr).await {
            Ok(opened) => opened,
            Err(error) => return (refused(agent, error), held.is_some()),
        };
        drop(held.take());
        if let Some(end) = serve(agent, &mut opened).await {
            return (end, true);
        }
        if agent.inner.hub.leaves() {
            return (End::Again("this node leaves".to_owned()), true);
        }
        tracing::info!(manager = addr, "the session is opened anew, with newer certificates");
        agent.inner.hub.pause();
        if opened.at.elapsed() < RENEW_REST {
            tokio::time::sleep(RENEW_REST).await;
        }
        held = Some(opened);
    }
}

/// By how much this node's clock differs from that of the manager at `addr`, which said `now`
/// between two moments of this node's clock.
fn skew(addr: &str, sent: Timestamp, heard: Timestamp, now: Timestamp) -> Option<String> {
    let (by, word) = match (sent.since(now), now.since(heard)) {
        (ahead, _) if ahead > SKEW_MAX => (ahead, "ahead of"),
        (_, behind) if behind > SKEW_MAX => (behind, "behind"),
        _ => return None,
    };
    let secs = by.as_secs();
    Some(format!(
        "this node's clock is {secs} s {word} that of the manager at {addr}: set both by NTP, or \
         certificates are refused as of another time"
    ))
}

/// Why there is no session.
fn refused(agent: &Agent, error: WireError) -> End {
    match error {
        WireError::Remote(fault) if fault.id == REMOVED => End::Final(report(&fault)),
        // That it has expired is the manager's word: this node's clock may say something else.
        WireError::Remote(fault) if [FORMER_ROOT, EXPIRED].contains(&fault.id.as_str()) => {
            agent.inner.hub.note_outdated();
            End::Again(report(&fault))
        }
        WireError::NotLeader { leader: Some(leads), .. } => End::At(leads.addr),
        error => End::Again(report(&error)),
    }
}

/// A session, and with what it was opened.
pub(crate) struct Opened {
    pub(crate) session: ClientSession,
    /// What comes after the description that it began with.
    pub(crate) described: watch::Receiver<u64>,
    /// This node's certificate.
    cert_pem: String,
    /// The manager's.
    shown: Arc<Shown>,
    at: Instant,
}

impl Opened {
    /// Waits until this node's certificate is another one, the roots that it trusts do not speak
    /// for the manager's any more, or that has expired. A session lives for as long as nodes do:
    /// longer than what it was opened with.
    pub(crate) fn outlived(&self, agent: &Agent) -> impl Future<Output = ()> + use<> {
        let (agent, cert_pem) = (agent.clone(), self.cert_pem.clone());
        let shown = Arc::clone(&self.shown);
        async move {
            let mut tls = agent.inner.hub.follow_tls();
            loop {
                tls.mark_unchanged();
                let now = agent.inner.membership.borrow().as_ref().map(|it| it.identity.clone());
                let late = (agent.inner.config.clock)() > shown.not_after();
                if now.is_some_and(|it| it.cert_pem != cert_pem || late || !it.knows(&shown)) {
                    return;
                }
                // Ignored because: that nothing was told for so long is a reason to look, too, and
                // the sender is part of `agent`.
                let _ = tokio::time::timeout(LOOK_PERIOD, tls.changed()).await;
            }
        }
    }
}

async fn open(agent: &Agent, member: &Membership, addr: &str) -> Result<Opened, WireError> {
    // It may have been renewed since this node became a member.
    let renewed = agent.inner.membership.borrow().as_ref().map(|now| now.identity.clone());
    let identity = renewed.as_ref().unwrap_or(&member.identity);
    let client = client::connect(addr, identity).await?;
    let (cert_pem, shown) = (identity.cert_pem.clone(), client.shown());
    let described = agent.inner.hub.follow_described();
    let revision = agent.assignment().revision;
    let description = agent.description().await;
    let hello = Hello {
        version: PROTOCOL_VERSION,
        oldest: Some(OLDEST_VERSION),
        node_id: NodeId::new(member.identity.node_id.as_str()),
        description,
        advertise_addr: member.advertise_addr,
        data_path_addr: member.data_path_addr,
        revision: (revision != Revision(0)).then_some(revision),
        previous_session: agent.inner.hub.previous(),
    };
    let clock = &agent.inner.config.clock;
    let sent = clock();
    let session = client.session(hello).await?;
    let said = session.welcome().now.and_then(|now| skew(addr, sent, clock(), now));
    if let Some(text) = &said {
        tracing::warn!(text, "clocks differ");
    }
    agent.inner.hub.set_skew(said.unwrap_or_default());
    Ok(Opened { session, described, cert_pem, shown, at: Instant::now() })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn clocks_that_differ_are_named_in_seconds() {
        let at = Timestamp::from_secs;
        let said = |sent, heard, now| skew("192.0.2.1:2377", at(sent), at(heard), at(now));
        // Whatever the answer took, the manager's clock may have been read at any moment of it.
        assert_eq!(said(100, 120, 110), None);
        assert_eq!(said(100, 101, 105), None);
        assert_eq!(said(105, 106, 100), None);
        let behind = said(100, 101, 138).unwrap();
        assert!(behind.contains("37 s behind that of the manager at 192.0.2.1:2377"), "{behind}");
        let ahead = said(1000, 1001, 100).unwrap();
        assert!(ahead.contains("900 s ahead of"), "{ahead}");
    }
}
