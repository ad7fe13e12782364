//! What is refused, and in which words.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use cluster::{FakeCluster, spec};
use serde_json::{Value, json};
use shoal_model::fault::{Fault, FaultKind};
use shoal_model::spec::cluster::ClusterSpec;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::spec::service::ServiceSpec;
use shoal_plan::roles::GroupView;
use shoal_plan::validate::{self, SpecError};

/// A service as JSON, with `patch` laid over it.
fn service(patch: Value) -> ServiceSpec {
    let mut whole = json!({
        "Name": "web",
        "TaskTemplate": { "ContainerSpec": { "Image": "nginx:1.10.1" } },
    });
    merge(&mut whole, patch);
    serde_json::from_value(whole).unwrap()
}

fn merge(into: &mut Value, patch: Value) {
    match (into, patch) {
        (Value::Object(into), Value::Object(patch)) => {
            for (key, value) in patch {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, patch) => *into = patch,
    }
}

fn template(patch: Value) -> Value {
    json!({ "TaskTemplate": patch })
}

fn container(patch: Value) -> Value {
    template(json!({ "ContainerSpec": patch }))
}

#[track_caller]
fn refused(patch: Value, kind: FaultKind, text: &str) {
    let mut cluster = FakeCluster::new(1);
    cluster.add_network("net", false);
    let error = validate::new_service(&cluster.state, &service(patch)).unwrap_err();
    assert_eq!(error.to_string(), text);
    assert_eq!(error.kind(), kind, "{text}");
}

#[test]
fn good_services_pass() {
    let mut cluster = FakeCluster::new(1);
    cluster.add_network("net", false);
    let digest = format!("nginx:1.10.1@sha256:{}", "a".repeat(64));
    for patch in [
        json!({}),
        json!({ "Mode": { "Global": {} } }),
        json!({ "Mode": { "GlobalJob": {} } }),
        json!({ "Mode": { "ReplicatedJob": { "MaxConcurrent": 2, "TotalCompletions": 9 } } }),
        container(json!({ "Image": digest })),
        container(json!({ "Mounts": [{
            "Type": "bind", "Source": "/srv", "Target": "/usr/share/nginx/html", "ReadOnly": true,
        }] })),
        template(json!({ "Networks": [{ "Target": "net", "Aliases": ["w"] }] })),
        template(json!({ "Placement": { "Constraints": ["node.labels.az!=b"] } })),
        json!({ "EndpointSpec": { "Ports": [
            { "TargetPort": 53, "PublishedPort": 53, "Protocol": "tcp" },
            { "TargetPort": 53, "PublishedPort": 53, "Protocol": "udp" },
        ] } }),
    ] {
        let spec = service(patch);
        assert_eq!(validate::new_service(&cluster.state, &spec), Ok(()), "{spec:?}");
    }
}

#[test]
fn bad_services_are_refused_in_dockers_words() {
    let invalid = FaultKind::Invalid;
    let cases = [
        (json!({ "Name": "" }), "meta: name must be provided"),
        (json!({ "Name": "-x" }), "name must be valid as a DNS name component: '-x'"),
        (json!({ "Name": "x".repeat(64) }), "name must be 63 characters or fewer, this one has 64"),
        (container(json!({ "Image": "" })), "ContainerSpec: image reference must be provided"),
        (
            container(json!({ "Image": "UPPER" })),
            "ContainerSpec: \"UPPER\" is not a valid repository/tag",
        ),
        (json!({ "Mode": {} }), "must specify a service mode"),
        (
            json!({ "EndpointSpec": { "Mode": "dnsrr", "Ports": [{ "TargetPort": 80 }] } }),
            "EndpointSpec: port published with ingress mode can't be used with dnsrr mode",
        ),
        (
            json!({ "EndpointSpec": { "Ports": [
                { "TargetPort": 80, "PublishedPort": 8080 },
                { "TargetPort": 81, "PublishedPort": 8080 },
            ] } }),
            "EndpointSpec: duplicate published ports provided",
        ),
        (
            template(json!({ "Placement": { "Constraints": ["node.role=manager"] } })),
            "invalid placement constraint 'node.role=manager': constraint expected one operator \
             from ==, !=",
        ),
        (
            template(json!({ "Resources": { "Limits": { "MemoryBytes": 1024 } } })),
            "invalid memory value 1024: Must be at least 4MiB",
        ),
        (
            template(json!({ "Resources": { "Reservations": { "NanoCPUs": 1000 } } })),
            "invalid cpu value 0.000001: Must be at least 0.001",
        ),
        (
            template(json!({ "RestartPolicy": { "Delay": -1 } })),
            "TaskSpec: restart-delay cannot be negative",
        ),
        (
            json!({ "UpdateConfig": { "Parallelism": 1, "MaxFailureRatio": 1.5 } }),
            "TaskSpec: update-maxfailureratio cannot be less than 0 or bigger than 1",
        ),
        (
            container(json!({ "Healthcheck": { "Interval": 5 } })),
            "ContainerSpec: Interval in HealthConfig cannot be less than 1ms",
        ),
        (
            container(json!({ "Mounts": [{ "Type": "bind", "Source": "x", "Target": "/y" }] })),
            "invalid bind mount source, must be an absolute path: x",
        ),
        (
            container(json!({ "Mounts": [
                { "Type": "tmpfs", "Target": "/y" }, { "Type": "tmpfs", "Target": "/y" },
            ] })),
            "ContainerSpec: duplicate mount point: /y",
        ),
        (
            template(json!({ "Networks": [{ "Target": "ingress" }] })),
            "Service cannot be explicitly attached to the ingress network \"ingress\"",
        ),
    ];
    for (patch, text) in cases {
        refused(patch, invalid, text);
    }
    let networks = template(json!({ "Networks": [{ "Target": "nowhere" }] }));
    refused(networks, FaultKind::NotFound, "network nowhere not found");
}

#[test]
fn jobs_are_refused_in_dockers_words() {
    let cases = [
        (
            json!({ "Mode": { "Global": {}, "GlobalJob": {} } }),
            "must specify only one service mode",
        ),
        (
            json!({ "Mode": { "GlobalJob": {} }, "UpdateConfig": { "Parallelism": 1 } }),
            "Jobs may not have an update config",
        ),
        (
            json!({ "Mode": { "ReplicatedJob": {} }, "RollbackConfig": { "Parallelism": 1 } }),
            "update and rollback configuration is not supported for jobs",
        ),
    ];
    for (patch, text) in cases {
        refused(patch, FaultKind::Invalid, text);
    }
}

#[test]
fn what_is_missing_is_named() {
    let cases = [
        (template(json!({ "Runtime": "plugin" })), "task runtime 'plugin'"),
        (
            container(json!({ "Configs": [{
                "ConfigID": "x", "ConfigName": "spec", "Runtime": {},
            }] })),
            "configs that are no files (Runtime, credential specs)",
        ),
        (template(json!({ "LogDriver": { "Name": "syslog" } })), "log driver 'syslog'"),
    ];
    for (patch, what) in cases {
        refused(patch, FaultKind::NotImplemented, &format!("not implemented: {what}"));
    }
}

#[test]
fn a_network_of_the_node_is_the_only_one_and_publishes_nothing() {
    let on = |targets: &[&str], ports: Value| {
        let list: Vec<_> = targets.iter().map(|target| json!({ "Target": target })).collect();
        let mut patch = template(json!({ "Networks": list }));
        merge(&mut patch, json!({ "EndpointSpec": { "Ports": ports } }));
        patch
    };
    let port = json!([{ "TargetPort": 80 }]);
    let cases = [
        (
            on(&["host"], port.clone()),
            "port 80 cannot be published by a service on network 'host': a task on it listens on \
             the node's own ports; publish nothing, and reach the service at the nodes that run it",
        ),
        (
            on(&["none"], port),
            "port 80 cannot be published by a service on network 'none': nothing reaches a task \
             on it; publish nothing",
        ),
        (
            on(&["net", "host"], json!([])),
            "network 'host' is each node's own: a service on it can be on no other network",
        ),
    ];
    for (patch, text) in cases {
        refused(patch, FaultKind::Invalid, text);
    }
}

#[test]
fn changes_keep_name_mode_and_others_ports() {
    let mut cluster = FakeCluster::new(1);
    let ports = |host: bool| {
        json!({ "EndpointSpec": { "Ports": [{
            "TargetPort": 80, "PublishedPort": 80,
            "PublishMode": if host { "host" } else { "ingress" },
        }] } })
    };
    let first = cluster.add_service(service(ports(false)));
    let mut other = service(ports(false));
    other.name = "other".into();
    let clash = validate::new_service(&cluster.state, &other).unwrap_err().to_string();
    assert_eq!(
        clash,
        format!("port '80' is already in use by service 'web' ({first}) as an ingress port")
    );
    let mut hosted = service(ports(true));
    hosted.name = "hosted".into();
    assert!(validate::new_service(&cluster.state, &hosted).is_err());
    let known = cluster.service(&first).clone();
    let change = |spec: &ServiceSpec| {
        validate::changed_service(&cluster.state, &known, spec).map_err(|e| e.to_string())
    };
    assert_eq!(change(&service(ports(false))), Ok(()), "its own port is no conflict");
    assert_eq!(change(&other), Err("renaming services is not supported".into()));
    for mode in ["Global", "GlobalJob", "ReplicatedJob"] {
        let other = service(json!({ "Mode": { mode: {} } }));
        assert_eq!(change(&other), Err("service mode change is not allowed".into()), "{mode}");
    }
}

#[test]
fn networks_are_checked_against_what_is_there() {
    let mut cluster = FakeCluster::new(1);
    let id = cluster.add_network("net", false);
    let check = |patch: Value| -> Result<(), SpecError> {
        let mut whole = json!({ "Name": "other", "Driver": "overlay" });
        merge(&mut whole, patch);
        let spec: NetworkSpec = serde_json::from_value(whole).unwrap();
        validate::new_network(&cluster.state, &spec)?;
        shoal_plan::network::allocate(&cluster.state, &spec).map(|_| ())
    };
    assert_eq!(check(json!({})), Ok(()));
    let subnet = |s: &str| json!({ "IPAM": { "Config": [{ "Subnet": s }] } });
    assert_eq!(check(subnet("10.9.0.0/24")), Ok(()));
    for (patch, kind, part) in [
        (json!({ "Name": "net" }), FaultKind::Conflict, "network with name net already exists"),
        (json!({ "Name": "host" }), FaultKind::Forbidden, "predefined host network"),
        (subnet("10.0.0.128/25"), FaultKind::Forbidden, "Pool overlaps with other one"),
        (subnet("10.9.0.0/31"), FaultKind::Invalid, "prefix length must be from 8 to 29"),
        (subnet("nonsense"), FaultKind::Invalid, "invalid CIDR address: nonsense"),
        (
            json!({ "IPAM": { "Config": [{ "Subnet": "10.9.0.0/24", "Gateway": "10.8.0.1" }] } }),
            FaultKind::Invalid,
            "gateway '10.8.0.1' is not an address of subnet 10.9.0.0/24",
        ),
        (json!({ "Ingress": true }), FaultKind::Conflict, "ingress network ("),
        (json!({ "Driver": "macvlan" }), FaultKind::NotImplemented, "network driver 'macvlan'"),
        (
            json!({ "Options": { "encrypted": "" } }),
            FaultKind::NotImplemented,
            "encrypted overlay networks",
        ),
        (json!({ "EnableIPv6": true }), FaultKind::NotImplemented, "IPv6 overlay networks"),
        (
            json!({ "Options": { "com.docker.network.driver.mtu": "9" } }),
            FaultKind::Invalid,
            "invalid MTU '9'",
        ),
    ] {
        let error = check(patch).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.kind(), kind, "{error}");
    }
    let used = cluster.add_service(spec("web", 1, &["net"]));
    cluster.plan();
    let network = cluster.state.networks.get(&id).unwrap().clone();
    let held = validate::removable_network(&cluster.state, &network).unwrap_err();
    assert_eq!(held.to_string(), format!("network {id} is in use by service {used}"));
    // `stack rm` removes services and networks in one go.
    cluster.delete(shoal_model::change::ObjectKey::Service(used));
    assert_eq!(validate::removable_network(&cluster.state, &network), Ok(()));
}

