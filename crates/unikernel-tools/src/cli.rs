//! What can be typed after `shoal unikernel`. One declaration gives parser and help.

use std::ffi::OsString;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{ExitCode, Stdio};

use clap::{Args, Subcommand, ValueEnum};
use shoal_tender::config::BackendChoice;
use shoal_usernet::publish::Publish;

use crate::bench::{self, backend_name};
use crate::cargo::{self, Built};
use crate::error::ToolError;
use crate::inspect::Inspection;
use crate::project;
use crate::run::{self, Options, Signals, TenderCommand};
use crate::{archive, source};

/// Option of the word `tender`: end when the program that started it ends.
const WITH_PARENT: &str = "--with-parent";

/// Exit status of a failure of a tool.
const STATUS_FAILED: u8 = 1;
/// Boots that a benchmark may be asked for at most: some hours.
const BOOTS_MAX: usize = 100_000;

/// Unikernels.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Make a new project: a small web server.
    New(NewArgs),
    /// Build an image, say where its bytes are, and wrap it for a registry.
    Build(BuildArgs),
    /// Run an image, or a project that is built first, with a user-mode network. Needs no root.
    Run(RunArgs),
    /// Tell what an image is and needs.
    Inspect(InspectArgs),
    /// Boot an image many times and show how long it takes.
    Bench(BenchArgs),
}

/// Options of `new`.
#[derive(Args, Clone, Debug)]
pub struct NewArgs {
    /// The folder to make; its name is the project's.
    path: PathBuf,
    /// The checkout of Shoal whose library is used; the one around the current folder if unsaid.
    #[arg(long, value_name = "DIR", env = project::SOURCE_VARIABLE)]
    shoal: Option<PathBuf>,
}

/// Options of `build`.
#[derive(Args, Clone, Debug)]
pub struct BuildArgs {
    /// The project.
    #[arg(default_value = ".")]
    path: PathBuf,
    /// The program, if the project has several.
    #[arg(long, value_name = "NAME")]
    bin: Option<String>,
    /// Features of the package to activate. May be given several times.
    #[arg(short = 'F', long, value_name = "FEATURES")]
    features: Vec<String>,
    /// Where the ELF file goes; beside cargo's own files if unsaid.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Wrap it as an image of this name.
    #[arg(long, value_name = "NAME[:TAG]")]
    image: Option<String>,
    /// Where the archive goes, for `docker load -i`; named after the image if unsaid.
    #[arg(long, value_name = "FILE", requires = "image")]
    archive: Option<PathBuf>,
    /// A port that the image says it serves, for example 80/tcp. May be given several times.
    #[arg(long = "expose", value_name = "PORT/PROTOCOL", requires = "image")]
    exposed: Vec<String>,
    /// Leave the names of functions out: smaller, and backtraces of crashes have addresses only.
    #[arg(long)]
    no_symbols: bool,
    /// Where cargo puts its files.
    #[arg(long, value_name = "DIR")]
    target_dir: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Where the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    /// KVM where this user may use it, else a process.
    #[default]
    Auto,
    /// A virtual machine.
    Kvm,
    /// A process under a system call filter.
    Process,
    /// An ordinary program, for a project only: println, gdb and strace work.
    Host,
}

/// Options of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A project's folder, an ELF file, an archive of `docker save`, or the name of an image.
    image: String,
    /// Arguments of the application: everything from the first on. Put `--` before it if it begins
    /// with a hyphen.
    #[arg(trailing_var_arg = true)]
    args: Vec<String>,
    /// Where it runs.
    #[arg(long, value_enum, default_value_t)]
    backend: Backend,
    /// A port of this host that leads to the guest. May be given several times.
    #[arg(short, long, value_name = "[ADDRESS:]PORT:GUEST_PORT[/udp]")]
    publish: Vec<Publish>,
    /// Environment. May be given several times.
    #[arg(short, long, value_name = "KEY=VALUE")]
    env: Vec<String>,
    /// A folder or tar archive that the guest sees as files. May be given several times.
    #[arg(long, value_name = "PATH=DIR", value_parser = parse_mount)]
    mount: Vec<(String, PathBuf)>,
    /// The file of a block device; `:ro` refuses writes. May be given several times.
    #[arg(long, value_name = "NAME=FILE[:ro]", value_parser = parse_block)]
    block: Vec<(String, PathBuf, bool)>,
    /// Most memory of the heap, for example 64m.
    #[arg(short, long, value_name = "SIZE", value_parser = parse_size)]
    memory: Option<u64>,
    /// Host name that the guest sees.
    #[arg(long, default_value = "unikernel")]
    hostname: String,
    /// Let the guest reach nothing beyond this host.
    #[arg(long)]
    no_outside: bool,
    /// Let the gateway's address not lead to this host's loopback.
    #[arg(long)]
    no_host_loopback: bool,
}

