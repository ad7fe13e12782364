//! Changes that another manager makes: what crosses, what is repeated, what the client reads.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use shoal_identity::authority::KeyAndCsr;
use shoal_manager::control::{Control, Rotation, ServiceUpdate};
use shoal_manager::error::ControlError;
use shoal_manager::forward::{self, Caller, Leader};
use shoal_manager::requests::{ControlReply, ControlRequest, PayloadId};
use shoal_model::fault::{Fault, FaultId, FaultKind, report};
use shoal_model::id::{NodeId, Revision};
use shoal_model::object::NodeState;
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::node::{Availability, NodeRole, NodeSpec};
use shoal_model::spec::payload::{PayloadData, PayloadSpec};
use shoal_model::spec::service::ServiceSpec;
use shoal_wire::error::WireError;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{IssueCertificate, NodeFacts, PROTOCOL_VERSION, RenewCertificate};
use support::{DEADLINE, World, network, service};
use tokio::sync::watch;
use tokio::time::Instant;

/// What the line to the leader does to the first request on it.
#[derive(Clone, Copy, PartialEq)]
enum Mood {
    /// Nothing.
    Fine,
    /// It breaks before the request is there.
    Unreachable,
    /// It breaks when the request is carried out.
    LosesAnswers,
    /// The same, and it is never mended.
    Breaks,
    /// Nothing ever comes back.
    Silent,
}

/// A leader in the same process, over JSON text as on the wire.
struct Line {
    to: Control,
    from: NodeId,
    mood: Mood,
    tries: AtomicUsize,
}

#[async_trait]
impl Leader for Line {
    async fn call(
        &self,
        caller: Caller,
        request: ControlRequest,
        by: Instant,
    ) -> Result<(ControlReply, Revision), ControlError> {
        assert_eq!(caller.node, self.from);
        let first = self.tries.fetch_add(1, Ordering::Relaxed) == 0;
        let mood = match self.mood {
            Mood::Breaks if first => Mood::LosesAnswers,
            Mood::Breaks => Mood::Unreachable,
            mood if first => mood,
            _ => Mood::Fine,
        };
        if mood == Mood::Unreachable {
            let source = std::io::Error::from_raw_os_error(111);
            let addr = SocketAddr::from(([127, 0, 0, 1], 1));
            let source = source.into();
            return Err(ControlError::passing_on(WireError::Connect { addr, source }));
        }
        if mood == Mood::Silent {
            std::future::pending::<()>().await;
        }
        let body = forward::pass(&caller, request, by)?;
        let answer = self.to.answer(&self.from, &body).await;
        let answer = answer.map_err(WireError::from).map_err(ControlError::passing_on)?;
        if mood == Mood::LosesAnswers {
            let closed = WireError::Closed { addr: "m1".into(), source: None };
            return Err(ControlError::passing_on(closed));
        }
        forward::read(&answer)
    }
}

/// A manager that does not lead, on the store of one that does.
struct Follower {
    control: Control,
    line: Arc<Line>,
    lead: watch::Sender<bool>,
}

impl Follower {
    fn of(world: &World, mood: Mood) -> Self {
        Self::behind(world, world.control.clone(), mood)
    }

    /// One that passes everything on to `to`.
    fn behind(world: &World, to: Control, mood: Mood) -> Self {
        let from = world.identity.node_id.clone();
        let line = Arc::new(Line { to, from, mood, tries: AtomicUsize::new(0) });
        let (lead, leads) = watch::channel(false);
        let control = world.control.with_leader(leads, Arc::clone(&line) as Arc<dyn Leader>);
        Self { control, line, lead }
    }

    fn tries(&self) -> usize {
        self.line.tries.load(Ordering::Relaxed)
    }
}

fn caller(world: &World) -> Caller {
    Caller { node: world.identity.node_id.clone(), user: Some("ada".into()) }
}

fn payload(name: &str) -> PayloadSpec {
    let data = PayloadData::new(vec![0, 255, 7]);
    PayloadSpec { name: name.into(), data, ..PayloadSpec::default() }
}

