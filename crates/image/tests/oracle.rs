//! The real Docker engine as oracle: it reads what we save, we read what it saves, and both show
//! the same files. Needs root, Debian's docker.io and the docker CLI.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, Mounted};
use futures::TryStreamExt;
use shoal_image::store::ImageStore;

/// An engine with directories of its own, without a network, stopped when dropped.
struct Docker {
    child: Child,
    directory: tempfile::TempDir,
}

impl Docker {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let log = std::fs::File::create(directory.path().join("log")).unwrap();
        let child = Command::new("/usr/sbin/dockerd")
            .arg("--data-root")
            .arg(directory.path().join("data"))
            .arg("--exec-root")
            .arg(directory.path().join("exec"))
            .arg("--pidfile")
            .arg(directory.path().join("pid"))
            .arg("--host")
            .arg(format!("unix://{}", directory.path().join("socket").display()))
            .args(["--bridge=none", "--iptables=false", "--ip-forward=false"])
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let docker = Self { child, directory };
        let deadline = Instant::now() + Duration::from_secs(60);
        while !docker.command(&["version"]).output().unwrap().status.success() {
            let log = std::fs::read_to_string(docker.directory.path().join("log")).unwrap();
            assert!(Instant::now() < deadline, "the engine does not answer:\n{log}");
        }
        docker
    }

    fn command(&self, words: &[&str]) -> Command {
        let socket = format!("unix://{}", self.directory.path().join("socket").display());
        let mut command = Command::new("docker");
        command.args(words).env("DOCKER_HOST", socket).env("DOCKER_BUILDKIT", "0");
        command
    }

    fn run(&self, words: &[&str]) -> String {
        let output = self.command(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// An image of two layers: the second deletes, replaces, links, and makes devices.
    fn build(&self) {
        let context = self.file("context");
        let script = r#"
            mkdir -p "$1/r/bin" "$1/r/d/sub" "$1/r/tmp" "$1/r/keep" && cd "$1"
            cp /bin/busybox r/bin/; ln -s bin r/sbin
            echo old > r/d/old; echo g > r/gone; echo k > r/keep/k
            chmod 1777 r/tmp; chown 7:8 r/keep; tar -C r -cf rootfs.tar .
        "#;
        let made = Command::new("sh").args(["-euc", script, "sh"]).arg(&context).status().unwrap();
        assert!(made.success());
        let steps = "cd /; b=/bin/busybox; $b rm -r /d; $b mkdir /d; echo 2 > /d/new; $b rm /gone; \
                     $b ln /bin/busybox /bin/link; echo x > /tmp/x; echo y > /keep/y; \
                     $b mkfifo /p; $b mknod /n c 1 3; $b chmod 4711 /bin/link; echo s > /sbin/s";
        let words = serde_json::json!(["/bin/busybox", "sh", "-c", steps]);
        let file = format!(
            "FROM scratch\nADD rootfs.tar /\nRUN {words}\nENV A=b\nEXPOSE 80\nLABEL x=y\n\
             ENTRYPOINT [\"/bin/busybox\"]\nCMD [\"cat\", \"/d/new\"]\n"
        );
        std::fs::write(context.join("Dockerfile"), file).unwrap();
        let path = context.to_str().unwrap();
        self.run(&["build", "--network", "none", "--tag", "oracle:1", path]);
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Ignored because: there is nothing more that a test could do about it.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let _ = self.child.wait();
    }
}

/// Everything that can be seen of a tree.
fn listing(directory: &Path) -> String {
    let script = r#"
        cd "$1"
        find . -mindepth 1 ! -type d -printf '%p %y %m %U %G %n %s %l %T@\n' | sort
        find . -mindepth 1 -type d -printf '%p %y %m %U %G\n' | sort
        find . -type f | sort | xargs -d '\n' sha256sum
    "#;
    let output = Command::new("sh").args(["-euc", script, "sh"]).arg(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

async fn save(store: &ImageStore, name: &str, path: &Path) {
    let pieces: Vec<bytes::Bytes> =
        store.save(&[name.to_owned()]).unwrap().try_collect().await.unwrap();
    std::fs::write(path, pieces.concat()).unwrap();
}

#[tokio::test]
async fn images_travel_both_ways_between_docker_and_us() {
    let docker = Docker::start();
    docker.build();
    let archive = docker.file("saved.tar");
    docker.run(&["save", "--output", archive.to_str().unwrap(), "oracle:1"]);
    let bench = Bench::new();
    let told = bench.load_telling(std::fs::read(&archive).unwrap()).await;
    assert_eq!(told.last().unwrap().stream.as_deref(), Some("Loaded image: oracle:1\n"));

    // The same image, described the same way.
    let about: serde_json::Value =
        serde_json::from_str(&docker.run(&["image", "inspect", "oracle:1"])).unwrap();
    let theirs = &about[0];
    let ours = serde_json::to_value(bench.store.inspect("oracle:1").unwrap()).unwrap();
    for field in ["Id", "RepoTags", "Created", "Architecture", "Os", "Size", "RootFS", "Author"] {
        assert_eq!(ours[field], theirs[field], "{field}");
    }
    for field in ["Cmd", "Entrypoint", "Env", "ExposedPorts", "Labels"] {
        assert_eq!(ours["Config"][field], theirs["Config"][field], "{field}");
    }
    let steps: Vec<u64> = bench.store.history("oracle:1").unwrap().iter().map(|s| s.size).collect();
    assert_eq!(steps.len(), 7);
    assert!(steps[..5].iter().all(|size| *size == 0) && steps[5] > 0 && steps[6] > 0, "{steps:?}");

    // The same files.
    let data = &theirs["GraphDriver"]["Data"];
    let target = docker.file("merged");
    std::fs::create_dir(&target).unwrap();
    let lower = format!(
        "lowerdir={}:{}",
        data["UpperDir"].as_str().unwrap(),
        data["LowerDir"].as_str().unwrap()
    );
    let mount = ["-t", "overlay", "overlay", "-o", &lower];
    assert!(Command::new("mount").args(mount).arg(&target).status().unwrap().success());
    let id = bench.store.resolve("oracle:1").unwrap();
    let mounted = Mounted::new(&bench.store, &id);
    let (wanted, found) = (listing(&target), listing(&mounted.path("")));
    assert!(Command::new("umount").arg(&target).status().unwrap().success());
    assert_eq!(found, wanted);
    assert_eq!(mounted.names("d"), ["new"]);

    // And back.
    docker.run(&["image", "rm", "--force", "oracle:1"]);
    save(&bench.store, "oracle:1", &archive).await;
    let told = docker.run(&["load", "--input", archive.to_str().unwrap()]);
    assert!(told.ends_with("Loaded image: oracle:1"), "{told}");
    let run = docker.command(&["run", "--rm", "--network", "none", "oracle:1"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&run.stdout), "2\n");
    assert_eq!(
        docker.run(&["image", "inspect", "--format", "{{.Id}}", "oracle:1"]),
        id.to_string()
    );
}

#[tokio::test]
async fn an_exported_container_is_imported() {
    let docker = Docker::start();
    docker.build();
    docker.run(&["create", "--name", "flat", "oracle:1"]);
    let mut export = docker.command(&["export", "flat"]);
    let output = export.stderr(Stdio::null()).output().unwrap();
    let bench = Bench::new();
    let request = shoal_image::store::ImportRequest {
        reference: Some("flat".into()),
        changes: vec!["CMD [\"/bin/busybox\"]".into()],
        ..Default::default()
    };
    let reader = std::io::Cursor::new(output.stdout);
    let progress = shoal_image::progress::Progress::none();
    let id = bench.store.import(request, reader, progress).await.unwrap();
    let mounted = Mounted::new(&bench.store, &id);
    assert_eq!(mounted.read("d/new").as_deref(), Some("2\n"));
    assert!(mounted.read("gone").is_none());
}
