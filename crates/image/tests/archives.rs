//! Archives: load, save, import, build, and what happens to broken ones. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::io::{Cursor, Write};
use std::time::{Duration, Instant};

use common::{Bench, Layer, Mounted, SmallDisk, docker_archive, docker_archive_of, options};
use futures::TryStreamExt;
use shoal_image::builder::{FileSpec, ImageSpec};
use shoal_image::digest::Digest;
use shoal_image::error::ImageError;
use shoal_image::progress::Progress;
use shoal_image::store::{ImageStore, ImportRequest, RemoveOptions};
use shoal_image::view::Deleted;
use shoal_model::fault::Fault;
use shoal_model::filter::Filters;
use shoal_model::id::ContainerId;

fn layer(content: &str) -> Vec<u8> {
    Layer::new().file("hello", content).done()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(bytes).unwrap();
    out.finish().unwrap()
}

async fn saved(store: &ImageStore, words: &[&str]) -> Vec<u8> {
    let words: Vec<String> = words.iter().map(|w| (*w).to_owned()).collect();
    let pieces: Vec<bytes::Bytes> = store.save(&words).unwrap().try_collect().await.unwrap();
    pieces.concat()
}

#[tokio::test]
async fn docker_archives_load_in_every_compression() {
    let plain = docker_archive("a:1", &[layer("1")]);
    let inner = [gzip(&layer("1")), zstd::encode_all(&layer("2")[..], 1).unwrap()];
    for archive in [plain.clone(), gzip(&plain), docker_archive("a:1", &inner)] {
        let bench = Bench::new();
        let loaded = bench.load(archive).await.unwrap();
        assert_eq!(loaded[0].names, ["a:1"]);
        assert_eq!(bench.store.resolve("a:1").unwrap(), loaded[0].id);
        assert!(Mounted::new(&bench.store, &loaded[0].id).read("hello").is_some());
    }
}

#[tokio::test]
async fn loading_tells_what_docker_tells() {
    let bench = Bench::new();
    let told = bench.load_telling(docker_archive("a:1", &[layer("1")])).await;
    let last = told.last().unwrap();
    assert_eq!(last.stream.as_deref(), Some("Loaded image: a:1\n"));
    assert_eq!(told[0].status.as_deref(), Some("Loading layer"));
}

#[tokio::test]
async fn saved_archives_load_again_as_docker_and_as_oci() {
    let bench = Bench::new();
    let id =
        bench.load(docker_archive("a:1", &[layer("1"), gzip(&layer("2"))])).await.unwrap()[0].id;
    bench.store.tag("a:1", "b/c:2").await.unwrap();
    let archive = saved(&bench.store, &["a:1", "b/c:2"]).await;
    let oci = without(&archive, "manifest.json");
    for archive in [archive, oci] {
        let other = Bench::new();
        let loaded = other.load(archive).await.unwrap();
        assert!(loaded.iter().all(|image| image.id == id));
        assert_eq!(other.store.inspect("b/c:2").unwrap().repo_tags, ["a:1", "b/c:2"]);
    }
}

/// An archive without one of its files.
fn without(archive: &[u8], name: &str) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(archive).entries().unwrap() {
        let entry = entry.unwrap();
        if entry.path().unwrap().to_str() != Some(name) {
            let header = entry.header().clone();
            out.append(&header, entry).unwrap();
        }
    }
    out.into_inner().unwrap()
}

async fn fails(archive: Vec<u8>, text: &str) {
    let bench = Bench::new();
    let error = bench.load(archive).await.unwrap_err();
    let report = shoal_model::fault::report(&error);
    assert!(report.contains(text), "{report}");
    assert!(error.id().is_some());
    assert!(bench.store.list(&Default::default()).unwrap().is_empty());
    assert_eq!(bench.kept(), Vec::<String>::new(), "{report}");
}

#[tokio::test]
async fn broken_archives_are_refused_and_leave_nothing() {
    let whole = docker_archive("a:1", &[layer(&"x".repeat(5000))]);
    fails(whole[..3000].to_vec(), "unexpected").await;
    fails(whole[..1536].to_vec(), "unexpected").await;
    fails(gzip(&whole)[..100].to_vec(), "read the image archive").await;
    fails(Vec::new(), "neither 'manifest.json' nor 'index.json'").await;
    fails(b"this is no archive at all".repeat(100), "read the image archive").await;
    fails(without(&whole, "0/layer.tar"), "'0/layer.tar' is missing").await;
    fails(docker_archive_of("a:1", &[layer("1")], &[layer("2")]), "expected sha256:").await;
    fails(docker_archive_of("a:1", &[layer("1")], &[]), "length mismatch").await;
    fails(docker_archive("Not:Valid:Name", &[layer("1")]), "invalid reference").await;
    fails(docker_archive("a:1", &[b"garbage".repeat(200)]), "unpack").await;
}

