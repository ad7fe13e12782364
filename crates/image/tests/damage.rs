//! A damaged store opens, says what is damaged, and keeps what does not depend on it. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::{Bench, Layer, SmallDisk, docker_archive, options};
use futures::TryStreamExt;
use shoal_image::error::ImageError;
use shoal_image::progress::Progress;
use shoal_image::store::{ImageStore, RemoveOptions};
use shoal_model::fault::{Fault, FaultKind};

const NAMES: [&str; 2] = ["a:1", "b:1"];

fn archive(name: &str) -> Vec<u8> {
    let common = Layer::new().file("common", "same in both").done();
    let own = Layer::new().file("hello", &format!("from {name}")).done();
    // Each has its shared layer in a form of its own, so that no file belongs to both.
    let common = if name == "a:1" { zstd::encode_all(&common[..], 1).unwrap() } else { common };
    docker_archive(name, &[own, common])
}

async fn two_images() -> Bench {
    let bench = Bench::new();
    for name in NAMES {
        bench.load(archive(name)).await.unwrap();
    }
    bench
}

/// Every file and directory of a store, but what layers contain.
fn parts(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && directory.file_name().unwrap() != "l" {
                open.push(path.clone());
            }
            found.push(path.strip_prefix(root).unwrap().to_owned());
        }
    }
    found.sort();
    found
}

const KINDS: [&str; 6] = ["gone", "empty", "half", "garbage", "another kind", "stray beside it"];

