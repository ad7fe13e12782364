//! Registries: a real one on a loopback port, and ones that lie. Needs Debian's docker-registry.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::{Bench, Layer, Mounted, SmallDisk, config_json, docker_archive, options};
use shoal_image::config::Platform;
use shoal_image::digest::Digest;
use shoal_image::error::ImageError;
use shoal_image::progress::{Progress, ProgressMessage};
use shoal_image::registry::auth::RegistryAuth;
use shoal_image::store::{ImageStore, PullRequest, Pulled, RemoveOptions};
use shoal_model::fault::Fault;
use shoal_stopwatch::Stopwatch;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A real registry with a directory of its own, stopped when dropped.
struct Registry {
    child: Child,
    port: u16,
    _directory: tempfile::TempDir,
}

impl Registry {
    fn start(password: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let port =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  \
             filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            directory.path().join("data").display()
        );
        if password {
            // The password is `secret` (bcrypt).
            let users = directory.path().join("users");
            let hash = "ann:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";
            std::fs::write(&users, hash).unwrap();
            config.push_str(&format!(
                "auth:\n  htpasswd:\n    realm: test\n    path: {}\n",
                users.display()
            ));
        }
        let path = directory.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let registry = Self { child, port, _directory: directory };
        let deadline = Instant::now() + Duration::from_secs(60);
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            std::thread::yield_now();
        }
        registry
    }

    fn name(&self, image: &str) -> String {
        format!("127.0.0.1:{}/{image}", self.port)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Ignored because: there is nothing more that a test could do about it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn request(reference: &str) -> PullRequest {
    PullRequest { reference: reference.into(), ..PullRequest::default() }
}

async fn pull(bench: &Bench, reference: &str) -> Result<Pulled, ImageError> {
    bench.store.pull(request(reference), Progress::none()).await
}

async fn pull_telling(bench: &Bench, reference: &str) -> Vec<ProgressMessage> {
    let (progress, mut told) = Progress::channel();
    let (store, request) = (bench.store.clone(), request(reference));
    let pull = tokio::spawn(async move { store.pull(request, progress).await });
    let mut messages = Vec::new();
    while let Some(message) = told.recv().await {
        messages.push(message);
    }
    pull.await.unwrap().unwrap();
    messages
}

fn layers() -> [Vec<u8>; 2] {
    let big: String = (0..200_000).map(|n| char::from(b'a' + (n % 26) as u8)).collect();
    [Layer::new().file("hello", "1").done(), Layer::new().file("big", &big).done()]
}

#[tokio::test]
async fn images_are_pushed_and_pulled() {
    let registry = Registry::start(false);
    let name = registry.name("team/app:1");
    let here = Bench::new();
    let id = here.load(docker_archive(&name, &layers())).await.unwrap()[0].id;
    let digest = here.store.push(&name, None, Progress::none()).await.unwrap();

    let there = Bench::new();
    let told = pull_telling(&there, &name).await;
    let statuses: Vec<_> = told.iter().filter_map(|m| m.status.as_deref()).collect();
    assert_eq!(statuses[0], "Pulling from team/app");
    for wanted in ["Pulling fs layer", "Verifying Checksum", "Download complete", "Pull complete"] {
        assert_eq!(statuses.iter().filter(|s| **s == wanted).count(), 2, "{wanted}");
    }
    assert_eq!(statuses[statuses.len() - 2], format!("Digest: {digest}"));
    assert_eq!(*statuses.last().unwrap(), format!("Status: Downloaded newer image for {name}"));
    let about = there.store.inspect(&name).unwrap();
    assert_eq!(about.id, id);
    let repository = registry.name("team/app");
    assert_eq!(about.repo_digests, [format!("{repository}@{digest}")]);
    assert_eq!(Mounted::new(&there.store, &id).read("hello").as_deref(), Some("1"));

    let again = pull(&there, &name).await.unwrap();
    assert_eq!((again.id, again.newer, again.digest), (id, false, digest));
    let by_digest = format!("{repository}:other@{digest}");
    assert_eq!(pull(&Bench::new(), &by_digest).await.unwrap().id, id);
    assert_eq!(there.store.resolve(&by_digest).unwrap(), id);

    let seen = there.store.distribution(&name, None).await.unwrap();
    assert_eq!(seen.descriptor.digest, digest);
    assert_eq!(seen.platforms, [Platform::parse("linux/amd64").unwrap()]);
    there.store.remove(&name, RemoveOptions::default()).await.unwrap();
    assert_eq!(there.kept(), Vec::<String>::new());
}

#[tokio::test]
async fn missing_images_are_told_in_dockers_words() {
    let registry = Registry::start(false);
    let bench = Bench::new();
    let error = pull(&bench, &registry.name("no/such:1")).await.unwrap_err();
    let wanted = format!("manifest for {} not found: manifest unknown", registry.name("no/such:1"));
    assert!(error.to_string().starts_with(&wanted), "{error}");
    assert_eq!(error.kind(), shoal_model::fault::FaultKind::NotFound);
}

#[tokio::test]
async fn passwords_are_asked_for_and_checked() {
    let registry = Registry::start(true);
    let name = registry.name("private:1");
    let bench = Bench::new();
    bench.load(docker_archive(&name, &layers())).await.unwrap();
    let auth = |password: &str| {
        Some(RegistryAuth {
            username: "ann".into(),
            password: password.into(),
            ..RegistryAuth::default()
        })
    };
    for refused in [None, auth("wrong")] {
        let error = bench.store.push(&name, refused, Progress::none()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("pull access denied for 127.0.0.1"), "{text}");
    }
    bench.store.push(&name, auth("secret"), Progress::none()).await.unwrap();
    let other = Bench::new();
    let request = PullRequest { auth: auth("secret"), ..request(&name) };
    other.store.pull(request, Progress::none()).await.unwrap();
}

#[tokio::test]
async fn nobody_there_is_told_at_once() {
    let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
    let bench = Bench::new();
    let start = Stopwatch::start();
    let error = pull(&bench, &format!("127.0.0.1:{free}/a:1")).await.unwrap_err();
    let text = shoal_model::fault::report(&error);
    assert!(text.contains(&format!("connect to the registry '127.0.0.1:{free}'")), "{text}");
    assert!(text.contains("refused"), "{text}");
    let error = pull(&bench, "registry.invalid/a:1").await.unwrap_err();
    let text = shoal_model::fault::report(&error);
    assert!(text.contains("'registry.invalid'"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
    assert_eq!(bench.kept(), Vec::<String>::new());
}

/// A registry that serves fixed answers, so that it can lie.
struct Liar {
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Content type and body.
type Served = (&'static str, Vec<u8>);
type Answers = HashMap<String, Served>;

impl Liar {
    async fn start(answers: Answers) -> Self {
        let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let answers = Arc::new(answers);
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answers = Arc::clone(&answers);
                tokio::spawn(async move {
                    let mut head = Vec::new();
                    let mut byte = [0];
                    while !head.ends_with(b"\r\n\r\n") && head.first() != Some(&22) {
                        if stream.read(&mut byte).await.unwrap_or(0) == 0 {
                            return;
                        }
                        head.push(byte[0]);
                    }
                    let head = String::from_utf8_lossy(&head).into_owned();
                    let path = head.split(' ').nth(1).unwrap_or_default();
                    let (kind, body) = answers.get(path).cloned().unwrap_or(("", Vec::new()));
                    let status = if kind.is_empty() { "404 Not Found" } else { "200 OK" };
                    // After `cut/` one byte less comes than was promised, after `stall/` too, but
                    // the connection stays open.
                    let (how, kind) = match kind.split_once('/') {
                        Some((how @ ("cut" | "stall"), kind)) => (how, kind),
                        _ => ("", kind),
                    };
                    let extra = usize::from(!how.is_empty());
                    let mut out = Vec::new();
                    // Every connection ends after one answer, and does not say so before: whoever
                    // wants to use it again must notice.
                    write!(
                        out,
                        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
                        body.len() + extra
                    )
                    .unwrap();
                    out.extend_from_slice(&body);
                    // Ignored because: the client may have gone away, as it should.
                    let _ = stream.write_all(&out).await;
                    if how == "stall" {
                        std::future::pending::<()>().await;
                    }
                });
            }
        });
        Self { port, task }
    }
}

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

struct Parts {
    manifest: Vec<u8>,
    answers: Answers,
    layer: Digest,
}

fn parts() -> Parts {
    let layer = Layer::new().file("hello", "1").done();
    let config = config_json(std::slice::from_ref(&layer));
    let about = |bytes: &[u8], kind: &str| {
        serde_json::json!({
            "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len()
        })
    };
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": about(&config, "application/vnd.oci.image.config.v1+json"),
        "layers": [about(&layer, "application/vnd.oci.image.layer.v1.tar")],
    }))
    .unwrap();
    let mut answers = Answers::new();
    let octets = "application/octet-stream";
    let digest = Digest::of(&layer);
    answers.insert(format!("/v2/a/blobs/{}", Digest::of(&config)), (octets, config));
    answers.insert(format!("/v2/a/blobs/{digest}"), (octets, layer));
    answers.insert("/v2/a/manifests/1".into(), (MANIFEST, manifest.clone()));
    answers
        .insert(format!("/v2/a/manifests/{}", Digest::of(&manifest)), (MANIFEST, manifest.clone()));
    Parts { manifest, answers, layer: digest }
}

