//! What the daemon is told: flags over the configuration file over defaults.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use shoal_api::server::tls::TlsFiles;
use shoal_identity::authority::NODE_VALIDITY_MIN;
use shoal_model::spec::generic::GenericResource;

use crate::cli::DaemonArgs;

/// Where the configuration file is looked for if no flag names one.
const DEFAULT_CONFIG: &str = "/etc/shoal/daemon.json";

/// Everything resolved.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where to listen.
    pub hosts: Vec<String>,
    /// Durable state.
    pub data_root: PathBuf,
    /// State of the running system.
    pub exec_root: PathBuf,
    /// Where the process id goes.
    pub pidfile: Option<PathBuf>,
    /// Whether details are logged.
    pub debug: bool,
    /// `debug`, `info`, `warn`, `error`.
    pub log_level: String,
    /// The node's name.
    pub node_name: String,
    /// `key=value`.
    pub labels: Vec<String>,
    /// What tasks can reserve of this node.
    pub generic_resources: Vec<GenericResource>,
    /// What to advertise if nobody says.
    pub default_advertise: Option<String>,
    /// The shortest time that certificates may be set to last.
    pub cert_expiry_min: Duration,
    /// What is added to this machine's clock, in seconds.
    pub clock_offset: i32,
    /// Registries without TLS.
    pub insecure_registries: Vec<String>,
    /// For `tcp://` hosts.
    pub tls: Option<TlsFiles>,
    /// Whether containers get an init process when they do not say.
    pub default_init: bool,
    /// Whether containers keep running when the daemon is told to stop.
    pub live_restore: bool,
    /// Flags that were accepted and change nothing.
    pub without_effect: Vec<&'static str>,
}

/// The members of the configuration file that have an effect. dockerd's other members are accepted
/// and named in the log; a member that nobody knows is refused, because it is a typing error.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    hosts: Vec<String>,
    data_root: Option<PathBuf>,
    exec_root: Option<PathBuf>,
    pidfile: Option<PathBuf>,
    debug: bool,
    log_level: Option<String>,
    node_name: Option<String>,
    labels: Vec<String>,
    node_generic_resources: Vec<String>,
    swarm_default_advertise_addr: Option<String>,
    insecure_registries: Vec<String>,
    tls: bool,
    tlsverify: bool,
    tlscacert: Option<PathBuf>,
    tlscert: Option<PathBuf>,
    tlskey: Option<PathBuf>,
    init: bool,
    live_restore: bool,
    #[serde(flatten)]
    other: serde_json::Map<String, serde_json::Value>,
}

/// Members of dockerd's file that ask for nothing Shoal does differently.
const KNOWN_TO_DOCKERD: &[&str] = &[
    "storage-driver",
    "storage-opts",
    "iptables",
    "ip6tables",
    "ip-forward",
    "ip-masq",
    "userland-proxy",
    "experimental",
    "default-runtime",
    "runtimes",
    "exec-opts",
    "log-driver",
    "log-opts",
    "group",
    "bridge",
    "bip",
    "mtu",
    "registry-mirrors",
    "features",
    "metrics-addr",
    "default-address-pools",
    "default-ulimits",
    "max-concurrent-downloads",
    "shutdown-timeout",
    "containerd",
    "containerd-namespace",
    "cgroup-parent",
    "default-cgroupns-mode",
    "raw-logs",
    "selinux-enabled",
    "builder",
    "dns",
    "dns-opts",
    "dns-search",
    "ipv6",
    "fixed-cidr",
];