#[test]
fn cluster_settings_are_checked() {
    let check = |patch: Value| {
        let spec: ClusterSpec = serde_json::from_value(patch).unwrap();
        let shortest = validate::CERT_EXPIRY_MIN;
        validate::changed_cluster(&spec)
            .and_then(|()| validate::cert_expiry(&spec, shortest))
            .map_err(|e| e.to_string())
    };
    assert_eq!(check(json!({ "Name": "default" })), Ok(()));
    assert_eq!(check(json!({ "EncryptionConfig": { "AutoLockManagers": true } })), Ok(()));
    for (patch, part) in [
        (json!({ "Name": "other" }), "must be named \"default\""),
        (json!({ "CAConfig": { "NodeCertExpiry": 60_000_000_000_i64 } }), "is 1h0m0s"),
        (json!({ "CAConfig": { "SigningCAKey": "x" } }), "the signing CA cert must also be"),
        (json!({ "CAConfig": { "ExternalCAs": [{ "Protocol": "x" }] } }), "protocol x"),
        (json!({ "CAConfig": { "ExternalCAs": [{ "URL": "http://a" }] } }), "with https://"),
    ] {
        let error = check(patch).unwrap_err();
        assert!(error.contains(part), "{error}");
    }
}

/// Kernel settings of the host are nobody's, in either spelling.
#[test]
fn kernel_settings_of_the_host_are_refused() {
    let cluster = FakeCluster::new(1);
    let set = |name: &str| {
        let patch = container(json!({ "Sysctls": { name: "1" } }));
        let spec = service(patch);
        let created = validate::new_service(&cluster.state, &spec).map_err(|e| e.to_string());
        let mut updated = FakeCluster::new(1);
        let id = updated.add_service(service(json!({})));
        let known = updated.service(&id).clone();
        let changed = validate::changed_service(&updated.state, &known, &spec);
        assert_eq!(created, changed.map_err(|e| e.to_string()), "{name}");
        created
    };
    for good in ["net.core.somaxconn", "net/ipv4/ip_forward", "kernel.shmmax", "fs.mqueue.msg_max"]
    {
        assert_eq!(set(good), Ok(()), "{good}");
    }
    for bad in
        ["vm.swappiness", "vm/swappiness", "kernel.core_pattern", "fs.file-max", "net/../vm/x"]
    {
        let error = set(bad).unwrap_err();
        assert!(error.starts_with(&format!("ContainerSpec: invalid sysctl '{bad}'")), "{error}");
    }
}