fn labelled(mut spec: PayloadSpec) -> PayloadSpec {
    spec.labels.insert("a".into(), "b".into());
    spec
}

fn join(world: &World, id: &str) -> ControlRequest {
    let request = IssueCertificate {
        version: PROTOCOL_VERSION,
        csr_pem: KeyAndCsr::generate().unwrap().csr_pem,
        token: world.token(NodeRole::Worker),
        facts: NodeFacts { description: support::describe("a"), ..NodeFacts::default() },
    };
    let remote = SocketAddr::from(([10, 0, 0, 9], 4000));
    ControlRequest::Join { id: id.into(), request: Box::new(request), remote }
}

fn renew(id: &str) -> ControlRequest {
    let csr_pem = KeyAndCsr::generate().unwrap().csr_pem;
    let request = RenewCertificate { version: PROTOCOL_VERSION, csr_pem, manager_addr: None };
    ControlRequest::Renew { id: id.into(), request }
}

/// One of each kind, in an order in which a cluster takes them.
fn one_of_each(world: &World) -> Vec<ControlRequest> {
    let state = world.control.state();
    let cluster = state.cluster.clone().unwrap();
    let (secret, config) =
        (PayloadId::Secret("secret-1".into()), PayloadId::Config("config-1".into()));
    let version = Revision(7);
    let mut changed = service("web", 0, &["mynet"]);
    changed.labels.insert("a".into(), "b".into());
    let own = state.nodes.values().next().unwrap();
    vec![
        ControlRequest::CreateNetwork { id: "net-1".into(), spec: Box::new(network("mynet")) },
        ControlRequest::CreateService {
            id: "svc-1".into(),
            spec: Box::new(service("web", 0, &["mynet"])),
            registry_auth: Some("e30K".into()),
        },
        ControlRequest::UpdateService {
            id: "svc-1".into(),
            version,
            update: ServiceUpdate::Spec(Box::new(changed)),
            registry_auth: None,
        },
        ControlRequest::UpdateService {
            id: "svc-1".into(),
            version,
            update: ServiceUpdate::Rollback,
            registry_auth: None,
        },
        ControlRequest::RemoveService { id: "svc-1".into() },
        ControlRequest::RemoveNetwork { id: "net-1".into() },
        ControlRequest::CreatePayload { id: secret.clone(), spec: payload("s") },
        ControlRequest::CreatePayload { id: config.clone(), spec: payload("c") },
        ControlRequest::UpdatePayload { id: secret.clone(), version, spec: labelled(payload("s")) },
        ControlRequest::UpdatePayload { id: config.clone(), version, spec: labelled(payload("c")) },
        ControlRequest::RemovePayload { id: secret },
        ControlRequest::RemovePayload { id: config },
        ControlRequest::UpdateNode {
            id: own.id.clone(),
            version,
            spec: NodeSpec { availability: Availability::Pause, ..own.spec.clone() },
        },
        join(world, "node-1"),
        renew("node-1"),
        ControlRequest::RemoveNode { id: "node-1".into(), force: true },
        ControlRequest::UpdateCluster {
            version,
            spec: Box::new(cluster.spec.clone()),
            rotation: Rotation { worker_token: true, ..Rotation::default() },
        },
    ]
}

/// The request with the version that its object has now.
fn current(world: &World, mut request: ControlRequest) -> ControlRequest {
    let state = world.control.state();
    match &mut request {
        ControlRequest::UpdateService { id, version, .. } => {
            *version = state.services.get(id).unwrap().meta.version;
        }
        ControlRequest::UpdatePayload { id, version, .. } => {
            *version = match id {
                PayloadId::Secret(id) => state.secrets.get(id).unwrap().meta.version,
                PayloadId::Config(id) => state.configs.get(id).unwrap().meta.version,
            };
        }
        ControlRequest::UpdateNode { id, version, .. } => {
            *version = state.nodes.get(id).unwrap().meta.version;
        }
        ControlRequest::UpdateCluster { version, .. } => {
            *version = state.cluster.as_ref().unwrap().meta.version;
        }
        _ => {}
    }
    request
}

