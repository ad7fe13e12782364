//! What managers say to each other: who may, what becomes of connections, and what a failure says
//! about the manager at the other end.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::value::RawValue;
use serde_json::{Value, json};
use shoal_identity::node_identity::NodeIdentity;
use shoal_model::fault::{Fault as _, FaultId, report};
use shoal_model::id::NodeId;
use shoal_model::spec::node::NodeRole;
use shoal_model::time::Timestamp;
use shoal_wire::PEER_BODY_MAX;
use shoal_wire::client::{connect, connect_to};
use shoal_wire::error::{Evidence, WireError};
use shoal_wire::message::{Bye, ByeReason, ManagerAddr};
use shoal_wire::peers::{Lane, PeerPool};
use support::proxy::Proxy;
use support::{Cluster, hello, now, soon, start, start_as, start_at};
use tokio::net::TcpListener;
use tokio::sync::watch;

const LONG: Duration = Duration::from_secs(60);
const LANES: [Lane; 3] = [Lane::Log, Lane::Vote, Lane::Bulk];

fn raw(value: &Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).unwrap()
}

fn of_size(bytes: usize) -> Box<RawValue> {
    raw(&json!("x".repeat(bytes - 2)))
}

fn value(raw: &RawValue) -> Value {
    serde_json::from_str(raw.get()).unwrap()
}

fn id_of(error: &WireError) -> &'static str {
    error.id().map_or("", |FaultId(id)| id)
}

fn one() -> NodeId {
    "manager1".into()
}

/// As `identity`, with manager 1 at `addresses`.
fn pool_as(identity: NodeIdentity, addresses: &[&str]) -> (PeerPool, watch::Sender<NodeIdentity>) {
    let (renew, identity) = watch::channel(identity);
    let pool = PeerPool::new(identity);
    point(&pool, addresses);
    (pool, renew)
}

fn point(pool: &PeerPool, addresses: &[&str]) {
    let addresses = addresses.iter().map(|addr| (*addr).to_owned()).collect();
    pool.set_directory(BTreeMap::from([(one(), addresses)]));
}

fn pool(cluster: &Cluster, addresses: &[&str]) -> (PeerPool, watch::Sender<NodeIdentity>) {
    pool_as(cluster.member("manager2", NodeRole::Manager), addresses)
}

/// Who the manager at the other end says that we are.
async fn who(pool: &PeerPool, lane: Lane) -> Result<Value, WireError> {
    let answer = pool.raft(&one(), lane, raw(&json!({"do": "who"})), LONG).await?;
    Ok(value(&answer))
}

async fn control(pool: &PeerPool, body: Value, limit: Duration) -> Result<Value, WireError> {
    pool.control(&one(), raw(&body), limit).await.map(|answer| value(&answer))
}

#[tokio::test]
async fn calls_reach_the_handler_and_share_a_connection_for_each_lane() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let line = Proxy::to(&server.addr).await;
    let (pool, _renew) = pool(&cluster, &[&line.addr]);
    let mut calls = tokio::task::JoinSet::new();
    for n in 0..150 {
        let (pool, lane) = (pool.clone(), LANES[n % LANES.len()]);
        calls.spawn(async move {
            let told = who(&pool, lane).await.unwrap();
            assert_eq!(told["from"], "manager2");
            assert_eq!(told["lane"], json!(lane));
            let body = json!({"number": n, "deep": [{"x": null}]});
            assert_eq!(control(&pool, body.clone(), LONG).await.unwrap(), body);
        });
    }
    soon("all calls", async { while calls.join_next().await.map(Result::unwrap).is_some() {} })
        .await;
    assert_eq!(line.accepted(), 4, "one for each lane and one for requests");
}

#[tokio::test]
async fn more_calls_at_a_time_than_a_worker_may_make_get_an_answer() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let line = Proxy::to(&server.addr).await;
    let (pool, _renew) = pool(&cluster, &[&line.addr]);
    // The handler answers once as many stand there together.
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..256 {
        let pool = pool.clone();
        let meet = json!({"do": "meet", "number": 256});
        calls.spawn(async move { control(&pool, meet, LONG).await.unwrap() });
    }
    soon("all met", async { while calls.join_next().await.map(Result::unwrap).is_some() {} }).await;
    assert_eq!(line.accepted(), 1);
}