/// Options of `inspect`.
#[derive(Args, Clone, Debug)]
pub struct InspectArgs {
    /// A project's folder, an ELF file, an archive of `docker save`, or the name of an image.
    image: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Options of `bench`.
#[derive(Args, Clone, Debug)]
pub struct BenchArgs {
    /// A project's folder, an ELF file, an archive of `docker save`, or the name of an image. It
    /// must write something to standard output.
    image: String,
    /// Arguments of the application: everything from the first on. Put `--` before it if it begins
    /// with a hyphen.
    #[arg(trailing_var_arg = true)]
    args: Vec<String>,
    /// How many boots of each backend.
    #[arg(short = 'n', long, default_value_t = 100)]
    boots: usize,
    /// One backend only.
    #[arg(long, value_enum)]
    backend: Option<Backend>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn parse_mount(text: &str) -> Result<(String, PathBuf), String> {
    match text.split_once('=') {
        Some((path, dir)) if path.starts_with('/') && !dir.is_empty() => {
            Ok((path.to_owned(), dir.into()))
        }
        _ => Err("write an absolute path of the guest, '=', and a folder or archive".to_owned()),
    }
}

fn parse_block(text: &str) -> Result<(String, PathBuf, bool), String> {
    let (name, file) = text.split_once('=').ok_or("write a device's name, '=', and a file")?;
    match file.strip_suffix(":ro") {
        Some(file) => Ok((name.to_owned(), file.into(), true)),
        None => Ok((name.to_owned(), file.into(), false)),
    }
}

fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &lower[digits.len()..] {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        _ => return Err("write a number and b, k, m or g".to_owned()),
    };
    let number: u64 = digits.parse().map_err(|_| "write a number and b, k, m or g".to_owned())?;
    number.checked_mul(1 << shift).filter(|size| *size > 0).ok_or("that is no size".to_owned())
}

/// Carries the command out.
#[must_use]
pub fn run(command: Command) -> ExitCode {
    let done = match command {
        Command::New(args) => new(&args).map(|()| 0),
        Command::Build(args) => build(&args).map(|()| 0),
        Command::Run(args) => run_image(args),
        Command::Inspect(args) => inspect(&args).map(|()| 0),
        Command::Bench(args) => bench(&args).map(|()| 0),
    };
    match done {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("shoal unikernel: {}", error.chain());
            ExitCode::from(STATUS_FAILED)
        }
    }
}

/// The word `tender` and what follows it: this process becomes the monitor of one instance.
#[must_use]
pub fn tender(args: &[OsString]) -> ExitCode {
    let (with_parent, rest) = match args.split_first() {
        Some((first, rest)) if first == WITH_PARENT => (true, rest),
        _ => (false, args),
    };
    if with_parent {
        // Not a request to stop, which a guest may ignore: nobody would be left to see to it.
        let signal = Some(rustix::process::Signal::KILL);
        // Ignored because: only a kernel without the call refuses it, and then the guest lives on.
        let _ = rustix::process::set_parent_process_death_signal(signal);
    }
    shoal_tender::main(rest.first().map(OsString::as_os_str))
}

fn own_tender() -> Result<TenderCommand, ToolError> {
    let mut command = TenderCommand::own()?;
    command.0.push(WITH_PARENT.into());
    Ok(command)
}

fn new(args: &NewArgs) -> Result<(), ToolError> {
    let here = std::env::current_dir().map_err(ToolError::file("find", Path::new(".")))?;
    let checkout = project::find_checkout(args.shoal.as_deref(), &here)?;
    project::create(&args.path, &checkout)?;
    say(&format!(
        "made {}; next: cd there, and `shoal unikernel run . -p 8080:80`\n",
        args.path.display()
    ));
    Ok(())
}

/// Prints; a closed pipe is not a failure.
fn say(text: &str) {
    // Ignored because: nobody is there any more to be told.
    let _ = std::io::stdout().write_all(text.as_bytes());
}

fn say_json(value: &impl serde::Serialize) {
    // Cannot fail: plain values of our own.
    say(&format!("{}\n", serde_json::to_string_pretty(value).unwrap_or_default()));
}

