//! Damaged files and full disks: the engine opens, says what is wrong, and does everything that it
//! owes as soon as it can.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Host, eventually, within};
use serde_json::json;
use shoal_engine::request::{Grace, RemoveOptions, ShutdownMode, StopOptions, WaitCondition};
use shoal_engine::view::volume::VolumeCreate;
use shoal_model::fault;

const FORCE: RemoveOptions = RemoveOptions { force: true, volumes: true };

/// A small file system over a directory.
struct Small(PathBuf);

impl Small {
    fn mount(dir: &Path) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let flags = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), flags, Some("size=4m,mode=0700"))
            .unwrap();
        Self(dir.to_owned())
    }

    fn ballast(&self) -> PathBuf {
        self.0.join(".ballast")
    }

    /// Leaves no byte free.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.ballast()).unwrap();
        for len in [1 << 16, 1 << 12, 1] {
            while std::io::Write::write_all(&mut file, &vec![0_u8; len]).is_ok() {}
        }
    }

    fn free(&self) {
        std::fs::remove_file(self.ballast()).unwrap();
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Ignored because: what keeps it busy belongs to a test that has failed already.
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

fn now() -> StopOptions {
    StopOptions { signal: None, grace: Some(Grace::Limit(Duration::from_millis(100))) }
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_keeps_nothing_else_down_and_can_be_removed() {
    let host = Host::new();
    let daemon = host.open().await;
    let good = daemon.create("good", &["sleep", "1000"], json!({})).await.unwrap();
    let cut = daemon.create("cut", &["true"], json!({})).await.unwrap();
    let empty = daemon.start("empty", &["sleep", "1000"], json!({})).await;
    let lost = daemon.start("lost", &["touch", "/precious"], json!({})).await;
    daemon.wait(&lost, WaitCondition::NotRunning).await;
    let pid = daemon.engine.status(&empty).await.unwrap().pid;
    daemon.close().await;
    let data = host.dir.path().join("data");
    let containers = data.join("containers");
    std::fs::write(containers.join("notes.txt"), "mine").unwrap();
    std::fs::create_dir(containers.join("lost+found")).unwrap();
    std::fs::write(data.join("volumes/notes.txt"), "mine").unwrap();
    std::fs::create_dir_all(data.join("volumes/kept/_data")).unwrap();
    std::fs::write(data.join("volumes/kept/_data/precious"), "data").unwrap();
    let record = containers.join(&cut).join("record.json");
    let text = std::fs::read(&record).unwrap();
    let text = text.trim_ascii_end();
    std::fs::write(&record, &text[..text.len() / 2]).unwrap();
    std::fs::write(containers.join(&empty).join("record.json"), "").unwrap();
    std::fs::remove_file(containers.join(&lost).join("record.json")).unwrap();
    let shims = host.dir.path().join("run/shims");
    std::fs::create_dir(shims.join("0".repeat(64))).unwrap();
    std::fs::write(shims.join("notes.txt"), "mine").unwrap();

    let daemon = host.open().await;
    let named: Vec<String> = daemon.engine.damaged().iter().map(|e| fault::report(e)).collect();
    for path in
        ["containers/notes.txt", "lost+found", "volumes/notes.txt", "volumes/kept", &cut, &lost]
    {
        assert!(named.iter().any(|line| line.contains(path)), "{path} is not in {named:#?}");
    }
    assert!(daemon.engine.warnings().len() >= named.len());
    assert!(data.join("volumes/kept/_data/precious").exists());
    assert!(containers.join(&lost).join("upper/precious").exists());
    within(daemon.engine.start(&good)).await.unwrap();
    // What has no record is not watched, so it must not run.
    eventually("it ended", || async { !Path::new(&format!("/proc/{pid}/root")).exists() }).await;
    eventually("unknown shims are removed", || async {
        !shims.join("0".repeat(64)).exists() && !shims.join(&empty).exists()
    })
    .await;
    let refused = daemon.engine.remove(&cut, RemoveOptions::default()).await.unwrap_err();
    assert!(refused.to_string().contains("damaged"), "{refused}");
    for id in [&cut, &empty, &lost] {
        within(daemon.engine.remove(id, FORCE)).await.unwrap();
        assert!(!containers.join(id).exists());
        assert!(daemon.engine.remove(id, FORCE).await.is_err());
    }
    let left = daemon.engine.warnings();
    assert!(!left.iter().any(|line| line.contains(&cut) || line.contains(&empty)), "{left:#?}");
    within(daemon.engine.remove(&good, FORCE)).await.unwrap();
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_no_stop_and_everything_owed_is_done_later() {
    let host = Host::new();
    let small = Small::mount(&host.dir.path().join("data/containers"));
    let daemon = host.open().await;
    let always = json!({"HostConfig": {"RestartPolicy": {"Name": "always"}}});
    let stopped = daemon.start("stopped", &["sleep", "1000"], json!({})).await;
    let killed = daemon.start("killed", &["sleep", "1000"], json!({})).await;
    let removed = daemon.start("removed", &["sleep", "1000"], json!({})).await;
    let back = daemon.start("back", &["sleep", "1000"], always).await;
    let pid = daemon.engine.status(&back).await.unwrap().pid;
    let recorded = |id: &String, word: &str| {
        let record = host.dir.path().join(format!("data/containers/{id}/record.json"));
        std::fs::read_to_string(record).unwrap().contains(word)
    };
    let all = [&stopped, &killed, &removed, &back];
    // What is being written when the disk is filled would leave some room.
    eventually("all is recorded", || async {
        all.iter().all(|id| recorded(id, "\"phase\":\"running\""))
    })
    .await;
    // As where a record has grown: there is no space from before for it.
    for id in all {
        let spare = format!("data/containers/{id}/.record.json.spare");
        std::fs::remove_file(host.dir.path().join(spare)).unwrap();
    }
    small.fill();
    within(daemon.engine.stop(&stopped, now())).await.unwrap();
    within(daemon.engine.kill(&killed, None)).await.unwrap();
    for id in [&stopped, &killed] {
        assert_eq!(daemon.phase(id).await, "exited");
    }
    let said = |name: &'static str| {
        let lines = daemon.engine.warnings();
        lines.iter().any(|line| line.contains(name) && line.contains("No space"))
    };
    eventually("what is owed is said", || async { said("stopped") && said("killed") }).await;
    let process = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("what is owed is said", || async { said("back") }).await;
    // Its record cannot be written, so it cannot start; but it is not given up.
    assert_eq!(daemon.phase(&back).await, "restarting");
    within(daemon.engine.remove(&removed, FORCE)).await.unwrap();
    small.free();
    eventually("it runs again", || async { daemon.phase(&back).await == "running" }).await;
    eventually("nothing is owed", || async { daemon.engine.warnings().is_empty() }).await;
    eventually("the ends are recorded", || async {
        [&stopped, &killed].iter().all(|id| recorded(id, "\"phase\":\"exited\""))
    })
    .await;
    within(daemon.engine.remove(&back, FORCE)).await.unwrap();
    assert!(host.runtime().list().unwrap().is_empty());
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_is_remembered_on_a_full_disk() {
    let host = Host::new();
    let small = Small::mount(&host.dir.path().join("data/containers"));
    let daemon = host.open().await;
    let policy = json!({"HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}}});
    let id = daemon.start("stopped", &["sleep", "1000"], policy).await;
    let recorded = |word: &str| {
        let record = host.dir.path().join(format!("data/containers/{id}/record.json"));
        std::fs::read_to_string(record).unwrap().contains(word)
    };
    eventually("it is recorded", || async { recorded("\"phase\":\"running\"") }).await;
    small.fill();
    within(daemon.engine.stop(&id, now())).await.unwrap();
    eventually("the end is recorded", || async { recorded("\"phase\":\"exited\"") }).await;
    assert_eq!(daemon.engine.warnings(), Vec::<String>::new());
    daemon.close().await;
    let daemon = host.open().await;
    assert_eq!(daemon.phase(&id).await, "exited");
    small.free();
    within(daemon.engine.remove(&id, FORCE)).await.unwrap();
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_that_could_not_be_made_leaves_nothing() {
    let host = Host::new();
    let root = host.dir.path().join("data/volumes");
    let small = Small::mount(&root);
    let daemon = host.open().await;
    let make =
        || daemon.engine.create_volume(VolumeCreate { name: "vol".into(), ..Default::default() });
    small.fill();
    let refused = within(make()).await.unwrap_err();
    assert!(fault::report(&refused).contains("No space"), "{refused}");
    let left: Vec<_> = std::fs::read_dir(&root).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".ballast"]);
    small.free();
    within(make()).await.unwrap();
    within(daemon.engine.remove_volume("vol", false)).await.unwrap();
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_root_reads_what_containers_are_told() {
    let host = Host::new();
    let daemon = host.open().await;
    let secret = json!({"Env": ["PASSWORD=hunter2"]});
    let id = daemon.start("env", &["sleep", "1000"], secret).await;
    let data = host.dir.path().join("data");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&data.join("containers")), 0o700);
    assert_eq!(mode(&data.join("volumes")), 0o700);
    assert_eq!(mode(&data.join("containers").join(&id)), 0o700);
    assert_eq!(mode(&data.join("containers").join(&id).join("record.json")), 0o600);
    within(daemon.engine.remove(&id, FORCE)).await.unwrap();
    daemon.close().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemons_own_stop_is_told_apart() {
    let host = Host::new();
    let daemon = host.open().await;
    let ours = daemon.start("ours", &["sleep", "1000"], json!({})).await;
    let theirs = daemon.start("theirs", &["sleep", "1000"], json!({})).await;
    within(daemon.engine.stop(&theirs, now())).await.unwrap();
    let mode = ShutdownMode::Stop(Duration::from_millis(100));
    within(daemon.engine.shutdown(mode)).await;
    drop(daemon);
    let daemon = host.open().await;
    assert!(daemon.engine.stopped_by_daemon(&ours).unwrap());
    assert!(!daemon.engine.stopped_by_daemon(&theirs).unwrap());
    daemon.close().await;
}
