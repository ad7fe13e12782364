//! What the tender is told to run: one JSON file, `format` 1.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::TenderError;

/// The only value of [`Config::format`].
pub const FORMAT: u32 = 1;
/// Most bytes of a configuration file: far more than any real one.
const CONFIG_BYTES_MAX: u64 = 4 << 20;
/// Most mounts: each is an entry of a table that the guest searches one by one.
pub const MOUNTS_MAX: usize = 32;
/// Most bytes of arguments, and of the environment, together with their zero bytes.
pub const STRINGS_BYTES_MAX: usize = 128 * 1024;
/// Smallest heap that can be asked for.
pub const MEMORY_BYTES_MIN: u64 = 64 * 1024;
/// Largest heap that can be asked for: what one draw of the address space has room for.
pub const MEMORY_BYTES_MAX: u64 = 1 << 40;

/// One instance, completely described.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// [`FORMAT`].
    pub format: u32,
    /// The image file. It must not change while instances run: they map it.
    pub image: PathBuf,
    /// Where the guest runs.
    #[serde(default)]
    pub backend: BackendChoice,
    /// Size of the heap in bytes; rounded up to whole pages.
    pub memory_bytes: u64,
    /// Arguments; the first is the program's name.
    #[serde(default)]
    pub args: Vec<String>,
    /// Environment, each `KEY=value`.
    #[serde(default)]
    pub env: Vec<String>,
    /// Host name that the guest is told.
    #[serde(default)]
    pub hostname: String,
    /// What is attached to each device of the image's manifest, by the device's name.
    #[serde(default)]
    pub devices: BTreeMap<String, DeviceConfig>,
    /// Files that the guest sees, read-only.
    #[serde(default)]
    pub mounts: Vec<MountConfig>,
    /// Where a crash record is written, beside standard error.
    #[serde(default)]
    pub crash_file: Option<PathBuf>,
    /// Where counters and captured frames can be read, see [`crate::stats`]; on a tmpfs.
    #[serde(default)]
    pub stats_file: Option<PathBuf>,
    /// User that the tender becomes.
    #[serde(default)]
    pub uid: Option<u32>,
    /// Group that the tender becomes.
    #[serde(default)]
    pub gid: Option<u32>,
    /// For how many microseconds devices are polled before the tender sleeps. 0: not at all.
    #[serde(default)]
    pub busy_poll_us: u32,
    /// What happens where the kernel lets this user make no empty root.
    #[serde(default)]
    pub jail: JailChoice,
}

/// Where the guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackendChoice {
    /// A virtual machine where there is KVM that this user may open, else a process.
    #[default]
    Auto,
    /// A virtual machine.
    Kvm,
    /// A seccomp-locked process.
    Process,
}

/// How much of the jail is needed. The system call filter always is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JailChoice {
    /// Empty root if the tender runs as root, else as far as the kernel lets this user.
    #[default]
    Auto,
    /// Refuses to run without an empty root.
    Full,
}

/// What is attached to a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum DeviceConfig {
    /// A network interface.
    Net(NetConfig),
    /// A file or block device of the host.
    Block(BlockConfig),
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetConfig {
    /// Where frames come from and go to.
    pub attach: Attach,
    /// Hardware address.
    pub mac: Mac,
    /// Largest IP packet in bytes.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Own address and length of its network's prefix.
    #[serde(default)]
    pub ipv4: Option<Ipv4Prefix>,
    /// Gateway.
    #[serde(default)]
    pub gateway: Option<Ipv4Addr>,
    /// Name servers, at most three.
    #[serde(default)]
    pub dns: Vec<Ipv4Addr>,
}

const fn default_mtu() -> u16 {
    1500
}

/// Where frames come from and go to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Attach {
    /// An existing TAP interface.
    Tap {
        /// File of the network namespace that it is in, if not the tender's own.
        #[serde(default)]
        netns: Option<PathBuf>,
        /// Its name.
        name: String,
    },
    /// An open file that the tender inherits: a TAP with `IFF_VNET_HDR`, or a Unix socket that
    /// keeps the bounds of messages, each one a 12-byte `virtio_net_hdr_v1` and a frame.
    Fd {
        /// Its number.
        number: i32,
        /// Whether the peer takes unfinished checksums and frames longer than the MTU.
        #[serde(default)]
        offload: bool,
    },
}

