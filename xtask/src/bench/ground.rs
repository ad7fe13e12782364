//! Where a benchmark happens: a client's network namespace with TAPs for guests, and a server's
//! with a veth, so that both kinds of servers are one hop away. Everything goes with the ground.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::process::Running;
use crate::steps::output;

/// The client's address towards guests, on every TAP (RFC 2544's range: no real network).
pub const GATEWAY: &str = "198.18.0.1";
/// Address of the first guest; the next ones follow.
const GUESTS: u32 = u32::from_be_bytes([198, 18, 1, 0]);
/// The server's address on the veth.
pub const SERVER: &str = "198.19.0.2";

/// See the module.
#[derive(Debug)]
pub struct Ground {
    client: String,
    server: String,
    /// Files of this run.
    pub dir: PathBuf,
    /// The tender's program.
    pub tender: PathBuf,
}

impl Ground {
    /// Makes the namespaces.
    ///
    /// # Errors
    /// If this is not root, or `ip` fails.
    pub fn new(tender: PathBuf) -> Result<Self> {
        let tag = format!("ukb{}", std::process::id());
        let dir = std::env::temp_dir().join(&tag);
        std::fs::create_dir_all(&dir).context("make a folder for the run")?;
        let ground = Self { client: format!("{tag}c"), server: format!("{tag}s"), dir, tender };
        for name in [&ground.client, &ground.server] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        let (client, server) = (&ground.client, &ground.server);
        ip(&[
            "-n", client, "link", "add", "v0", "type", "veth", "peer", "name", "v0", "netns",
            server,
        ])?;
        ip(&["-n", client, "addr", "add", "198.19.0.1/24", "dev", "v0"])?;
        ip(&["-n", server, "addr", "add", &format!("{SERVER}/24"), "dev", "v0"])?;
        ip(&["-n", client, "link", "set", "v0", "up"])?;
        ip(&["-n", server, "link", "set", "v0", "up"])?;
        Ok(ground)
    }

    /// A program in the client's namespace.
    pub fn in_client(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        inside(&self.client, program)
    }

    /// A program in the server's namespace.
    pub fn in_server(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        inside(&self.server, program)
    }

    /// Makes the TAPs of guests `first` to `last`, each a routed port with the gateway's address.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn add_taps(&self, first: u32, last: u32) -> Result<()> {
        let mut lines = String::new();
        for number in first..=last {
            let (tap, address, mac) = (tap(number), address(number), mac(number));
            lines += &format!(
                "tuntap add dev {tap} mode tap vnet_hdr\nlink set {tap} up\n\
                 addr add {GATEWAY}/32 dev {tap}\nroute add {address}/32 dev {tap}\n\
                 neigh replace {address} lladdr {mac} dev {tap} nud permanent\n"
            );
        }
        let file = self.dir.join("taps");
        std::fs::write(&file, lines).context("write the list of TAPs")?;
        ip(&["-n", &self.client, "-batch", &file.to_string_lossy()])
    }

    /// Removes the TAPs of guests `first` to `last`.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn remove_taps(&self, first: u32, last: u32) -> Result<()> {
        let lines: String = (first..=last).map(|n| format!("link del {}\n", tap(n))).collect();
        let file = self.dir.join("taps");
        std::fs::write(&file, lines).context("write the list of TAPs")?;
        ip(&["-n", &self.client, "-batch", &file.to_string_lossy()])
    }

    /// Writes the configuration of guest `number`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn config(&self, number: u32, backend: &str, guest: &Guest<'_>) -> Result<PathBuf> {
        let device = json!({ "net": {
            "attach": { "tap": { "name": tap(number) } },
            "mac": mac(number), "mtu": 1500,
            "ipv4": format!("{}/15", address(number)), "gateway": GATEWAY,
        }});
        let mounts: Vec<Value> = guest
            .mounts
            .iter()
            .map(|(path, source)| json!({ "path": path, "source": source }))
            .collect();
        let mut devices = serde_json::Map::new();
        if let Some(name) = guest.device {
            devices.insert(name.to_owned(), device);
        }
        let config = json!({
            "format": 1, "image": guest.image, "backend": backend,
            "memory_bytes": guest.memory_bytes, "args": guest.args, "hostname": "guest",
            "devices": devices, "mounts": mounts, "uid": 65534, "gid": 65534,
        });
        let file = self.dir.join(format!("{backend}-{number}.json"));
        std::fs::write(&file, config.to_string()).context("write a configuration")?;
        Ok(file)
    }

    /// The command that runs a configuration in the client's namespace.
    pub fn tender_command(&self, config: &Path) -> Command {
        let mut command = self.in_client(&self.tender);
        command.arg(config);
        command
    }

    /// Starts guest `number`, whose TAP is there.
    ///
    /// # Errors
    /// If it cannot be started.
    pub fn start(&self, number: u32, backend: &str, guest: &Guest<'_>) -> Result<Running> {
        let config = self.config(number, backend, guest)?;
        Running::start(&mut self.tender_command(&config))
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for name in [&self.client, &self.server] {
            // Ignored because: what cannot be removed is seen in `ip netns`.
            let _ = ip(&["netns", "del", name]);
        }
        // Ignored because: what stays in the temporary directory harms nobody.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// What a guest is given.
#[derive(Clone, Copy, Debug)]
pub struct Guest<'a> {
    /// The image.
    pub image: &'a Path,
    /// The name of its network device, if it has one.
    pub device: Option<&'a str>,
    /// Its heap.
    pub memory_bytes: u64,
    /// Its arguments.
    pub args: &'a [&'a str],
    /// What it sees as files.
    pub mounts: &'a [(&'a str, &'a Path)],
}

/// Name of a guest's TAP.
fn tap(number: u32) -> String {
    format!("t{number}")
}

/// Address of a guest.
pub fn address(number: u32) -> String {
    std::net::Ipv4Addr::from(GUESTS + number).to_string()
}

fn mac(number: u32) -> String {
    let [_, _, high, low] = number.to_be_bytes();
    format!("02:00:00:00:{high:02x}:{low:02x}")
}

fn inside(namespace: &str, program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net=/run/netns/{namespace}")).arg("--").arg(program);
    command
}

fn ip(args: &[&str]) -> Result<()> {
    output(Command::new("ip").args(args)).map(drop)
}