fn build(args: &BuildArgs) -> Result<(), ToolError> {
    let options = cargo::Options {
        program: args.bin.clone(),
        features: args.features.clone(),
        output: args.output.clone(),
        no_symbols: args.no_symbols,
        target_dir: args.target_dir.clone(),
    };
    let built = cargo::build(&args.path, &options)?;
    let wrapped = args.image.as_ref().map(|name| wrap(&built, name, args)).transpose()?;
    if args.json {
        say_json(&serde_json::json!({
            "name": built.name,
            "path": built.path,
            "about": built.about,
            "sizes": built.sizes,
            "archive": wrapped.as_ref().map(|(path, _)| path),
            "image_id": wrapped.as_ref().map(|(_, id)| id),
        }));
        return Ok(());
    }
    say(&format!("{}\n  sha256 {}\n", built.path.display(), built.about.sha256));
    say(&built.sizes.text());
    if let Some((path, id)) = wrapped {
        say(&format!("image {id}\n  docker load -i {}\n", path.display()));
    }
    Ok(())
}

fn wrap(built: &Built, name: &str, args: &BuildArgs) -> Result<(PathBuf, String), ToolError> {
    let path = args.archive.clone().unwrap_or_else(|| archive_name(name).into());
    let file = File::create(&path).map_err(ToolError::file("make", &path))?;
    let mut out = BufWriter::new(file);
    let id = archive::write(&built.sealed, &built.about, name, &args.exposed, &mut out)?;
    out.flush().map_err(ToolError::file("write", &path))?;
    Ok((path, id))
}

/// `web.tar` for `registry/team/web:1`.
fn archive_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    let plain = last.split([':', '@']).next().unwrap_or(last);
    format!("{plain}.tar")
}

fn choice(backend: Backend) -> BackendChoice {
    match backend {
        Backend::Auto | Backend::Host => BackendChoice::Auto,
        Backend::Kvm => BackendChoice::Kvm,
        Backend::Process => BackendChoice::Process,
    }
}

fn run_image(args: RunArgs) -> Result<u8, ToolError> {
    if args.backend == Backend::Host {
        return run_on_host(&args);
    }
    let image = source::resolve(&args.image)?;
    let mut words = vec![IMAGE_NAME.to_owned()];
    words.extend(args.args);
    let options = Options {
        backend: choice(args.backend),
        publish: args.publish,
        env: args.env,
        mounts: args.mount,
        blocks: args.block,
        memory_bytes: args.memory.unwrap_or(0),
        args: words,
        hostname: args.hostname,
        no_outside: args.no_outside,
        no_host_loopback: args.no_host_loopback,
    };
    // Before anything starts: threads take over which signals are held back.
    let signals = Signals::take()?;
    let mut instance = run::start(&image, &options, &own_tender()?, Stdio::inherit)?;
    if let Some(backend) = bench::backend_of(&mut instance) {
        eprintln!("shoal unikernel: backend {backend}");
        for (publish, address) in options.publish.iter().zip(instance.addresses()) {
            let (protocol, port) = (publish.protocol, publish.guest_port);
            eprintln!("shoal unikernel: {address}/{protocol} leads to port {port}");
        }
    }
    instance.wait(&signals)
}

/// First argument that every application gets.
const IMAGE_NAME: &str = "unikernel";

fn run_on_host(args: &RunArgs) -> Result<u8, ToolError> {
    let project = Path::new(&args.image);
    if !project.join("Cargo.toml").is_file() {
        let text = "only a project runs on the host: an image has no C library to run with";
        return Err(ToolError::Usage(text.to_owned()));
    }
    let refused = [
        ("--memory", args.memory.is_none()),
        ("--no-outside", !args.no_outside),
        ("--no-host-loopback", !args.no_host_loopback),
    ];
    if let Some((option, _)) = refused.iter().find(|(_, absent)| !absent) {
        return Err(ToolError::Usage(format!("not implemented: {option} with --backend host")));
    }
    let mut env = hosted_variables(args);
    for pair in &args.env {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| ToolError::Usage(format!("'{pair}' is not of the form KEY=VALUE")))?;
        env.push((key.to_owned(), value.to_owned()));
    }
    Err(cargo::run_hosted(project, &args.args, &env))
}