impl Settings {
    /// Puts flags, file and defaults together.
    ///
    /// # Errors
    /// The file cannot be read; a value makes no sense.
    pub fn resolve(args: &DaemonArgs) -> Result<Self> {
        let file = File::read(args.config_file.as_deref())?;
        for name in file.other.keys() {
            if !KNOWN_TO_DOCKERD.contains(&name.as_str()) {
                bail!("configuration file: '{name}' is not a setting of this version");
            }
        }
        let either = |flags: &Vec<String>, listed: Vec<String>| {
            if flags.is_empty() { listed } else { flags.clone() }
        };
        let debug = args.debug || file.debug;
        let log_level = args.log_level.clone().or(file.log_level);
        let level = log_level.unwrap_or_else(|| if debug { "debug" } else { "info" }.to_owned());
        let level = match level.as_str() {
            "debug" | "info" | "warn" | "error" => level,
            "fatal" => "error".to_owned(),
            other => bail!("log level '{other}' is none of debug, info, warn, error"),
        };
        let labels = either(&args.labels, file.labels);
        if let Some(wrong) = labels.iter().find(|l| !l.contains('=') || l.starts_with('=')) {
            bail!("label '{wrong}' is not key=value");
        }
        let generic = either(&args.node_generic_resources, file.node_generic_resources);
        let generic_resources =
            GenericResource::parse_all(&generic).map_err(|why| anyhow::anyhow!(why))?;
        let hosts = either(&args.hosts, file.hosts);
        let init = args.dockerd.init.as_deref().map_or(file.init, is_true);
        let live = args.dockerd.live_restore.as_deref().map_or(file.live_restore, is_true);
        let effective = ["--init", "--live-restore"];
        Ok(Self {
            hosts: if hosts.is_empty() { vec!["unix:///run/shoal.sock".to_owned()] } else { hosts },
            data_root: pick(&args.data_root, file.data_root, "/var/lib/shoal")?,
            exec_root: pick(&args.exec_root, file.exec_root, "/run/shoal")?,
            pidfile: args.pidfile.clone().or(file.pidfile),
            debug,
            log_level: level,
            node_name: args.node_name.clone().or(file.node_name).unwrap_or_else(|| {
                rustix::system::uname().nodename().to_string_lossy().into_owned()
            }),
            labels,
            generic_resources,
            default_advertise: args
                .swarm_default_advertise_addr
                .clone()
                .or(file.swarm_default_advertise_addr),
            cert_expiry_min: args
                .test_min_certificate_expiry
                .map_or(NODE_VALIDITY_MIN, |secs| Duration::from_secs(secs.max(1).into())),
            clock_offset: args.test_clock_offset.unwrap_or(0),
            insecure_registries: either(&args.insecure_registries, file.insecure_registries),
            tls: tls_files(
                args.tls || args.tlsverify || file.tls || file.tlsverify,
                args.tlscacert.clone().or(file.tlscacert),
                args.tlscert.clone().or(file.tlscert),
                args.tlskey.clone().or(file.tlskey),
            )?,
            default_init: init,
            live_restore: live,
            without_effect: args
                .dockerd
                .given()
                .into_iter()
                .filter(|flag| !effective.contains(flag))
                .collect(),
        })
    }
}

impl File {
    fn read(named: Option<&Path>) -> Result<Self> {
        let path = named.unwrap_or(Path::new(DEFAULT_CONFIG));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if named.is_none() && error.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(error) => {
                return Err(error).with_context(|| format!("read '{}'", path.display()));
            }
        };
        serde_json::from_str(&text).with_context(|| format!("understand '{}'", path.display()))
    }
}

/// Paths are made absolute: helpers start in other directories.
fn pick(flag: &Option<PathBuf>, file: Option<PathBuf>, default: &str) -> Result<PathBuf> {
    let chosen = flag.clone().or(file).unwrap_or_else(|| PathBuf::from(default));
    std::path::absolute(&chosen).with_context(|| format!("resolve '{}'", chosen.display()))
}

fn is_true(text: &str) -> bool {
    !matches!(text, "false" | "0" | "no" | "off")
}

fn tls_files(
    wanted: bool,
    ca: Option<PathBuf>,
    cert: Option<PathBuf>,
    key: Option<PathBuf>,
) -> Result<Option<TlsFiles>> {
    match (wanted, ca, cert, key) {
        (false, ..) => Ok(None),
        (true, Some(ca), Some(cert), Some(key)) => Ok(Some(TlsFiles { ca, cert, key })),
        (true, ..) => bail!("TLS needs --tlscacert, --tlscert and --tlskey"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn with_file(text: &str, args: DaemonArgs) -> Result<Settings> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.json");
        std::fs::write(&path, text).unwrap();
        Settings::resolve(&DaemonArgs { config_file: Some(path), ..args })
    }

    #[test]
    fn flags_win_over_the_file() {
        let text = r#"{"hosts":["tcp://127.0.0.1:1"],"debug":true,"labels":["a=b"],
            "storage-driver":"overlay2","live-restore":true,
            "node-generic-resources":["GPU=a","GPU=b","SSD=3"]}"#;
        let flags = DaemonArgs { hosts: vec!["unix:///x".into()], ..DaemonArgs::default() };
        let got = with_file(text, flags).unwrap();
        assert_eq!(got.hosts, ["unix:///x"]);
        assert_eq!((got.log_level.as_str(), got.live_restore), ("debug", true));
        assert_eq!(got.labels, ["a=b"]);
        assert_eq!(got.generic_resources.len(), 3);
        assert_eq!(got.generic_resources[2], GenericResource::discrete("SSD", 3));
    }

    #[test]
    fn mistakes_are_named() {
        for (text, word) in [
            (r#"{"lables":["a=b"]}"#, "lables"),
            (r#"{"labels":["ab"]}"#, "ab"),
            (r#"{"node-generic-resources":["GPU"]}"#, "incorrect term GPU"),
            (r#"{"log-level":"loud"}"#, "loud"),
            (r#"{"tls":true}"#, "--tlscacert"),
            ("{", "daemon.json"),
        ] {
            let error = format!("{:#}", with_file(text, DaemonArgs::default()).unwrap_err());
            assert!(error.contains(word), "{error}");
        }
    }
}
