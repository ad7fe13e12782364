//! A root that was replaced: who has a certificate of it may ask for another one, and knows
//! managers by the old root's word for the new one.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use shoal_identity::authority::KeyAndCsr;
use shoal_identity::node_identity::NodeIdentity;
use shoal_model::fault::Fault as _;
use shoal_model::id::Revision;
use shoal_model::spec::node::NodeRole;
use shoal_wire::client::{Client, connect};
use shoal_wire::error::WireError;
use shoal_wire::message::{AckRevision, ManagerMessage, PROTOCOL_VERSION, RenewCertificate};
use shoal_wire::session::{ClientSession, ServerSession};
use support::{Cluster, TestServer, hello, now, soon, start, welcome};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A manager of the new root, as a node of the old one meets it.
fn manager_of(old: &Cluster, new: &Cluster) -> NodeIdentity {
    let identity = new.member("manager1", NodeRole::Manager);
    let cross = old.root.cross_sign(new.root.cert_pem(), now()).unwrap();
    let cert = identity.cert_pem.replace(new.root.cert_pem(), "");
    let chain = format!("{cert}{cross}{}", new.root.cert_pem());
    NodeIdentity::new(chain, identity.key_pem, identity.root_pem).unwrap()
}

/// The session of a node, or why there is none.
async fn session(server: &mut TestServer, identity: &NodeIdentity) -> Result<(), WireError> {
    let client = soon("connect", connect(&server.addr, identity)).await?;
    let asked = client.session(hello("n1"));
    let accepted = async {
        match server.sessions.recv().await {
            Some(mut session) => session.accept(welcome(1000)).await.map(|()| session),
            None => std::future::pending().await,
        }
    };
    let both = async {
        tokio::pin!(asked, accepted);
        tokio::select! {
            said = &mut asked => said.map(|_| ()),
            accepted = &mut accepted => {
                let _held = accepted?;
                asked.await.map(|_| ())
            }
        }
    };
    soon("session", both).await
}

#[tokio::test]
async fn a_replaced_roots_certificate_is_good_for_the_next_one_only() {
    let (old, new) = (Cluster::new("c1"), Cluster::new("c1"));
    let manager = manager_of(&old, &new);
    let mut server = start(&new).await;
    server.tls.send_replace(manager.server_tls_with("", old.root.cert_pem()).unwrap());
    let node = old.member("n1", NodeRole::Worker);
    let refused = session(&mut server, &node).await.unwrap_err();
    assert_eq!(refused.id().unwrap().0, "SH-IDN-014", "{refused:?}");
    let client = soon("connect", connect(&server.addr, &node)).await.unwrap();
    let key = KeyAndCsr::generate().unwrap();
    let request =
        RenewCertificate { version: PROTOCOL_VERSION, csr_pem: key.csr_pem, manager_addr: None };
    let reply = soon("renewal", client.renew(request)).await.unwrap();
    let fresh = NodeIdentity::new(reply.cert_pem, key.key_pem, node.root_pem).unwrap();
    session(&mut server, &fresh).await.unwrap();

    // Nodes of another cluster do not come that far, whatever they trust.
    let stranger = Cluster::new("c1").member("n1", NodeRole::Worker);
    let mixed = NodeIdentity { root_pem: new.root.cert_pem().to_owned(), ..stranger };
    let refused = session(&mut server, &mixed).await.unwrap_err();
    assert_eq!(refused.id().unwrap().0, "SH-WIR-006", "{refused:?}");
}

