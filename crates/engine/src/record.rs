//! The durable record of a container: one JSON file, replaced atomically.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shoal_model::id::ContainerId;
use shoal_model::spec::container::{ContainerConfig, HostConfig, NetworkingConfig};
use shoal_model::time::Timestamp;

use crate::attacher::{Attachment, TaskAttachment};
use crate::change::Phase;
use crate::error::EngineError;
use crate::mounts::MountRecord;
use crate::unikernel::Workload;
use crate::view::container::Health;

/// The format of the record. A daemon refuses records of a later one.
pub(crate) const RECORD_VERSION: u32 = 1;

/// The record's file in the container's directory.
pub(crate) const RECORD_FILE: &str = "record.json";

/// Everything that must survive a daemon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// [`RECORD_VERSION`] of the writer.
    pub version: u32,
    pub id: ContainerId,
    /// Without a slash.
    pub name: String,
    pub created: Timestamp,
    /// `sha256:…`.
    pub image_id: String,
    /// As the client wrote it.
    pub image: String,
    /// Image and request merged.
    pub config: ContainerConfig,
    /// With defaults filled in.
    pub host: HostConfig,
    pub networking: NetworkingConfig,
    pub mounts: Vec<MountRecord>,
    #[serde(default)]
    pub task: Option<TaskAttachment>,
    /// What the image holds.
    #[serde(default)]
    pub workload: Workload,
    pub run: RunRecord,
}

/// What changes during a container's life.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RunRecord {
    pub phase: Phase,
    pub pid: u32,
    pub exit_code: i64,
    pub error: String,
    pub oom_killed: bool,
    pub started_at: Timestamp,
    pub finished_at: Timestamp,
    /// How often the engine started it again.
    pub restarts: i64,
    /// Ends in a row that came too soon; decides the pause before the next start.
    pub quick_ends: u32,
    /// A user stopped it, so `unless-stopped` does not start it again.
    pub stopped_by_user: bool,
    pub health: Option<Health>,
    pub attachment: Option<Attachment>,
}

impl Record {
    /// Whether it has a terminal.
    pub fn tty(&self) -> bool {
        self.config.tty.unwrap_or(false)
    }

    /// Program and arguments.
    pub fn argv(&self) -> Vec<String> {
        let list = |words: &Option<shoal_model::spec::container::Words>| {
            words.as_ref().map(|w| w.list()).unwrap_or_default()
        };
        let mut argv = list(&self.config.entrypoint);
        argv.extend(list(&self.config.cmd));
        argv
    }

    /// What its network is: `bridge`, `host`, `none`, `container:<id>` or a network.
    pub fn network_mode(&self) -> &str {
        match self.host.network_mode.as_deref() {
            None | Some("" | "default") => "bridge",
            Some(mode) => mode,
        }
    }

    /// The container whose network it shares.
    pub fn shares_network_of(&self) -> Option<&str> {
        self.network_mode().strip_prefix("container:")
    }

    /// Whether it is removed when it ends.
    pub fn auto_remove(&self) -> bool {
        self.host.auto_remove.unwrap_or(false)
    }
}

/// Reads the record in `dir`.
pub(crate) fn read(dir: &Path) -> Result<Record, EngineError> {
    let path = dir.join(RECORD_FILE);
    let bytes = fs::read(&path).map_err(EngineError::io("read", &path))?;
    let bad = |source: crate::error::Cause| EngineError::Record { path: path.clone(), source };
    let version: VersionOnly = serde_json::from_slice(&bytes).map_err(|e| bad(Box::new(e)))?;
    if version.version > RECORD_VERSION {
        let text = format!(
            "it has format version {}, this daemon knows {RECORD_VERSION}",
            version.version
        );
        return Err(bad(text.into()));
    }
    serde_json::from_slice(&bytes).map_err(|e| bad(Box::new(e)))
}

#[derive(Deserialize)]
struct VersionOnly {
    version: u32,
}

/// Replaces the file `name` in `dir` by `bytes`: after a crash there is the old one or the new one.
/// Blocks.
pub(crate) fn replace_file(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
    let path = dir.join(name);
    let scratch = dir.join(format!(".{name}.new"));
    let write = || -> io::Result<()> {
        let mut file = fs::File::create(&scratch)?;
        file.write_all(bytes)?;
        file.sync_data()?;
        fs::rename(&scratch, &path)
    };
    write().map_err(EngineError::io("write", path.clone()))
}

/// Writes `record` into `dir`. Blocks.
pub(crate) fn write(dir: &Path, record: &Record) -> Result<(), EngineError> {
    let path = || dir.join(RECORD_FILE);
    let bytes = serde_json::to_vec_pretty(record)
        .map_err(|e| EngineError::Record { path: path(), source: Box::new(e) })?;
    replace_file(dir, RECORD_FILE, &bytes)
}

/// Where a container's things are below its directory.
pub(crate) struct Files<'a>(pub &'a Path);

impl Files<'_> {
    /// What the container wrote over its image.
    pub fn upper(&self) -> PathBuf {
        self.0.join("upper")
    }
    /// Overlayfs's own directory.
    pub fn work(&self) -> PathBuf {
        self.0.join("work")
    }
    /// Its `/etc/hosts`.
    pub fn hosts(&self) -> PathBuf {
        self.0.join("hosts")
    }
    /// Its `/etc/hostname`.
    pub fn hostname(&self) -> PathBuf {
        self.0.join("hostname")
    }
    /// Its `/etc/resolv.conf`.
    pub fn resolv_conf(&self) -> PathBuf {
        self.0.join("resolv.conf")
    }
    /// What a unikernel's tender wrote down when it crashed.
    pub fn crash(&self) -> PathBuf {
        self.0.join("crash.json")
    }
    /// Its log.
    pub fn log(&self, id: &ContainerId) -> PathBuf {
        self.0.join(format!("{id}-json.log"))
    }
}
