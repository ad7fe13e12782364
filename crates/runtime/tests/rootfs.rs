//! Containers on a host whose `/` is the file system that the kernel began with, as on diskless
//! machines: pivot_root(2) is refused there. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use common::Host;
use nix::sched::{CloneFlags, setns, unshare};
use rustix::fs::CWD;
use rustix::mount::{
    MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_change, move_mount,
    open_tree, unmount,
};
use shoal_model::check::{Need, Verdict};

/// Held by the test that uses the directory: one that is removed is no mount point for any other
/// thread any more, and where the control groups are is looked up once for the whole process.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// A directory of the first file system, removed in the end.
struct Place(PathBuf);

impl Drop for Place {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
        let _ = fs::remove_dir(&self.0);
    }
}

/// Leaves this thread with the kernel's first file system as `/`, where the usual one is at the
/// place that is returned. Other threads see nothing of it.
fn enter_first_root() -> Place {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
    let namespace = fs::File::open("/proc/thread-self/ns/mnt").unwrap();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    let held = ["/", "/proc", "/sys", "/dev"].map(|path| open_tree(CWD, path, flags).unwrap());
    unmount("/", UnmountFlags::DETACH).unwrap();
    setns(&namespace, CloneFlags::CLONE_NEWNS).unwrap();
    let place = Place(PathBuf::from(format!("/usual-{}", std::process::id())));
    let points = [place.0.as_path(), Path::new("/proc"), Path::new("/sys"), Path::new("/dev")];
    for (tree, point) in held.iter().zip(points) {
        fs::create_dir_all(point).unwrap();
        move_mount(tree, "", CWD, point, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
    }
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let root = table.lines().find(|line| line.split(' ').nth(4) == Some("/")).unwrap();
    let mut ids = root.split(' ');
    assert_eq!(ids.next(), ids.next(), "the root has no parent: {root}");
    place
}

/// On a thread of its own, which the thread's mounts end with.
fn on_a_diskless_host(test: impl FnOnce(&Place) + Send + 'static) {
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::spawn(move || test(&enter_first_root())).join().unwrap();
}

fn block_on(future: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(future);
}

#[test]
fn a_container_starts_and_sees_its_own_root_only() {
    on_a_diskless_host(|place| {
        let host = Host::below(&place.0);
        block_on(async {
            let plan = host.plan(&[
                "sh",
                "-c",
                "echo $(ls /) && ls /usual-* 2>/dev/null; cut -d' ' -f5 /proc/self/mountinfo | \
                 grep -c -e /usual -e ^/run; cd /; cd ../../..; echo $(ls)",
            ]);
            let (status, log) = host.run(&plan).await.unwrap();
            let listed = "bin dev etc proc root sys tmp";
            assert_eq!(log, format!("{listed}\n0\n{listed}\n"));
            assert_eq!(status.code, 0);
        });
    });
}

#[test]
fn an_exec_joins_a_container_whose_root_was_moved() {
    on_a_diskless_host(|place| {
        let host = Host::below(&place.0);
        block_on(async {
            let shim = host.start(&host.plan(&["sleep", "100"])).await;
            let plan = shoal_runtime::container_plan::ExecPlan {
                id: "one".into(),
                attach_output: true,
                process: shoal_runtime::container_plan::ProcessPlan {
                    argv: ["cat", "/etc/group"].map(str::to_owned).to_vec(),
                    ..Default::default()
                },
                ..Default::default()
            };
            let mut handle = shim.exec(plan).await.unwrap();
            let (out, _, status) = common::collect(&mut handle.streams.output).await;
            assert!(out.contains("adm:x:4"), "{out}");
            assert_eq!(status.unwrap().code, 0);
            let root = shim.rootfs_path().await.unwrap().unwrap();
            assert!(root.join("etc/passwd").exists());
            shim.delete().await.unwrap();
        });
    });
}

#[test]
fn the_checks_say_of_such_a_host_what_a_start_does() {
    on_a_diskless_host(|_| {
        for check in shoal_runtime::checks::checks() {
            let result = check.run();
            let wanted = result.needed_for == Need::Containers
                || result.id == shoal_runtime::checks::UNIKERNEL_PROCESS;
            assert!(!wanted || result.verdict == Verdict::Ok, "{result:?}");
        }
    });
}

/// A root that is merely covered in a chroot could be left again by a second chroot(2).
#[test]
fn in_a_chroot_that_is_no_mount_a_start_is_refused() {
    let result = std::thread::spawn(|| {
        let dir = tempfile::tempdir().unwrap();
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
        for name in ["proc", "dev"] {
            fs::create_dir(dir.path().join(name)).unwrap();
            rustix::mount::mount_bind(Path::new("/").join(name), dir.path().join(name)).unwrap();
        }
        rustix::process::chroot(dir.path()).unwrap();
        std::env::set_current_dir("/").unwrap();
        let checks = shoal_runtime::checks::checks();
        let result = checks.first().unwrap().run();
        (result, dir)
    });
    // The directory is removed here, where its name leads to it.
    let (result, _dir) = result.join().unwrap();
    assert_eq!(result.verdict, Verdict::Fail);
    assert!(result.remedy.contains("chroot"), "{result:?}");
}
