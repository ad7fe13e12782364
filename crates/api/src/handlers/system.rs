//! What the daemon says of itself: version, info, events, disk use.

use futures::StreamExt;
use serde_json::{Map, Value, json};
use shoal_model::filter::Filters;

use super::query_time;
use crate::backend::ApiState;
use crate::backend::container::{ContainerList, count_states};
use crate::backend::swarm::LocalState;
use crate::backend::system::{EventQuery, Facts};
use crate::error::{ApiError, ApiResult};
use crate::http::Call;
use crate::http::answer::{self, Answer};
use crate::http::version::{VERSION_MAX, VERSION_MIN};
use crate::render;

/// Go's name for this machine's architecture.
fn go_arch(architecture: &str) -> &str {
    match architecture {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `GET /version`.
///
/// # Errors
/// Never.
pub async fn version(call: Call) -> ApiResult<Answer> {
    let facts = &call.state.facts;
    let arch = go_arch(&facts.architecture);
    let details = json!({
        "ApiVersion": VERSION_MAX.to_string(), "Arch": arch, "BuildTime": "",
        "Experimental": "false", "GitCommit": facts.commit, "GoVersion": "none (Rust)",
        "KernelVersion": facts.kernel, "MinAPIVersion": VERSION_MIN.to_string(), "Os": "linux",
    });
    answer::json(&json!({
        "Platform": { "Name": "Shoal" },
        "Components": [{ "Name": "Engine", "Version": facts.version, "Details": details }],
        "Version": facts.version, "ApiVersion": VERSION_MAX.to_string(),
        "MinAPIVersion": VERSION_MIN.to_string(), "GitCommit": facts.commit,
        "GoVersion": "none (Rust)", "Os": "linux", "Arch": arch,
        "KernelVersion": facts.kernel, "BuildTime": "",
    }))
}

/// `GET /info`.
///
/// # Errors
/// Whatever listing containers says.
pub async fn info(call: Call) -> ApiResult<Answer> {
    let state = &call.state;
    let all = ContainerList { all: true, ..ContainerList::default() };
    let containers = state.containers.list(all).await?;
    let counts = count_states(&containers);
    let images = state.images.count().await;
    let mut out = Map::new();
    out.insert("ID".into(), json!(state.facts.id));
    out.insert("Containers".into(), json!(counts.running + counts.paused + counts.stopped));
    out.insert("ContainersRunning".into(), json!(counts.running));
    out.insert("ContainersPaused".into(), json!(counts.paused));
    out.insert("ContainersStopped".into(), json!(counts.stopped));
    out.insert("Images".into(), json!(images));
    for part in [engine_part(state), machine_part(state), abilities_part()] {
        if let Value::Object(members) = part {
            out.extend(members);
        }
    }
    out.insert("Warnings".into(), json!(state.diagnostics.warnings().await));
    out.insert("Swarm".into(), swarm_part(state));
    // Shoal's own addition: changes that go on, whether or not somebody waits for them.
    out.insert("RunningChanges".into(), json!(state.changes.running()));
    answer::json(&out)
}

fn engine_part(state: &ApiState) -> Value {
    let facts = &state.facts;
    let (fds, tasks) = state.diagnostics.load();
    let now = (state.clock)();
    let generic = (!facts.generic_resources.is_empty()).then_some(&facts.generic_resources);
    let insecure: Map<String, Value> = facts
        .insecure_registries
        .iter()
        .map(|name| {
            (
                name.clone(),
                json!({ "Name": name, "Mirrors": [], "Secure": false, "Official": false }),
            )
        })
        .collect();
    json!({
        "Driver": "overlay2",
        "DriverStatus": [["Backing Filesystem", "overlayfs"], ["Native Overlay Diff", "true"]],
        "Plugins": {
            "Volume": ["local"],
            "Network": ["bridge", "host", "null", "overlay"],
            "Authorization": null,
            "Log": ["json-file"],
        },
        "Debug": facts.debug, "NFd": fds, "NGoroutines": tasks, "NEventsListener": 0,
        "SystemTime": now, "LoggingDriver": "json-file",
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "IndexConfigs": insecure, "Mirrors": [],
        },
        "DockerRootDir": facts.data_root, "HttpProxy": "", "HttpsProxy": "", "NoProxy": "",
        "Name": facts.name, "Labels": labels(facts), "ExperimentalBuild": false,
        "Unikernels": unikernels(facts),
        "ServerVersion": facts.version, "LiveRestoreEnabled": false,
        "DefaultRuntime": "shoal", "Runtimes": { "shoal": { "path": "shoal shim" } },
        "InitBinary": if facts.default_init { "shoal" } else { "" },
        "ContainerdCommit": { "ID": "" }, "RuncCommit": { "ID": "" }, "InitCommit": { "ID": "" },
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=cgroupns"],
        "DefaultAddressPools": [],
        "GenericResources": generic, "CDISpecDirs": [],
    })
}

/// The engine's labels, and Shoal's own one: how unikernels run here.
fn labels(facts: &Facts) -> Vec<String> {
    let backends: Vec<&str> = facts.unikernel_backends.iter().map(|(name, _)| &**name).collect();
    let own =
        (!backends.is_empty()).then(|| format!("shoal.unikernel.backends={}", backends.join(",")));
    facts.labels.iter().cloned().chain(own).collect()
}

/// Shoal's own addition: each backend of unikernels with what is known of it.
fn unikernels(facts: &Facts) -> Value {
    let backend = |(name, about): &(String, String)| json!({ "Backend": name, "About": about });
    facts.unikernel_backends.iter().map(backend).collect()
}

fn machine_part(state: &ApiState) -> Value {
    let facts = &state.facts;
    json!({
        "KernelVersion": facts.kernel, "OperatingSystem": facts.os,
        "OSVersion": facts.os_version, "OSType": "linux", "Architecture": facts.architecture,
        "NCPU": facts.cpus, "MemTotal": facts.memory, "ProductLicense": "",
    })
}

/// Version 2 alone, or version 1 (also where both are mounted side by side).
fn cgroup_version() -> &'static str {
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers");
    if unified.exists() { "2" } else { "1" }
}

