//! What a container looks like from inside, compared with Debian's dockerd 20.10 on the same root
//! file system, side by side. Needs root, docker.io and busybox-static.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use common::{Host, eventually, logged, within};
use shoal_runtime::caps;
use shoal_runtime::container_plan::{ContainerPlan, DEFAULT_MASKED_PATHS, DEFAULT_READONLY_PATHS};

/// A dockerd of our own, with nothing shared with another one.
struct Dockerd {
    child: Child,
    dir: tempfile::TempDir,
}

impl Dockerd {
    fn start(rootfs: &Path) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        let child = Command::new("/usr/sbin/dockerd")
            .args(["-H", &format!("unix://{}", path("sock"))])
            .args(["--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "--storage-driver=vfs", "--bridge=none"])
            .args(["--iptables=false", "--ip6tables=false"])
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("docker.io is installed");
        let archive = path("rootfs.tar");
        let docker = Self { child, dir };
        eventually("dockerd's answer", || docker.command(&["version"]).is_some());
        let packed =
            Command::new("tar").arg("-C").arg(rootfs).args(["-cf", &archive, "."]).status();
        assert!(packed.unwrap().success());
        docker.command(&["import", &archive, "box"]).expect("the import");
        docker
    }

    fn command(&self, arguments: &[&str]) -> Option<String> {
        let socket = format!("unix://{}/sock", self.dir.path().display());
        let output = Command::new("docker").args(["-H", &socket]).args(arguments).output().unwrap();
        if !output.status.success() {
            eprintln!("docker {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            return None;
        }
        Some(String::from_utf8(output.stdout).unwrap())
    }

    fn run(&self, options: &[&str], script: &str) -> Option<String> {
        let mut arguments = vec!["run", "-d", "--network=none", "--hostname=box"];
        arguments.extend(options);
        arguments.extend(["box", "/bin/sh", "-c", script]);
        let id = self.command(&arguments)?;
        self.command(&["wait", id.trim()]).expect("docker wait");
        let log = self.command(&["logs", id.trim()]).expect("docker logs");
        self.command(&["rm", id.trim()]).expect("docker rm");
        Some(log)
    }
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id().cast_signed()) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
        // What its storage driver and containerd may have left mounted.
        for name in ["data", "exec"] {
            let path = self.dir.path().join(name);
            let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
            for point in table.lines().rev().filter_map(|line| line.split(' ').nth(1)) {
                if Path::new(point).starts_with(&path) {
                    let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
                }
            }
        }
    }
}

/// What a container prints about itself.
fn script() -> String {
    let mut script =
        "cat /proc/self/status; echo ==; cat /proc/self/mountinfo; echo ==; ".to_owned();
    for path in DEFAULT_MASKED_PATHS {
        script += &format!(
            "if [ -d {path} ]; then echo {path} dir $(ls {path} | wc -l); \
             elif [ -e {path} ]; then echo {path} file $(head -c 1 {path} 2>/dev/null | wc -c); \
             else echo {path} none; fi; "
        );
    }
    script += "echo ==; ls -l /dev | tr -s ' ' | cut -d' ' -f1,3,4,5,6,10-; \
               mknod /tmp/disk b 259 0 2>/dev/null; head -c 1 /tmp/disk 2>&1 | cat; echo ==; \
               unshare -m true 2>&1; mount -t tmpfs x /tmp 2>&1; id -G; readlink /proc/1/exe; \
               cat /proc/self/oom_score_adj; umask; pwd";
    script
}

/// The parts of the report that can be compared.
#[derive(Debug)]
struct Report {
    status: BTreeMap<String, String>,
    mounts: BTreeMap<String, (String, String)>,
    paths: BTreeSet<String>,
    devices: BTreeSet<String>,
    rest: Vec<String>,
}

impl Report {
    fn parse(text: &str) -> Self {
        let text = text.replace('\r', "");
        let parts: Vec<&str> = text.split("==\n").collect();
        assert_eq!(parts.len(), 5, "{text}");
        let names = [
            "CapInh",
            "CapPrm",
            "CapEff",
            "CapBnd",
            "CapAmb",
            "NoNewPrivs",
            "Seccomp",
            "Uid",
            "Gid",
        ];
        let status = parts[0].lines().filter_map(|line| line.split_once(":\t"));
        let mounts = parts[1].lines().map(|line| {
            let (left, right) = line.split_once(" - ").unwrap();
            let words: Vec<&str> = left.split(' ').collect();
            let mode = words[5].split(',').next().unwrap();
            let kind = right.split(' ').next().unwrap();
            (words[4].to_owned(), (kind.to_owned(), mode.to_owned()))
        });
        let lines = |text: &str| text.lines().map(str::to_owned).collect();
        Self {
            status: status
                .filter(|(name, _)| names.contains(name))
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            mounts: mounts.collect(),
            paths: lines(parts[2]),
            devices: parts[3].lines().map(str::to_owned).collect(),
            rest: parts[4].lines().map(str::to_owned).collect(),
        }
    }
}

/// Mount points that differ, and why that is right.
const JUSTIFIED_MOUNTS: [(&str, &str); 2] = [
    ("/", "Shoal's root is an overlay, this dockerd's a plain directory (vfs)"),
    ("/sys/fs/cgroup", "on version 1 Docker leaves the directory above the hierarchies writable"),
];

/// Paths that only Shoal masks: Docker added them after 20.10.
const MASKED_LATER: [&str; 2] = ["/proc/interrupts", "/sys/devices/virtual/powercap"];

