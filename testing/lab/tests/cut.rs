//! Every request that changes something survives that its client hangs up, at any moment.
//!
//! The routing table is walked: a route that changes something and has no case here fails.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::Cell;
use std::time::Duration;

use serde_json::{Value, json};
use shoal_api::routes;
use shoal_api::server::router::{Conduct, Verb};
use shoal_lab::http::{Outcome, Request, get};
use shoal_lab::reality::{self, Place};
use shoal_lab::{Host, Lab, eventually, import_busybox, must, shoal};
use shoal_stopwatch::Stopwatch;

/// When clients hang up, in milliseconds. At 0 within the body.
const CUTS: [u64; 8] = [0, 1, 3, 8, 20, 50, 100, 200];
/// How long what a cut request began may go on.
const SETTLE: Duration = Duration::from_secs(60);
/// All of it, on a slow machine.
const ALL: Duration = Duration::from_secs(300);

struct World<'a> {
    host: &'a Host,
    place: Place,
    count: Cell<u32>,
    /// To join another host's swarm.
    join: Value,
    /// Of that swarm, in clear.
    backup: Vec<u8>,
}

/// A request that is cut, and what may be answered when it is sent again.
struct Case {
    request: Request,
    again: &'static [u16],
}

fn case(request: Request, again: &'static [u16]) -> Case {
    Case { request, again }
}

impl World<'_> {
    fn fresh(&self, word: &str) -> String {
        self.count.set(self.count.get() + 1);
        format!("{word}-{}", self.count.get())
    }

    fn post(&self, path: &str, body: &Value) -> Value {
        let outcome = Request::new("POST", path).json(body).send(&self.place.socket);
        match outcome {
            Outcome::Answered(status, text) if status < 300 => {
                serde_json::from_str(&text).unwrap_or_default()
            }
            other => panic!("{path}: {other:?}"),
        }
    }

    fn container(&self) -> String {
        let name = self.fresh("box");
        let body = json!({
            "Image": "busybox:lab", "Cmd": ["sleep", "1000"], "StopTimeout": 0, "Tty": true,
            "HostConfig": { "Init": true },
        });
        self.post(&format!("/containers/create?name={name}"), &body);
        name
    }

    fn running(&self) -> String {
        let name = self.container();
        self.post(&format!("/containers/{name}/start"), &json!({}));
        name
    }

    fn exec(&self, name: &str) -> String {
        let body = json!({ "Cmd": ["sleep", "1000"], "Tty": true });
        let made = self.post(&format!("/containers/{name}/exec"), &body);
        made["Id"].as_str().unwrap().to_owned()
    }

    fn network(&self) -> String {
        let name = self.fresh("net");
        self.post("/networks/create", &json!({ "Name": name }));
        name
    }

    fn image(&self) -> String {
        let name = self.fresh("img");
        let path = format!("/images/busybox:lab/tag?repo={name}&tag=latest");
        self.post(&path, &json!({}));
        name
    }

    fn payload(&self, kind: &str) -> (String, String) {
        let name = self.fresh("data");
        self.post(&format!("/{kind}/create"), &json!({ "Name": name, "Data": "eA==" }));
        (name.clone(), self.version(&format!("/{kind}/{name}")))
    }

    fn version(&self, path: &str) -> String {
        get(&self.place.socket, path).unwrap()["Version"]["Index"].to_string()
    }

    fn service(&self) -> String {
        let name = self.fresh("svc");
        self.post("/services/create", &service_body(&name, 0));
        name
    }

    fn leave(&self) {
        // Ignored because: it may be part of no swarm.
        let _ = Request::new("POST", "/swarm/leave?force=1").send(&self.place.socket);
        assert_eq!(self.swarm(), "inactive");
    }

    fn swarm(&self) -> String {
        let info = get(&self.place.socket, "/info").unwrap();
        info["Swarm"]["LocalNodeState"].as_str().unwrap().to_owned()
    }

    /// Waits until nothing goes on any more and records are what is so.
    fn settle(&self, what: &str) {
        eventually(what, SETTLE, || {
            let info = get(&self.place.socket, "/info").ok_or("info is not answered")?;
            if info["RunningChanges"] != 0 {
                return Err(format!("{} changes run", info["RunningChanges"]));
            }
            let wrong = reality::compare(&self.place);
            if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
        });
    }

    /// Cuts the request of `make` at every moment, and sends it again.
    fn cut(&self, route: &str, make: &dyn Fn() -> Case) {
        for after in CUTS {
            let Case { request, again } = make();
            let mut rude = request.clone();
            rude.cut = Some(Duration::from_millis(after));
            assert!(matches!(rude.send(&self.place.socket), Outcome::Cut), "{route}");
            self.settle(&format!("{route} cut after {after} ms"));
            match request.send(&self.place.socket) {
                Outcome::Answered(status, said) => {
                    assert!(again.contains(&status), "{route} after {after} ms: {status} {said}");
                    assert!(!said.contains("errorDetail"), "{route} after {after} ms: {said}");
                }
                other => panic!("{route} after {after} ms: {other:?}"),
            }
        }
    }

    fn empty(&self) {
        let list = get(&self.place.socket, "/containers/json?all=1").unwrap();
        for one in list.as_array().unwrap() {
            let path = format!("/containers/{}?force=1", one["Id"].as_str().unwrap());
            let answer = Request::new("DELETE", path).send(&self.place.socket);
            assert!(matches!(answer, Outcome::Answered(204, _)), "{answer:?}");
        }
    }
}

