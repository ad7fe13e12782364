//! The real server over fake backends, on a socket in a directory of its own.

use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use shoal_api::backend::ApiState;
use shoal_api::backend::container::{ContainerBackend, VolumeBackend};
use shoal_api::backend::image::ImageBackend;
use shoal_api::backend::system::{EventBackend, Facts};
use shoal_api::server::changes::Changes;
use shoal_api::server::listen::{Host, Listener};
use shoal_api::server::sessions::Sessions;
use shoal_api::server::tls::TlsFiles;
use shoal_model::time::Timestamp;
use tokio_util::sync::CancellationToken;

use super::containers::Containers;
use super::swarm::Swarm;
use super::{Checks, Images, Networks};

pub struct Server {
    pub dir: tempfile::TempDir,
    pub swarm: Swarm,
    pub containers: Arc<Containers>,
    stop: CancellationToken,
    done: Option<tokio::task::JoinHandle<()>>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// Another node's: its containers, and nothing of a swarm.
pub fn elsewhere(containers: Arc<Containers>) -> Arc<ApiState> {
    state(Swarm::default(), containers, Arc::new(Images))
}

/// A state over fakes, but for containers, volumes, events and images.
fn state<E, I>(swarm: Swarm, engine: Arc<E>, images: Arc<I>) -> Arc<ApiState>
where
    E: ContainerBackend + VolumeBackend + EventBackend + 'static,
    I: ImageBackend + 'static,
{
    Arc::new(ApiState {
        facts: Facts {
            version: "0.1.0".into(),
            name: "one".into(),
            os: "Test Linux".into(),
            kernel: "6.0".into(),
            architecture: "x86_64".into(),
            cpus: 2,
            memory: 1 << 30,
            data_root: "/var/lib/shoal".into(),
            ..Facts::default()
        },
        swarm: Arc::new(swarm),
        containers: engine.clone(),
        volumes: engine.clone(),
        images,
        networks: Arc::new(Networks),
        events: engine,
        diagnostics: Arc::new(Checks),
        clock: Arc::new(|| Timestamp::from_secs(1_500_000_000)),
        sessions: Sessions::default(),
        changes: Changes::default(),
    })
}

impl Server {
    /// Over fakes alone.
    pub fn start() -> Self {
        let containers = Arc::new(Containers::default());
        let mut server = Self::start_with(tempfile::tempdir().unwrap(), {
            let containers = containers.clone();
            async move { (containers, Arc::new(Images)) }
        });
        server.containers = containers;
        server
    }

    /// Over fakes alone, on TCP with client certificates.
    pub fn start_tls(files: &TlsFiles) -> (Self, SocketAddr) {
        let mut server = Self::start();
        let state = state(Swarm::default(), Arc::new(Containers::default()), Arc::new(Images));
        let host = Host::parse("tcp://127.0.0.1:0").unwrap();
        let acceptor = files.acceptor().unwrap();
        let listener = server.block_on(Listener::bind(&host, Some(acceptor))).unwrap();
        let address = listener.tcp_address().unwrap();
        let token = server.stop.clone();
        let runtime = server.runtime.as_ref().unwrap();
        let first = server.done.take().unwrap();
        server.done = Some(runtime.spawn(async move {
            shoal_api::server::serve(vec![listener], state, token).await.unwrap();
            first.await.unwrap();
        }));
        (server, address)
    }

    /// Over the engine and the images that `backends` makes on the server's runtime.
    pub fn start_with<E, I>(
        dir: tempfile::TempDir,
        backends: impl Future<Output = (Arc<E>, Arc<I>)>,
    ) -> Self
    where
        E: ContainerBackend + VolumeBackend + EventBackend + 'static,
        I: ImageBackend + 'static,
    {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let swarm = Swarm::default();
        let (engine, images) = runtime.block_on(backends);
        let state = state(swarm.clone(), engine, images);
        let host = Host::Unix(dir.path().join("s.sock"));
        let listener = runtime.block_on(Listener::bind(&host, None)).unwrap();
        let stop = CancellationToken::new();
        let token = stop.clone();
        let done = runtime.spawn(async move {
            shoal_api::server::serve(vec![listener], state, token).await.unwrap();
        });
        let (containers, runtime) = (Arc::default(), Some(runtime));
        Self { dir, swarm, containers, stop, done: Some(done), runtime }
    }

    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().unwrap().block_on(work)
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s.sock")
    }

    /// Stops the server and says how long that took.
    pub fn shutdown(&mut self) -> Duration {
        let begin = shoal_stopwatch::Stopwatch::start();
        self.stop.cancel();
        if let (Some(runtime), Some(done)) = (&self.runtime, self.done.take()) {
            runtime.block_on(done).unwrap();
        }
        begin.elapsed()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("timeout");
        command
            .args(["60", "docker"])
            .args(args)
            .env("DOCKER_HOST", format!("unix://{}", self.socket().display()))
            .env("DOCKER_CONFIG", self.dir.path())
            .env("HOME", self.dir.path())
            .env_remove("DOCKER_API_VERSION");
        command
    }

    pub fn docker(&self, args: &[&str]) -> Output {
        self.command(args).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs docker, which must succeed; its standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.docker(args);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(
            out.status.success(),
            "docker {args:?}: {}{}",
            text(&out.stdout),
            text(&out.stderr)
        );
        text(&out.stdout)
    }

    /// Runs docker, which must fail; its standard error.
    pub fn fails(&self, args: &[&str]) -> String {
        let out = self.docker(args);
        assert!(!out.status.success(), "docker {args:?} should fail");
        String::from_utf8_lossy(&out.stderr).into_owned()
    }

    pub fn docker_with_input(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        child.wait_with_output().unwrap()
    }

    /// One raw request, without a client's help; the whole answer.
    pub fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        // Ignored because: a server that refuses a long body answers before it has read all of it.
        let _ = stream.write_all(request.as_bytes());
        let mut answer = Vec::new();
        // Ignored because: a reset after the answer is as good as an end.
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    }

    /// One request with a JSON body; status and body.
    pub fn send(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: \
             application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = self.raw(&request);
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body).to_owned();
        (status, body)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shutdown();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}
