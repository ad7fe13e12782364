//! What can be typed. One declaration gives parser, help and version.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::{backup, daemon, demo, doctor, tools, unikernel};

/// Swarm mode done right, in one program.
#[derive(Debug, Parser)]
#[command(
    name = "shoal",
    version,
    max_term_width = 100,
    after_help = "Examples:\n  \
        shoal doctor                     what this machine can and cannot do\n  \
        shoal demo                       a cluster of three nodes on this machine, tried out\n  \
        shoal daemon                     run this machine's node; then use `docker` as ever:\n  \
        docker swarm init --advertise-addr 192.0.2.1"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a node.
    Daemon(Box<DaemonArgs>),
    /// Write the state of this manager's swarm to a file.
    Backup(backup::BackupArgs),
    /// Begin a swarm from such a file, on a machine that is in none.
    Restore(backup::RestoreArgs),
    /// Run the founding scenario on three nodes in network namespaces of this machine.
    Demo(demo::DemoArgs),
    /// Tell what this machine can do, and what to do about the rest.
    Doctor(doctor::DoctorArgs),
    /// Make, build, run and measure unikernels, and look into those that run on this node.
    #[command(subcommand)]
    Unikernel(unikernel::UnikernelCommand),
    /// Small servers and clients for trying a network out, from inside a container.
    #[command(subcommand)]
    Try(tools::TryCommand),
}

/// Options of `shoal daemon`. Under the name `dockerd` the program takes them without the word
/// `daemon`, and dockerd's common flags besides.
#[derive(Args, Clone, Debug, Default)]
pub struct DaemonArgs {
    /// Where to listen: unix://PATH or tcp://ADDRESS:PORT. May be given several times.
    #[arg(short = 'H', long = "host", value_name = "URL")]
    pub hosts: Vec<String>,
    /// Durable state: images, containers, the cluster's log.
    #[arg(long, value_name = "DIR")]
    pub data_root: Option<PathBuf>,
    /// State of the running system: sockets, network namespaces.
    #[arg(long, value_name = "DIR")]
    pub exec_root: Option<PathBuf>,
    /// Where to write the process id.
    #[arg(short, long, value_name = "FILE")]
    pub pidfile: Option<PathBuf>,
    /// Log in detail.
    #[arg(short = 'D', long)]
    pub debug: bool,
    /// Log level: debug, info, warn, error.
    #[arg(short = 'l', long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// The node's name; the host name if unsaid.
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// A label of this engine, key=value. May be given several times.
    #[arg(long = "label", value_name = "KEY=VALUE")]
    pub labels: Vec<String>,
    /// What tasks can reserve of this node: KIND=NAME for each one that has a name, or KIND=NUMBER.
    /// May be given several times.
    #[arg(long = "node-generic-resource", value_name = "KIND=VALUE")]
    pub node_generic_resources: Vec<String>,
    /// Settings in JSON, as in dockerd's daemon.json. Flags win over the file.
    #[arg(long, value_name = "FILE")]
    pub config_file: Option<PathBuf>,
    /// Address or interface that `swarm init` and `swarm join` advertise if they are not told.
    #[arg(long, value_name = "ADDRESS|INTERFACE")]
    pub swarm_default_advertise_addr: Option<String>,
    /// Registry that may be spoken to without TLS, HOST or HOST:PORT. May be given several times.
    #[arg(long = "insecure-registry", value_name = "HOST")]
    pub insecure_registries: Vec<String>,
    /// Ask clients on tcp:// for a certificate.
    #[arg(long)]
    pub tlsverify: bool,
    /// Use TLS on tcp://. Shoal then always asks clients for a certificate.
    #[arg(long)]
    pub tls: bool,
    /// Clients' certificates must come from this authority.
    #[arg(long, value_name = "FILE")]
    pub tlscacert: Option<PathBuf>,
    /// This server's certificate.
    #[arg(long, value_name = "FILE")]
    pub tlscert: Option<PathBuf>,
    /// Its key.
    #[arg(long, value_name = "FILE")]
    pub tlskey: Option<PathBuf>,
    /// For tests of the renewal of certificates: the shortest time, in seconds, that
    /// `--cert-expiry` may set. Needs --debug.
    #[arg(long, value_name = "SECONDS", hide = true, requires = "debug")]
    pub test_min_certificate_expiry: Option<u32>,
    /// For tests of clocks that differ: what is added to this machine's. Needs --debug.
    #[arg(
        long,
        value_name = "SECONDS",
        hide = true,
        requires = "debug",
        allow_negative_numbers = true
    )]
    pub test_clock_offset: Option<i32>,
    #[command(flatten)]
    pub dockerd: DockerdArgs,
}

