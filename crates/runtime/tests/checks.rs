//! The node's checks on a machine where all is well. Needs root and cgroups.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;

use shoal_model::check::Verdict;

#[test]
fn all_is_well_and_nothing_is_left_behind() {
    let results: Vec<_> = shoal_runtime::checks::checks().iter().map(|c| c.run()).collect();
    let kvm = std::path::Path::new("/dev/kvm").exists();
    for result in &results {
        // Without it unikernels run as processes, and that is said.
        let well = kvm || result.id != shoal_runtime::checks::UNIKERNEL_KVM;
        assert_eq!(result.verdict == Verdict::Ok, well, "{result:?}");
        assert_eq!(result.remedy.is_empty(), well, "{result:?}");
    }
    let ids: BTreeSet<&str> = results.iter().map(|r| r.id.as_str()).collect();
    assert_eq!(ids.len(), 7);
    assert!(!std::fs::read_to_string("/proc/self/mountinfo").unwrap().contains("/dev/merged"));
    let layout = shoal_runtime::cgroup::Layout::detect().unwrap();
    let parent = format!("shoal-check-{}", std::process::id());
    assert!(layout.roots().all(|root| !root.join(&parent).exists()));
}

/// Removes the group also when the test fails.
struct Group(std::path::PathBuf);

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn on_version_2_a_program_guards_devices() {
    // On a hybrid machine the hierarchy is there too, without controllers.
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap();
    let root = table
        .lines()
        .map(|line| line.split(' ').collect::<Vec<_>>())
        .find(|words| words[2] == "cgroup2")
        .map(|words| std::path::PathBuf::from(words[1]))
        .expect("a version 2 hierarchy");
    let group = Group(root.join(format!("shoal-devices-{}", std::process::id())));
    std::fs::create_dir(&group.0).unwrap();
    shoal_runtime::cgroup::restrict_v2(&group.0).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "echo $$ > {}/cgroup.procs; head -c 1 /dev/zero | wc -c; head -c 1 /dev/urandom | wc -c; \
         cd {}; mknod kmsg c 1 11 && echo made; head -c 1 kmsg >/dev/null && echo read; \
         echo $$ > {}/cgroup.procs; head -c 1 kmsg >/dev/null && echo outside",
        group.0.display(),
        dir.path().display(),
        root.display()
    );
    let output = std::process::Command::new("/bin/busybox").args(["sh", "-c", &script]).output();
    let output = output.unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "1\n1\nmade\noutside\n", "{}", String::from_utf8_lossy(&output.stderr));
}