/// Asks with the newest version, again if the planner was quicker.
async fn ask(
    world: &World,
    control: impl Fn() -> Control,
    request: &ControlRequest,
) -> Result<ControlReply, ControlError> {
    let by = Instant::now() + DEADLINE;
    loop {
        let request = current(world, request.clone());
        let answer = control().call(caller(world), request, by).await;
        let stale = |e: &ControlError| e.id() == Some(FaultId("SH-MGR-002"));
        if !answer.as_ref().is_err_and(stale) || Instant::now() >= by {
            return answer;
        }
    }
}

/// What of the state a request is about, without what differs from one cluster to the next.
fn about(world: &World, request: &ControlRequest) -> Value {
    let state = world.control.state();
    match request {
        ControlRequest::CreateService { id, .. }
        | ControlRequest::UpdateService { id, .. }
        | ControlRequest::RemoveService { id } => {
            json!(state.services.get(id).map(|s| json!([s.spec, s.previous_spec, s.spec_version])))
        }
        ControlRequest::CreateNetwork { id, .. } | ControlRequest::RemoveNetwork { id } => {
            json!(state.networks.get(id).map(|n| json!([n.spec, n.subnets])))
        }
        ControlRequest::CreatePayload { id, .. }
        | ControlRequest::UpdatePayload { id, .. }
        | ControlRequest::RemovePayload { id } => match id {
            PayloadId::Secret(id) => json!(state.secrets.get(id).map(|s| s.spec.clone())),
            PayloadId::Config(id) => json!(state.configs.get(id).map(|c| c.spec.clone())),
        },
        ControlRequest::UpdateNode { id, .. }
        | ControlRequest::RemoveNode { id, .. }
        | ControlRequest::Join { id, .. }
        | ControlRequest::Renew { id, .. } => {
            json!(state.nodes.get(id).map(|n| json!([n.spec, n.status.addr, n.index])))
        }
        ControlRequest::UpdateCluster { .. } => json!(state.cluster.as_ref().unwrap().spec),
        ControlRequest::OpenLog { .. }
        | ControlRequest::ReadLog { .. }
        | ControlRequest::CloseLog { .. }
        | ControlRequest::OpenStream { .. }
        | ControlRequest::Unknown { .. } => Value::Null,
    }
}