fn service_body(name: &str, replicas: u64) -> Value {
    json!({
        "Name": name,
        "TaskTemplate": { "ContainerSpec": { "Image": "busybox:lab", "Command": ["sleep", "9"] } },
        "Mode": { "Replicated": { "Replicas": replicas } },
    })
}

fn archive() -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(1 << 20);
    header.set_mode(0o644);
    builder.append_data(&mut header, "file", vec![7_u8; 1 << 20].as_slice()).unwrap();
    builder.into_inner().unwrap()
}

/// This node's part in a swarm.
fn of_membership(world: &World<'_>, pattern: &str) -> Option<Case> {
    let post = |path: &str| Request::new("POST", path);
    Some(match pattern {
        "/swarm/init" => {
            world.leave();
            case(post(pattern).json(&json!({ "AdvertiseAddr": "198.51.100.1" })), &[200, 503])
        }
        "/swarm/join" => {
            world.leave();
            case(post(pattern).json(&world.join), &[200, 503])
        }
        "/swarm/leave" => {
            world.leave();
            world.post("/swarm/init", &json!({ "AdvertiseAddr": "198.51.100.1" }));
            case(post("/swarm/leave?force=1"), &[200, 503])
        }
        "/swarm/unlock" => {
            world.leave();
            let locking = json!({ "AdvertiseAddr": "198.51.100.1", "AutoLockManagers": true });
            world.post("/swarm/init", &locking);
            let key = get(&world.place.socket, "/swarm/unlockkey").unwrap();
            world.host.stop_daemon();
            world.host.restart();
            eventually("it to be locked", SETTLE, || match world.swarm() {
                state if state == "locked" => Ok(()),
                state => Err(state),
            });
            case(post(pattern).json(&key), &[200, 409])
        }
        "/shoal/restore" => {
            world.leave();
            let mut request = post("/shoal/restore?advertiseAddr=198.51.100.1");
            request.body = Some(("application/octet-stream", world.backup.clone()));
            case(request, &[200, 503])
        }
        _ => return None,
    })
}

