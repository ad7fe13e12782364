//! An engine with an image of busybox, directories of its own, and a network side that only notes
//! what it is asked. Needs root, cgroups and busybox-static.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use futures::StreamExt;
use shoal_engine::attacher::{
    AttachError, Attacher, Attachment, ContainerNetworking, EndpointInfo, NetworkName, TapPlace,
};
use shoal_engine::config::{EngineConfig, system_clock};
use shoal_engine::engine::{Engine, WaitHandle};
use shoal_engine::error::EngineError;
use shoal_engine::events::EventQuery;
use shoal_engine::request::{CreateOptions, RemoveOptions, WaitCondition};
use shoal_engine::stream::{StdStream, StdioSession};
use shoal_image::builder::{FileSpec, ImageSpec};
use shoal_image::store::{ImageStore, StoreOptions};
use shoal_model::fault::FaultKind;
use shoal_model::id::{ContainerId, InstanceId, NetworkId};
use shoal_model::log::LogSelection;
use shoal_model::spec::container::{ContainerConfig, ContainerCreate, EndpointSettings, Words};
use shoal_model::time::Timestamp;
use shoal_runtime::{ContainerRuntime, RuntimeConfig};

pub const DEADLINE: Duration = Duration::from_secs(60);
/// An image that is labelled as a unikernel.
pub const UNIKERNEL: &str = "unikernel:latest";
pub const IMAGE: &str = "box:test";

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Waits for a future, but not for ever.
pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

/// Waits until a condition holds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let start = Instant::now();
    while !holds().await {
        assert!(start.elapsed() < DEADLINE, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Notes what it is asked.
#[derive(Default)]
pub struct Notes {
    pub lines: Mutex<Vec<String>>,
    pub refuse: Mutex<Option<AttachError>>,
}

impl Notes {
    fn add(&self, line: String) {
        self.lines.lock().unwrap().push(line);
    }
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.lines.lock().unwrap())
    }
}

fn endpoint(name: &str) -> EndpointInfo {
    EndpointInfo {
        network_id: NetworkId::new(format!("{name}-id")),
        network_name: name.into(),
        driver: "bridge".into(),
        endpoint_id: "e".repeat(64),
        ipv4: Some((Ipv4Addr::new(10, 1, 2, 3), 24)),
        ipv6: None,
        gateway: Some(Ipv4Addr::new(10, 1, 2, 1)),
        gateway6: None,
        mac: None,
        aliases: Vec::new(),
        dns_names: vec![name.into()],
        ipam: None,
    }
}

#[async_trait]
impl Attacher for Notes {
    async fn attach(&self, request: ContainerNetworking) -> Result<Attachment, AttachError> {
        self.add(format!("attach {}", request.name));
        if let Some(error) = self.refuse.lock().unwrap().take() {
            return Err(error);
        }
        Ok(Attachment {
            netns: None,
            sandbox_id: "s".repeat(64),
            endpoints: vec![endpoint("front")],
            published: Vec::new(),
            resolv_conf: "nameserver 127.0.0.11\n".into(),
            tap: request.tap_owner.map(|_| tap()),
        })
    }
    async fn detach(&self, _: &ContainerId) -> Result<(), AttachError> {
        self.add("detach".into());
        Ok(())
    }
    async fn readopt(
        &self,
        request: ContainerNetworking,
        attachment: Attachment,
    ) -> Result<Attachment, AttachError> {
        self.add(format!("readopt {}", request.name));
        Ok(attachment)
    }
    async fn check_network(&self, word: &str) -> Result<NetworkName, AttachError> {
        if word == "nowhere" {
            return Err(AttachError::new(FaultKind::NotFound, "network nowhere not found"));
        }
        Ok(NetworkName { id: NetworkId::new(format!("{word}-id")), name: word.into() })
    }
    async fn connect(
        &self,
        _: &ContainerId,
        network: &str,
        _: EndpointSettings,
    ) -> Result<Attachment, AttachError> {
        self.add(format!("connect {network}"));
        let endpoints = vec![endpoint("front"), endpoint("back")];
        Ok(Attachment { endpoints, ..Attachment::default() })
    }
    async fn disconnect(&self, _: &ContainerId, network: &str) -> Result<Attachment, AttachError> {
        self.add(format!("disconnect {network}"));
        Ok(Attachment { endpoints: vec![endpoint("front")], ..Attachment::default() })
    }
    async fn connect_to(
        &self,
        _: &ContainerId,
        port: u16,
        _: std::time::Duration,
    ) -> Result<tokio::net::TcpStream, AttachError> {
        let local = std::net::Ipv4Addr::LOCALHOST;
        tokio::net::TcpStream::connect((local, port))
            .await
            .map_err(|e| AttachError::new(FaultKind::Unavailable, e.to_string()))
    }
}