#[tokio::test]
async fn both_roots_are_trusted_meanwhile_and_only_by_those_who_were_told() {
    let (old, new) = (Cluster::new("c1"), Cluster::new("c1"));
    let mut server = start(&new).await;
    let node = old.member("n1", NodeRole::Worker);
    // Nobody speaks for the new root here.
    let error = session(&mut server, &node).await.unwrap_err();
    assert_eq!(error.id().unwrap().0, "SH-IDN-004", "{error:?}");
    let told = node.trusting(format!("{}{}", node.root_pem, new.root.cert_pem())).unwrap();
    let error = session(&mut server, &told).await.unwrap_err();
    assert_eq!(error.id().unwrap().0, "SH-WIR-006", "{error:?}");
    let manager = new.member("manager1", NodeRole::Manager);
    server.tls.send_replace(manager.server_tls_with(old.root.cert_pem(), "").unwrap());
    session(&mut server, &told).await.unwrap();
}

/// Whether a session ends within the time that a test has.
async fn ends(mut session: ServerSession) {
    let ended = async { while session.next().await.is_ok() {} };
    soon("the session to end", ended).await;
}

/// A session that stands: both of its ends.
async fn standing(server: &mut TestServer, client: &Client) -> (ClientSession, ServerSession) {
    let asked = client.session(hello("n1"));
    let taken = async {
        let mut session = server.sessions.recv().await.unwrap();
        session.accept(welcome(60_000)).await.unwrap();
        session
    };
    let (asked, taken) = soon("session", async { tokio::join!(asked, taken) }).await;
    (asked.unwrap(), taken)
}

#[tokio::test]
async fn what_was_opened_with_a_root_that_is_replaced_since_ends() {
    let (old, new) = (Cluster::new("c1"), Cluster::new("c1"));
    let manager = manager_of(&old, &new);
    let mut server = start(&new).await;
    server.tls.send_replace(manager.server_tls_with(old.root.cert_pem(), "").unwrap());
    let [of_old, of_new] = [&old, &new].map(|c| c.member("n1", NodeRole::Worker));
    let of_old = of_old.trusting(new.root.cert_pem().to_owned()).unwrap();
    let addr = server.addr.clone();
    let client = async |identity| soon("connect", connect(&addr, identity)).await.unwrap();
    let (first, second) = (client(&of_old).await, client(&of_new).await);
    let (idle, streaming) = (client(&of_old).await, client(&of_old).await);
    let mut tunnel = soon("stream", streaming.clone().stream(1)).await.unwrap();
    let (_, mut theirs) = soon("stream", server.tunnels.recv()).await.unwrap();
    let (_first, replaced) = standing(&mut server, &first).await;
    let (mut good, held) = standing(&mut server, &second).await;
    // The rotation is over.
    server.tls.send_replace(manager.server_tls_with("", old.root.cert_pem()).unwrap());
    ends(replaced).await;
    // Nor does a connection on which nothing is under way let anybody ask for a certificate.
    let ended = async {
        let key = KeyAndCsr::generate().unwrap();
        let (version, csr_pem) = (PROTOCOL_VERSION, key.csr_pem);
        let request = RenewCertificate { version, csr_pem, manager_addr: None };
        while idle.renew(request.clone()).await.is_ok() {}
    };
    soon("the idle connection to end", ended).await;
    // What a client has begun goes on, but nothing else is begun there.
    let refused = soon("a session", streaming.session(hello("n1"))).await.unwrap_err();
    assert_eq!(refused.id().unwrap().0, "SH-IDN-014", "{refused:?}");
    tunnel.write_all(b"still").await.unwrap();
    let mut read = [0; 5];
    soon("bytes", theirs.read_exact(&mut read)).await.unwrap();
    assert_eq!(&read, b"still");
    let word = AckRevision { revision: Revision(7) };
    held.sender().send(ManagerMessage::Converged(word)).await.unwrap();
    assert!(soon("a message", good.next()).await.is_ok(), "a good one stays");
}

#[tokio::test]
async fn a_session_does_not_outlive_its_certificate() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let brief = Duration::from_secs(3);
    let node = cluster.member_at("n1", NodeRole::Worker, now(), brief);
    let client = soon("connect", connect(&server.addr, &node)).await.unwrap();
    let (_node, session) = standing(&mut server, &client).await;
    ends(session).await;
    assert!(now() >= node.not_after, "it ended before its certificate did");
}