/// What the kernel and the engine can do; `docker info` warns of everything that is false.
fn abilities_part() -> Value {
    json!({
        "CgroupDriver": "cgroupfs", "CgroupVersion": cgroup_version(),
        "MemoryLimit": true, "SwapLimit": true, "CpuCfsPeriod": true, "CpuCfsQuota": true,
        "CPUShares": true, "CPUSet": true, "PidsLimit": true, "OomKillDisable": false,
        "IPv4Forwarding": true, "Isolation": "", "BridgeNfIptables": true,
        "BridgeNfIp6tables": true,
    })
}

fn swarm_part(state: &ApiState) -> Value {
    let status = state.swarm.status();
    let managers: Vec<Value> = status
        .remote_managers
        .iter()
        .map(|(id, addr)| json!({ "NodeID": id, "Addr": addr }))
        .collect();
    let mut out = Map::new();
    let id = status.node_id.as_ref().map_or("", |id| id.as_str());
    out.insert("NodeID".into(), json!(id));
    out.insert("NodeAddr".into(), json!(status.node_addr));
    out.insert("LocalNodeState".into(), json!(status.state.as_str()));
    out.insert("ControlAvailable".into(), json!(status.control_available));
    out.insert("Error".into(), json!(status.error));
    let managers = if managers.is_empty() { Value::Null } else { Value::Array(managers) };
    out.insert("RemoteManagers".into(), managers);
    if status.state != LocalState::Active {
        return Value::Object(out);
    }
    if let Some(control) = state.swarm.control() {
        let cluster = control.state();
        let count = cluster.nodes.values().filter(|node| node.manager.is_some()).count();
        out.insert("Nodes".into(), json!(cluster.nodes.len()));
        out.insert("Managers".into(), json!(count));
        if let Some(cluster) = &cluster.cluster {
            out.insert("Cluster".into(), Value::Object(render::cluster::info(cluster)));
        }
    }
    Value::Object(out)
}

/// `GET /plugins`: Shoal has none.
///
/// # Errors
/// Never.
pub async fn plugins(_call: Call) -> ApiResult<Answer> {
    answer::json(&json!([]))
}

/// `GET /events`.
///
/// # Errors
/// 400 for unknown filters and times that are none.
pub async fn events(call: Call) -> ApiResult<Answer> {
    let query = EventQuery {
        since: query_time("since", call.query.get("since"))?,
        until: query_time("until", call.query.get("until"))?,
        filters: call.query.filters()?,
    };
    if let (Some(since), Some(until)) = (query.since, query.until)
        && since > until
    {
        return Err(ApiError::invalid(
            "`since` time (from `since` parameter) cannot be after `until` time",
        ));
    }
    let stopping = call.state.sessions.stopping();
    let events = call.state.events.subscribe(query)?;
    let lines = events.map(|event| render::event::event(&event));
    Ok(answer::json_lines(lines.take_until(stopping.cancelled_owned())))
}

/// `GET /system/df`.
///
/// # Errors
/// 400 for an unknown kind.
pub async fn disk_usage(call: Call) -> ApiResult<Answer> {
    let kinds = call.query.all("type");
    let known = ["container", "image", "volume", "build-cache"];
    if let Some(kind) = kinds.iter().find(|kind| !known.contains(&kind.as_str())) {
        return Err(ApiError::invalid(format!("unknown object type: {kind}")));
    }
    let wants = |kind: &str| kinds.is_empty() || kinds.iter().any(|wanted| wanted == kind);
    let mut out = Map::new();
    out.insert("LayersSize".into(), json!(0));
    for key in ["Images", "Containers", "Volumes", "BuildCache"] {
        out.insert(key.into(), Value::Null);
    }
    if wants("image") {
        let images = call.state.images.list(true, &Filters::default()).await?;
        let sizes = images.as_array().into_iter().flatten().filter_map(|i| i["Size"].as_u64());
        out.insert("LayersSize".into(), json!(sizes.sum::<u64>()));
        out.insert("Images".into(), images);
    }
    if wants("container") {
        let all = ContainerList { all: true, size: true, ..ContainerList::default() };
        out.insert("Containers".into(), call.state.containers.list(all).await?);
    }
    if wants("volume") {
        let volumes = call.state.volumes.list_with_usage().await?;
        out.insert("Volumes".into(), volumes);
    }
    if wants("build-cache") {
        out.insert("BuildCache".into(), json!([]));
    }
    answer::json(&out)
}