/// What a unikernel would be told of a device that the tests' tender does not open.
fn tap() -> TapPlace {
    TapPlace {
        netns: "/nowhere".into(),
        name: "p1".into(),
        mtu: 1450,
        address: ([10, 0, 1, 4].into(), 24),
        mac: shoal_model::net::Mac([2, 0, 0, 0, 0, 1]),
        gateway: Some([10, 0, 1, 1].into()),
    }
}

/// Directories that outlive a daemon.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub instance: String,
    pub notes: Arc<Notes>,
}

/// A daemon's part on a [`Host`].
pub struct Daemon {
    pub engine: Engine,
    pub images: ImageStore,
}

impl Host {
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("e{:07x}{number:04x}", std::process::id());
        Self { dir: tempfile::tempdir().unwrap(), instance, notes: Arc::default() }
    }

    pub fn runtime(&self) -> ContainerRuntime {
        ContainerRuntime::new(RuntimeConfig {
            instance: InstanceId::new(self.instance.clone()),
            exec_root: self.dir.path().join("run"),
            helper: vec![PathBuf::from(env!("CARGO_BIN_EXE_shoal-engine-shim")).into()],
            tender: Vec::new(),
        })
        .unwrap()
    }

    /// Opens image store and engine; makes the image if it is not there yet.
    pub async fn open(&self) -> Daemon {
        let images = ImageStore::open(StoreOptions {
            root: self.dir.path().join("data/image"),
            insecure_registries: Vec::new(),
            clock: || Timestamp::from_secs(1_700_000_000),
        })
        .unwrap();
        if images.resolve(IMAGE).is_err() {
            images.build(busybox()).await.unwrap();
            images.build(unikernel()).await.unwrap();
        }
        let config = EngineConfig {
            data_root: self.dir.path().join("data"),
            exec_root: self.dir.path().join("run"),
            instance: InstanceId::new(self.instance.clone()),
            default_init: false,
        };
        let attacher: Arc<dyn Attacher> = Arc::clone(&self.notes) as Arc<dyn Attacher>;
        let opened = Engine::open(config, images.clone(), self.runtime(), attacher, system_clock());
        let engine = within(opened).await.unwrap();
        engine.resume().await;
        Daemon { engine, images }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What a failed test left running.
        for id in self.runtime().list().unwrap_or_default() {
            let path = format!("shoal-{}/{id}", self.instance);
            if let Ok(cgroup) = shoal_runtime::cgroup::Cgroup::open(&path) {
                // Ignored because: the test has failed already.
                let _ = cgroup.kill_and_remove();
            }
        }
    }
}

fn busybox() -> ImageSpec {
    let mut files = vec![
        FileSpec::host("/bin/busybox", 0o755, "/bin/busybox"),
        FileSpec::bytes("/etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n"),
        FileSpec::bytes("/etc/notexec", 0o644, "text"),
        FileSpec::directory("/tmp", 0o1777),
        FileSpec::bytes("/data/seed", 0o640, "seeded"),
        FileSpec::symlink("/data/link", "seed"),
    ];
    for name in [
        "sh", "cat", "echo", "sleep", "true", "false", "env", "pwd", "ls", "id", "touch", "mkdir",
        "hostname", "rm", "kill", "seq", "stty", "head", "grep", "ln", "test", "mv", "stat",
    ] {
        files.push(FileSpec::symlink(&format!("/bin/{name}"), "busybox"));
    }
    let config = ContainerConfig {
        env: Some(vec!["PATH=/bin".into(), "FROM=image".into()]),
        cmd: Some(Words::List(vec!["sh".into()])),
        labels: Some(BTreeMap::from([("kind".into(), "test".into())])),
        ..ContainerConfig::default()
    };
    ImageSpec { name: IMAGE.into(), files, config }
}

