//! Joining and connecting, and everything that can be wrong with it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::{Duration, Instant};

use shoal_identity::authority::KeyAndCsr;
use shoal_identity::error::IdentityError;
use shoal_identity::node_identity::NodeIdentity;
use shoal_identity::tls::RENEWAL_GRACE;
use shoal_identity::token::{JoinToken, generate_tokens};
use shoal_model::fault::{Fault as _, FaultId, report};
use shoal_model::id::NodeId;
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;
use shoal_stopwatch::Stopwatch;
use shoal_wire::client::{connect, join};
use shoal_wire::error::WireError;
use shoal_wire::message::{NodeFacts, PROTOCOL_VERSION, RenewCertificate};
use support::{Cluster, hello, now, soon, start, start_as};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

async fn join_with(addr: &str, token: &JoinToken) -> Result<NodeIdentity, WireError> {
    let pair = KeyAndCsr::generate().unwrap();
    let joined = soon("join", join(addr, token, &pair.csr_pem, NodeFacts::default())).await?;
    let identity = NodeIdentity::new(joined.reply.cert_pem, pair.key_pem, joined.root_pem).unwrap();
    assert_eq!(identity.node_id, joined.reply.node_id);
    Ok(identity)
}

fn id_of(error: &WireError) -> &'static str {
    error.id().map_or("", |FaultId(id)| id)
}

#[tokio::test]
async fn a_node_joins_renews_and_keeps_its_identity_on_disk() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let identity = join_with(&server.addr, &cluster.worker_token()).await.unwrap();
    assert_eq!(identity.role, NodeRole::Worker);
    assert_eq!(identity.cluster_id, "c1".into());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity.json");
    assert_eq!(NodeIdentity::load(&path).unwrap(), None);
    identity.save_in_clear(&path).unwrap();
    identity.save_in_clear(&path).unwrap();
    assert_eq!(NodeIdentity::load(&path).unwrap().as_ref(), Some(&identity));

    let client = soon("connect", connect(&server.addr, &identity)).await.unwrap();
    let pair = KeyAndCsr::generate().unwrap();
    let request =
        RenewCertificate { version: PROTOCOL_VERSION, csr_pem: pair.csr_pem, manager_addr: None };
    let reply = soon("renew", client.renew(request)).await.unwrap();
    assert_eq!(reply.node_id, identity.node_id);
    assert_eq!(reply.role, NodeRole::Worker);
    server.server.shutdown().await;
}

#[tokio::test]
async fn wrong_tokens_are_refused_on_the_right_side() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    // Right cluster, secret that is not current: the manager's words.
    let stale = JoinToken::generate(cluster.root.digest());
    let error = join_with(&server.addr, &stale).await.unwrap_err();
    assert!(matches!(&error, WireError::Remote(_)), "{error:?}");
    assert_eq!(id_of(&error), "SH-IDN-002");
    assert!(report(&error).contains("rotated"), "{}", report(&error));
    // Another cluster's token: refused here, before any secret has left.
    let other = Cluster::new("c2").worker_token();
    let error = join_with(&server.addr, &other).await.unwrap_err();
    let WireError::PeerCertificate { source, .. } = &error else { panic!("{error:?}") };
    assert!(matches!(source, IdentityError::WrongRoot { .. }), "{source}");
    assert_eq!(id_of(&error), "SH-IDN-003");
}

#[tokio::test]
async fn a_worker_is_no_manager() {
    let cluster = Cluster::new("c1");
    let server = start_as(&cluster, &cluster.member("w1", NodeRole::Worker)).await;
    let error = join_with(&server.addr, &cluster.worker_token()).await.unwrap_err();
    assert_eq!(id_of(&error), "SH-IDN-007");
    let node = cluster.member("n1", NodeRole::Worker);
    let error = soon("connect", connect(&server.addr, &node)).await.unwrap_err();
    assert_eq!(id_of(&error), "SH-IDN-007");
}

