//! Layers: what overlayfs shows of an unpacked image. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Command;

use common::{Bench, Layer, Mounted, docker_archive};

async fn mounted(layers: &[Vec<u8>]) -> (Bench, Mounted) {
    let bench = Bench::new();
    let loaded = bench.load(docker_archive("layers:1", layers)).await.unwrap();
    let mounted = Mounted::new(&bench.store, &loaded[0].id);
    (bench, mounted)
}

#[tokio::test]
async fn whiteouts_and_opaque_directories_hide_what_is_below() {
    let below = Layer::new()
        .directory("d/", 0o755)
        .file("d/gone", "1")
        .file("d/kept", "1")
        .directory("o/", 0o755)
        .file("o/old", "1")
        .directory("r/", 0o755)
        .file("r/old", "1")
        .done();
    let above = Layer::new()
        .file("d/.wh.gone", "")
        .file("d/.wh.never-there", "")
        .directory("o/", 0o755)
        .file("o/.wh..wh..opq", "")
        .file("o/new", "2")
        // Deleted and made again in one layer: the new directory must not show the old content.
        .file(".wh.r", "")
        .directory("r/", 0o700)
        .file("r/new", "2")
        .done();
    let (_bench, mounted) = mounted(&[below, above]).await;
    assert_eq!(mounted.names("d"), ["kept"]);
    assert_eq!(mounted.names("o"), ["new"]);
    assert_eq!(mounted.names("r"), ["new"]);
}

#[tokio::test]
async fn parents_that_a_layer_does_not_mention_keep_their_attributes() {
    let below =
        Layer::new().directory("tmp/", 0o1777).owned_directory("home/u/", 0o700, 1234).done();
    let above = Layer::new().file("tmp/x", "1").file("home/u/y", "1").done();
    let (_bench, mounted) = mounted(&[below, above]).await;
    let tmp = mounted.path("tmp").metadata().unwrap();
    assert_eq!(tmp.permissions().mode() & 0o7777, 0o1777);
    assert_eq!(tmp.mtime(), 1_600_000_000);
    let home = mounted.path("home/u").metadata().unwrap();
    assert_eq!((home.uid(), home.gid(), home.mode() & 0o7777), (1234, 1234, 0o700));
}

#[tokio::test]
async fn links_lead_within_the_image_only() {
    let below = Layer::new()
        .directory("usr/lib/", 0o755)
        .symlink("lib", "usr/lib")
        .symlink("etc", "/../../usr/lib")
        .done();
    let above = Layer::new().file("lib/a", "1").file("etc/b", "2").done();
    let (_bench, mounted) = mounted(&[below, above]).await;
    assert!(mounted.path("lib").is_symlink());
    assert_eq!(mounted.read("usr/lib/a").as_deref(), Some("1"));
    assert_eq!(mounted.read("usr/lib/b").as_deref(), Some("2"));
}

#[tokio::test]
async fn hard_links_reach_files_of_lower_layers() {
    let below = Layer::new().file_mode("bin/a", "tool", 0o4755).done();
    let above = Layer::new().hard_link("bin/b", "bin/a").file("x", "x").hard_link("y", "/x").done();
    let (_bench, mounted) = mounted(&[below, above]).await;
    assert_eq!(mounted.read("bin/b").as_deref(), Some("tool"));
    let (a, b) = (mounted.path("bin/a"), mounted.path("bin/b"));
    assert_eq!(b.metadata().unwrap().mode() & 0o7777, 0o4755);
    assert_eq!(a.metadata().unwrap().ino(), b.metadata().unwrap().ino());
    assert_eq!(mounted.path("y").metadata().unwrap().nlink(), 2);
}