/// A port is a number from 1 to 65535 of a protocol that there is.
#[test]
fn ports_and_modes_that_are_none_are_refused() {
    let port = |patch: Value| -> Result<(), String> {
        let mut port = json!({ "TargetPort": 80 });
        merge(&mut port, patch);
        let whole = json!({
            "Name": "web",
            "TaskTemplate": { "ContainerSpec": { "Image": "nginx:1.10.1" } },
            "EndpointSpec": { "Ports": [port] },
        });
        let spec: ServiceSpec = serde_json::from_value(whole).map_err(|e| e.to_string())?;
        let cluster = FakeCluster::new(1);
        validate::new_service(&cluster.state, &spec).map_err(|e| e.to_string())
    };
    assert_eq!(port(json!({ "PublishedPort": 65535, "Protocol": "udp" })), Ok(()));
    for bad in [
        json!({ "TargetPort": 0 }),
        json!({ "TargetPort": 65536 }),
        json!({ "TargetPort": -1 }),
        json!({ "PublishedPort": 65536 }),
        json!({ "PublishedPort": 70000 }),
        json!({ "Protocol": "icmp" }),
        json!({ "Protocol": "TCP " }),
        json!({ "PublishMode": "everywhere" }),
    ] {
        port(bad.clone()).expect_err(&bad.to_string());
    }
}