/// What tells an ordinary program about its devices; see `unikernel::hosted`.
fn hosted_variables(args: &RunArgs) -> Vec<(String, String)> {
    let mut env = Vec::new();
    if !args.publish.is_empty() {
        let ports: Vec<String> = args.publish.iter().map(Publish::to_string).collect();
        env.push(("SHOAL_PUBLISH".to_owned(), ports.join(",")));
    }
    if !args.mount.is_empty() {
        let mounts = args.mount.iter().map(|(path, source)| {
            // The program runs elsewhere than this one.
            let source = std::path::absolute(source).unwrap_or_else(|_| source.clone());
            format!("{path}={}", source.display())
        });
        env.push(("SHOAL_MOUNT".to_owned(), mounts.collect::<Vec<_>>().join(",")));
    }
    for (name, file, read_only) in &args.block {
        let variable = format!("SHOAL_BLOCK_{}", name.to_uppercase().replace('-', "_"));
        let suffix = if *read_only { ":ro" } else { "" };
        env.push((variable, format!("{}{suffix}", file.display())));
    }
    env
}

fn inspect(args: &InspectArgs) -> Result<(), ToolError> {
    let about = Inspection::of(&source::resolve(&args.image)?.bytes)?;
    if args.json {
        say_json(&about)
    } else {
        say(&about.text())
    }
    Ok(())
}

fn bench(args: &BenchArgs) -> Result<(), ToolError> {
    if args.boots == 0 || args.boots > BOOTS_MAX {
        return Err(ToolError::Usage(format!("boot it 1 to {BOOTS_MAX} times")));
    }
    let image = source::resolve(&args.image)?;
    let mut words = vec![IMAGE_NAME.to_owned()];
    words.extend(args.args.iter().cloned());
    let options = Options { args: words, ..Options::default() };
    let backends = match args.backend {
        Some(Backend::Host) => {
            let text = "an ordinary program does not boot: choose kvm or process";
            return Err(ToolError::Usage(text.to_owned()));
        }
        Some(backend) => vec![choice(backend)],
        None => vec![BackendChoice::Process, BackendChoice::Kvm],
    };
    let mut all = Vec::new();
    let mut failed = None;
    for backend in backends {
        match bench::boots(&image, backend, &options, args.boots, &own_tender()?) {
            Ok(boots) if args.json => all.push(boots),
            Ok(boots) => say(&boots.text()),
            // A machine without KVM still has the other figures.
            Err(error) => {
                eprintln!("shoal unikernel: backend {}: {}", backend_name(backend), error.chain());
                failed = Some(error);
            }
        }
    }
    if args.json {
        say_json(&all);
    }
    match failed {
        Some(error) if args.backend.is_some() => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// The command group by itself.
    #[derive(Debug, clap::Parser)]
    struct Alone {
        #[command(subcommand)]
        command: Command,
    }

    fn run_args(line: &str) -> RunArgs {
        use clap::Parser;
        let words = ["tool"].into_iter().chain(line.split_whitespace());
        match Alone::try_parse_from(words).unwrap().command {
            Command::Run(args) => args,
            other => panic!("not a run: {other:?}"),
        }
    }

    #[test]
    fn options_stand_before_or_after_the_image() {
        for line in ["run . -p 8080:80 a -x", "run -p 8080:80 . a -x", "run . -p 8080:80 -- a -x"] {
            let args = run_args(line);
            assert_eq!(args.publish.len(), 1, "{line}");
            assert_eq!(args.args, ["a", "-x"], "{line}");
        }
        assert_eq!(run_args("run . -- --flag").args, ["--flag"]);
    }

    #[test]
    fn archives_are_named_after_the_image() {
        for image in ["web", "web:1", "registry.test:5000/team/web:1"] {
            assert_eq!(archive_name(image), "web.tar");
        }
    }

    #[test]
    fn sizes_and_mounts() {
        assert_eq!(parse_size("64m").unwrap(), 64 << 20);
        assert_eq!(parse_size("1GiB").unwrap(), 1 << 30);
        assert_eq!(parse_size("4096").unwrap(), 4096);
        for wrong in ["", "m", "0", "-1", "1x", "99999999999g"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
        assert_eq!(parse_mount("/www=site").unwrap(), ("/www".to_owned(), "site".into()));
        assert!(parse_mount("www=site").is_err() && parse_mount("/www").is_err());
        let block = ("data".to_owned(), PathBuf::from("disk"), true);
        assert_eq!(parse_block("data=disk:ro").unwrap(), block);
    }

    #[test]
    fn boots_are_counted() {
        use clap::Parser;
        for boots in [0, BOOTS_MAX + 1] {
            let line = format!("tool bench -n {boots} image");
            let Command::Bench(args) =
                Alone::try_parse_from(line.split_whitespace()).unwrap().command
            else {
                panic!("not a bench: {line}")
            };
            assert!(matches!(bench(&args), Err(ToolError::Usage(_))), "{line}");
        }
    }
}
