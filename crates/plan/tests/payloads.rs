//! Secrets and configs: what is refused, in which words, and who gets them.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use cluster::{FakeCluster, spec};
use serde_json::{Value, json};
use shoal_model::change::{Object, ObjectKey};
use shoal_model::fault::{Fault, FaultKind};
use shoal_model::id::{ConfigId, SecretId};
use shoal_model::object::{Config, Meta, Secret};
use shoal_model::spec::payload::{PayloadData, PayloadSpec};
use shoal_model::spec::service::ServiceSpec;
use shoal_model::task_state::TaskState;
use shoal_plan::assignment::for_node;
use shoal_plan::validate::{self, CONFIG_BYTES_MAX, SECRET_BYTES_MAX, SpecError};

fn payload(name: &str, len: usize) -> PayloadSpec {
    PayloadSpec {
        name: name.into(),
        data: PayloadData::new(vec![b'x'; len]),
        ..PayloadSpec::default()
    }
}

/// A cluster with the secret `key` and the config `zone`.
fn cluster() -> FakeCluster {
    let mut cluster = FakeCluster::new(2);
    cluster.put(Object::Secret(Box::new(secret("s1", "key"))));
    cluster.put(Object::Config(Box::new(config("c1", "zone"))));
    cluster
}

fn secret(id: &str, name: &str) -> Secret {
    Secret {
        id: id.into(),
        meta: Meta::default(),
        spec: payload(name, 3),
        extra: Default::default(),
    }
}

fn config(id: &str, name: &str) -> Config {
    Config {
        id: id.into(),
        meta: Meta::default(),
        spec: payload(name, 3),
        extra: Default::default(),
    }
}

fn secret_ref(id: &str, name: &str, file: Value) -> Value {
    json!({ "SecretID": id, "SecretName": name, "File": file })
}

fn config_ref(id: &str, name: &str, file: Value) -> Value {
    json!({ "ConfigID": id, "ConfigName": name, "File": file })
}

fn file(name: &str) -> Value {
    json!({ "Name": name, "UID": "0", "GID": "0", "Mode": 0o444 })
}

/// A service whose containers have these members.
fn service(name: &str, members: Value) -> ServiceSpec {
    let mut whole = serde_json::to_value(spec(name, 1, &[])).unwrap();
    let container = whole.pointer_mut("/TaskTemplate/ContainerSpec").unwrap();
    let container = container.as_object_mut().unwrap();
    container.extend(members.as_object().unwrap().clone());
    serde_json::from_value(whole).unwrap()
}

fn both(name: &str) -> ServiceSpec {
    service(
        name,
        json!({
            "Secrets": [secret_ref("s1", "key", file("key"))],
            "Configs": [config_ref("c1", "zone", file("/zones/example.org.zone"))],
        }),
    )
}

#[track_caller]
fn refused(outcome: Result<(), SpecError>, kind: FaultKind, text: &str) {
    let error = outcome.unwrap_err();
    assert_eq!(error.to_string(), text);
    assert_eq!(error.kind(), kind, "{text}");
}

#[test]
fn names_and_sizes_are_dockers() {
    let state = cluster().state;
    for good in ["a", "a-b_c.d", "A9", &"x".repeat(64)] {
        assert_eq!(validate::new_secret(&state, &payload(good, 1)), Ok(()), "{good}");
        let most = payload(good, CONFIG_BYTES_MAX - 1);
        assert_eq!(validate::new_config(&state, &most), Ok(()), "{good}");
    }
    let invalid = FaultKind::Invalid;
    refused(validate::new_secret(&state, &payload("", 1)), invalid, "name must be provided");
    for bad in ["-a", "a-", "a b", "a/b", &"x".repeat(65)] {
        let error = validate::new_config(&state, &payload(bad, 1)).unwrap_err().to_string();
        assert!(error.contains("only 64 [a-zA-Z0-9-_.] characters allowed"), "{error}");
    }
    for len in [0, SECRET_BYTES_MAX] {
        refused(
            validate::new_secret(&state, &payload("a", len)),
            invalid,
            "secret data must be larger than 0 and less than 512000 bytes",
        );
    }
    for len in [0, CONFIG_BYTES_MAX] {
        refused(
            validate::new_config(&state, &payload("a", len)),
            invalid,
            "config data must be larger than 0 and less than 1024000 bytes",
        );
    }
    let conflict = FaultKind::Conflict;
    refused(
        validate::new_secret(&state, &payload("key", 1)),
        conflict,
        "secret key already exists",
    );
    refused(
        validate::new_config(&state, &payload("zone", 1)),
        conflict,
        "config zone already exists",
    );
    assert_eq!(validate::new_secret(&state, &payload("zone", 1)), Ok(()), "names are per kind");
}

#[test]
fn drivers_are_named() {
    let state = cluster().state;
    let with = |key: &str, driver: &str| -> PayloadSpec {
        let body = json!({ "Name": "a", "Data": "eA==", key: { "Name": driver } });
        serde_json::from_value(body).unwrap()
    };
    assert_eq!(validate::new_config(&state, &with("Templating", "golang")), Ok(()));
    let missing = FaultKind::NotImplemented;
    refused(
        validate::new_secret(&state, &with("Driver", "vault")),
        missing,
        "not implemented: secret driver 'vault'",
    );
    refused(
        validate::new_config(&state, &with("Templating", "jinja")),
        missing,
        "not implemented: template driver 'jinja'",
    );
}

