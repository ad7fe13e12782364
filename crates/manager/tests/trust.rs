//! The root is rotated on a real manager whose nodes are driven by hand.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use serde_json::{Value, json};
use shoal_identity::authority::{KeyAndCsr, NODE_VALIDITY, RootAuthority};
use shoal_identity::external::HttpsPost;
use shoal_identity::node_identity::NodeIdentity;
use shoal_manager::control::Rotation;
use shoal_model::fault::Fault as _;
use shoal_model::id::NodeId;
use shoal_model::object::RootCa;
use shoal_model::spec::cluster::{ClusterSpec, ExternalCa};
use shoal_model::spec::node::NodeRole;
use shoal_model::trust::TrustStage;
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::message::{
    ManagerMessage, NodeMessage, PROTOCOL_VERSION, RenewCertificate, TrustWish,
};
use support::{DEADLINE, FakeNode, World, clock, hello};

impl Driven {
    fn new(node: FakeNode) -> Self {
        let identity = node.identity.clone();
        Self { node, identity }
    }

    /// Waits until the leader says whom to trust, with that issuer or another one.
    async fn told(&mut self, fits: impl Fn(&TrustWish) -> bool) -> TrustWish {
        let wish = async {
            loop {
                match self.node.heard.recv().await.expect("the node lives") {
                    Ok(ManagerMessage::Trust(wish)) if fits(&wish) => return *wish,
                    _ => {}
                }
            }
        };
        tokio::time::timeout(DEADLINE, wish).await.expect("a word in time")
    }

    async fn say(&self) {
        self.node.tell(NodeMessage::Tls(Box::new(self.identity.tls()))).await;
    }

    async fn trust(&mut self, wish: &TrustWish) {
        self.identity = self.identity.trusting(wish.roots_pem.clone()).unwrap();
        assert_eq!(self.identity.tls().trusts, wish.trusts);
        self.say().await;
    }

    async fn renew(&mut self, world: &World) -> Result<(), WireError> {
        self.identity = renew(world, &self.identity).await?;
        // The manager's own node is driven here, too.
        if self.identity.node_id == world.identity.node_id {
            world.manager.as_ref().unwrap().set_identity(&self.identity).unwrap();
        }
        // A session lives no longer than the certificate with which it was opened.
        let name = self.identity.node_id.to_string();
        self.node.stay_away();
        self.node = FakeNode::start(self.identity.clone(), world.addr, &name);
        self.say().await;
        Ok(())
    }
}

/// A node that does what it is told when the test says so.
struct Driven {
    node: FakeNode,
    identity: NodeIdentity,
}

async fn renew(world: &World, identity: &NodeIdentity) -> Result<NodeIdentity, WireError> {
    let key = KeyAndCsr::generate().unwrap();
    let client = client::connect(&world.addr.to_string(), identity).await?;
    let version = PROTOCOL_VERSION;
    let request = RenewCertificate { version, csr_pem: key.csr_pem, manager_addr: None };
    let reply = client.renew(request).await?;
    let root_pem = identity.root_pem.clone();
    Ok(NodeIdentity::new(reply.cert_pem, key.key_pem, root_pem).unwrap())
}