#[tokio::test]
async fn entries_that_lead_out_are_refused_and_nothing_stays() {
    let inside = || Layer::new().file("a", "1");
    for (bad, text) in [
        (inside().file("../escaped", "x"), "leads out"),
        (inside().file("b/../../escaped", "x"), "leads out"),
        (inside().hard_link("passwd", "../../../../etc/passwd"), "outside"),
        (inside().xattr("trusted.overlay.redirect", b"/x").directory("d/", 0o755), "overlay"),
    ] {
        let bench = Bench::new();
        let error = bench.load(docker_archive("bad:1", &[bad.done()])).await.unwrap_err();
        assert!(error.to_string().contains(text), "{error}");
        assert!(bench.store.list(&Default::default()).unwrap().is_empty());
        assert_eq!(bench.kept(), Vec::<String>::new());
        assert!(!bench.directory.path().join("escaped").exists());
    }
}

#[tokio::test]
async fn attributes_survive() {
    let layer = Layer::new()
        .file_mode("suid", "x", 0o6755)
        .xattr("user.colour", b"blue\0green")
        .file("coloured", "x")
        .symlink("dangling", "nowhere")
        .done();
    let (_bench, mounted) = mounted(&[layer]).await;
    let about = mounted.path("suid").metadata().unwrap();
    assert_eq!((about.mode() & 0o7777, about.mtime()), (0o6755, 1_600_000_000));
    let mut value = [0; 32];
    let size = rustix::fs::getxattr(mounted.path("coloured"), "user.colour", value.as_mut_slice())
        .unwrap();
    assert_eq!(&value[..size], b"blue\0green");
    let link = mounted.path("dangling").symlink_metadata().unwrap();
    assert_eq!(link.mtime(), 1_600_000_000);
}

/// A tree made with every kind of file, packed by `tar`, must look the same unpacked by us.
#[tokio::test]
async fn a_layer_looks_as_tar_extracts_it() {
    let work = tempfile::tempdir().unwrap();
    let source = work.path().join("source");
    let script = r#"
        mkdir -p "$1/deep/er" "$1/empty" "$1/sticky" && cd "$1"
        long=$(printf 'n%.0s' $(seq 1 120)); mkdir -p "$long/$long"
        echo long > "$long/$long/$long"
        echo one > deep/er/file; ln deep/er/file deep/hard; ln -s ../deep/er/file empty/soft
        mknod null c 1 3; mknod disk b 7 200; mkfifo pipe
        chmod 4755 deep/er/file; chmod 1777 sticky
        chown 1000:2000 deep/er sticky; chown -h 5:6 empty/soft
        printf 'umlaut' > 'grün und weiß'
        dd if=/dev/zero of=sparse bs=1 count=1 seek=200000 2>/dev/null
        setcap cap_net_raw+ep deep/er/file 2>/dev/null || true
        touch -d '2001-02-03 04:05:06.789' deep/er/file deep empty
        touch -d '1969-12-31 23:00' null
        options="--numeric-owner --xattrs --xattrs-include=*"
        tar $options --format=pax -cf ../layer.tar .
        mkdir ../wanted && tar $options -xpf ../layer.tar -C ../wanted
    "#;
    run(Command::new("sh").args(["-euc", script, "sh"]).arg(&source));
    let layer = std::fs::read(work.path().join("layer.tar")).unwrap();
    let (_bench, mounted) = mounted(&[layer]).await;
    let listing = |directory: &std::path::Path| {
        let script = r#"
            cd "$1"
            find . -mindepth 1 ! -type d -printf '%p %y %m %U %G %n %s %l %T@\n' | sort
            find . -mindepth 1 -type d -printf '%p %y %m %U %G %T@\n' | sort
            find . -type f | sort | xargs -d '\n' sha256sum
            find . -type b -o -type c | sort | xargs stat -c '%n %t %T'
            getcap -r . 2>/dev/null || true
        "#;
        let mut list = Command::new("sh");
        let output = list.args(["-euc", script, "sh"]).arg(directory).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(listing(&mounted.path("")), listing(&work.path().join("wanted")));
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