/// Flags of dockerd that scripts pass and that ask for nothing Shoal does differently. They are
/// accepted so that those scripts keep working; the daemon logs each one that has no effect.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Accepted for dockerd's sake, without effect")]
pub struct DockerdArgs {
    #[arg(long, value_name = "PATH", help = "Shoal needs no containerd")]
    pub containerd: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    pub containerd_namespace: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    pub containerd_plugins_namespace: Option<String>,
    #[arg(short, long, value_name = "NAME", help = "always overlayfs")]
    pub storage_driver: Option<String>,
    #[arg(long, value_name = "OPTION", hide = true)]
    pub storage_opt: Vec<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", help = "Shoal never touches iptables")]
    pub iptables: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", hide = true)]
    pub ip6tables: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", hide = true)]
    pub ip_forward: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", hide = true)]
    pub ip_masq: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", hide = true)]
    pub userland_proxy: Option<String>,
    #[arg(long, value_name = "PATH", hide = true)]
    pub userland_proxy_path: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", help = "`docker run --init` decides for each container")]
    pub init: Option<String>,
    #[arg(long, value_name = "PATH", hide = true)]
    pub init_path: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", hide = true)]
    pub experimental: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", hide = true)]
    pub live_restore: Option<String>,
    #[arg(long, value_name = "MODE", hide = true)]
    pub default_cgroupns_mode: Option<String>,
    #[arg(long, value_name = "MODE", hide = true)]
    pub default_ipc_mode: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    pub default_runtime: Option<String>,
    #[arg(long, value_name = "NAME", hide = true)]
    pub cgroup_parent: Option<String>,
    #[arg(long, value_name = "OPTION", hide = true)]
    pub exec_opt: Vec<String>,
    #[arg(short = 'G', long, value_name = "NAME", hide = true)]
    pub group: Option<String>,
    #[arg(short = 'b', long, value_name = "NAME", hide = true)]
    pub bridge: Option<String>,
    #[arg(long, value_name = "CIDR", hide = true)]
    pub bip: Option<String>,
    #[arg(long, value_name = "POOL", hide = true)]
    pub default_address_pool: Vec<String>,
    #[arg(long, value_name = "DRIVER", hide = true)]
    pub log_driver: Option<String>,
    #[arg(long, value_name = "OPTION", hide = true)]
    pub log_opt: Vec<String>,
    #[arg(long, value_name = "BYTES", hide = true)]
    pub mtu: Option<String>,
    #[arg(long, value_name = "URL", hide = true)]
    pub registry_mirror: Vec<String>,
    #[arg(long, value_name = "NUMBER", hide = true)]
    pub max_concurrent_downloads: Option<String>,
    #[arg(long, value_name = "SECONDS", hide = true)]
    pub shutdown_timeout: Option<String>,
    #[arg(long, value_name = "FEATURE", hide = true)]
    pub feature: Vec<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", hide = true)]
    pub raw_logs: Option<String>,
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true",
          value_name = "BOOL", hide = true)]
    pub selinux_enabled: Option<String>,
    #[arg(long, value_name = "ADDRESS", hide = true)]
    pub metrics_addr: Option<String>,
    #[arg(long, value_name = "LIMIT", hide = true)]
    pub default_ulimit: Vec<String>,
}