fn damage(path: &Path, kind: &str) {
    let is_dir = path.is_dir();
    let remove = || if is_dir { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match kind {
        "gone" => remove().unwrap(),
        "empty" if is_dir => {
            remove().unwrap();
            fs::create_dir(path).unwrap();
        }
        "empty" => fs::write(path, "").unwrap(),
        "half" if !is_dir => {
            let bytes = fs::read(path).unwrap();
            fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
        }
        "garbage" if !is_dir => {
            let len = fs::metadata(path).unwrap().len();
            fs::write(path, "\0garbage".repeat(1000).as_bytes().get(..len as usize).unwrap())
                .unwrap();
        }
        "another kind" => {
            remove().unwrap();
            if is_dir {
                fs::write(path, "a file").unwrap();
            } else {
                fs::create_dir_all(path.join("a/directory")).unwrap();
            }
        }
        _ => {
            fs::write(path.with_file_name("stray"), "stray").unwrap();
            fs::create_dir(path.with_file_name("stray-directory")).unwrap();
        }
    }
}

/// What a container would see; a damaged image gives its failure.
fn hello(store: &ImageStore, name: &str) -> Result<String, ImageError> {
    let layers = store.mount_layers(&store.ready(name)?)?;
    let texts = layers.iter().filter_map(|layer| fs::read_to_string(layer.join("hello")).ok());
    Ok(texts.collect())
}

async fn saves(store: &ImageStore, name: &str) {
    let pieces = store.save(&[name.to_owned()]).unwrap();
    let pieces: Vec<bytes::Bytes> = pieces.try_collect().await.unwrap();
    let other = Bench::new();
    other.load(pieces.concat()).await.unwrap();
    assert_eq!(hello(&other.store, name).unwrap(), format!("from {name}"));
}

#[tokio::test]
async fn every_part_may_be_damaged_in_every_way() {
    let whole = two_images().await;
    let parts = parts(&whole.root());
    assert!(parts.len() >= 14, "{parts:?}");
    for part in &parts {
        for kind in KINDS {
            let what = format!("{} {kind}", part.display());
            let bench = two_images().await;
            let Bench { directory, store } = bench;
            drop(store);
            let root = directory.path().join("image");
            damage(&root.join(part), kind);
            let store = ImageStore::open(options(&root)).expect(&what);
            survives(&store, part, &what);
            let bench = Bench { directory, store };
            for name in NAMES {
                bench.load(archive(name)).await.expect(&what);
                assert_eq!(hello(&bench.store, name).expect(&what), format!("from {name}"));
                saves(&bench.store, name).await;
            }
            let bench = bench.reopen();
            assert_eq!(bench.store.damaged(), Vec::<String>::new(), "{what}: not mended");
            for name in NAMES {
                assert_eq!(hello(&bench.store, name).expect(&what), format!("from {name}"));
            }
        }
    }
}

/// What a store tells right after the start that found the damage.
fn survives(store: &ImageStore, part: &Path, what: &str) {
    let said = store.damaged();
    let mut whole = 0;
    for name in NAMES {
        match hello(store, name) {
            Ok(text) => {
                assert_eq!(text, format!("from {name}"), "{what}");
                whole += 1;
            }
            Err(error) => {
                assert!(!said.is_empty(), "{what}: {error}, and nothing is said");
                assert_eq!(error.kind(), FaultKind::NotFound, "{what}: {error}");
                assert!(error.remedy().unwrap().contains("docker pull"), "{what}: {error}");
            }
        }
    }
    // Configurations are nowhere else; everything else is mended from what is here.
    let all_blobs = ["blobs", "blobs/sha256"].iter().any(|all| Path::new(all) == part);
    let least = if all_blobs { 0 } else { 1 };
    assert!(whole >= least, "{what}: only {whole} images work: {said:?}");
    if !part.starts_with("blobs") {
        assert_eq!(whole, 2, "{what}: {said:?}");
    }
    assert_eq!(store.list(&Default::default()).unwrap().len(), 2, "{what}: {said:?}");
}

#[tokio::test]
async fn an_index_is_made_of_what_is_on_the_disk() {
    let bench = two_images().await;
    let ids = NAMES.map(|name| bench.store.resolve(name).unwrap());
    let before = ids.map(|id| bench.store.inspect(&id.to_string()).unwrap());
    let root = bench.root();
    let Bench { directory, store } = bench;
    drop(store);
    for file in ["index.json", "index.copy.json"] {
        fs::write(root.join(file), "{\"version\":1,\"names\":").unwrap();
    }
    let bench = Bench { directory, store: ImageStore::open(options(&root)).unwrap() };
    let said = bench.store.damaged().join("\n");
    assert!(said.contains("index.json") && said.contains("names are lost"), "{said}");
    assert!(root.join("index.json.damaged").exists());
    for (id, before) in ids.iter().zip(&before) {
        let now = bench.store.inspect(&id.to_string()).unwrap();
        assert_eq!((now.size, &now.graph_driver), (before.size, &before.graph_driver));
        assert!(bench.store.ready(&id.to_string()).is_ok());
        assert!(now.repo_tags.is_empty());
    }
    let bench = bench.reopen();
    assert_eq!(bench.store.damaged(), Vec::<String>::new());
    bench.load(archive("a:1")).await.unwrap();
    assert_eq!(hello(&bench.store, "a:1").unwrap(), "from a:1");
}

#[tokio::test]
async fn a_layer_that_goes_while_the_store_is_open_is_named_and_mended() {
    let bench = two_images().await;
    let id = bench.store.resolve("a:1").unwrap();
    let layer = bench.store.mount_layers(&id).unwrap().remove(0);
    fs::remove_dir_all(&layer).unwrap();
    let error = bench.store.mount_layers(&id).unwrap_err();
    assert!(matches!(error, ImageError::DamagedImage { .. }), "{error}");
    assert!(error.to_string().starts_with("image damaged: layer "), "{error}");
    assert!(error.remedy().unwrap().contains("docker pull a:1"), "{error}");
    let deadline = Instant::now() + Duration::from_secs(60);
    while bench.store.mount_layers(&id).is_err() {
        assert!(Instant::now() < deadline, "{:?}", bench.store.damaged());
        tokio::task::yield_now().await;
    }
    assert_eq!(bench.store.damaged(), Vec::<String>::new());
}

#[tokio::test]
async fn a_damaged_image_can_be_removed() {
    let bench = two_images().await;
    let id = bench.store.resolve("a:1").unwrap();
    let Bench { directory, store } = bench;
    drop(store);
    let root = directory.path().join("image");
    fs::remove_file(root.join("blobs/sha256").join(id.hex())).unwrap();
    let bench = Bench { directory, store: ImageStore::open(options(&root)).unwrap() };
    assert!(matches!(bench.store.config(&id), Err(ImageError::DamagedImage { .. })));
    bench.store.remove("a:1", RemoveOptions::default()).await.unwrap();
    assert_eq!(bench.store.damaged(), Vec::<String>::new());
    assert!(bench.store.resolve("a:1").is_err());
    assert_eq!(hello(&bench.store, "b:1").unwrap(), "from b:1");
}

#[tokio::test]
async fn a_full_disk_keeps_no_store_closed_and_is_mended_by_space() {
    let disk = SmallDisk::new("size=4m");
    let root = disk.path().join("image");
    let store = ImageStore::open(options(&root)).unwrap();
    for name in NAMES {
        store.load(Cursor::new(archive(name)), Progress::none()).await.unwrap();
    }
    let layer = store.mount_layers(&store.resolve("a:1").unwrap()).unwrap().remove(0);
    drop(store);
    fs::remove_dir_all(layer).unwrap();
    let filler = disk.fill();
    let store = ImageStore::open(options(&root)).unwrap();
    let said = store.damaged().join("\n");
    assert!(said.contains("No space left"), "{said}");
    assert!(hello(&store, "a:1").is_err());
    assert_eq!(hello(&store, "b:1").unwrap(), "from b:1");
    fs::remove_file(filler).unwrap();
    // Without a restart: whoever asks makes it be tried again.
    let deadline = Instant::now() + Duration::from_secs(60);
    while hello(&store, "a:1").is_err() {
        assert!(Instant::now() < deadline, "{:?}", store.damaged());
        tokio::task::yield_now().await;
    }
    assert_eq!(hello(&store, "a:1").unwrap(), "from a:1");
    assert_eq!(store.damaged(), Vec::<String>::new());
}

#[tokio::test]
async fn images_are_removed_from_a_full_disk() {
    let disk = SmallDisk::new("size=4m");
    let root = disk.path().join("image");
    let store = ImageStore::open(options(&root)).unwrap();
    for name in NAMES {
        store.load(Cursor::new(archive(name)), Progress::none()).await.unwrap();
    }
    let _filler = disk.fill();
    let error = store.tag("a:1", "c:1").await.unwrap_err();
    assert!(error.remedy().unwrap().contains("free space"), "{error}");
    assert!(store.resolve("c:1").is_err());
    store.remove("a:1", RemoveOptions::default()).await.unwrap();
    drop(store);
    let store = ImageStore::open(options(&root)).unwrap();
    assert!(store.resolve("a:1").is_err());
    assert_eq!(hello(&store, "b:1").unwrap(), "from b:1");
    assert_eq!(store.damaged(), Vec::<String>::new());
}

#[tokio::test]
async fn state_is_readable_by_root_alone() {
    use std::os::unix::fs::PermissionsExt;
    let bench = two_images().await;
    for part in parts(&bench.root()) {
        let about = fs::metadata(bench.root().join(&part)).unwrap();
        let mode = about.permissions().mode() & 0o777;
        // A layer's root is the root directory of containers.
        let is_layer = part.starts_with("l") && part.components().count() == 2;
        let wanted = if is_layer {
            0o755
        } else if about.is_dir() {
            0o700
        } else {
            0o600
        };
        assert_eq!(mode, wanted, "{}", part.display());
    }
}

#[tokio::test]
async fn a_load_whose_last_write_fails_leaves_nothing_and_locks_nothing() {
    let bench = Bench::new();
    // In the way of what the index is written to before it is renamed.
    let in_the_way = bench.root().join(".index.json.new");
    fs::create_dir(&in_the_way).unwrap();
    let error = bench.load(archive("a:1")).await.unwrap_err();
    assert!(error.to_string().contains("index.json"), "{error}");
    assert_eq!(bench.kept(), Vec::<String>::new());
    assert!(bench.store.list(&Default::default()).unwrap().is_empty());
    fs::remove_dir(&in_the_way).unwrap();
    bench.load(archive("a:1")).await.unwrap();
    assert_eq!(hello(&bench.store, "a:1").unwrap(), "from a:1");
}
