//! Renews this node's certificate long before it ends: the owner starts it with each identity, and
//! gets the next one.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use shoal_agent::agent::Agent;
use shoal_identity::authority::KeyAndCsr;
use shoal_identity::node_identity::NodeIdentity;
use shoal_model::fault::report;
use shoal_model::time::Timestamp;
use shoal_store::Store;
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::{CertificateReply, PROTOCOL_VERSION, RenewCertificate};

use crate::error::NodeError;
use crate::node::{NodeConfig, Seen};
use crate::record::Folder;
use crate::start;

/// Between looks at the wall clock, which may be set meanwhile.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// Before the next renewal at least: two clocks that differ by more than a certificate lasts must
/// not make it an endless one.
const REST: Duration = Duration::from_secs(60);
/// Before the next attempt after a failed one, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// What the renewal waits for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begin {
    /// For its time: the identity was just read or given.
    WhenDue,
    /// A moment: the identity was just renewed.
    AfterRest,
    /// A part of this time, whatever its age: the root is, or is to be, another one.
    Within(Duration),
}

/// One renewal.
pub(crate) struct Renewal {
    pub(crate) config: NodeConfig,
    pub(crate) folder: Folder,
    /// A manager's.
    pub(crate) store: Option<Store>,
    pub(crate) agent: Agent,
    /// Managers to ask beside those that the agent knows.
    pub(crate) known: Vec<String>,
    pub(crate) identity: NodeIdentity,
    /// Where it is shown that there is no next certificate.
    pub(crate) seen: Arc<Seen>,
}

impl Renewal {
    /// Waits until it is time, and asks managers until one of them gives a certificate.
    pub(crate) async fn next(self, begin: Begin) -> NodeIdentity {
        match begin {
            Begin::WhenDue => {}
            Begin::AfterRest => tokio::time::sleep(self.at_most(REST)).await,
            Begin::Within(span) => tokio::time::sleep(span.mul_f64(rand::random())).await,
        }
        if !matches!(begin, Begin::Within(_)) {
            self.until(self.identity.renew_at(rand::random())).await;
        }
        let mut pause = self.at_most(RETRY.0);
        loop {
            match self.ask().await {
                Ok(fresh) => {
                    self.seen.renewal_fails(String::new());
                    return fresh;
                }
                Err(error) => {
                    let (cause, now) = (report(&error), (self.config.clock)());
                    let lasts = lasts(self.identity.not_after, now);
                    tracing::warn!(cause, lasts, "this node's certificate could not be renewed");
                    self.seen.renewal_fails(format!(
                        "this node's certificate {lasts} and could not be renewed, which is tried \
                         again: {cause}"
                    ));
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.at_most(RETRY.1));
        }
    }

    /// A pause, or a twentieth of what the certificate lasts if that is shorter.
    fn at_most(&self, pause: Duration) -> Duration {
        pause.min(self.identity.validity() / 20)
    }

    async fn until(&self, due: Timestamp) {
        loop {
            let left = due.since((self.config.clock)());
            if left.is_zero() {
                return;
            }
            tokio::time::sleep(left.min(LOOK_PERIOD)).await;
        }
    }

    /// Asks one manager after the other. A manager whose certificate has expired is taken for one
    /// by nobody, and there may be none to ask: it helps itself.
    async fn ask(&self) -> Result<NodeIdentity, NodeError> {
        if let Some(store) = &self.store
            && let Some(fresh) =
                start::self_issued(&self.config, &self.folder, store, &self.identity).await?
        {
            return Ok(fresh);
        }
        let told = self.agent.managers();
        let mut managers = told;
        for known in &self.known {
            if !managers.contains(known) {
                managers.push(known.clone());
            }
        }
        let (identity, _) = ask_any(&managers, &self.identity, None).await?;
        Ok(identity)
    }
}

/// How long a certificate is good, in words.
fn lasts(not_after: Timestamp, now: Timestamp) -> String {
    let span = |span: Duration| match span.as_secs() {
        secs @ 0..300 => format!("{secs} s"),
        secs @ 300..18_000 => format!("{} min", secs / 60),
        secs => format!("{} h", secs / 3600),
    };
    match not_after >= now {
        true => format!("expires in {}", span(not_after.since(now))),
        false => format!("expired {} ago", span(now.since(not_after))),
    }
}

/// A new certificate for a new key, from the first manager that gives one, and what came with it.
/// `manager_addr` says that this node is ready to be a manager there.
pub(crate) async fn ask_any(
    managers: &[String],
    identity: &NodeIdentity,
    manager_addr: Option<SocketAddr>,
) -> Result<(NodeIdentity, CertificateReply), NodeError> {
    let mut last = NodeError::Address {
        what: "manager",
        text: String::new(),
        problem: "none is known".to_owned(),
    };
    for addr in managers {
        match ask_one(addr, identity, manager_addr).await {
            Ok(fresh) => return Ok(fresh),
            Err(error) => last = error,
        }
    }
    Err(last)
}

async fn ask_one(
    addr: &str,
    identity: &NodeIdentity,
    manager_addr: Option<SocketAddr>,
) -> Result<(NodeIdentity, CertificateReply), NodeError> {
    let failed = |action| move |source| NodeError::Identity { action, source };
    let refused = |source: WireError| NodeError::Renew { addr: addr.to_owned(), source };
    let key = KeyAndCsr::generate().map_err(failed("make a key"))?;
    let client = client::connect(addr, identity).await.map_err(refused)?;
    let (version, csr_pem) = (PROTOCOL_VERSION, key.csr_pem);
    let request = RenewCertificate { version, csr_pem, manager_addr };
    let reply = client.renew(request).await.map_err(refused)?;
    let fresh = NodeIdentity::new(reply.cert_pem.clone(), key.key_pem, identity.root_pem.clone())
        .map_err(failed("use the certificate that the manager issued"))?;
    Ok((fresh, reply))
}
