//! The real docker CLI against the real server, engine, image store and runtime; only the network
//! is missing (containers share the host's). The program is its own shim, so it has no libtest
//! harness. Needs root.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod fake;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use async_trait::async_trait;
use fake::server::Server;
use shoal_api::adapter::engine::EngineBackend;
use shoal_api::adapter::image::StoreBackend;
use shoal_engine::attacher::{AttachError, Attacher, Attachment, ContainerNetworking, NetworkName};
use shoal_engine::config::{EngineConfig, system_clock};
use shoal_engine::engine::Engine;
use shoal_engine::request::ShutdownMode;
use shoal_image::store::{ImageStore, StoreOptions};
use shoal_model::id::{ContainerId, InstanceId};
use shoal_model::spec::container::EndpointSettings;
use shoal_model::time::Timestamp;
use shoal_runtime::{ContainerRuntime, RuntimeConfig};

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let [_, word, dir] = args.as_slice()
        && word == "shim"
    {
        return shoal_runtime::shim::main(Path::new(dir));
    }
    if args.iter().any(|arg| arg == "--list") {
        println!("docker_cli_against_the_engine: test");
        return ExitCode::SUCCESS;
    }
    let host = Host::start();
    let mut failed = 0;
    for (name, test) in TESTS {
        let run = std::panic::AssertUnwindSafe(|| test(&host.server));
        let verdict = if std::panic::catch_unwind(run).is_ok() { "ok" } else { "FAILED" };
        failed += u8::from(verdict != "ok");
        println!("test {name} ... {verdict}");
    }
    drop(host);
    ExitCode::from(failed)
}