#[tokio::test]
async fn a_wrong_digest_in_a_name_is_refused() {
    let bench = Bench::new();
    bench.load(docker_archive("a:1", &[layer("1")])).await.unwrap();
    let archive = saved(&bench.store, &["a:1"]).await;
    let mut bent = tar::Builder::new(Vec::new());
    for entry in tar::Archive::new(&archive[..]).entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut header = entry.header().clone();
        let path = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        if path.starts_with("blobs/sha256/") && content.len() > 1 {
            content[0] ^= 1;
            header.set_cksum();
        }
        bent.append(&header, &content[..]).unwrap();
    }
    fails(bent.into_inner().unwrap(), "expected sha256:").await;
}

#[tokio::test]
async fn imports_take_changes() {
    let bench = Bench::new();
    let request = ImportRequest {
        reference: Some("flat:1".into()),
        changes: vec!["CMD [\"/hello\"]".into(), "ENV A=b".into()],
        ..ImportRequest::default()
    };
    let (progress, mut told) = Progress::channel();
    let archive = Cursor::new(gzip(&layer("1")));
    let id = bench.store.import(request, archive, progress).await.unwrap();
    assert_eq!(told.recv().await.unwrap().status, Some(id.to_string()));
    let about = bench.store.inspect("flat:1").unwrap();
    assert_eq!(about.config.cmd.unwrap().list(), ["/hello"]);
    assert_eq!(about.config.env.unwrap(), ["A=b"]);
    assert_eq!(about.comment, "Imported from -");
    let garbage = Cursor::new(b"garbage".repeat(1000));
    let error = bench.store.import(ImportRequest::default(), garbage, Progress::none()).await;
    assert!(matches!(error, Err(ImageError::Unpack { .. })), "{error:?}");
    assert_eq!(bench.kept().len(), 3);
}

#[tokio::test]
async fn built_images_run_busybox() {
    let bench = Bench::new();
    let spec = ImageSpec {
        name: "built:1".into(),
        files: vec![
            FileSpec::host("/bin/busybox", 0o755, "/bin/busybox"),
            FileSpec::symlink("/bin/sh", "busybox"),
            FileSpec::bytes("/etc/motd", 0o600, "hi"),
            FileSpec::directory("/tmp", 0o1777),
        ],
        ..ImageSpec::default()
    };
    let id = bench.store.build(spec.clone()).await.unwrap();
    let mounted = Mounted::new(&bench.store, &id);
    let output = std::process::Command::new("chroot")
        .arg(mounted.path(""))
        .args(["/bin/sh", "-c", "/bin/busybox cat /etc/motd"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hi");
    let archive = ImageStore::archive_of(&spec).unwrap();
    assert_eq!(Bench::new().load(archive).await.unwrap()[0].id, id);
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let bench = Bench::new();
    let id = bench.load(docker_archive("a:1", &[layer("1")])).await.unwrap()[0].id;
    std::fs::write(bench.root().join("ingest/rest"), "of a crash").unwrap();
    std::fs::write(bench.root().join("blobs/sha256/rest"), "of a crash").unwrap();
    std::fs::create_dir(bench.root().join("l/rest")).unwrap();
    assert!(ImageStore::open(options(&bench.root())).is_err(), "two at once");
    let bench = bench.reopen();
    assert_eq!(bench.store.resolve("a:1").unwrap(), id);
    assert_eq!(Mounted::new(&bench.store, &id).read("hello").as_deref(), Some("1"));
    assert_eq!(bench.kept().len(), 3);
}

#[tokio::test]
async fn removal_follows_dockers_rules() {
    let bench = Bench::new();
    let store = &bench.store;
    let id = bench.load(docker_archive("a:1", &[layer("1")])).await.unwrap()[0].id;
    store.tag("a:1", "b:1").await.unwrap();
    let error = store.remove(&id.to_string(), RemoveOptions::default()).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "conflict: unable to delete {} (must be forced) - image is referenced in multiple \
             repositories",
            id.short()
        )
    );
    let gone = store.remove("b:1", RemoveOptions::default()).await.unwrap();
    assert_eq!(gone, [Deleted::Untagged("b:1".into())]);
    let container = ContainerId::new("c".repeat(64));
    store.hold(&container, &id).unwrap();
    let error = store.remove("a:1", RemoveOptions::default()).await.unwrap_err().to_string();
    assert!(
        error.starts_with("conflict: unable to remove repository reference \"a:1\" (must force)")
    );
    store.set_running(&container, true);
    let forced = RemoveOptions { force: true };
    let error = store.remove(&id.short(), forced).await.unwrap_err().to_string();
    assert!(error.contains("(cannot be forced) - image is being used by running container cccc"));
    store.set_running(&container, false);
    let gone = store.remove("a:1", forced).await.unwrap();
    assert!(gone.contains(&Deleted::Deleted(id.to_string())));
    assert!(store.resolve("a:1").is_err());
    // The stopped container's layers stay until it is gone, also after a restart.
    assert!(!store.mount_layers(&id).unwrap().is_empty());
    let bench = bench.reopen();
    bench.store.hold(&container, &id).unwrap();
    bench.store.holds_complete();
    bench.store.release(&container);
    bench.store.prune(&Filters::default().with("dangling", "false")).await.unwrap();
    bench.load(docker_archive("z:1", &[layer("z")])).await.unwrap();
    assert!(bench.store.mount_layers(&id).is_err());
    bench.store.remove("z:1", forced).await.unwrap();
    assert_eq!(bench.kept(), Vec::<String>::new());
}