fn plain(reply: &ControlReply) -> Value {
    match reply {
        ControlReply::Certificate { reply } => json!([reply.node_id, reply.role]),
        other => json!(other),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_request_does_the_same_wherever_it_is_carried_out() {
    let (here, there) = (World::new().await, World::new().await);
    let follower = Follower::of(&there, Mood::Fine);
    let (direct, passed) = (one_of_each(&here), one_of_each(&there));
    for (direct, passed) in direct.into_iter().zip(passed) {
        let (name, tries) = (direct.name().to_owned(), follower.tries());
        let a = ask(&here, || here.control.clone(), &direct).await.unwrap();
        let b = ask(&there, || follower.control.clone(), &passed).await.unwrap();
        assert_eq!(plain(&a), plain(&b), "{name}");
        let (a, b) = (about(&here, &direct), about(&there, &passed));
        if !matches!(direct, ControlRequest::UpdateNode { .. }) {
            assert_eq!(a, b, "{name}");
        }
        assert_eq!(a.is_null(), name.starts_with("remove"), "{name}: {a}");
        assert!(follower.tries() > tries, "{name}: it was not passed on");
    }
    let paused = |world: &World| {
        let state = world.control.state();
        state.nodes.values().all(|n| n.spec.availability == Availability::Pause)
    };
    assert!(paused(&here) && paused(&there));
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_and_answers_read_back_as_written() {
    let world = World::new().await;
    let mut names = std::collections::BTreeSet::new();
    for request in one_of_each(&world) {
        let text = serde_json::to_string(&request).unwrap();
        let mut value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["type"], request.name(), "{text}");
        assert_eq!(serde_json::from_str::<ControlRequest>(&text).unwrap(), request, "{text}");
        // A later version says more.
        value["body"]["mood"] = json!({"good": [1]});
        value["extra"] = json!(5);
        assert_eq!(serde_json::from_value::<ControlRequest>(value).unwrap(), request);
        // The name alone is no request.
        let bare = json!({"type": request.name(), "body": {}});
        assert!(serde_json::from_value::<ControlRequest>(bare).is_err(), "{text}");
        names.insert(request.name().to_owned());
    }
    assert_eq!(names.len(), 13, "{names:?}");
    let replies = [ControlReply::Done {}, ControlReply::Warnings { warnings: vec!["w".into()] }];
    for reply in replies {
        let text = serde_json::to_string(&reply).unwrap();
        assert_eq!(serde_json::from_str::<ControlReply>(&text).unwrap(), reply, "{text}");
    }
    let later: ControlReply =
        serde_json::from_value(json!({"type": "applause", "body": {"loud": true}})).unwrap();
    assert_eq!(later, ControlReply::Unknown { name: "applause".into() });
    // Nothing that is kept secret is in what a log would show.
    assert_eq!(format!("{:?}", join(&world, "n")), "join");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_of_a_later_version_is_named() {
    let world = World::new().await;
    let body = json!({
        "within_ms": 60_000,
        "request": {"type": "paint_service", "body": {"color": "red"}},
    });
    let body = serde_json::value::to_raw_value(&body).unwrap();
    let fault = world.control.answer(&world.identity.node_id, &body).await.unwrap_err();
    let error = ControlError::passing_on(fault.into());
    assert_eq!(error.kind(), FaultKind::NotImplemented);
    assert_eq!(report(&error), "not implemented: paint_service; upgrade the leader [SH-MGR-001]");
    let broken = serde_json::value::to_raw_value(&json!({"within_ms": "?"})).unwrap();
    let fault = world.control.answer(&world.identity.node_id, &broken).await.unwrap_err();
    assert_eq!(fault.id, "SH-MGR-011", "{fault}");
}

/// What a client reads: the class, from which the API makes the status, and the line with its id.
fn read_by_client(error: &ControlError) -> (FaultKind, String, Option<FaultId>) {
    (error.kind(), report(error), error.id())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_request_reads_the_same_on_every_manager() {
    let world = World::new().await;
    let follower = Follower::of(&world, Mood::Fine);
    let control = &world.control;
    let net = control.create_network(network("mynet")).await.unwrap();
    let web = control.create_service(service("web", 0, &["mynet"]), None).await.unwrap().id;
    let own = world.identity.node_id.clone();
    let cluster = control.state().cluster.clone().unwrap();
    let create = |spec: ServiceSpec| ControlRequest::CreateService {
        id: "new".into(),
        spec: Box::new(spec),
        registry_auth: None,
    };
    let mut big = payload("big");
    big.data = PayloadData::new(vec![1; 600 * 1024]);
    let misnamed = ClusterSpec { name: "other".into(), ..cluster.spec.clone() };
    let wrong = [
        (create(service("web", 1, &[])), FaultKind::Conflict),
        (create(service("", 1, &[])), FaultKind::Invalid),
        (create(service("x", 1, &["nowhere"])), FaultKind::NotFound),
        (
            ControlRequest::UpdateService {
                id: web.clone(),
                version: Revision(1),
                update: ServiceUpdate::Rollback,
                registry_auth: None,
            },
            FaultKind::Internal,
        ),
        (ControlRequest::RemoveService { id: "new".into() }, FaultKind::NotFound),
        (ControlRequest::RemoveNetwork { id: net }, FaultKind::Invalid),
        (
            ControlRequest::CreateNetwork {
                id: "n".into(),
                spec: Box::new(NetworkSpec { name: "mynet".into(), ..NetworkSpec::default() }),
            },
            FaultKind::Conflict,
        ),
        (
            ControlRequest::CreatePayload { id: PayloadId::Secret("s".into()), spec: big },
            FaultKind::Invalid,
        ),
        (
            ControlRequest::RemovePayload { id: PayloadId::Config("none".into()) },
            FaultKind::NotFound,
        ),
        (ControlRequest::RemoveNode { id: own, force: true }, FaultKind::Invalid),
        (
            ControlRequest::UpdateCluster {
                version: cluster.meta.version,
                spec: Box::new(misnamed),
                rotation: Rotation::default(),
            },
            FaultKind::Invalid,
        ),
        (renew("gone"), FaultKind::Forbidden),
    ];
    for (request, kind) in wrong {
        let by = Instant::now() + DEADLINE;
        let direct = control.call(caller(&world), request.clone(), by).await.unwrap_err();
        let passed = follower.control.call(caller(&world), request.clone(), by).await.unwrap_err();
        assert!(matches!(passed, ControlError::Remote(_)), "{passed:?}");
        assert_eq!(read_by_client(&direct), read_by_client(&passed), "{request:?}");
        assert_eq!(direct.kind(), kind, "{request:?}: {direct}");
        assert_eq!(RemoteFault::of(&direct), RemoteFault::of(&passed));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_another_manager_wrote_is_read_here_at_once() {
    let world = World::new().await;
    let follower = Follower::of(&world, Mood::Fine);
    let control = &follower.control;
    for number in 0..20 {
        let name = format!("web-{number}");
        let id = control.create_service(service(&name, 0, &[]), None).await.unwrap().id;
        let stored = control.state().services.get(&id).unwrap().clone();
        assert_eq!(stored.spec.name, name);
        let secret = control.create_secret(payload(&name)).await.unwrap();
        assert!(control.state().secrets.contains_key(&secret));
        control.remove_service(&id).await.unwrap();
        assert!(!control.state().services.contains_key(&id));
    }
    assert_eq!(follower.tries(), 60);
    // As soon as it leads itself, nobody else is asked.
    follower.lead.send_replace(true);
    control.create_config(payload("c")).await.unwrap();
    assert_eq!(follower.tries(), 60);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_again_after_a_lost_answer_finds_what_it_made() {
    let world = World::new().await;
    for request in one_of_each(&world) {
        let followers = std::cell::RefCell::new(Vec::new());
        let control = || {
            let follower = Follower::of(&world, Mood::LosesAnswers);
            let control = follower.control.clone();
            followers.borrow_mut().push(follower);
            control
        };
        let answer = ask(&world, control, &request).await;
        let follower = followers.take().pop().unwrap();
        if request.name().starts_with("update") {
            // An update refuses its own repetition: the client is told that it may have happened.
            let error = answer.unwrap_err();
            assert_eq!(error.id(), Some(FaultId("SH-MGR-009")), "{error}");
            assert!(report(&error).contains("it may still happen: connection"), "{error}");
            assert_eq!(follower.tries(), 1, "{request:?}");
        } else {
            answer.unwrap();
            assert_eq!(follower.tries(), 2, "{request:?}");
        }
        let there = !about(&world, &request).is_null();
        assert_eq!(there, !request.name().starts_with("remove"), "{request:?}");
    }
    let state = world.control.state();
    assert_eq!(state.nodes.len(), 1, "the node that joined twice was removed once");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_was_not_reached_is_asked_again() {
    let world = World::new().await;
    let follower = Follower::of(&world, Mood::Unreachable);
    let own = world.control.state().nodes[&world.identity.node_id].clone();
    let mut spec = own.spec.clone();
    spec.labels.insert("a".into(), "b".into());
    // Even an update: nobody has heard of it.
    follower.control.update_node(&own.id, own.meta.version, spec).await.unwrap();
    assert_eq!(follower.tries(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_waits_longer_than_it_was_asked_to() {
    const SHORT: Duration = Duration::from_millis(300);
    /// Longer than a busy machine lets a write wait.
    const LONG: Duration = Duration::from_secs(5);
    let world = World::new().await;
    let silent = Follower::of(&world, Mood::Silent).control;
    let begun = Instant::now();
    let client = tokio::spawn(async move { silent.create_config(payload("client")).await });
    let follower = Follower::of(&world, Mood::Silent);
    let create =
        || ControlRequest::CreatePayload { id: PayloadId::Secret("s".into()), spec: payload("s") };
    let asked = Instant::now();
    let by = asked + SHORT;
    let late = follower.control.call(caller(&world), create(), by).await.unwrap_err();
    assert!(asked.elapsed() >= SHORT && asked.elapsed() < DEADLINE);
    assert_eq!(late.kind(), FaultKind::Unavailable);
    assert!(report(&late).contains("it may still happen"), "{}", report(&late));
    assert_eq!(late.id(), Some(FaultId("SH-MGR-009")));
    // What is too late when it comes is not begun.
    let late = world.control.call(caller(&world), create(), Instant::now()).await.unwrap_err();
    assert_eq!(late.kind(), FaultKind::Unavailable, "{late}");
    // The writer works in order: this answer comes after the other had its turn.
    world.control.create_config(payload("c")).await.unwrap();
    assert!(world.control.state().secrets.is_empty());
    // Nobody leads: it is asked until the time is over, and says so.
    let asleep = Follower::of(&world, Mood::Fine);
    let follower = Follower::behind(&world, asleep.control.clone(), Mood::Fine);
    let by = Instant::now() + SHORT;
    let refused = follower.control.call(caller(&world), create(), by).await.unwrap_err();
    assert_eq!(refused.id(), Some(FaultId("SH-MGR-008")), "{refused}");
    assert!(follower.tries() >= 1 && asleep.tries() == 0);
    // That nobody is reached any more says nothing of the try before.
    let follower = Follower::of(&world, Mood::Breaks);
    let by = Instant::now() + LONG;
    let open = follower.control.call(caller(&world), create(), by).await.unwrap_err();
    assert!(report(&open).contains("it may still happen"), "{}", report(&open));
    assert_eq!(world.control.state().secrets.len(), 1, "and so it did");
    // A client, who names no time, has one all the same.
    let late = tokio::time::timeout(DEADLINE, client).await.unwrap().unwrap().unwrap_err();
    assert!(begun.elapsed() >= forward::ANSWER_WITHIN, "{late}");
    assert_eq!(late.id(), Some(FaultId("SH-MGR-009")));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_becomes_the_leader_while_it_asks_does_it_itself() {
    let world = World::new().await;
    let asleep = Follower::of(&world, Mood::Fine);
    let follower = Follower::behind(&world, asleep.control.clone(), Mood::Fine);
    let control = follower.control.clone();
    let asked = tokio::spawn(async move { control.create_secret(payload("s")).await });
    let until = Instant::now() + DEADLINE;
    while follower.tries() == 0 {
        assert!(Instant::now() < until, "it asks nobody");
        tokio::task::yield_now().await;
    }
    follower.lead.send_replace(true);
    let id = tokio::time::timeout(DEADLINE, asked).await.unwrap().unwrap().unwrap();
    assert!(world.control.state().secrets.contains_key(&id));
}

#[tokio::test(flavor = "multi_thread")]
async fn only_managers_may_pass_something_on() {
    let world = World::new().await;
    let worker = world.worker("a").await;
    let request = ControlRequest::RemoveNode { id: worker.id(), force: true };
    let asks = Caller { node: worker.id(), user: None };
    let body = forward::pass(&asks, request, Instant::now() + DEADLINE).unwrap();
    let fault = world.control.answer(&worker.id(), &body).await.unwrap_err();
    assert_eq!(fault.kind(), FaultKind::Forbidden, "{fault}");
    let fault = world.control.answer(&"nobody".into(), &body).await.unwrap_err();
    assert_eq!(fault.id, "SH-MGR-007", "{fault}");
    let state = world.control.state();
    assert_eq!(state.nodes[&worker.id()].status.state, NodeState::Ready);
}