type Test = (&'static str, fn(&Server));

const TESTS: &[Test] = &[
    ("images_come_from_archives", images_come_from_archives),
    ("run_prints_and_ends_with_the_status", run_prints_and_ends_with_the_status),
    ("input_reaches_the_process_and_ends", input_reaches_the_process_and_ends),
    ("a_detached_container_lives_its_life", a_detached_container_lives_its_life),
    ("exec_runs_in_a_running_container", exec_runs_in_a_running_container),
    ("files_are_copied_both_ways", files_are_copied_both_ways),
    ("missing_things_are_named", missing_things_are_named),
    ("volumes_keep_data", volumes_keep_data),
];

/// Containers share the host's network here.
struct NoNetwork;

#[async_trait]
impl Attacher for NoNetwork {
    async fn attach(&self, _: ContainerNetworking) -> Result<Attachment, AttachError> {
        Ok(Attachment::default())
    }
    async fn detach(&self, _: &ContainerId) -> Result<(), AttachError> {
        Ok(())
    }
    async fn readopt(
        &self,
        _: ContainerNetworking,
        a: Attachment,
    ) -> Result<Attachment, AttachError> {
        Ok(a)
    }
    async fn check_network(&self, word: &str) -> Result<NetworkName, AttachError> {
        Ok(NetworkName { id: "n1".into(), name: word.to_owned() })
    }
    async fn connect(
        &self,
        _: &ContainerId,
        _: &str,
        _: EndpointSettings,
    ) -> Result<Attachment, AttachError> {
        Ok(Attachment::default())
    }
    async fn disconnect(&self, _: &ContainerId, _: &str) -> Result<Attachment, AttachError> {
        Ok(Attachment::default())
    }

    async fn connect_to(
        &self,
        _: &ContainerId,
        _: u16,
        _: std::time::Duration,
    ) -> Result<tokio::net::TcpStream, AttachError> {
        Err(AttachError::new(shoal_model::fault::FaultKind::Unavailable, "no network"))
    }
}

struct Host {
    server: Server,
    engine: Engine,
}

impl Host {
    fn start() -> Self {
        let exe = std::env::current_exe().unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().to_owned();
        let instance = InstanceId::new(format!("{:012x}", std::process::id()));
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let server = Server::start_with(dir, async move {
            let images = ImageStore::open(StoreOptions {
                root: root.join("images"),
                insecure_registries: Vec::new(),
                clock: || Timestamp::from_secs(1_500_000_000),
            })
            .unwrap();
            let runtime = ContainerRuntime::new(RuntimeConfig {
                instance: instance.clone(),
                exec_root: root.join("run"),
                helper: vec![exe.into(), "shim".into()],
                tender: Vec::new(),
            })
            .unwrap();
            let config = EngineConfig {
                data_root: root.join("data"),
                exec_root: root.join("run"),
                instance,
                default_init: false,
            };
            let attacher = Arc::new(NoNetwork);
            let engine =
                Engine::open(config, images.clone(), runtime, attacher, system_clock()).await;
            let engine = engine.unwrap();
            engine.resume().await;
            let backend = Arc::new(EngineBackend::new(engine.clone()));
            let images = Arc::new(StoreBackend::new(images, engine.clone()));
            sender.send(engine).unwrap();
            (backend, images)
        });
        Self { server, engine: receiver.recv().unwrap() }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let engine = self.engine.clone();
        self.server.block_on(async move {
            let grace = std::time::Duration::from_millis(200);
            engine.shutdown(ShutdownMode::Stop(grace)).await;
        });
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A flat archive with busybox in it.
fn busybox_archive(dir: &Path) -> Vec<u8> {
    let root = dir.join("rootfs");
    for name in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
        std::fs::create_dir_all(root.join(name)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for name in ["sh", "cat", "echo", "sleep", "ls", "true", "false", "env", "tty", "rm"] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(name)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n").unwrap();
    let tar = std::process::Command::new("tar").arg("-C").arg(&root).args(["-c", "."]).output();
    tar.unwrap().stdout
}

fn images_come_from_archives(server: &Server) {
    let archive = busybox_archive(server.dir.path());
    let import = ["import", "--change", "CMD [\"sh\"]", "-", "box:1"];
    let out = server.docker_with_input(&import, &archive);
    assert!(out.status.success(), "{}{}", text(&out.stdout), text(&out.stderr));
    assert!(server.ok(&["images"]).contains("box"));
    let saved = server.docker(&["save", "box:1"]).stdout;
    assert!(saved.len() > 500_000, "{}", saved.len());
    server.ok(&["tag", "box:1", "again:2"]);
    server.ok(&["rmi", "again:2"]);
    let out = server.docker_with_input(&["load"], &saved);
    assert!(text(&out.stdout).contains("Loaded image: box:1"), "{}", text(&out.stdout));
    let cut = server.docker_with_input(&["load"], &saved[..saved.len() / 2]);
    assert!(!cut.status.success(), "{}", text(&cut.stdout));
    assert!(text(&cut.stderr).contains("archive"), "{}", text(&cut.stderr));
    assert!(server.ok(&["history", "box:1"]).contains("CREATED BY"));
    server.ok(&["image", "inspect", "box:1"]);
    server.ok(&["system", "df", "-v"]);
}

fn run_prints_and_ends_with_the_status(server: &Server) {
    let out =
        server.docker(&["run", "--rm", "box:1", "sh", "-c", "echo out; echo err >&2; exit 5"]);
    assert_eq!(text(&out.stdout), "out\n", "{}", text(&out.stderr));
    assert_eq!(text(&out.stderr), "err\n");
    assert_eq!(out.status.code(), Some(5));
    let out = server.docker(&["run", "--rm", "box:1", "nothing-here"]);
    assert_eq!(out.status.code(), Some(127), "{}", text(&out.stderr));
    let out = server.docker(&["run", "--rm", "box:1", "/etc"]);
    assert_eq!(out.status.code(), Some(126), "{}", text(&out.stderr));
    assert_eq!(server.ok(&["ps", "-aq"]), "");
    let long = server.ok(&[
        "run",
        "--rm",
        "box:1",
        "sh",
        "-c",
        "for i in 1 2 3; do cat /bin/busybox | head -c 100000 | od; done | head -c 200000",
    ]);
    assert!(!long.is_empty());
}

fn input_reaches_the_process_and_ends(server: &Server) {
    let input = vec![b'x'; 300_000];
    let out = server.docker_with_input(&["run", "-i", "--rm", "box:1", "cat"], &input);
    assert_eq!(out.stdout.len(), input.len(), "{}", text(&out.stderr));
    assert!(out.status.success());
}

fn a_detached_container_lives_its_life(server: &Server) {
    let run = [
        "run",
        "-d",
        "--name",
        "web",
        "box:1",
        "sh",
        "-c",
        "echo up; trap exit TERM; sleep 99 & wait",
    ];
    let id = server.ok(&run);
    assert_eq!(id.trim().len(), 64);
    assert!(server.ok(&["ps"]).contains("web"));
    wait_for(|| server.ok(&["logs", "web"]) == "up\n");
    assert!(server.ok(&["top", "web"]).contains("sleep"));
    let stats = server.ok(&["stats", "--no-stream", "web"]);
    assert!(stats.contains("web"), "{stats}");
    server.ok(&["pause", "web"]);
    assert!(server.ok(&["ps"]).contains("(Paused)"));
    server.ok(&["unpause", "web"]);
    server.ok(&["rename", "web", "site"]);
    let taken = server.fails(&["create", "--name", "site", "box:1"]);
    assert!(taken.contains("is already in use by container"), "{taken}");
    let running = server.fails(&["rm", "site"]);
    assert!(running.contains("container is running"), "{running}");
    server.ok(&["update", "--memory", "64m", "--memory-swap", "64m", "site"]);
    server.ok(&["kill", "-s", "TERM", "site"]);
    assert!(server.ok(&["wait", "site"]).trim().parse::<i64>().is_ok());
    server.ok(&["start", "site"]);
    server.ok(&["restart", "-t", "1", "site"]);
    server.ok(&["stop", "-t", "1", "site"]);
    let state = server.ok(&["inspect", "-f", "{{.State.Status}} {{.Name}}", "site"]);
    assert_eq!(state.trim(), "exited /site");
    assert!(server.ok(&["ps", "-a", "--filter", "status=exited"]).contains("site"));
    server.ok(&["rm", "site"]);
    let events =
        server.ok(&["events", "--since", "10m", "--until=-1s", "--filter", "container=site"]);
    assert!(events.contains("container destroy"), "{events}");
}

fn exec_runs_in_a_running_container(server: &Server) {
    server.ok(&["run", "-d", "--name", "xx", "box:1", "sleep", "99"]);
    assert_eq!(server.ok(&["exec", "-e", "A=b", "xx", "sh", "-c", "echo $A"]), "b\n");
    let out = server.docker_with_input(&["exec", "-i", "xx", "sh"], b"echo in; exit 9\n");
    assert_eq!(text(&out.stdout), "in\n", "{}", text(&out.stderr));
    assert_eq!(out.status.code(), Some(9));
    let out = server.docker(&["exec", "xx", "nothing-here"]);
    assert_eq!(out.status.code(), Some(127), "{}{}", text(&out.stdout), text(&out.stderr));
    server.ok(&["exec", "-d", "xx", "true"]);
    server.ok(&["rm", "-f", "xx"]);
    let gone = server.fails(&["exec", "xx", "true"]);
    assert!(gone.contains("No such container: xx"), "{gone}");
}

fn files_are_copied_both_ways(server: &Server) {
    server.ok(&["create", "--name", "files", "box:1", "cat", "/tmp/in"]);
    let file = server.dir.path().join("in");
    std::fs::write(&file, "hello\n").unwrap();
    server.ok(&["cp", file.to_str().unwrap(), "files:/tmp/in"]);
    assert_eq!(server.ok(&["start", "-a", "files"]), "hello\n");
    let back = server.dir.path().join("back");
    server.ok(&["cp", "files:/tmp/in", back.to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(back).unwrap(), "hello\n");
    assert!(server.ok(&["diff", "files"]).contains("A /tmp/in"));
    let missing = server.fails(&["cp", "files:/nothing", "/tmp/x"]);
    assert!(missing.contains("Could not find the file /nothing"), "{missing}");
    assert!(server.docker(&["export", "files"]).stdout.len() > 500_000);
    server.ok(&["container", "prune", "-f"]);
}

fn missing_things_are_named(server: &Server) {
    let missing = server.fails(&["run", "--pull=never", "nope"]);
    assert!(missing.contains("No such image: nope:latest"), "{missing}");
    assert!(server.fails(&["start", "nope"]).contains("No such container: nope"));
    assert!(server.fails(&["rmi", "nope"]).contains("No such image: nope"));
    let filter = server.fails(&["ps", "--filter", "colour=red"]);
    assert!(filter.contains("invalid filter 'colour'"), "{filter}");
}

fn volumes_keep_data(server: &Server) {
    server.ok(&["volume", "create", "--label", "a=b", "data"]);
    server.ok(&["run", "--rm", "-v", "data:/d", "box:1", "sh", "-c", "echo kept > /d/f"]);
    assert_eq!(server.ok(&["run", "--rm", "-v", "data:/d", "box:1", "cat", "/d/f"]), "kept\n");
    assert!(server.ok(&["volume", "ls"]).contains("data"));
    server.ok(&["volume", "inspect", "data"]);
    server.ok(&["volume", "rm", "data"]);
    assert!(server.fails(&["volume", "inspect", "data"]).contains("no such volume"));
}

fn wait_for(mut done: impl FnMut() -> bool) {
    let begin = std::time::Instant::now();
    while !done() {
        assert!(begin.elapsed().as_secs() < 10, "waited too long");
        std::thread::yield_now();
    }
}