async fn lie(answers: Answers, name: &str, text: &str) {
    let liar = Liar::start(answers).await;
    let bench = Bench::new();
    let error = pull(&bench, &format!("127.0.0.1:{}/{name}", liar.port)).await.unwrap_err();
    let report = shoal_model::fault::report(&error);
    assert!(report.contains(text), "{report}");
    assert!(error.id().is_some(), "{report}");
    assert!(bench.store.list(&Default::default()).unwrap().is_empty());
    assert_eq!(bench.kept(), Vec::<String>::new());
}

#[tokio::test]
async fn lies_are_found_out_and_leave_nothing() {
    let bend = |path: String, change: &dyn Fn(&mut Served)| {
        let mut parts = parts();
        change(parts.answers.get_mut(&path).unwrap());
        parts.answers
    };
    let layer = format!("/v2/a/blobs/{}", parts().layer);
    lie(bend(layer.clone(), &|a| a.1[600] ^= 1), "a:1", "expected sha256:").await;
    lie(bend(layer.clone(), &|a| a.1.push(0)), "a:1", "bytes, found").await;
    lie(bend(layer.clone(), &|a| a.1.truncate(600)), "a:1", "bytes, found 600").await;
    lie(bend(layer, &|a| a.0 = "cut/x"), "a:1", "get the layer").await;
    let digest = Digest::of(&parts().manifest);
    let by_digest = format!("a@{digest}");
    let path = format!("/v2/a/manifests/{digest}");
    lie(bend(path, &|a| a.1.push(b' ')), &by_digest, "expected sha256:").await;
    let manifest = "/v2/a/manifests/1".to_owned();
    lie(bend(manifest.clone(), &|a| a.1.truncate(20)), "a:1", "read the manifest '1'").await;
    lie(bend(manifest, &|a| a.1 = b"{\"schemaVersion\":1}".to_vec()), "a:1", "version 1").await;
    lie(Answers::new(), "a:1", "manifest for").await;
}