/// What is labelled as a unikernel; nothing of it is ever run here.
fn unikernel() -> ImageSpec {
    let config = ContainerConfig {
        entrypoint: Some(Words::List(vec!["/unikernel".into()])),
        labels: Some(BTreeMap::from([("shoal.workload".into(), "unikernel".into())])),
        ..ContainerConfig::default()
    };
    let files = vec![FileSpec::bytes("/unikernel", 0o755, "no program")];
    ImageSpec { name: UNIKERNEL.into(), files, config }
}

/// The body of a creation: `argv` on the test's image, with what `more` adds.
pub fn body(argv: &[&str], more: serde_json::Value) -> ContainerCreate {
    let mut body = serde_json::json!({
        "Image": IMAGE, "Cmd": argv, "HostConfig": {"NetworkMode": "none"},
    });
    merge(&mut body, more);
    serde_json::from_value(body).unwrap()
}

fn merge(into: &mut serde_json::Value, from: serde_json::Value) {
    match (into, from) {
        (serde_json::Value::Object(into), serde_json::Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

impl Daemon {
    pub async fn create(
        &self,
        name: &str,
        argv: &[&str],
        more: serde_json::Value,
    ) -> Result<String, EngineError> {
        let options = CreateOptions { name: Some(name.into()), ..CreateOptions::default() };
        within(self.engine.create(body(argv, more), options)).await.map(|created| created.id)
    }

    pub async fn start(&self, name: &str, argv: &[&str], more: serde_json::Value) -> String {
        let id = self.create(name, argv, more).await.unwrap();
        within(self.engine.start(&id)).await.unwrap();
        id
    }

    pub async fn wait(&self, id: &str, condition: WaitCondition) -> WaitHandle {
        self.engine.wait(id, condition).await.unwrap()
    }

    /// Runs to the end; gives exit status and output.
    pub async fn run(&self, name: &str, script: &str, more: serde_json::Value) -> (i64, String) {
        let id = self.start(name, &["sh", "-c", script], more).await;
        let ended = self.wait(&id, WaitCondition::NotRunning).await;
        let outcome = within(ended.outcome()).await.unwrap();
        let text = self.log(&id).await;
        within(self.engine.remove(&id, RemoveOptions::default())).await.unwrap();
        (outcome.status_code, text)
    }

    pub async fn log(&self, id: &str) -> String {
        self.log_of(id, LogSelection::default()).await
    }

    pub async fn log_of(&self, id: &str, options: LogSelection) -> String {
        let log = self.engine.logs(id, options).await.unwrap();
        let lines = log.lines.map(|entry| entry.unwrap().line).collect::<Vec<_>>();
        let bytes = within(lines).await.concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    pub async fn phase(&self, id: &str) -> String {
        self.engine.inspect(id, false).await.unwrap().state.status
    }

    /// Actions of all events so far, with the kind if it is not a container's.
    pub async fn actions(&self) -> Vec<String> {
        let since = Some(Timestamp::ZERO);
        let until = Some((system_clock())());
        let query = EventQuery { since, until, ..EventQuery::default() };
        let events = self.engine.events().subscribe(query).unwrap();
        let line = |e: shoal_model::event::Event| match e.kind.as_str() {
            "container" => e.action,
            kind => format!("{kind} {}", e.action),
        };
        within(events.map(line).collect::<Vec<_>>()).await
    }

    pub async fn close(self) {
        let Self { engine, images } = self;
        engine.shutdown(shoal_engine::request::ShutdownMode::Keep).await;
        drop((engine, images));
    }
}

/// Reads a session to its end.
pub async fn read_all(session: StdioSession) -> (String, String) {
    let (mut out, mut err) = (String::new(), String::new());
    let frames = within(session.output.collect::<Vec<_>>()).await;
    for frame in frames {
        let text = String::from_utf8_lossy(&frame.data).into_owned();
        match frame.stream {
            StdStream::Stdout => out.push_str(&text),
            StdStream::Stderr => err.push_str(&text),
            StdStream::System => panic!("{text}"),
        }
    }
    (out, err)
}

/// Whether a path is a mount point of this process's namespace.
pub fn is_mounted(path: &Path) -> bool {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.contains(&format!(" {} ", path.display()))
}