/// What the cluster has.
fn of_cluster(world: &World<'_>, verb: Verb, pattern: &str) -> Option<Case> {
    if world.swarm() != "active" {
        world.post("/swarm/init", &json!({ "AdvertiseAddr": "198.51.100.1" }));
    }
    let post = |path: &str| Request::new("POST", path);
    let delete = |path: String| case(Request::new("DELETE", path), &[200, 204, 404]);
    let kind = pattern.split('/').nth(1).unwrap_or_default();
    Some(match (verb, pattern) {
        (_, "/swarm/update") => {
            let cluster = get(&world.place.socket, "/swarm").unwrap();
            let path = format!("/swarm/update?version={}", world.version("/swarm"));
            case(post(&path).json(&cluster["Spec"]), &[200, 400, 500])
        }
        (Verb::Post, "/nodes/{id}/update") => {
            let nodes = get(&world.place.socket, "/nodes").unwrap();
            let (id, version) = (nodes[0]["ID"].as_str().unwrap(), &nodes[0]["Version"]["Index"]);
            let path = format!("/nodes/{id}/update?version={version}");
            case(post(&path).json(&nodes[0]["Spec"]), &[200, 400, 500])
        }
        // The only node there is manages the cluster: it is refused, every time.
        (Verb::Delete, "/nodes/{id}") => {
            let nodes = get(&world.place.socket, "/nodes").unwrap();
            let path = format!("/nodes/{}", nodes[0]["ID"].as_str().unwrap());
            case(Request::new("DELETE", path), &[400])
        }
        (_, "/services/create") => {
            let name = world.fresh("svc");
            case(post(pattern).json(&service_body(&name, 0)), &[201, 409])
        }
        (Verb::Post, "/services/{id}/update") => {
            let name = world.service();
            let version = world.version(&format!("/services/{name}"));
            let path = format!("/services/{name}/update?version={version}");
            case(post(&path).json(&service_body(&name, 1)), &[200, 500])
        }
        (Verb::Delete, "/services/{id}") => delete(format!("/services/{}", world.service())),
        (_, "/secrets/create" | "/configs/create") => {
            let name = world.fresh("data");
            case(post(pattern).json(&json!({ "Name": name, "Data": "eA==" })), &[201, 409])
        }
        (Verb::Post, "/secrets/{id}/update" | "/configs/{id}/update") => {
            let (name, version) = world.payload(kind);
            let path = format!("/{kind}/{name}/update?version={version}");
            let body = json!({ "Name": name, "Labels": { "a": "b" } });
            case(post(&path).json(&body), &[200, 500])
        }
        (Verb::Delete, "/secrets/{id}" | "/configs/{id}") => {
            delete(format!("/{kind}/{}", world.payload(kind).0))
        }
        _ => return None,
    })
}

/// Volumes, networks and images of this node.
fn of_things(world: &World<'_>, verb: Verb, pattern: &str) -> Option<Case> {
    let post = |path: &str| Request::new("POST", path);
    let delete = |path: String| case(Request::new("DELETE", path), &[200, 204, 404]);
    Some(match (verb, pattern) {
        (_, "/volumes/create") => {
            case(post(pattern).json(&json!({ "Name": world.fresh("vol") })), &[201])
        }
        (Verb::Delete, "/volumes/{name}") => {
            let name = world.fresh("vol");
            world.post("/volumes/create", &json!({ "Name": name }));
            delete(format!("/volumes/{name}"))
        }
        (_, "/networks/create") => {
            case(post(pattern).json(&json!({ "Name": world.fresh("net") })), &[201, 409])
        }
        (Verb::Delete, "/networks/{id}") => delete(format!("/networks/{}", world.network())),
        (_, "/networks/{id}/connect") => {
            let (network, name) = (world.network(), world.running());
            let path = format!("/networks/{network}/connect");
            case(post(&path).json(&json!({ "Container": name })), &[200, 403, 409])
        }
        (_, "/networks/{id}/disconnect") => {
            let (network, name) = (world.network(), world.running());
            let body = json!({ "Container": name });
            world.post(&format!("/networks/{network}/connect"), &body);
            let path = format!("/networks/{network}/disconnect");
            case(post(&path).json(&body), &[200, 403, 404, 409])
        }
        (_, "/volumes/prune" | "/networks/prune" | "/images/prune") => case(post(pattern), &[200]),
        (_, "/images/create") => {
            let path = format!("/images/create?fromSrc=-&repo={}&tag=x", world.fresh("img"));
            case(post(&path).tar(archive()), &[200])
        }
        (_, "/images/load") => {
            let path = "/images/busybox:lab/get";
            let saved = std::process::Command::new("curl")
                .args(["-sf", "--unix-socket"])
                .arg(&world.place.socket)
                .arg(format!("http://x{path}"))
                .output()
                .unwrap();
            case(post(pattern).tar(saved.stdout), &[200])
        }
        (_, "/images/{name*}/tag") => {
            let path = format!("/images/busybox:lab/tag?repo={}&tag=x", world.fresh("img"));
            case(post(&path), &[201])
        }
        (Verb::Delete, "/images/{name*}") => delete(format!("/images/{}", world.image())),
        _ => return None,
    })
}