/// A file or block device of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BlockConfig {
    /// The file. Its size, rounded down to whole sectors, is the device's.
    pub path: PathBuf,
    /// Whether writes are refused.
    #[serde(default)]
    pub read_only: bool,
}

/// Files that the guest sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MountConfig {
    /// Absolute path in the guest.
    pub path: String,
    /// A tar archive (POSIX ustar), or a folder that the tender packs into one before it starts.
    pub source: PathBuf,
}

/// A hardware address, written `02:00:5e:10:00:01`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Mac(pub [u8; 6]);

/// An address and the length of its network's prefix, written `10.0.0.2/24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Ipv4Prefix {
    /// The address.
    pub address: Ipv4Addr,
    /// Bits, at most 32.
    pub len: u8,
}

/// A text that is no hardware address, or no address with a prefix.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not of the form '{form}'")]
pub struct AddressError {
    text: String,
    form: &'static str,
}

impl FromStr for Mac {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError { text: text.to_owned(), form: "02:00:5e:10:00:01" };
        let mut mac = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut mac {
            let part = parts.next().ok_or_else(wrong)?;
            if part.len() != 2 || !part.bytes().all(|c| c.is_ascii_hexdigit()) {
                return Err(wrong());
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        if parts.next().is_some() { Err(wrong()) } else { Ok(Self(mac)) }
    }
}

impl FromStr for Ipv4Prefix {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let wrong = || AddressError { text: text.to_owned(), form: "10.0.0.2/24" };
        let (address, len) = text.split_once('/').ok_or_else(wrong)?;
        let address = address.parse().map_err(|_| wrong())?;
        let len = len.parse().map_err(|_| wrong())?;
        if len > 32 { Err(wrong()) } else { Ok(Self { address, len }) }
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.len)
    }
}