#[tokio::test]
async fn another_manager_at_the_address_is_not_spoken_to() {
    let cluster = Cluster::new("c1");
    let third = start_as(&cluster, &cluster.member("manager3", NodeRole::Manager)).await;
    let (pool, _renew) = pool(&cluster, &[&third.addr]);
    let error = soon("call", who(&pool, Lane::Log)).await.unwrap_err();
    let WireError::NotThatNode { expected, found, .. } = &error else { panic!("{error:?}") };
    assert_eq!((expected, found), (&one(), &"manager3".into()));
    assert_eq!(error.evidence(), Evidence::NotThatNode { found: "manager3".into() });
    assert_eq!(id_of(&error), "SH-WIR-016");
    let own = cluster.member("manager2", NodeRole::Manager);
    let opened = soon("connect", connect_to(&third.addr, &own, &one())).await;
    assert_eq!(opened.map(|_| ()).map_err(|e| id_of(&e)), Err("SH-WIR-016"));
    soon("connect", connect_to(&third.addr, &own, &"manager3".into())).await.unwrap();
    // The next address is tried.
    let first = start(&cluster).await;
    point(&pool, &[&third.addr, &first.addr]);
    soon("call", who(&pool, Lane::Log)).await.unwrap();
}

#[tokio::test]
async fn only_managers_are_answered_and_only_in_their_time() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let worker = cluster.member("w1", NodeRole::Worker);
    let ago = Timestamp::from_secs(now().secs() - 100 * 3600);
    let hour = Duration::from_secs(3600);
    // The door for renewals lets it in as far as TLS goes.
    let expired = cluster.member_at("manager2", NodeRole::Manager, ago, hour);
    for (identity, id, word) in
        [(worker, "SH-WIR-017", "only managers"), (expired, "SH-IDN-005", "expired at")]
    {
        let (pool, _renew) = pool_as(identity, &[&server.addr]);
        for lane in LANES {
            let error = soon("call", who(&pool, lane)).await.unwrap_err();
            assert!(matches!(error, WireError::Remote(_)), "{error:?}");
            assert_eq!(id_of(&error), id, "{error:?}");
            assert!(report(&error).contains(word), "{}", report(&error));
            assert_eq!(error.evidence(), Evidence::Answered);
        }
        let error = soon("call", control(&pool, json!(1), LONG)).await.unwrap_err();
        assert_eq!(id_of(&error), id, "{error:?}");
    }
    // Another cluster's manager comes no further than the handshake. Its first write may fail
    // before it has read why.
    let stranger = Cluster::new("c2").member("manager2", NodeRole::Manager);
    let mixed = NodeIdentity { root_pem: cluster.root.cert_pem().to_owned(), ..stranger };
    let (pool, _renew) = pool_as(mixed, &[&server.addr]);
    let error = soon("call", who(&pool, Lane::Vote)).await.unwrap_err();
    let refused = matches!(error, WireError::OwnCertificate { .. } | WireError::Closed { .. });
    assert!(refused, "{error:?}");
    assert_eq!(*server.heard.borrow(), "", "nobody of these was heard");
}

#[tokio::test]
async fn nobody_at_an_address_is_told_from_no_answer() {
    let cluster = Cluster::new("c1");
    // A port that nobody listens on: taken, then given back.
    let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().to_string();
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mute_addr = mute.local_addr().unwrap().to_string();
    let (pool, _renew) = pool(&cluster, &[&free]);
    let error = soon("call", who(&pool, Lane::Log)).await.unwrap_err();
    assert_eq!(error.evidence(), Evidence::Refused, "{error:?}");
    // Late for this caller.
    point(&pool, &[&mute_addr]);
    let limit = Duration::from_millis(200);
    let error = soon("call", control(&pool, json!(1), limit)).await.unwrap_err();
    assert_eq!(error.evidence(), Evidence::Late { after: limit }, "{error:?}");
    // Refused at one address only says nothing, in whatever order.
    for addresses in [[&mute_addr, &free], [&free, &mute_addr]] {
        point(&pool, &addresses.map(String::as_str));
        let error = soon("call", who(&pool, Lane::Vote)).await.unwrap_err();
        assert!(matches!(error.evidence(), Evidence::Late { .. }), "{error:?}");
    }
    let error = soon("call", pool.control(&"manager9".into(), raw(&json!(1)), LONG)).await;
    let error = error.unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-018", "{error:?}");
    assert_eq!(error.evidence(), Evidence::Nothing);
    point(&pool, &[]);
    let error = soon("call", who(&pool, Lane::Vote)).await.unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-018", "{error:?}");
}