#[tokio::test]
async fn a_pull_mends_what_is_nowhere_else() {
    let parts = parts();
    let (layer, liar) = (parts.layer, Liar::start(parts.answers).await);
    let name = format!("127.0.0.1:{}/a:1", liar.port);
    let mut bench = Bench::new();
    let id = bench.store.pull(request(&name), Progress::none()).await.unwrap().id;
    for lost in [vec![id.hex()], vec![layer.hex()], vec![id.hex(), layer.hex()]] {
        let directory = bench.store.mount_layers(&id).unwrap().remove(0);
        for blob in &lost {
            std::fs::remove_file(bench.root().join("blobs/sha256").join(blob)).unwrap();
        }
        std::fs::remove_dir_all(directory).unwrap();
        bench = bench.reopen();
        assert!(bench.store.ready(&name).is_err(), "{lost:?}");
        assert!(!bench.store.damaged().is_empty(), "{lost:?}");
        bench.store.pull(request(&name), Progress::none()).await.unwrap();
        assert_eq!(bench.store.ready(&name).unwrap(), id);
        assert_eq!(bench.store.damaged(), Vec::<String>::new(), "{lost:?}");
    }
}

#[tokio::test]
async fn a_pull_onto_a_full_disk_leaves_nothing_and_works_when_there_is_space() {
    let liar = Liar::start(parts().answers).await;
    let name = format!("127.0.0.1:{}/a:1", liar.port);
    let disk = SmallDisk::new("size=1m");
    let store = ImageStore::open(options(&disk.path().join("image"))).unwrap();
    let filler = disk.fill();
    for _ in 0..2 {
        let error = store.pull(request(&name), Progress::none()).await.unwrap_err();
        assert!(error.remedy().unwrap().contains("free space"), "{error}");
    }
    std::fs::remove_file(filler).unwrap();
    let pulled = store.pull(request(&name), Progress::none()).await.unwrap();
    assert!(store.ready(&pulled.id.to_string()).is_ok());
    assert_eq!(store.damaged(), Vec::<String>::new());
}

