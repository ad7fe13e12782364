//! Root certificates: what nodes are told of them, how one takes another's place, and who issues
//! certificates.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_identity::authority::{RootAuthority, digest_of_pem};
use shoal_identity::error::IdentityError;
use shoal_identity::external::{HttpsPost, Wanted, authorities_of};
use shoal_identity::node_identity::NodeIdentity;
use shoal_identity::peer::PeerIdentity;
use shoal_identity::roots::{digest_of_all, supplied};
use shoal_identity::tls::ServerTls;
use shoal_identity::token::generate_tokens;
use shoal_model::change::{Change, Expect, Object};
use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::report;
use shoal_model::object::{Cluster, RootCa};
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::time::Timestamp;
use shoal_plan::trust::{self as plan, Begin, TrustStep};
use shoal_plan::validate::SpecError;
use shoal_wire::message::TrustWish;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::error::ControlError;
use crate::external;
use crate::shared::{Shared, cluster};
use crate::tenure::Tenure;

/// Before what failed is tried again, and between looks at the time.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
/// Nodes ask for certificates within this time, at most, and not more at once than the leader signs
/// beside its other work: [`PER_NODE`] for each.
const SPREAD_MAX: Duration = Duration::from_secs(30);
/// Twenty certificates a second.
const PER_NODE: Duration = Duration::from_millis(50);
/// For so long after a rotation began nobody need be told what it waits for.
const ROTATION_PATIENCE: Duration = Duration::from_secs(30);

/// Who issues certificates where the managers do not.
pub(crate) struct External {
    way: Arc<dyn HttpsPost>,
    /// Why the last certificate was not issued; empty if it was.
    trouble: Mutex<String>,
}

impl External {
    pub fn new(way: Arc<dyn HttpsPost>) -> Self {
        Self { way, trouble: Mutex::default() }
    }