#[tokio::test]
async fn a_killed_server_is_noticed_at_once_and_found_again() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let addr = server.addr.clone();
    let (pool, _renew) = pool(&cluster, &[&addr]);
    soon("call", who(&pool, Lane::Log)).await.unwrap();
    soon("call", who(&pool, Lane::Vote)).await.unwrap();
    // One is under way, the other lane is idle.
    let to = one();
    let hang = pool.raft(&to, Lane::Log, raw(&json!({"do": "hang"})), LONG);
    let mut heard = server.heard.clone();
    let kill = async {
        heard.wait_for(|heard| heard == "hang").await.unwrap();
        drop(server);
    };
    let (ended, ()) = soon("the end", async { tokio::join!(hang, kill) }).await;
    let error = ended.unwrap_err();
    assert_eq!(error.evidence(), Evidence::Closed, "{error:?}");
    let error = soon("call", who(&pool, Lane::Log)).await.unwrap_err();
    assert_eq!(error.evidence(), Evidence::Refused, "{error:?}");
    let _back = start_at(&addr, &cluster, &cluster.member("manager1", NodeRole::Manager)).await;
    soon("call", who(&pool, Lane::Log)).await.unwrap();
    // The idle one notices too, before it loses more than one call.
    let again = async {
        while let Err(error) = who(&pool, Lane::Vote).await {
            assert_eq!(error.evidence(), Evidence::Closed, "{error:?}");
        }
    };
    soon("the idle lane", again).await;
}

#[tokio::test]
async fn a_call_that_is_late_costs_nobody_the_connection() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let line = Proxy::to(&server.addr).await;
    let (pool, _renew) = pool(&cluster, &[&line.addr]);
    soon("call", control(&pool, json!(1), LONG)).await.unwrap();
    let limit = Duration::from_millis(300);
    let error = soon("call", control(&pool, json!({"do": "hang"}), limit)).await.unwrap_err();
    assert_eq!(error.evidence(), Evidence::Late { after: limit }, "{error:?}");
    assert_eq!(id_of(&error), "SH-WIR-004");
    soon("call", control(&pool, json!(2), LONG)).await.unwrap();
    assert_eq!(line.accepted(), 1);
    // The handler has a deadline of its own; its peer is alive all the same.
    let error = soon("call", control(&pool, json!({"do": "hang"}), LONG)).await.unwrap_err();
    assert!(matches!(error.evidence(), Evidence::Late { .. }), "{error:?}");
    soon("call", control(&pool, json!(3), LONG)).await.unwrap();
    assert_eq!(line.accepted(), 1);
}

#[tokio::test]
async fn a_line_that_is_dead_is_replaced_and_is_no_sign_of_a_dead_process() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let line = Proxy::to(&server.addr).await;
    let (pool, _renew) = pool(&cluster, &[&line.addr]);
    soon("call", who(&pool, Lane::Log)).await.unwrap();
    line.stop_these();
    let again = async {
        let body = || raw(&json!({"do": "who"}));
        while let Err(error) = pool.raft(&one(), Lane::Log, body(), LONG).await {
            assert!(matches!(error.evidence(), Evidence::Late { .. }), "{error:?}");
        }
    };
    soon("another connection", again).await;
    assert_eq!(line.accepted(), 2);
}

#[tokio::test]
async fn a_snapshot_on_a_slow_line_is_in_nobodys_way() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let line = Proxy::to(&server.addr).await;
    let (pool, _renew) = pool(&cluster, &[&line.addr]);
    line.narrow(256 << 10);
    let to = one();
    let bulk = pool.raft(&to, Lane::Bulk, of_size(4 << 20), LONG);
    let others = async {
        for _ in 0..20 {
            for lane in [Lane::Log, Lane::Vote] {
                who(&pool, lane).await.unwrap();
            }
            control(&pool, json!(1), LONG).await.unwrap();
        }
    };
    tokio::pin!(bulk);
    let first = async {
        tokio::select! {
            bulk = &mut bulk => panic!("the narrow line let it pass: {bulk:?}"),
            () = others => {}
        }
    };
    soon("the others", first).await;
    line.narrow(usize::MAX);
    assert_eq!(soon("the snapshot", bulk).await.unwrap().get().len(), 4 << 20);
}