#[tokio::test]
async fn a_tag_that_moves_leaves_a_dangling_image() {
    let bench = Bench::new();
    let old = bench.load(docker_archive("a:1", &[layer("1")])).await.unwrap()[0].id;
    let new = bench.load(docker_archive("a:1", &[layer("2")])).await.unwrap()[0].id;
    assert_eq!(bench.store.resolve("a:1").unwrap(), new);
    let filters = Filters::default().with("dangling", "true");
    let list = bench.store.list(&filters).unwrap();
    assert_eq!(list.iter().map(|image| image.id).collect::<Vec<_>>(), [old]);
    let pruned = bench.store.prune(&Filters::default()).await.unwrap();
    assert!(pruned.images_deleted.unwrap().contains(&Deleted::Deleted(old.to_string())));
    assert!(pruned.space_reclaimed > 0);
    assert!(bench.store.resolve("a:1").is_ok());
}

#[tokio::test]
async fn many_loads_at_once_share_their_layers() {
    let bench = Bench::new();
    let shared = Layer::new().file("shared", "s").done();
    let jobs = (0..8).map(|n| {
        let archive = docker_archive(&format!("a:{n}"), &[shared.clone(), layer(&n.to_string())]);
        let store = bench.store.clone();
        tokio::spawn(async move { store.load(Cursor::new(archive), Progress::none()).await })
    });
    for job in futures::future::join_all(jobs).await {
        job.unwrap().unwrap();
    }
    assert_eq!(bench.store.list(&Default::default()).unwrap().len(), 8);
    let layers = bench.kept().iter().filter(|name| name.starts_with("l/")).count();
    assert_eq!(layers, 9);
}

#[tokio::test]
async fn unknown_images_are_told_in_dockers_words() {
    let bench = Bench::new();
    let says = |word: &str| bench.store.resolve(word).unwrap_err().to_string();
    assert_eq!(says("nope"), "No such image: nope:latest");
    assert_eq!(says("nope:1"), "No such image: nope:1");
    let digest = Digest::of(b"");
    assert_eq!(says(&digest.to_string()), format!("No such image: {digest}"));
    assert_eq!(
        says("Nope"),
        "invalid reference format: repository name (library/Nope) must be lowercase"
    );
}

#[tokio::test]
async fn a_full_disk_loses_nothing_that_was_there() {
    let disk = SmallDisk::new("size=4m");
    let store = ImageStore::open(options(&disk.path().join("image"))).unwrap();
    let small = Cursor::new(docker_archive("small:1", &[layer("1")]));
    store.load(small, Progress::none()).await.unwrap();
    let free = || rustix::fs::statvfs(disk.path()).unwrap().f_bfree;
    let before = free();
    // The first does not fit at all; the second fits, but not unpacked beside its archive.
    for size in [5_000_000, 2_500_000] {
        let big = docker_archive("big:1", &[layer(&"x".repeat(size))]);
        let error = store.load(Cursor::new(big), Progress::none()).await.unwrap_err();
        let report = shoal_model::fault::report(&error);
        assert!(report.contains("No space left") && report.contains("free space"), "{report}");
        // A child that another test starts has copies of open files until its execve(2).
        let deadline = Instant::now() + Duration::from_secs(60);
        while free() != before {
            assert!(Instant::now() < deadline, "{} pages are free, were {before}", free());
            std::thread::yield_now();
        }
    }
    assert!(store.resolve("small:1").is_ok());
    assert!(store.resolve("big:1").is_err());
}