/// What one client sends, everybody keeps: nothing is without bound.
#[test]
fn specs_are_bounded() {
    let large = "x".repeat(validate::SERVICE_BYTES_MAX);
    let ports: Vec<Value> = (1..=257).map(|n| json!({ "TargetPort": n })).collect();
    let secrets = vec![json!({ "SecretID": "s", "SecretName": "key" }); 257];
    let configs = vec![json!({ "ConfigID": "c", "ConfigName": "zone" }); 257];
    let networks = vec![json!({ "Target": "net" }); 257];
    let mounts = vec![json!({ "Type": "tmpfs", "Target": "/y" }); 10_001];
    let hosts = vec!["192.0.2.1 a"; 10_001];
    let env: Vec<String> = (0..=10_000).map(|n| format!("A{n}=")).collect();
    for (patch, part) in [
        (json!({ "Labels": { "a": large } }), "at most 1048576 are allowed"),
        (container(json!({ "Env": [format!("A={large}")] })), "at most 1048576 are allowed"),
        (container(json!({ "Env": env })), "10001 environment variables, at most 10000"),
        (json!({ "EndpointSpec": { "Ports": ports } }), "257 published ports, at most 256"),
        (container(json!({ "Secrets": secrets })), "257 secrets, at most 256"),
        (container(json!({ "Configs": configs })), "257 configs, at most 256"),
        (template(json!({ "Networks": networks })), "257 networks, at most 256"),
        (container(json!({ "Mounts": mounts })), "10001 mounts, at most 10000"),
        (container(json!({ "Hosts": hosts })), "10001 host entries, at most 10000"),
        (json!({ "Mode": { "Replicated": { "Replicas": 10_001 } } }), "10001 is more than 10000"),
        (
            json!({ "Mode": { "ReplicatedJob": { "TotalCompletions": 10_001 } } }),
            "total completions: 10001 is more than 10000",
        ),
        (json!({ "Labels": { "": "x" } }), "invalid label name"),
    ] {
        let cluster = FakeCluster::new(1);
        let error = validate::new_service(&cluster.state, &service(patch)).unwrap_err();
        assert!(error.to_string().contains(part), "{error}");
        assert_eq!(error.kind(), FaultKind::Invalid);
    }
    let labels = json!({ "a": "x".repeat(validate::SPEC_BYTES_MAX) });
    let network: NetworkSpec =
        serde_json::from_value(json!({ "Name": "n", "Labels": labels })).unwrap();
    let mut cluster = FakeCluster::new(1);
    validate::new_network(&cluster.state, &network).unwrap_err();
    let node = cluster.add_node(2);
    let node = cluster.state.nodes.get(&node).unwrap();
    let mut spec = node.spec.clone();
    spec.labels.insert("a".into(), "x".repeat(validate::SPEC_BYTES_MAX));
    validate::changed_node(&cluster.state, &GroupView::default(), node, &spec).unwrap_err();
}