impl DockerdArgs {
    /// The flags that were given, by name.
    #[must_use]
    pub fn given(&self) -> Vec<&'static str> {
        let single = [
            ("--containerd", self.containerd.is_some()),
            ("--containerd-namespace", self.containerd_namespace.is_some()),
            ("--containerd-plugins-namespace", self.containerd_plugins_namespace.is_some()),
            ("--storage-driver", self.storage_driver.is_some()),
            ("--iptables", self.iptables.is_some()),
            ("--ip6tables", self.ip6tables.is_some()),
            ("--ip-forward", self.ip_forward.is_some()),
            ("--ip-masq", self.ip_masq.is_some()),
            ("--userland-proxy", self.userland_proxy.is_some()),
            ("--userland-proxy-path", self.userland_proxy_path.is_some()),
            ("--init", self.init.is_some()),
            ("--init-path", self.init_path.is_some()),
            ("--experimental", self.experimental.is_some()),
            ("--live-restore", self.live_restore.is_some()),
            ("--default-cgroupns-mode", self.default_cgroupns_mode.is_some()),
            ("--default-ipc-mode", self.default_ipc_mode.is_some()),
            ("--default-runtime", self.default_runtime.is_some()),
            ("--cgroup-parent", self.cgroup_parent.is_some()),
            ("--group", self.group.is_some()),
            ("--bridge", self.bridge.is_some()),
            ("--bip", self.bip.is_some()),
            ("--log-driver", self.log_driver.is_some()),
            ("--mtu", self.mtu.is_some()),
            ("--max-concurrent-downloads", self.max_concurrent_downloads.is_some()),
            ("--shutdown-timeout", self.shutdown_timeout.is_some()),
            ("--raw-logs", self.raw_logs.is_some()),
            ("--selinux-enabled", self.selinux_enabled.is_some()),
            ("--metrics-addr", self.metrics_addr.is_some()),
        ];
        let many = [
            ("--storage-opt", !self.storage_opt.is_empty()),
            ("--exec-opt", !self.exec_opt.is_empty()),
            ("--default-address-pool", !self.default_address_pool.is_empty()),
            ("--log-opt", !self.log_opt.is_empty()),
            ("--registry-mirror", !self.registry_mirror.is_empty()),
            ("--feature", !self.feature.is_empty()),
            ("--default-ulimit", !self.default_ulimit.is_empty()),
        ];
        single.into_iter().chain(many).filter(|(_, given)| *given).map(|(flag, _)| flag).collect()
    }
}

/// `dockerd [flags]`.
#[derive(Debug, Parser)]
#[command(name = "dockerd", version, about = "Shoal, started under dockerd's name")]
struct Dockerd {
    #[command(flatten)]
    args: DaemonArgs,
}

/// Reads the command line; the program's own name decides which one it is.
///
/// # Errors
/// Clap's, to be printed: wrong usage, or help and version.
pub fn parse(args: Vec<OsString>) -> Result<Command, clap::Error> {
    let name = args.first().map(Path::new).and_then(Path::file_name);
    if name.is_some_and(|name| name == "dockerd") {
        return Dockerd::try_parse_from(args).map(|d| Command::Daemon(Box::new(d.args)));
    }
    Cli::try_parse_from(args).map(|cli| cli.command)
}

/// Carries the command out.
#[must_use]
pub fn run(command: Command) -> ExitCode {
    match command {
        Command::Daemon(args) => daemon::run(&args),
        Command::Backup(args) => backup::backup(&args),
        Command::Restore(args) => backup::restore(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Doctor(args) => doctor::run(&args),
        Command::Unikernel(command) => unikernel::run(command),
        Command::Try(command) => tools::run(command),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn daemon_args(line: &str) -> DaemonArgs {
        let args = line.split_whitespace().map(OsString::from).collect();
        match parse(args).unwrap() {
            Command::Daemon(args) => *args,
            other => panic!("not a daemon: {other:?}"),
        }
    }

    #[test]
    fn scripts_that_start_dockerd_keep_working() {
        let args = daemon_args(
            "/usr/bin/dockerd -H unix:///tmp/d.sock --data-root /d --exec-root /e --pidfile /p \
             --debug --containerd-namespace n --containerd-plugins-namespace m \
             --storage-driver vfs --iptables=false --userland-proxy=false --init --experimental \
             --default-cgroupns-mode private --host tcp://127.0.0.1:2375",
        );
        assert_eq!(args.hosts, ["unix:///tmp/d.sock", "tcp://127.0.0.1:2375"]);
        assert!(args.debug);
        assert!(args.dockerd.given().contains(&"--iptables"));
    }

    #[test]
    fn a_wrong_flag_is_refused() {
        let args = ["shoal", "daemon", "--no-such-flag"].map(OsString::from);
        assert!(parse(args.to_vec()).is_err());
    }
}