#[tokio::test]
async fn clocks_that_differ_are_named_on_both_sides() {
    let cluster = Cluster::new("c1");
    let hour = Duration::from_secs(3600);
    let long_ago = Timestamp::from_secs(now().secs() - 100 * 3600);
    let tomorrow = now().plus(24 * hour);
    // The manager's certificate: our own check, with the difference.
    for (from, id, word) in
        [(long_ago, "SH-IDN-005", "expired at"), (tomorrow, "SH-IDN-006", "valid from")]
    {
        let manager = cluster.member_at("m1", NodeRole::Manager, from, hour);
        let server = start_as(&cluster, &manager).await;
        let error = join_with(&server.addr, &cluster.worker_token()).await.unwrap_err();
        assert_eq!(id_of(&error), id);
        assert!(report(&error).contains(word), "{}", report(&error));
        assert!(report(&error).contains("this node's clock"), "{}", report(&error));
    }
    // The node's certificate: the manager's words, with the difference, where it can still be
    // renewed; otherwise its alert.
    let server = start(&cluster).await;
    let expired = cluster.member_at("n1", NodeRole::Worker, long_ago, hour);
    let error = first_error(&server.addr, &expired).await;
    assert_eq!(id_of(&error), "SH-IDN-005");
    assert!(error.to_string().contains("expired at"), "{error}");
    let early = cluster.member_at("n1", NodeRole::Worker, tomorrow, hour);
    let error = first_error(&server.addr, &early).await;
    assert_eq!(id_of(&error), "SH-WIR-006");
    assert!(error.to_string().contains("or is not valid yet"), "{error}");
}

async fn first_error(addr: &str, identity: &NodeIdentity) -> WireError {
    match soon("connect", connect(addr, identity)).await {
        Err(error) => error,
        Ok(client) => {
            let node = identity.node_id.as_str();
            soon("session", client.session(hello(node))).await.map(|_| ()).unwrap_err()
        }
    }
}

#[tokio::test]
async fn a_member_of_another_cluster_is_refused_by_both() {
    let (cluster, other) = (Cluster::new("c1"), Cluster::new("c2"));
    let server = start(&cluster).await;
    let stranger = other.member("n1", NodeRole::Worker);
    let error = first_error(&server.addr, &stranger).await;
    assert_eq!(id_of(&error), "SH-IDN-004", "{error:?}");
    // A stranger that trusts our root still has no certificate of it.
    let mixed = NodeIdentity { root_pem: cluster.root.cert_pem().to_owned(), ..stranger };
    let error = first_error(&server.addr, &mixed).await;
    assert_eq!(id_of(&error), "SH-WIR-006", "{error:?}");
    assert!(error.to_string().contains("another cluster"), "{error}");
}

#[tokio::test]
async fn transport_errors_name_the_step() {
    let cluster = Cluster::new("c1");
    let token = cluster.worker_token();
    for addr in ["10.0.0.1", "", ":2377", "host:", "host:0", "host:99999"] {
        let error = join_with(addr, &token).await.unwrap_err();
        assert_eq!(id_of(&error), "SH-WIR-001", "{addr}: {error}");
    }
    let error = join_with("no-such-host.invalid:2377", &token).await.unwrap_err();
    assert!(matches!(error, WireError::Resolve { .. } | WireError::Timeout { .. }), "{error:?}");
    // A port that nobody listens on: taken, then given back.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = join_with(&free.to_string(), &token).await.unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-003", "{error}");
    assert!(error.to_string().contains(&free.to_string()), "{error}");
    // Another service.
    let web = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = web.local_addr().unwrap().to_string();
    let answer = tokio::spawn(async move {
        let (mut stream, _) = web.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let error = join_with(&addr, &token).await.unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-005", "{error:?}");
    answer.await.unwrap();
    // One that says nothing.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let error = join_with(&mute.local_addr().unwrap().to_string(), &token).await.unwrap_err();
    let WireError::Timeout { step, .. } = &error else { panic!("{error:?}") };
    assert_eq!(*step, "TLS handshake");
}

#[tokio::test]
async fn garbage_and_slow_handshakes_do_not_disturb_others() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let mut garbage = TcpStream::connect(&server.addr).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut slow = TcpStream::connect(&server.addr).await.unwrap();
    let (begin, wall) = (Stopwatch::start(), Instant::now());
    // The first bytes of a TLS record, and then nothing.
    slow.write_all(&[0x16, 0x03, 0x01, 0x02]).await.unwrap();
    let mut rest = Vec::new();
    // Ignored because: closed with an alert or with a reset, both end it.
    let _ = soon("garbage is closed", garbage.read_to_end(&mut rest)).await;
    join_with(&server.addr, &cluster.worker_token()).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(4), "the join waited for others");
    // Ignored because: as above.
    let _ = soon("the slow one is closed", slow.read_to_end(&mut rest)).await;
    assert!(wall.elapsed() >= Duration::from_secs(4), "{:?}", wall.elapsed());
}