/// Containers and what runs in them.
fn of_containers(world: &World<'_>, verb: Verb, pattern: &str) -> Option<Case> {
    let on = |name: &str, rest: &str| Request::new("POST", format!("/containers/{name}/{rest}"));
    Some(match (verb, pattern) {
        (_, "/containers/create") => {
            let path = format!("/containers/create?name={}", world.fresh("box"));
            case(Request::new("POST", path).json(&json!({ "Image": "busybox:lab" })), &[201, 409])
        }
        (_, "/containers/prune") => case(Request::new("POST", pattern), &[200]),
        (Verb::Delete, "/containers/{id}") => {
            let path = format!("/containers/{}?force=1", world.running());
            case(Request::new("DELETE", path), &[204, 404])
        }
        (_, "/containers/{id}/start") => case(on(&world.container(), "start"), &[204, 304]),
        (_, "/containers/{id}/stop") => case(on(&world.running(), "stop"), &[204, 304]),
        (_, "/containers/{id}/restart") => case(on(&world.running(), "restart"), &[204]),
        (_, "/containers/{id}/kill") => case(on(&world.running(), "kill"), &[204, 409]),
        (_, "/containers/{id}/pause") => case(on(&world.running(), "pause"), &[204, 409]),
        (_, "/containers/{id}/unpause") => {
            let name = world.running();
            world.post(&format!("/containers/{name}/pause"), &json!({}));
            case(on(&name, "unpause"), &[204, 409, 500])
        }
        (_, "/containers/{id}/rename") => {
            let rest = format!("rename?name={}", world.fresh("other"));
            case(on(&world.container(), &rest), &[204, 404, 409, 400])
        }
        (_, "/containers/{id}/update") => {
            let body = json!({ "Memory": 64 << 20, "MemorySwap": -1 });
            case(on(&world.running(), "update").json(&body), &[200])
        }
        (_, "/containers/{id}/resize") => case(on(&world.running(), "resize?h=9&w=9"), &[200]),
        (_, "/containers/{id}/archive") => {
            let path = format!("/containers/{}/archive?path=/tmp", world.container());
            case(Request::new("PUT", path).tar(archive()), &[200])
        }
        (_, "/containers/{id}/exec") => {
            case(on(&world.running(), "exec").json(&json!({ "Cmd": ["true"] })), &[201])
        }
        (_, "/exec/{id}/start") => {
            let id = world.exec(&world.running());
            let request = Request::new("POST", format!("/exec/{id}/start"));
            case(request.json(&json!({ "Detach": true, "Tty": true })), &[200, 409])
        }
        (_, "/exec/{id}/resize") => {
            let id = world.exec(&world.running());
            world.post(&format!("/exec/{id}/start"), &json!({ "Detach": true, "Tty": true }));
            case(Request::new("POST", format!("/exec/{id}/resize?h=9&w=9")), &[200, 201])
        }
        _ => return None,
    })
}

fn changing_routes() -> Vec<(Verb, &'static str)> {
    let changing = routes::all().into_iter().filter(|route| route.conduct == Conduct::Change);
    changing.map(|route| (route.method, route.pattern)).collect()
}

#[test]
fn every_change_survives_that_its_client_hangs_up() {
    let began = Stopwatch::start();
    let lab = Lab::start("cut", 2);
    for index in 1..=2 {
        lab.host(index).daemon();
    }
    let host = lab.host(1);
    import_busybox(host);
    let other = lab.host(2);
    other.docker("swarm init --advertise-addr 198.51.100.2");
    let join = json!({
        "RemoteAddrs": ["198.51.100.2:2377"], "JoinToken": other.docker("swarm join-token -q worker"),
        "AdvertiseAddr": "198.51.100.1",
    });
    let file = lab.dir().join("backup");
    let mut command = other.command(&shoal().to_string_lossy());
    command.args(["backup", "--plain", "-H", &other.socket()]).arg(&file);
    must(&mut command);
    let backup = std::fs::read(&file).unwrap();
    let world = World { host, place: host.place(), count: Cell::new(0), join, backup };
    let (mut later, mut without) = (Vec::new(), Vec::new());
    // Membership first: the cluster's routes need one afterwards.
    for (verb, pattern) in changing_routes() {
        if of_membership(&world, pattern).is_none() {
            later.push((verb, pattern));
            continue;
        }
        world.cut(pattern, &|| of_membership(&world, pattern).unwrap());
        world.leave();
    }
    for (verb, pattern) in later {
        let make = || {
            of_containers(&world, verb, pattern)
                .or_else(|| of_things(&world, verb, pattern))
                .or_else(|| of_cluster(&world, verb, pattern))
        };
        if make().is_none() {
            without.push(format!("{verb:?} {pattern}"));
            continue;
        }
        world.cut(&format!("{verb:?} {pattern}"), &|| make().unwrap());
        world.empty();
    }
    assert!(without.is_empty(), "routes without a case: {without:?}");
    let took = began.elapsed();
    println!("cutting took {took:?}");
    assert!(took < ALL, "{took:?}");
    world.leave();
    lab.finish();
}
