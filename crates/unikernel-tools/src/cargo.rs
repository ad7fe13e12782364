//! Builds a project as an image.
//!
//! The same source is an ordinary program for `cargo run`. As an image it is compiled with
//! `--cfg shoal_image` for the host's own target, with the prebuilt `core` and `alloc`, and linked
//! without the C library into a static position-independent file. Paths of this machine are taken
//! out, so that two builds give the same bytes.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::check;
use crate::error::ToolError;
use crate::inspect::Inspection;
use crate::seal;
use crate::size::{self, Sizes};

/// The target whose prebuilt libraries are used.
pub const TARGET: &str = "x86_64-unknown-linux-gnu";
/// The profile that images are built with.
const PROFILE: &str = "image";
/// What the profile is where a project has none of this name.
const PROFILE_DEFAULTS: [&str; 5] = [
    "profile.image.inherits=\"release\"",
    "profile.image.panic=\"abort\"",
    "profile.image.lto=\"fat\"",
    "profile.image.codegen-units=1",
    "profile.image.opt-level=\"s\"",
];
/// Flags of the compiler for every crate of an image.
const FLAGS: &[&str] = &[
    "--cfg=shoal_image",
    "--check-cfg=cfg(shoal_image)",
    // Crash records walk the stack by frame pointers: they cost less than unwinding tables.
    "-Cforce-frame-pointers=yes",
    "-Cforce-unwind-tables=no",
    "-Crelocation-model=pie",
    // The linker calls no start files of a C library, dynamic or static.
    "-Ctarget-feature=+crt-static",
    "-Cstrip=none",
];
/// Arguments of the linker, through the compiler driver.
const LINK_ARGS: &[&str] = &[
    "-nostartfiles",
    "-nostdlib",
    "-static-pie",
    "-Wl,--no-dynamic-linker",
    "-Wl,--gc-sections",
    "-Wl,--build-id=none",
    "-Wl,--no-eh-frame-hdr",
    "-Wl,--hash-style=gnu",
    // No page has two kinds of access.
    "-Wl,-z,separate-code",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noexecstack",
    "-Wl,-z,relro",
    "-Wl,-z,now",
    "-Wl,-z,text",
    "-Wl,-z,defs",
];

/// How to build.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The program, if the project has several.
    pub program: Option<String>,
    /// Features of the package, as cargo takes them.
    pub features: Vec<String>,
    /// Where the sealed file goes; otherwise beside the linker's, with the ending `.unikernel`.
    pub output: Option<PathBuf>,
    /// Leave the names of functions out.
    pub no_symbols: bool,
    /// Where cargo puts its files, if not where it always does.
    pub target_dir: Option<PathBuf>,
}

/// What came out.
#[derive(Clone, Debug)]
pub struct Built {
    /// The program's name.
    pub name: String,
    /// Where the sealed file is.
    pub path: PathBuf,
    /// Its bytes.
    pub sealed: Vec<u8>,
    /// What it is.
    pub about: Inspection,
    /// Where its bytes are.
    pub sizes: Sizes,
}

/// Builds, seals, checks, measures.
///
/// # Errors
/// [`ToolError::Cargo`], [`ToolError::NoSingleProgram`], [`ToolError::File`], and those of
/// [`check::check`].
pub fn build(project: &Path, options: &Options) -> Result<Built, ToolError> {
    let metadata = metadata(project)?;
    let program = program(project, &metadata, options.program.as_deref())?;
    let linked_path = compile(project, &metadata, &program, options)?;
    let linked = fs::read(&linked_path).map_err(ToolError::file("read", &linked_path))?;
    let sealed = seal::seal(&linked, !options.no_symbols)?;
    let about = check::check(&linked, &sealed)?;
    let sizes = size::measure(&linked, &sealed)?;
    let path = options.output.clone().unwrap_or_else(|| linked_path.with_extension("unikernel"));
    write_executable(&path, &sealed)?;
    Ok(Built { name: program, path, sealed, about, sizes })
}

/// Replaces a file at once: an instance that runs keeps the old one.
fn write_executable(path: &Path, bytes: &[u8]) -> Result<(), ToolError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |error| ToolError::file("write", path)(error);
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    std::io::Write::write_all(&mut file, bytes).map_err(failed)?;
    file.as_file().set_permissions(fs::Permissions::from_mode(0o755)).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

/// What `cargo metadata` tells.
#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_root: PathBuf,
}

