//! From a project to an image that runs: with the real compiler, linker and tender.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead, BufReader, Cursor, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use shoal_unikernel_tools::archive;
use shoal_unikernel_tools::cargo::{self, Built, Options};
use shoal_unikernel_tools::error::ToolError;

const TOOL: &str = env!("CARGO_BIN_EXE_shoal-unikernel");
const ABI: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../unikernel-abi");
/// A user without any rights.
const NOBODY: u32 = 65_534;
const GUEST: &str = include_str!("guest/guest.rs");

/// Makes the project of the guest in `folder`.
fn project(folder: &Path) -> PathBuf {
    let path = folder.join("guest");
    fs::create_dir_all(path.join("src")).unwrap();
    let manifest = format!(
        "[package]\nname = \"guest\"\nversion = \"0.1.0\"\nedition = \"2024\"\n[workspace]\n\
         [features]\nunused-device = []\n\
         [dependencies]\nshoal-unikernel-abi = {{ path = \"{ABI}\" }}\n"
    );
    fs::write(path.join("Cargo.toml"), manifest).unwrap();
    fs::write(path.join("src/main.rs"), GUEST).unwrap();
    path
}

/// The guest, built once for all tests.
fn guest() -> &'static (PathBuf, Built) {
    static GUEST: OnceLock<(PathBuf, Built)> = OnceLock::new();
    GUEST.get_or_init(|| {
        // A temporary folder in a static would never be removed.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("pipeline");
        let project = project(&dir);
        let output = Some(dir.join("guest.unikernel"));
        let built = cargo::build(&project, &Options { output, ..Options::default() }).unwrap();
        (dir, built)
    })
}

fn tool(args: &[&str]) -> Output {
    Command::new(TOOL).args(args).output().unwrap()
}

fn image() -> &'static str {
    guest().1.path.to_str().unwrap()
}

#[test]
fn two_builds_are_the_same_and_tell_nothing_of_this_machine() {
    let (first_dir, first) = guest();
    let dir = tempfile::tempdir().unwrap();
    let second = cargo::build(&project(dir.path()), &Options::default()).unwrap();
    assert_eq!(first.about.sha256, second.about.sha256);
    assert!(first.sealed == second.sealed);
    for folder in [first_dir.as_path(), dir.path(), Path::new(env!("CARGO_MANIFEST_DIR"))] {
        let text = folder.to_str().unwrap().as_bytes();
        assert!(!first.sealed.windows(text.len()).any(|part| part == text), "{folder:?}");
    }
}