#[tokio::test]
async fn bodies_have_a_bound_and_up_to_it_they_pass() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let (pool, _renew) = pool(&cluster, &[&server.addr]);
    for bytes in [5 << 20, PEER_BODY_MAX] {
        let answer = soon("call", pool.raft(&one(), Lane::Log, of_size(bytes), LONG)).await;
        assert_eq!(answer.unwrap().get().len(), bytes);
    }
    let above = of_size(PEER_BODY_MAX + 1);
    let error = soon("call", pool.raft(&one(), Lane::Log, above.clone(), LONG)).await.unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-011");
    assert!(error.to_string().contains("manager1"), "{error}");
    assert!(error.to_string().contains(&PEER_BODY_MAX.to_string()), "{error}");
    let error = soon("call", pool.control(&one(), above, LONG)).await.unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-011");
    // An answer above it, too.
    let big = json!({"do": "big", "number": PEER_BODY_MAX + 2000});
    let error = soon("call", control(&pool, big, LONG)).await.unwrap_err();
    assert!(matches!(error, WireError::TooLarge { limit: PEER_BODY_MAX, .. }), "{error:?}");
    soon("call", control(&pool, json!(1), LONG)).await.unwrap();
}

#[tokio::test]
async fn a_renewed_identity_and_a_new_address_are_used_from_the_next_call_on() {
    let cluster = Cluster::new("c1");
    let server = start(&cluster).await;
    let line = Proxy::to(&server.addr).await;
    let hour = Duration::from_secs(3600);
    let own = |n: u32| cluster.member_at("manager2", NodeRole::Manager, now(), hour * n);
    let (pool, renew) = pool_as(own(2), &[&line.addr]);
    let old = soon("call", who(&pool, Lane::Log)).await.unwrap()["until"].as_i64().unwrap();
    // A call that is under way ends where it began.
    let meet = || json!({"do": "meet", "number": 2});
    let mut heard = server.heard.clone();
    let renewed = async {
        heard.wait_for(|heard| heard == "meet").await.unwrap();
        renew.send_replace(own(5));
        control(&pool, meet(), LONG).await
    };
    let under_way = control(&pool, meet(), LONG);
    let (first, second) = soon("both", async { tokio::join!(under_way, renewed) }).await;
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first["until"].as_i64(), Some(old));
    let new = second["until"].as_i64().unwrap();
    assert!(new > old + 2 * 3600, "{new} {old}");
    let until = soon("call", who(&pool, Lane::Log)).await.unwrap()["until"].as_i64();
    assert_eq!(until, Some(new));
    assert_eq!(line.accepted(), 4);
    // The same directory changes nothing, another one does.
    point(&pool, &[&line.addr]);
    soon("call", who(&pool, Lane::Log)).await.unwrap();
    assert_eq!(line.accepted(), 4);
    let other = Proxy::to(&server.addr).await;
    point(&pool, &[&other.addr]);
    soon("call", who(&pool, Lane::Log)).await.unwrap();
    assert_eq!((line.accepted(), other.accepted()), (4, 1));
}

#[tokio::test]
async fn a_manager_that_does_not_lead_says_who_does() {
    let cluster = Cluster::new("c1");
    let mut server = start(&cluster).await;
    let identity = cluster.member("n1", NodeRole::Worker);
    let client = soon("connect", connect(&server.addr, &identity)).await.unwrap();
    let leader = ManagerAddr { node_id: "manager3".into(), addr: "10.0.0.3:2377".into() };
    let message = "ask manager3".to_owned();
    let bye = Bye { reason: ByeReason::NotLeader, message, leader: Some(leader.clone()) };
    let end = async { server.sessions.recv().await.unwrap().end(bye).await };
    let (opened, ()) = soon("bye", async { tokio::join!(client.session(hello("n1")), end) }).await;
    let error = opened.map(|_| ()).unwrap_err();
    assert_eq!(id_of(&error), "SH-WIR-019");
    let WireError::NotLeader { leader: told, .. } = error else { panic!("{error:?}") };
    assert_eq!(told, Some(leader));
}