#[derive(Deserialize)]
struct Package {
    manifest_path: PathBuf,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn cargo() -> Command {
    // Cargo names itself to the programs that it starts.
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn failed(action: &'static str) -> impl Fn(std::io::Error) -> ToolError {
    move |source| ToolError::Cargo { action, source: Some(source) }
}

fn metadata(project: &Path) -> Result<Metadata, ToolError> {
    let action = "describe the project";
    let output = cargo()
        .args(["metadata", "--format-version=1", "--no-deps", "--manifest-path"])
        .arg(project.join("Cargo.toml"))
        .stderr(Stdio::inherit())
        .output()
        .map_err(failed(action))?;
    if !output.status.success() {
        return Err(ToolError::Cargo { action, source: None });
    }
    serde_json::from_slice(&output.stdout).map_err(|error| failed(action)(error.into()))
}

/// The name of the program to build.
fn program(project: &Path, all: &Metadata, asked: Option<&str>) -> Result<String, ToolError> {
    let manifest = project.join("Cargo.toml");
    let manifest = fs::canonicalize(&manifest).map_err(ToolError::file("find", &manifest))?;
    let own = all.packages.iter().find(|package| package.manifest_path == manifest);
    let targets = own.map(|package| package.targets.as_slice()).unwrap_or_default();
    let programs: Vec<&str> = targets
        .iter()
        .filter(|target| target.kind.iter().any(|kind| kind == "bin"))
        .map(|target| target.name.as_str())
        .filter(|name| asked.is_none_or(|asked| asked == *name))
        .collect();
    match programs[..] {
        [program] => Ok(program.to_owned()),
        _ => Err(ToolError::NoSingleProgram { path: project.to_owned(), count: programs.len() }),
    }
}

fn compile(
    project: &Path,
    metadata: &Metadata,
    program: &str,
    options: &Options,
) -> Result<PathBuf, ToolError> {
    let action = "build the image";
    let mut command = cargo();
    command
        .args(["build", "--message-format=json-render-diagnostics", "--manifest-path"])
        .arg(project.join("Cargo.toml"))
        .args(["--target", TARGET, "--profile", PROFILE, "--bin", program])
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&metadata.workspace_root))
        // Times in files would differ from build to build.
        .env("SOURCE_DATE_EPOCH", "0")
        .stderr(Stdio::inherit());
    if let Some(dir) = &options.target_dir {
        command.arg("--target-dir").arg(dir);
    }
    for features in &options.features {
        command.args(["--features", features]);
    }
    if !has_profile(&metadata.workspace_root)? {
        for setting in PROFILE_DEFAULTS {
            command.args(["--config", setting]);
        }
    }
    let output = command.output().map_err(failed(action))?;
    if !output.status.success() {
        return Err(ToolError::Cargo { action, source: None });
    }
    executable(&output.stdout, program)
        .ok_or(ToolError::Cargo { action: "say where the program is", source: None })
}

fn has_profile(root: &Path) -> Result<bool, ToolError> {
    let manifest = root.join("Cargo.toml");
    let text = fs::read_to_string(&manifest).map_err(ToolError::file("read", &manifest))?;
    Ok(text.lines().any(|line| line.trim() == "[profile.image]"))
}

/// The flags, separated as cargo wants them in its variable.
fn flags(workspace_root: &Path) -> OsString {
    let mut flags: Vec<OsString> = FLAGS.iter().map(OsString::from).collect();
    flags.extend(LINK_ARGS.iter().map(|arg| format!("-Clink-arg={arg}").into()));
    for (from, to) in remapped(workspace_root) {
        let mut flag = OsString::from("--remap-path-prefix=");
        flag.push(from);
        flag.push("=");
        flag.push(to);
        flags.push(flag);
    }
    flags.join("\x1f".as_ref())
}

/// Paths of this machine, and what stands for them in messages of panics. The compiler takes the
/// last one that fits.
fn remapped(workspace_root: &Path) -> Vec<(PathBuf, &'static str)> {
    let mut paths = Vec::new();
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cargo_home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    if let Some(home) = cargo_home.or_else(|| home.map(|home| home.join(".cargo"))) {
        paths.push((home, "/cargo"));
    }
    paths.push((workspace_root.to_owned(), "/project"));
    paths
}

/// The path of the program in what cargo tells about its work.
fn executable(messages: &[u8], program: &str) -> Option<PathBuf> {
    #[derive(Deserialize)]
    struct Message {
        executable: Option<PathBuf>,
        target: Option<Target>,
    }
    messages
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<Message>(line).ok())
        .filter(|message| message.target.as_ref().is_some_and(|target| target.name == program))
        .find_map(|message| message.executable)
}

/// Runs a project as an ordinary program, with arguments and environment. This process becomes
/// cargo, which becomes the program: signals and the exit status are the program's own.
///
/// # Errors
/// [`ToolError::Cargo`]; otherwise it does not return.
pub fn run_hosted(project: &Path, args: &[String], env: &[(String, String)]) -> ToolError {
    let mut command = cargo();
    command.arg("run").arg("--manifest-path").arg(project.join("Cargo.toml"));
    command.arg("--").args(args).envs(env.iter().map(|(key, value)| (key, value)));
    failed("run the project")(command.exec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_program_is_found_in_cargos_messages() {
        let messages = b"{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"lib\",\"kind\":[\"lib\"]},\"executable\":null}\n{\"reason\":\"compiler-artifact\",\"target\":{\"name\":\"app\",\"kind\":[\"bin\"]},\"executable\":\"/t/app\"}\n{\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages, "app").unwrap(), Path::new("/t/app"));
        assert_eq!(executable(messages, "lib"), None);
    }

    #[test]
    fn no_path_of_this_machine_is_left() {
        let flags = flags(Path::new("/some/where")).into_string().unwrap();
        let flags: Vec<&str> = flags.split('\x1f').collect();
        assert!(flags.contains(&"--remap-path-prefix=/some/where=/project"));
        assert!(flags.contains(&"--cfg=shoal_image"));
        assert!(flags.contains(&"-Clink-arg=-static-pie"));
    }
}