#[test]
fn an_image_runs_as_a_process() {
    let output = tool(&["run", "--backend", "process", image(), "one", "two"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "hello from inside unikernel,one,two,,\n", "{output:?}");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn the_same_source_is_an_ordinary_program() {
    let dir = tempfile::tempdir().unwrap();
    let project = project(dir.path());
    let output = tool(&["run", "--backend", "host", project.to_str().unwrap()]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "hello from outside\n", "{output:?}");
    assert_eq!(output.status.code(), Some(7));
}

#[test]
fn a_refusal_of_the_tender_is_the_answer() {
    // More than the tender's own limit.
    let output = tool(&["run", "--memory", "2000000g", image()]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("SH-TEN-001"), "{text}");
    assert_eq!(output.status.code(), Some(125), "{text}");
}

#[test]
fn an_interrupt_asks_the_guest_to_stop() {
    let mut child = Command::new(TOOL)
        .args(["run", "--backend", "process", image(), "wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The guest has been entered when its backend is told.
    let errors = BufReader::new(child.stderr.take().unwrap());
    let mut lines = errors.lines().map_while(Result::ok);
    assert!(lines.any(|line| line == "shoal unikernel: backend process"));
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.ends_with("wait,stopped,\n"), "{text}");
    assert_eq!(output.status.code(), Some(7));
}

/// Kills the tool in the middle of a run, and waits until nobody is left to write into its output.
fn killed_in_the_middle(mut tool: Command, image: &str) {
    // A starter that is killed removes nothing.
    let left = tempfile::tempdir().unwrap();
    fs::set_permissions(left.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let mut child = tool
        .args(["run", "--backend", "process", image, "wait"])
        .env("TMPDIR", left.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    let mut text = [0; 5];
    out.read_exact(&mut text).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("stopped"), "{rest}");
}

#[test]
fn the_instance_ends_with_its_starter() {
    killed_in_the_middle(Command::new(TOOL), image());
}

#[test]
fn an_ordinary_user_needs_nothing_more() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: whoever runs the other tests is an ordinary user");
        return;
    }
    // Where everybody may read: the checkout may be root's alone.
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (own, image) = (dir.path().join("tool"), dir.path().join("image"));
    fs::copy(TOOL, &own).unwrap();
    fs::copy(&guest().1.path, &image).unwrap();
    let image = image.to_str().unwrap();
    let user = || {
        let mut tool = Command::new(&own);
        tool.uid(NOBODY).gid(NOBODY);
        tool
    };
    killed_in_the_middle(user(), image);
    let output = user().args(["run", "--backend", "process", image]).output().unwrap();
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn an_archive_holds_the_image_and_says_so() {
    let (_, built) = guest();
    let ports = ["80/tcp".to_owned()];
    let mut first = Vec::new();
    let id = archive::write(&built.sealed, &built.about, "guest:1", &ports, &mut first).unwrap();
    let mut second = Vec::new();
    archive::write(&built.sealed, &built.about, "guest:1", &ports, &mut second).unwrap();
    assert!(first == second, "two archives differ");
    assert!(archive::extract(Cursor::new(&first), "guest.tar").unwrap() == built.sealed);
    let name = format!("{}.json", id.trim_start_matches("sha256:"));
    let mut tar = tar::Archive::new(&first[..]);
    let config = tar
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .find(|entry| entry.path().unwrap().to_str() == Some(&name))
        .unwrap();
    let config: serde_json::Value = serde_json::from_reader(config).unwrap();
    assert_eq!(config["os"], "linux");
    assert_eq!(config["architecture"], "amd64");
    assert_eq!(config["config"]["Entrypoint"][0], "/unikernel");
    assert_eq!(config["config"]["Labels"]["shoal.workload"], "unikernel");
    assert_eq!(config["config"]["Labels"]["shoal.unikernel.abi"], "1");
    assert!(config["config"]["ExposedPorts"]["80/tcp"].is_object());
}

#[test]
fn an_archive_runs() {
    let (dir, built) = guest();
    let path = dir.join("guest.tar");
    let file = fs::File::create(&path).unwrap();
    archive::write(&built.sealed, &built.about, "guest:1", &[], file).unwrap();
    let output = tool(&["run", "--backend", "process", path.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(7), "{output:?}");
}

#[test]
fn a_device_that_no_code_uses_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let features = vec!["unused-device".to_owned()];
    let options = Options { features, ..Options::default() };
    let error = cargo::build(&project(dir.path()), &options).unwrap_err();
    let ToolError::Superfluous { found, .. } = &error else { panic!("{}", error.chain()) };
    assert_eq!(found, &["data"]);
}

#[test]
fn an_ordinary_program_is_no_image() {
    let output = tool(&["inspect", TOOL]);
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("SH-UKT-006"), "{text}");
}

#[test]
fn an_image_is_described() {
    let output = tool(&["inspect", "--json", image()]);
    let about: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(about["sha256"], guest().1.about.sha256);
    assert_eq!(about["devices"].as_array().unwrap().len(), 0);
    assert!(about["relocations"].as_u64().unwrap() >= 3, "{about}");
    assert!(about["symbols"].as_u64().unwrap() > 0);
    let segments = about["segments"].as_array().unwrap();
    let access: Vec<&str> = segments.iter().map(|s| s["access"].as_str().unwrap()).collect();
    assert_eq!(access, ["r--", "r-x", "rw-"]);
    let calls = about["system_calls"]["process"].as_array().unwrap();
    assert!(calls.len() <= 10);
    assert!(String::from_utf8_lossy(&tool(&["inspect", image()]).stdout).contains("devices"));
}

#[test]
fn boots_are_measured() {
    let output = tool(&["bench", "--json", "-n", "5", "--backend", "process", image()]);
    let all: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let times = |what: &str| -> Vec<u64> {
        all[0][what].as_array().unwrap().iter().map(|time| time.as_u64().unwrap()).collect()
    };
    let (guest, output) = (times("to_guest_us"), times("to_output_us"));
    assert_eq!((guest.len(), output.len()), (5, 5));
    assert!(guest[0] > 0 && guest.is_sorted());
    assert!(guest[0] <= output[0]);
}

#[test]
fn what_is_not_there_is_said_so() {
    let output = Command::new(TOOL)
        .args(["run", "no-such-image:1"])
        .env("DOCKER_HOST", "unix:///nonexistent/socket")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("SH-UKT-008") && text.contains("/nonexistent/socket"), "{text}");
}