async fn update(world: &World, edit: impl FnOnce(&mut ClusterSpec)) -> Result<(), String> {
    let state = world.control.state();
    let cluster = state.cluster.as_ref().unwrap();
    let mut spec = cluster.spec.clone();
    edit(&mut spec);
    let done = world.control.update_cluster(cluster.meta.version, spec, Rotation::default()).await;
    done.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_rotation_goes_through_its_phases() {
    let world = World::new().await;
    // The manager's own node, and a worker.
    let own = FakeNode::start(world.identity.clone(), world.addr, "m1");
    let mut nodes = [Driven::new(own), Driven::new(world.worker("w1").await)];
    let before = world.control.state().cluster.clone().unwrap();
    for node in &mut nodes {
        node.told(|_| true).await;
        node.say().await;
    }
    update(&world, |spec| spec.ca_config.force_rotate += 1).await.unwrap();
    let mut wishes = Vec::new();
    for node in &mut nodes {
        wishes.push(node.told(|wish| wish.roots_pem.matches("BEGIN").count() == 2).await);
    }
    let old = nodes[1].identity.tls().issuer;
    assert!(wishes.iter().all(|wish| wish.issuer == old), "nobody needs another certificate yet");
    assert!(wishes[0].spread_ms > 0);
    // One of two has heard of it.
    nodes[0].trust(&wishes[0]).await;
    nodes[1].renew(&world).await.unwrap();
    let at = |stage| {
        move |state: &shoal_model::cluster_state::ClusterState| {
            let next = state.cluster.as_ref().unwrap().trust.next.as_ref();
            next.is_some_and(|next| next.stage == stage)
        }
    };
    assert!(at(TrustStage::Announcing)(&world.store.state()));
    assert_eq!(nodes[1].identity.tls().issuer, old);
    nodes[1].trust(&wishes[1]).await;
    world.until("certificates of the next root", at(TrustStage::Issuing)).await;
    let late = nodes[1].identity.clone();
    for node in &mut nodes {
        node.told(|wish| wish.issuer != old).await;
        node.renew(&world).await.unwrap();
    }
    world.until("the end", |s| s.cluster.as_ref().unwrap().trust.next.is_none()).await;
    let after = world.store.state().cluster.clone().unwrap();
    assert_ne!(after.root_ca, before.root_ca);
    assert_ne!(after.join_tokens.worker, before.join_tokens.worker);
    assert_eq!(after.spec.ca_config.force_rotate, 1);

    // A token of before names another root.
    let refused = world.join(&before.join_tokens.worker, "w2").await.unwrap_err();
    assert_eq!(refused.id().unwrap().0, "SH-IDN-003", "{refused:?}");
    assert!(refused.remedy().unwrap().contains("rotated"));
    world.join(&after.join_tokens.worker, "w2").await.unwrap();

    // A certificate of the old root is good for another one only if its key is the node's: this one
    // was given away before.
    let forged = forge(&before.root_ca, &late.node_id, &after.id);
    let forged = forged.trusting(after.root_ca.cert_pem.clone()).unwrap();
    // The doors follow the state, whatever the manager's own node has been told.
    let end = Instant::now() + DEADLINE;
    let refused = loop {
        let client = client::connect(&world.addr.to_string(), &forged).await.unwrap();
        match client.session(hello(&forged)).await.map(drop) {
            Err(refused) => break refused,
            Ok(()) => assert!(Instant::now() < end, "the old root still opens the doors"),
        }
    };
    assert_eq!(refused.id().unwrap().0, "SH-IDN-014", "{refused:?}");
    let refused = renew(&world, &forged).await.unwrap_err();
    assert_eq!(refused.id().unwrap().0, "SH-IDN-015", "{refused:?}");
}

/// What whoever has a root's key can make.
fn forge(root: &RootCa, node: &NodeId, cluster: &shoal_model::id::ClusterId) -> NodeIdentity {
    let key = KeyAndCsr::generate().unwrap();
    let cert = RootAuthority::load(root)
        .unwrap()
        .issue(&key.csr_pem, node, NodeRole::Worker, cluster, clock()(), NODE_VALIDITY)
        .unwrap();
    NodeIdentity::new(cert, key.key_pem, root.cert_pem.clone()).unwrap()
}

#[tokio::test]
async fn roots_that_make_no_sense_change_nothing() {
    let world = World::new().await;
    let (_, root) = RootAuthority::create(clock()()).unwrap();
    let (_, other) = RootAuthority::create(clock()()).unwrap();
    let before = world.control.state().cluster.clone();
    for (cert, key, part) in [
        (root.cert_pem.as_str(), other.key_pem.as_str(), "certificate key mismatch"),
        ("hello", "", "no valid root CA certificates found"),
        ("", &root.key_pem, "the signing CA cert must also be provided"),
        (&root.cert_pem, "", "reachable external CA corresponding to the next CA certificate"),
    ] {
        let refused = update(&world, |spec| {
            cert.clone_into(&mut spec.ca_config.signing_ca_cert);
            key.clone_into(&mut spec.ca_config.signing_ca_key);
        });
        let refused = refused.await.unwrap_err();
        assert!(refused.contains(part), "{part}: {refused}");
    }
    assert_eq!(world.control.state().cluster, before);
    // A root and its key are taken, and neither is kept among the settings.
    update(&world, |spec| {
        spec.ca_config.signing_ca_cert = root.cert_pem.clone();
        spec.ca_config.signing_ca_key = root.key_pem.clone();
    })
    .await
    .unwrap();
    let cluster = world.control.state().cluster.clone().unwrap();
    assert_eq!(cluster.desired_root().cert_pem, root.cert_pem);
    assert_eq!(cluster.spec, before.unwrap().spec);
}

/// An external CA that the test holds.
struct Cfssl {
    root: RootCa,
    answers: AtomicBool,
}

#[async_trait]
impl HttpsPost for Cfssl {
    async fn post(
        &self,
        _: &str,
        _: Arc<rustls::ClientConfig>,
        body: String,
    ) -> Result<String, String> {
        if !self.answers.load(Ordering::Relaxed) {
            return Err("nobody is there".to_owned());
        }
        let asked: Value = serde_json::from_str(&body).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let names = &asked["subject"]["names"][0];
        let is_manager = names["OU"] == "swarm-manager";
        let role = if is_manager { NodeRole::Manager } else { NodeRole::Worker };
        let id = NodeId::new(text(&asked["subject"]["CN"]));
        let cluster = text(&names["O"]).as_str().into();
        let csr = text(&asked["certificate_request"]);
        let authority = RootAuthority::load(&self.root).unwrap();
        let cert = authority.issue(&csr, &id, role, &cluster, clock()(), NODE_VALIDITY).unwrap();
        Ok(json!({ "success": true, "result": { "certificate": cert } }).to_string())
    }
}

#[tokio::test]
async fn an_external_ca_issues_certificates_and_its_silence_is_said() {
    let (_, root) = RootAuthority::create(clock()()).unwrap();
    let cfssl = Arc::new(Cfssl { root: root.clone(), answers: AtomicBool::new(false) });
    let world = World::asking(Arc::clone(&cfssl) as Arc<dyn HttpsPost>).await;
    let first = world.identity.root_pem.clone();
    let own = FakeNode::start(world.identity.clone(), world.addr, "m1");
    let mut own = Driven::new(own);
    let url = "https://ca.example/api/v1/cfssl/sign";
    let external = |spec: &mut ClusterSpec| {
        spec.ca_config.signing_ca_cert = root.cert_pem.clone();
        spec.ca_config.external_cas = vec![ExternalCa {
            protocol: "cfssl".into(),
            url: url.into(),
            ca_cert: root.cert_pem.clone(),
            ..ExternalCa::default()
        }];
    };
    let refused = update(&world, external).await.unwrap_err();
    assert!(refused.contains(url) && refused.contains("nobody is there"), "{refused}");
    let warned = world.control.warnings();
    assert!(warned.iter().any(|line| line.contains("nobody is there")), "{warned:?}");
    cfssl.answers.store(true, Ordering::Relaxed);
    update(&world, external).await.unwrap();
    assert!(world.control.warnings().iter().all(|line| !line.contains("nobody is there")));
    own.say().await;
    let wish = own.told(|wish| wish.roots_pem.contains(&root.cert_pem)).await;
    own.trust(&wish).await;
    own.told(|now| now.issuer != wish.issuer).await;
    own.renew(&world).await.unwrap();
    world.until("the end", |s| s.cluster.as_ref().unwrap().trust.next.is_none()).await;
    assert_eq!(world.store.state().cluster.as_ref().unwrap().root_ca.key_pem, "");
    let joined = world.join(&world.token(NodeRole::Worker), "w1").await.unwrap();
    assert_eq!(joined.tls().issuer, own.identity.tls().issuer);
    // Without it nobody joins, and that is said.
    cfssl.answers.store(false, Ordering::Relaxed);
    let refused = world.join(&world.token(NodeRole::Worker), "w2").await.unwrap_err();
    assert_eq!(refused.id().unwrap().0, "SH-IDN-017", "{refused:?}");
    // Nobody is left to issue by this root then.
    let refused = update(&world, |spec| spec.ca_config.external_cas.clear()).await.unwrap_err();
    assert!(refused.contains("corresponding to the current CA certificate"), "{refused}");
    // Back to a root of the managers' own.
    update(&world, |spec| {
        spec.ca_config.external_cas.clear();
        spec.ca_config.force_rotate += 1;
    })
    .await
    .unwrap();
    // Not what the last session began with.
    let fits = |wish: &TrustWish| wish.roots_pem.matches("BEGIN").count() == 2;
    let wish = own.told(|wish| fits(wish) && !wish.roots_pem.contains(&first)).await;
    own.trust(&wish).await;
    own.told(|now| now.issuer != wish.issuer).await;
    own.renew(&world).await.unwrap();
    world.until("the end", |s| s.cluster.as_ref().unwrap().trust.next.is_none()).await;
    world.join(&world.token(NodeRole::Worker), "w3").await.unwrap();
}