/// Every difference that is not justified, one a line.
fn differences(ours: &Report, theirs: &Report) -> Vec<String> {
    let mut found = Vec::new();
    let mut note = |what: &str, a: String, b: String| {
        if a != b {
            found.push(format!("{what}: ours {a}, Docker's {b}"));
        }
    };
    for (name, value) in &ours.status {
        note(name, value.clone(), theirs.status.get(name).cloned().unwrap_or_default());
    }
    let mut points: BTreeSet<&String> = ours.mounts.keys().collect();
    points.extend(theirs.mounts.keys());
    let justified = |point: &str| {
        JUSTIFIED_MOUNTS.iter().any(|(known, _)| *known == point) || MASKED_LATER.contains(&point)
    };
    for point in points.into_iter().filter(|point| !justified(point)) {
        let show = |report: &Report| format!("{:?}", report.mounts.get(point));
        note(point, show(ours), show(theirs));
    }
    let rest = |paths: &BTreeSet<String>| -> BTreeSet<String> {
        let later = |line: &String| MASKED_LATER.iter().any(|p| line.starts_with(p));
        paths.iter().filter(|line| !later(line)).cloned().collect()
    };
    for (what, a, b) in [
        ("masked paths", rest(&ours.paths), rest(&theirs.paths)),
        ("devices", ours.devices.clone(), theirs.devices.clone()),
    ] {
        let only = |a: &BTreeSet<String>, b| format!("{:?}", a.difference(b).collect::<Vec<_>>());
        note(what, only(&a, &b), only(&b, &a));
    }
    note("the rest", format!("{:?}", ours.rest), format!("{:?}", theirs.rest));
    found
}

fn compare(what: &str, ours: &Report, theirs: &Report) -> Vec<String> {
    differences(ours, theirs).into_iter().map(|line| format!("{what}: {line}")).collect()
}

async fn ours(host: &Host, change: impl FnOnce(&mut ContainerPlan)) -> Report {
    let mut plan = host.plan(&["/bin/sh", "-c", &script()]);
    for (name, slot) in [
        ("hosts", &mut plan.hosts_file),
        ("hostname", &mut plan.hostname_file),
        ("resolv.conf", &mut plan.resolv_conf_file),
    ] {
        let file = host.dir.path().join(name);
        std::fs::write(&file, "").unwrap();
        *slot = Some(file);
    }
    change(&mut plan);
    let shim = host.start(&plan).await;
    within(shim.wait()).await.unwrap();
    let text = logged(&plan);
    shim.delete().await.unwrap();
    Report::parse(&text)
}

fn theirs(docker: &Dockerd, options: &[&str]) -> Report {
    Report::parse(&docker.run(options, &script()).expect("docker run"))
}

#[tokio::test]
async fn a_container_looks_from_inside_as_dockers_does() {
    let host = Host::new();
    let docker = Dockerd::start(&host.dir.path().join("layer"));
    let mut found = Vec::new();
    let plain = ours(&host, |_| {}).await;
    assert_eq!(plain.status["Seccomp"], "2");
    assert_eq!(plain.status["NoNewPrivs"], "0");
    assert_eq!(plain.status["CapEff"], "00000000a80425fb");
    assert!(plain.paths.contains("/proc/keys file 0"), "{:?}", plain.paths);
    for path in DEFAULT_READONLY_PATHS.iter().filter(|path| Path::new(path).exists()) {
        assert_eq!(plain.mounts.get(*path).unwrap().1, "ro", "{path}");
    }
    assert!(plain.rest.iter().any(|line| line.contains("not permitted")), "{:?}", plain.rest);
    found.extend(compare("plain", &plain, &theirs(&docker, &[])));

    let user = ours(&host, |plan| plan.process.user = "web".into()).await;
    assert_eq!(user.status["CapEff"], "0000000000000000");
    assert_eq!(user.status["CapBnd"], "00000000a80425fb");
    found.extend(compare("user", &user, &theirs(&docker, &["--user=web"])));

    let tty = ours(&host, |plan| plan.process.tty = true).await;
    assert!(tty.mounts.contains_key("/dev/console"));
    found.extend(compare("tty", &tty, &theirs(&docker, &["-t"])));

    let change = |plan: &mut ContainerPlan| {
        plan.readonly_rootfs = true;
        let (add, drop) = (["SYS_ADMIN".to_owned()], ["CHOWN".to_owned()]);
        plan.process.capabilities = caps::resolve(false, &add, &drop).unwrap();
    };
    let options = ["--read-only", "--cap-add=SYS_ADMIN", "--cap-drop=CHOWN"];
    let capable = ours(&host, change).await;
    found.extend(compare("capable", &capable, &theirs(&docker, &options)));

    let change = |plan: &mut ContainerPlan| {
        plan.privileged = true;
        plan.process.capabilities = caps::resolve(true, &[], &[]).unwrap();
    };
    let privileged = ours(&host, change).await;
    assert_eq!(privileged.status["Seccomp"], "0");
    // Docker 20.10 gives up where the daemon itself lacks a capability, as on some test machines.
    if let Some(text) = docker.run(&["--privileged"], &script()) {
        found.extend(compare("privileged", &privileged, &Report::parse(&text)));
    } else {
        eprintln!("not compared: this dockerd cannot run privileged containers here");
    }
    assert!(found.is_empty(), "{}", found.join("\n"));
}
