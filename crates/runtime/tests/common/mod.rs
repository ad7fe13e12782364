//! A machine to run containers on: a root file system of busybox and a runtime of its own.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use shoal_model::id::{ContainerId, InstanceId};
use shoal_runtime::container_plan::{
    ContainerPlan, LogPlan, NetworkNamespace, ProcessPlan, Rootfs,
};
use shoal_runtime::protocol::ExitStatus;
use shoal_runtime::{
    ContainerRuntime, Output, OutputChunk, RuntimeConfig, RuntimeError, Shim, caps,
};

pub const DEADLINE: Duration = Duration::from_secs(60);

static NEXT: AtomicU32 = AtomicU32::new(0);

pub struct Host {
    pub dir: tempfile::TempDir,
    pub runtime: ContainerRuntime,
    pub instance: String,
}

/// Puts a root file system with the program `busybox` into `dir`.
pub fn busybox_rootfs(dir: &Path, busybox: &Path) {
    for name in ["bin", "etc", "tmp", "root", "proc", "sys", "dev"] {
        fs::create_dir_all(dir.join(name)).unwrap();
    }
    fs::copy(busybox, dir.join("bin/busybox")).expect("busybox-static is installed");
    for name in [
        "sh", "cat", "echo", "sleep", "id", "ls", "true", "false", "env", "pwd", "touch", "mkdir",
        "head", "tail", "stty", "hostname", "ip", "mount", "umount", "kill", "grep", "mknod", "dd",
        "seq", "tr", "wc", "ps", "tty", "chmod", "readlink", "unshare", "df", "cut", "rm",
        "ulimit", "od", "mkfifo", "ln", "stat",
    ] {
        symlink("busybox", dir.join("bin").join(name)).unwrap();
    }
    let passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:100::/srv:/bin/sh\n";
    fs::write(dir.join("etc/passwd"), passwd).unwrap();
    fs::write(dir.join("etc/group"), "root:x:0:\nusers:x:100:\nadm:x:4:web\n").unwrap();
}

pub fn helper() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_shoal-runtime-shim"))
}

impl Host {
    pub fn new() -> Self {
        Self::below(Path::new("/"))
    }

    /// Where the usual root file system is at `root`.
    pub fn below(root: &Path) -> Self {
        let inside = |path: &Path| root.join(path.strip_prefix("/").unwrap());
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let instance = format!("t{:07x}{number:04x}", std::process::id());
        let dir = tempfile::tempdir_in(inside(Path::new("/tmp"))).unwrap();
        busybox_rootfs(&dir.path().join("layer"), &inside(Path::new("/bin/busybox")));
        let runtime = ContainerRuntime::new(RuntimeConfig {
            instance: InstanceId::new(instance.clone()),
            exec_root: dir.path().join("run"),
            helper: vec![inside(&helper()).into()],
            tender: Vec::new(),
        })
        .unwrap();
        Self { dir, runtime, instance }
    }

    /// A plan as the engine makes it for `docker run busybox …`.
    pub fn plan(&self, argv: &[&str]) -> ContainerPlan {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:032x}{number:032x}", std::process::id());
        let state = self.dir.path().join(format!("state-{number}"));
        fs::create_dir_all(&state).unwrap();
        ContainerPlan {
            id: ContainerId::new(id),
            rootfs: Rootfs::Overlay {
                lower: vec![self.dir.path().join("layer")],
                upper: state.join("upper"),
                work: state.join("work"),
            },
            process: ProcessPlan {
                argv: argv.iter().map(|w| (*w).to_owned()).collect(),
                env: vec!["PATH=/bin".to_owned()],
                capabilities: caps::DEFAULT.map(str::to_owned).to_vec(),
                ..ProcessPlan::default()
            },
            hostname: "box".to_owned(),
            network: NetworkNamespace::Private,
            log: LogPlan { path: Some(state.join("log")), max_bytes: None, max_files: 1 },
            ..ContainerPlan::default()
        }
    }

    /// Runs to the end and returns the exit status and what was logged.
    pub async fn run(&self, plan: &ContainerPlan) -> Result<(ExitStatus, String), RuntimeError> {
        let shim = self.runtime.create(plan).await?;
        let started = shim.start().await;
        if let Err(error) = started {
            shim.delete().await?;
            return Err(error);
        }
        let status = within(shim.wait()).await?;
        let log = logged(plan);
        shim.delete().await?;
        Ok((status, log))
    }

    pub async fn sh(&self, script: &str) -> (i32, String) {
        let (status, log) = self.run(&self.plan(&["sh", "-c", script])).await.unwrap();
        (status.code, log)
    }

    pub async fn start(&self, plan: &ContainerPlan) -> Shim {
        let shim = self.runtime.create(plan).await.unwrap();
        shim.start().await.unwrap();
        shim
    }

    /// Everything of this host's cgroups that is still there.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let parent = format!("shoal-{}", self.instance);
        let layout = shoal_runtime::cgroup::Layout::detect().unwrap();
        layout.roots().map(|root| root.join(&parent)).filter(|dir| dir.exists()).collect()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What a failed test left running.
        for id in self.runtime.list().unwrap_or_default() {
            let path = format!("shoal-{}/{id}", self.instance);
            if let Ok(cgroup) = shoal_runtime::cgroup::Cgroup::open(&path) {
                let _ = cgroup.kill_and_remove();
            }
        }
    }
}

pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(DEADLINE, future).await.expect("in time")
}

pub fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !test() {
        assert!(Instant::now() < end, "{what} did not happen in time");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The text of a plan's log, with the streams thrown together.
pub fn logged(plan: &ContainerPlan) -> String {
    log_lines(plan).into_iter().map(|(_, line)| line).collect()
}

pub fn log_lines(plan: &ContainerPlan) -> Vec<(String, String)> {
    let text = fs::read_to_string(plan.log.path.as_ref().unwrap()).unwrap_or_default();
    text.lines()
        .map(|line| {
            let line: serde_json::Value = serde_json::from_str(line).expect("a JSON line");
            let field = |name: &str| line[name].as_str().unwrap().to_owned();
            assert!(field("time").ends_with('Z'));
            (field("stream"), field("log"))
        })
        .collect()
}

/// Everything that comes until the end, as stdout and stderr, and the exit status.
pub async fn collect(output: &mut Output) -> (String, String, Option<ExitStatus>) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        match within(output.next()).await.unwrap() {
            Some(OutputChunk::Stdout(bytes)) => out.extend_from_slice(&bytes),
            Some(OutputChunk::Stderr(bytes)) => err.extend_from_slice(&bytes),
            Some(OutputChunk::Exited(status)) => {
                return (text(out), text(err), Some(status));
            }
            Some(OutputChunk::Lagged) | None => return (text(out), text(err), None),
        }
    }
}

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Reads until the output contains `wanted`.
pub async fn read_until(output: &mut Output, wanted: &str) -> String {
    let mut seen = String::new();
    while !seen.contains(wanted) {
        match within(output.next()).await.unwrap() {
            Some(OutputChunk::Stdout(bytes) | OutputChunk::Stderr(bytes)) => {
                seen.push_str(&String::from_utf8_lossy(&bytes));
            }
            other => panic!("{other:?} before {wanted:?}, after {seen:?}"),
        }
    }
    seen
}