#[tokio::test]
async fn without_a_certificate_only_joining_is_possible() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let config = shoal_identity::tls::pinned_client_config(&cluster.root.digest()).unwrap();
    let client =
        soon("connect", shoal_wire::client::connect_with(&server.addr, config)).await.unwrap();
    let error = soon("session", client.session(hello("n1"))).await.map(|_| ()).unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-015", "{error:?}");
    let request =
        RenewCertificate { version: PROTOCOL_VERSION, csr_pem: String::new(), manager_addr: None };
    let error = soon("renew", client.renew(request)).await.map(|_| ()).unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-015", "{error:?}");
}

#[tokio::test]
async fn a_join_request_has_a_bound() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let mut facts = NodeFacts::default();
    facts.description.hostname = "x".repeat(shoal_wire::JOIN_MESSAGE_MAX);
    let pair = KeyAndCsr::generate().unwrap();
    let token = cluster.worker_token();
    let error = soon("join", join(&server.addr, &token, &pair.csr_pem, facts)).await.unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-011", "{error:?}");
}

#[tokio::test]
async fn a_renewed_server_certificate_is_used_at_once() {
    let cluster = Cluster::new("c1");
    let past = Timestamp::from_secs(now().secs() - 100 * 3600);
    let hour = Duration::from_secs(3600);
    let server = start_as(&cluster, &cluster.member_at("m1", NodeRole::Manager, past, hour)).await;
    join_with(&server.addr, &cluster.worker_token()).await.unwrap_err();
    let fresh = cluster.member("m1", NodeRole::Manager);
    server.tls.send_replace(fresh.server_tls().unwrap());
    join_with(&server.addr, &cluster.worker_token()).await.unwrap();
}

#[tokio::test]
async fn an_expired_certificate_is_good_for_the_next_one_only() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let hour = Duration::from_secs(3600);
    let ago = |secs| Timestamp::from_secs(now().secs() - secs);
    let late = cluster.member_at("n1", NodeRole::Worker, ago(100 * 3600), hour);
    let client = soon("connect", connect(&server.addr, &late)).await.unwrap();
    let error = soon("session", client.session(hello("n1"))).await.map(|_| ()).unwrap_err();
    assert_eq!(id_of(&error), "SH-IDN-005", "{error:?}");
    let pair = KeyAndCsr::generate().unwrap();
    let request =
        RenewCertificate { version: PROTOCOL_VERSION, csr_pem: pair.csr_pem, manager_addr: None };
    let reply = soon("renew", client.renew(request)).await.unwrap();
    let root = cluster.root.cert_pem().to_owned();
    let fresh = NodeIdentity::new(reply.cert_pem, pair.key_pem, root).unwrap();
    assert_eq!(fresh.node_id, NodeId::new("n1"));
    assert!(fresh.not_after > now());
    // Not for ever.
    let gone = i64::try_from(RENEWAL_GRACE.as_secs()).unwrap() + 2 * 3600;
    let gone = cluster.member_at("n1", NodeRole::Worker, ago(gone), hour);
    let opened = async {
        let client = connect(&server.addr, &gone).await?;
        client.session(hello("n1")).await.map(|_| ())
    };
    let error = soon("refusal", opened).await.unwrap_err();
    assert!(matches!(error, WireError::OwnCertificate { .. }), "{error:?}");
}

#[test]
fn rotated_tokens_differ_in_the_secret_only() {
    let cluster = Cluster::new("c1");
    let again = generate_tokens(&cluster.root.digest());
    assert_ne!(again.worker, cluster.tokens.worker);
    assert_eq!(again.worker[..60], cluster.tokens.worker[..60]);
}