#[tokio::test]
async fn the_platform_is_chosen_from_an_index() {
    let mut parts = parts();
    let entry = |architecture: &str, digest: Digest| {
        serde_json::json!({
            "mediaType": MANIFEST, "digest": digest.to_string(), "size": parts.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}
        })
    };
    let index = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": INDEX,
        "manifests": [
            entry("s390x", Digest::of(b"x")), entry("arm64", Digest::of(&parts.manifest))
        ],
    }))
    .unwrap();
    parts.answers.insert("/v2/a/manifests/1".into(), (INDEX, index.clone()));
    let liar = Liar::start(parts.answers).await;
    let name = format!("127.0.0.1:{}/a:1", liar.port);
    let bench = Bench::new();
    let wants =
        |platform: &str| PullRequest { platform: Platform::parse(platform), ..request(&name) };
    let pulled = bench.store.pull(wants("linux/arm64"), Progress::none()).await.unwrap();
    assert_eq!(pulled.digest, Digest::of(&index));
    let error = bench.store.pull(wants("linux/riscv64"), Progress::none()).await.unwrap_err();
    let text = error.to_string();
    assert!(text.starts_with("no matching manifest for linux/riscv64"), "{text}");
    assert!(text.contains("linux/s390x, linux/arm64"), "{text}");
}

#[tokio::test]
async fn many_pulls_of_one_image_download_it_once() {
    let registry = Registry::start(false);
    let name = registry.name("app:1");
    let here = Bench::new();
    here.load(docker_archive(&name, &layers())).await.unwrap();
    here.store.push(&name, None, Progress::none()).await.unwrap();
    let there = Bench::new();
    let pulls = (0..6).map(|_| {
        let (store, request) = (there.store.clone(), request(&name));
        tokio::spawn(async move { store.pull(request, Progress::none()).await })
    });
    let pulled = futures::future::join_all(pulls).await;
    let newer = pulled.into_iter().filter(|p| p.as_ref().unwrap().as_ref().unwrap().newer).count();
    assert_eq!(newer, 1);
}

#[tokio::test]
async fn a_cancelled_pull_leaves_nothing() {
    let mut parts = parts();
    let path = format!("/v2/a/blobs/{}", parts.layer);
    parts.answers.get_mut(&path).unwrap().0 = "stall/x";
    let liar = Liar::start(parts.answers).await;
    let bench = Bench::new();
    let name = format!("127.0.0.1:{}/a:1", liar.port);
    let (store, request) = (bench.store.clone(), request(&name));
    let pull = tokio::spawn(async move { store.pull(request, Progress::none()).await });
    // Cancelled while the layer is on its way: its file is there.
    let spooling = || {
        let files = std::fs::read_dir(bench.root().join("ingest")).unwrap();
        files.flatten().any(|d| std::fs::read_dir(d.path()).is_ok_and(|mut f| f.next().is_some()))
    };
    wait_until("a layer is on its way", spooling).await;
    pull.abort();
    wait_until("nothing is left", || bench.kept().is_empty()).await;
}

async fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "not so within a minute: {what}");
        tokio::task::yield_now().await;
    }
}