impl TryFrom<String> for Mac {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl TryFrom<String> for Ipv4Prefix {
    type Error = AddressError;
    fn try_from(text: String) -> Result<Self, AddressError> {
        text.parse()
    }
}

impl From<Mac> for String {
    fn from(mac: Mac) -> Self {
        mac.to_string()
    }
}

impl From<Ipv4Prefix> for String {
    fn from(prefix: Ipv4Prefix) -> Self {
        prefix.to_string()
    }
}

impl Config {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// [`TenderError::ReadConfig`], [`TenderError::ParseConfig`], [`TenderError::CheckConfig`].
    pub fn read(path: &Path) -> Result<Self, TenderError> {
        let read = |source| TenderError::ReadConfig { path: path.to_owned(), source };
        let len = std::fs::metadata(path).map_err(read)?.len();
        if len > CONFIG_BYTES_MAX {
            return Err(TenderError::CheckConfig { reason: format!("it has {len} bytes") });
        }
        Self::parse(&std::fs::read(path).map_err(read)?)
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    /// [`TenderError::ParseConfig`], [`TenderError::CheckConfig`].
    pub fn parse(text: &[u8]) -> Result<Self, TenderError> {
        let config: Self =
            serde_json::from_slice(text).map_err(|source| TenderError::ParseConfig { source })?;
        config.check().map_err(|reason| TenderError::CheckConfig { reason })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        if self.format != FORMAT {
            return Err(format!("its format is {}, this tender reads {FORMAT}", self.format));
        }
        if !(MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&self.memory_bytes) {
            return Err(format!(
                "memory_bytes is {}, not {MEMORY_BYTES_MIN} to {MEMORY_BYTES_MAX}",
                self.memory_bytes
            ));
        }
        for (what, strings) in [("args", &self.args), ("env", &self.env)] {
            let bytes: usize = strings.iter().map(|s| s.len() + 1).sum();
            if bytes > STRINGS_BYTES_MAX {
                return Err(format!("{what} have {bytes} bytes, more than {STRINGS_BYTES_MAX}"));
            }
            if strings.iter().any(|s| s.contains('\0')) {
                return Err(format!("{what} contain a zero byte"));
            }
        }
        if self.hostname.len() > 253 {
            return Err("hostname is longer than 253 bytes".to_owned());
        }
        if self.mounts.len() > MOUNTS_MAX {
            return Err(format!("{} mounts, more than {MOUNTS_MAX}", self.mounts.len()));
        }
        if let Some(mount) = self.mounts.iter().find(|m| !m.path.starts_with('/')) {
            return Err(format!("the mount path '{}' is not absolute", mount.path));
        }
        for (name, device) in &self.devices {
            let DeviceConfig::Net(net) = device else { continue };
            if net.dns.len() > 3 {
                return Err(format!("device '{name}' has more than 3 name servers"));
            }
            if !(576..=65_535).contains(&net.mtu) {
                return Err(format!("device '{name}' has mtu {}, not 576 to 65535", net.mtu));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_configuration_is_read_and_written_alike() {
        let text = br#"{"format":1,"image":"/i","backend":"kvm","memory_bytes":1048576,
            "args":["web"],"env":["A=b"],"hostname":"h","devices":{
            "net0":{"net":{"attach":{"tap":{"netns":"/run/netns/x","name":"t0"}},
              "mac":"02:00:00:00:00:0a","mtu":1400,"ipv4":"10.0.0.2/24","gateway":"10.0.0.1",
              "dns":["10.0.0.1"]}},
            "net1":{"net":{"attach":{"fd":{"number":5}},"mac":"02:00:00:00:00:0b"}},
            "disk":{"block":{"path":"/d"}}},
            "mounts":[{"path":"/etc","source":"/m.tar"}],"crash_file":"/c","stats_file":"/s",
            "uid":1,"gid":2,"busy_poll_us":50,"jail":"full"}"#;
        let config = Config::parse(text).unwrap();
        let DeviceConfig::Net(net) = &config.devices["net0"] else { panic!() };
        assert_eq!(net.mac.0, [2, 0, 0, 0, 0, 10]);
        assert_eq!(net.ipv4.unwrap().len, 24);
        let again = Config::parse(&serde_json::to_vec(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let base = r#"{"format":1,"image":"/i","memory_bytes":1048576"#;
        for rest in [
            r#","format":2}"#,
            r#","unknown":1}"#,
            r#","args":["a\u0000b"]}"#,
            r#","mounts":[{"path":"etc","source":"/x"}]}"#,
            r#","devices":{"n":{"net":{"attach":{"fd":{"number":1}},"mac":"02:00"}}}}"#,
            r#","devices":{"n":{"net":{"attach":{"fd":{"number":1}},
                "mac":"02:00:00:00:00:01","ipv4":"1.2.3.4/33"}}}}"#,
        ] {
            let text = format!("{base}{rest}");
            assert!(Config::parse(text.as_bytes()).is_err(), "{text}");
        }
        assert!(Config::parse(format!("{base}}}").as_bytes()).is_ok());
    }

    #[test]
    fn what_is_more_than_there_may_be_is_refused() {
        let base = Config::parse(br#"{"format":1,"image":"/i","memory_bytes":1048576}"#).unwrap();
        let verdict = |change: &dyn Fn(&mut Config)| {
            let mut config = base.clone();
            change(&mut config);
            config.check()
        };
        for bytes in [MEMORY_BYTES_MIN, MEMORY_BYTES_MAX] {
            assert_eq!(verdict(&|config| config.memory_bytes = bytes), Ok(()));
        }
        for bytes in [MEMORY_BYTES_MIN - 1, MEMORY_BYTES_MAX + 1] {
            assert!(verdict(&|config| config.memory_bytes = bytes).is_err(), "{bytes}");
        }
        // With its zero byte.
        let line = |bytes: usize| vec!["x".repeat(bytes - 1)];
        assert_eq!(verdict(&|config| config.env = line(STRINGS_BYTES_MAX)), Ok(()));
        assert!(verdict(&|config| config.env = line(STRINGS_BYTES_MAX + 1)).is_err());
        assert!(verdict(&|config| config.args = line(STRINGS_BYTES_MAX + 1)).is_err());
        let mounts = |count: usize| {
            let mount = MountConfig { path: "/m".to_owned(), source: PathBuf::from("/s") };
            vec![mount; count]
        };
        assert_eq!(verdict(&|config| config.mounts = mounts(MOUNTS_MAX)), Ok(()));
        assert!(verdict(&|config| config.mounts = mounts(MOUNTS_MAX + 1)).is_err());
    }
}