    fn note(&self, text: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn trouble(&self) -> String {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// The TLS settings of this manager's server: of this node's identity and the roots of the state.
pub(crate) struct Doors {
    identity: Mutex<NodeIdentity>,
    tls: watch::Sender<ServerTls>,
}

impl Doors {
    /// # Errors
    /// The identity cannot be used.
    pub fn new(identity: NodeIdentity, state: &ClusterState) -> Result<Self, IdentityError> {
        let tls = watch::channel(tls_of(&identity, state)?).0;
        Ok(Self { identity: Mutex::new(identity), tls })
    }

    pub fn tls(&self) -> watch::Receiver<ServerTls> {
        self.tls.subscribe()
    }

    /// # Errors
    /// The identity cannot be used; the one before stays.
    pub fn set_identity(
        &self,
        identity: &NodeIdentity,
        state: &ClusterState,
    ) -> Result<(), IdentityError> {
        let tls = tls_of(identity, state)?;
        *self.identity.lock().unwrap_or_else(PoisonError::into_inner) = identity.clone();
        self.tls.send_replace(tls);
        Ok(())
    }

    fn identity(&self) -> NodeIdentity {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn tls_of(identity: &NodeIdentity, state: &ClusterState) -> Result<ServerTls, IdentityError> {
    match &state.cluster {
        Some(cluster) => identity.server_tls_with(&cluster.trusted_pem(), &cluster.former_pem()),
        None => identity.server_tls(),
    }
}

/// Keeps the doors as the state has its roots, for as long as the store lives.
pub(crate) async fn keep_doors(shared: Arc<Shared>, doors: Arc<Doors>) {
    let roots = |state: &ClusterState| {
        state.cluster.as_ref().map(|c| (c.root_ca.cert_pem.clone(), c.trust.clone()))
    };
    let mut revision = shared.store.watch();
    let mut known = roots(&shared.state());
    loop {
        if revision.changed().await.is_err() {
            return;
        }
        let state = shared.state();
        let same = match (&known, &state.cluster) {
            (Some((cert, trust)), Some(c)) => *cert == c.root_ca.cert_pem && *trust == c.trust,
            (None, None) => true,
            _ => false,
        };
        if same {
            continue;
        }
        known = roots(&state);
        if let Err(error) = doors.set_identity(&doors.identity(), &state) {
            let cause = report(&error);
            tracing::error!(cause, "the manager's doors cannot take the cluster's roots");
        }
    }
}

/// What nodes are told; `None` before there is a cluster.
pub(crate) fn wish_of(state: &ClusterState) -> Option<TrustWish> {
    let cluster = state.cluster.as_ref()?;
    let roots_pem = cluster.trusted_pem();
    let trusts = digest_of_all(&roots_pem).ok()?.to_string();
    let issuer = digest_of_pem(&cluster.signing_root().cert_pem).ok()?.to_string();
    let nodes = u32::try_from(state.nodes.len()).unwrap_or(u32::MAX);
    let spread = PER_NODE.saturating_mul(nodes).min(SPREAD_MAX);
    let spread_ms = u64::try_from(spread.as_millis()).unwrap_or(0);
    Some(TrustWish { roots_pem, trusts, issuer, spread_ms })
}

/// Brings a rotation to its end, one step after the other, for as long as this manager leads.
pub(crate) async fn run(tenure: Arc<Tenure>) {
    let shared = &tenure.shared;
    let mut revision = shared.store.watch();
    loop {
        revision.mark_unchanged();
        match step(shared).await {
            Ok(true) => continue,
            Ok(false) => {}
            Err(ControlError::Stopping) => return,
            Err(error) => {
                tracing::warn!(cause = report(&error), "the rotation of the root does not go on");
            }
        }
        if let Ok(Err(_)) = timeout(LOOK_AGAIN, revision.changed()).await {
            return;
        }
    }
}

/// Takes a step, if there is one; whether there was.
async fn step(shared: &Shared) -> Result<bool, ControlError> {
    let (state, now) = (shared.state(), shared.now());
    let Some(known) = &state.cluster else { return Ok(false) };
    if plan::next_step(&state).is_none() && plan::pruned(known, now).is_none() {
        return Ok(false);
    }
    shared
        .writer
        .write(|state, now| {
            let known = cluster(state)?;
            let next = match plan::next_step(state) {
                Some(TrustStep::Issue) => {
                    tracing::info!("certificates are issued by the next root from here on");
                    Some(plan::issuing(known))
                }
                Some(TrustStep::Finish) => {
                    tracing::info!("the root certificate was rotated");
                    let digest = digest_of_pem(&known.desired_root().cert_pem)?;
                    Some(plan::finished(known, generate_tokens(&digest), now))
                }
                None => plan::pruned(known, now),
            };
            let changed = next.is_some();
            let put = |next: Cluster| {
                let expect = Expect::Version(known.meta.version);
                Change::Put { object: Object::Cluster(Box::new(next)), expect }
            };
            Ok((next.map(put).into_iter().collect(), changed))
        })
        .await
}

/// What the operator's new settings say of the root, and the settings as they are kept.
pub(crate) fn apply(next: &mut Cluster, now: Timestamp) -> Result<(), ControlError> {
    let config = &mut next.spec.ca_config;
    let cert = std::mem::take(&mut config.signing_ca_cert);
    let key = std::mem::take(&mut config.signing_ca_key);
    let forced = config.force_rotate;
    let is_forced = forced != next.trust.forced;
    if !cert.is_empty() {
        let root = supplied(&cert, &key, now)?;
        next.trust.forced = forced;
        rotate_to(next, root, now)?;
    } else if is_forced {
        let (_, root) = RootAuthority::create(now)?;
        next.trust.forced = forced;
        rotate_to(next, root, now)?;
    }
    let signing = next.signing_root();
    let listed = &next.spec.ca_config.external_cas;
    // Also where the managers issue: what names no certificate is not taken and forgotten.
    let external = authorities_of(listed, next, signing)?;
    if signing.key_pem.is_empty() && external.is_empty() {
        let before = next.trust.next.is_some();
        // On the way away from a root whose authority is gone nothing can be named for it.
        if !before {
            return Err(no_external("current"));
        }
    }
    Ok(())
}

fn no_external(which: &str) -> ControlError {
    let message = format!(
        "there must be at least one valid, reachable external CA corresponding to the {which} CA \
         certificate"
    );
    SpecError::invalid(message).into()
}

fn rotate_to(known: &mut Cluster, root: RootCa, now: Timestamp) -> Result<(), ControlError> {
    let listed = &known.spec.ca_config.external_cas;
    if root.key_pem.is_empty() && authorities_of(listed, known, &root)?.is_empty() {
        return Err(no_external("next"));
    }
    let digest = digest_of_pem(&root.cert_pem)?.to_string();
    let present = digest_of_pem(&known.root_ca.cert_pem)?.to_string();
    // Only the key is another one, or whether it is here.
    if let Some(next) = known.trust.next.as_mut().filter(|next| next.digest == digest) {
        next.root = root;
        return Ok(());
    }
    let back = digest == present;
    if back && known.trust.next.is_none() {
        known.root_ca = root;
        return Ok(());
    }
    let cross_pem = match known.root_ca.key_pem.as_str() {
        "" => String::new(),
        _ if back => String::new(),
        _ => RootAuthority::load(&known.root_ca)?.cross_sign(&root.cert_pem, now)?,
    };
    tracing::info!(root = digest, "the root certificate is to be rotated");
    let begin = Begin { root, digest, present, cross_pem };
    let all = |pem: &str| Ok::<_, ControlError>(digest_of_all(pem)?.to_string());
    known.trust = plan::begin(known, begin, now, all)?;
    Ok(())
}

impl Shared {
    /// Has a certificate issued by whoever does. The chain: leaf first, root last.
    pub(crate) async fn issue(
        &self,
        of: &Arc<Cluster>,
        wanted: Wanted,
        validity: Duration,
    ) -> Result<String, ControlError> {
        let root = of.signing_root();
        let external = authorities_of(&of.spec.ca_config.external_cas, of, root)?;
        if !external.is_empty() {
            let urls = external.iter().map(|ca| ca.url.as_str());
            let leaf = self.ask_external(urls, root, &wanted).await?;
            return Ok(format!("{leaf}{}", of.chain_pem()));
        }
        let (of, now) = (Arc::clone(of), (self.wall)());
        // Signing takes about a millisecond.
        let issue = tokio::task::spawn_blocking(move || {
            let authority = RootAuthority::of(&of)?.ok_or(IdentityError::NoSigner)?;
            let Wanted { node_id, role, cluster_id, csr_pem } = wanted;
            authority.issue(&csr_pem, &node_id, role, &cluster_id, now, validity)
        });
        Ok(issue.await.map_err(|_| ControlError::Stopping)??)
    }

    async fn ask_external(
        &self,
        urls: impl Iterator<Item = &str>,
        root: &RootCa,
        wanted: &Wanted,
    ) -> Result<String, ControlError> {
        let heard = |error: Option<&IdentityError>| {
            self.external.note(error.map(|error| report(error)).unwrap_or_default());
            if let Some(error) = error {
                tracing::warn!(cause = report(error), "no certificate");
            }
        };
        let (way, identity) = (&*self.external.way, self.others.identity());
        let leaf = external::ask(way, urls, root, &identity, wanted, (self.wall)(), heard).await;
        Ok(leaf?)
    }

    /// Whether the external authorities of new settings issue by the root that they are for: one of
    /// them must, before anything depends on it. The certificate is thrown away.
    ///
    /// # Errors
    /// Why the last one did not.
    pub(crate) async fn try_external(&self, spec: &ClusterSpec) -> Result<(), ControlError> {
        let state = self.state();
        let known = cluster(&state)?;
        let config = &spec.ca_config;
        let same = config.external_cas == known.spec.ca_config.external_cas;
        if config.external_cas.is_empty() || (same && config.signing_ca_cert.is_empty()) {
            return Ok(());
        }
        let root = match config.signing_ca_cert.as_str() {
            "" => known.desired_root().clone(),
            cert => supplied(cert, &config.signing_ca_key, (self.wall)())?,
        };
        let external = authorities_of(&config.external_cas, known, &root)?;
        if external.is_empty() {
            return Ok(());
        }
        let csr_pem = shoal_identity::authority::KeyAndCsr::generate()?.csr_pem;
        let role = shoal_model::spec::node::NodeRole::Manager;
        let (node_id, cluster_id) = (self.own.clone(), known.id.clone());
        let wanted = Wanted { node_id, role, cluster_id, csr_pem };
        let urls = external.iter().map(|ca| ca.url.as_str());
        self.ask_external(urls, &root, &wanted).await.map(drop)
    }

    /// Whether a node whose root was replaced may have the next certificate.
    ///
    /// # Errors
    /// [`IdentityError::UnknownKey`]: whoever has the old root's key could have made it.
    pub(crate) fn check_known(&self, peer: &PeerIdentity) -> Result<(), ControlError> {
        if !peer.former {
            return Ok(());
        }
        let state = self.state();
        match state.nodes.get(&peer.node_id) {
            Some(node) if node.tls.has_key(&peer.key) => Ok(()),
            Some(_) => Err(IdentityError::UnknownKey { node: peer.node_id.to_string() }.into()),
            None => Err(ControlError::Removed { node: peer.node_id.clone() }),
        }
    }

    /// What is wrong with the roots and who issues by them, a line each.
    pub(crate) fn root_warnings(&self) -> Vec<String> {
        let trouble = self.external.trouble();
        let mut found: Vec<String> = Some(trouble).filter(|t| !t.is_empty()).into_iter().collect();
        let state = self.state();
        let next = state.cluster.as_ref().and_then(|c| c.trust.next.as_ref());
        if next.is_some_and(|n| self.now().since(n.since) > ROTATION_PATIENCE) {
            let awaited = plan::awaited(&state);
            let name = |node: &&Arc<shoal_model::object::Node>| {
                format!("{} ({})", node.description.hostname, node.status.state.as_str())
            };
            let names: Vec<String> = awaited.iter().take(5).map(name).collect();
            found.push(format!(
                "the rotation of the root certificate waits for {} nodes: {}",
                awaited.len(),
                names.join(", ")
            ));
        }
        found
    }
}