#[test]
fn only_labels_change() {
    let known = payload("a", 3);
    let mut labelled = known.clone();
    labelled.labels.insert("x".into(), "y".into());
    assert_eq!(validate::changed_payload(&known, &labelled), Ok(()));
    // Nobody can read a secret's data, so nobody can send it back.
    labelled.data = PayloadData::default();
    assert_eq!(validate::changed_payload(&known, &labelled), Ok(()));
    for other in [payload("b", 3), payload("a", 4)] {
        refused(
            validate::changed_payload(&known, &other),
            FaultKind::Invalid,
            "only updates to Labels are allowed",
        );
    }
}

#[test]
fn references_are_whole_and_each_has_a_path_of_its_own() {
    let state = cluster().state;
    assert_eq!(validate::new_service(&state, &both("web")), Ok(()));
    let secrets = |list: Value| service("web", json!({ "Secrets": list }));
    let configs = |list: Value| service("web", json!({ "Configs": list }));
    let place = |patch: Value| {
        let mut file = file("f");
        file.as_object_mut().unwrap().extend(patch.as_object().unwrap().clone());
        configs(json!([config_ref("c1", "zone", file)]))
    };
    let cases = [
        (secrets(json!([{ "SecretID": "s1", "File": file("a") }])), "malformed secret reference"),
        (
            secrets(json!([{ "SecretID": "s1", "SecretName": "key" }])),
            "malformed secret reference, no target provided",
        ),
        (
            configs(json!([config_ref("c1", "zone", file("a/../b"))])),
            "malformed file config reference, invalid target file name provided: 'a/../b'",
        ),
        (
            configs(json!([config_ref("c1", "zone", file(""))])),
            "malformed file config reference, invalid target file name provided: ''",
        ),
        (
            place(json!({ "UID": "root" })),
            "config reference 'zone': UID 'root' and GID '0' must be numbers",
        ),
        (
            place(json!({ "Mode": 0o100_000 })),
            "config reference 'zone': mode 0o100000 is more than 0o7777",
        ),
        (
            configs(json!([
                config_ref("c1", "zone", file("/a")),
                config_ref("c1", "zone", file("a")),
            ])),
            "config references 'zone' and 'zone' have a conflicting target: '/a'",
        ),
        (
            service(
                "web",
                json!({
                    "Secrets": [secret_ref("s1", "key", file("a"))],
                    "Configs": [config_ref("c1", "zone", file("/run/secrets/a"))],
                }),
            ),
            "secret 'key' and config 'zone' have a conflicting target: '/run/secrets/a'",
        ),
        (
            service(
                "web",
                json!({
                    "Mounts": [{ "Type": "tmpfs", "Target": "/a" }],
                    "Configs": [config_ref("c1", "zone", file("a"))],
                }),
            ),
            "mount '/a' and config 'zone' have a conflicting target: '/a'",
        ),
        (secrets(json!([secret_ref("s9", "key", file("a"))])), "secret not found: key"),
        (secrets(json!([secret_ref("s1", "other", file("a"))])), "secret not found: other"),
        (
            configs(json!([
                config_ref("c8", "one", file("a")),
                config_ref("c9", "two", file("b")),
            ])),
            "configs not found: one, two",
        ),
    ];
    for (spec, text) in cases {
        refused(validate::new_service(&state, &spec), FaultKind::Invalid, text);
    }
}

#[test]
fn what_is_in_use_stays_and_its_users_are_named() {
    let mut cluster = cluster();
    let first = cluster.add_service(both("web"));
    let check = |cluster: &FakeCluster| {
        let (secret, config) = (secret("s1", "key"), config("c1", "zone"));
        (
            validate::removable_secret(&cluster.state, &secret),
            validate::removable_config(&cluster.state, &config),
        )
    };
    let (held, _) = check(&cluster);
    assert_eq!(held.as_ref().unwrap_err().id().unwrap().0, "SH-MGR-006");
    refused(held, FaultKind::Invalid, "secret 'key' is in use by the following service: web");
    let second = cluster.add_service(both("api"));
    refused(
        check(&cluster).1,
        FaultKind::Invalid,
        "config 'zone' is in use by the following services: api, web",
    );
    cluster.delete(ObjectKey::Service(first));
    cluster.delete(ObjectKey::Service(second));
    assert_eq!(check(&cluster), (Ok(()), Ok(())));
}

#[test]
fn a_node_gets_what_its_tasks_use_for_as_long_as_they_live() {
    let mut cluster = cluster();
    cluster.put(Object::Secret(Box::new(secret("s2", "nobodys"))));
    let id = cluster.add_service(both("web"));
    cluster.plan();
    let task = cluster.live(&id)[0].clone();
    let node = task.node_id.clone().unwrap();
    let other = cluster.state.nodes.keys().find(|n| **n != node).unwrap().clone();
    let (s1, c1) = (SecretId::new("s1"), ConfigId::new("c1"));
    let mine = for_node(&cluster.state, &node).payloads;
    assert_eq!(mine.secrets.keys().collect::<Vec<_>>(), [&s1]);
    assert_eq!(mine.configs[&c1].as_ref().unwrap().data.bytes(), b"xxx");
    let others = for_node(&cluster.state, &other).payloads;
    assert!(others.secrets.is_empty() && others.configs.is_empty());
    // Gone from the cluster: the node is told so, and does not wait for it.
    cluster.delete(ObjectKey::Config(c1.clone()));
    assert_eq!(for_node(&cluster.state, &node).payloads.configs[&c1], None);
    cluster.report((*task).clone(), TaskState::Failed);
    cluster.delete(ObjectKey::Service(id));
    assert!(for_node(&cluster.state, &node).payloads.secrets.is_empty());
}
