//! The durable record of a container: one JSON file, replaced atomically.

use std::path::{Path, PathBuf};

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use shoal_life::container::policy::{AtEnd, Policy, Rules};
use shoal_life::container::{
    Holding, Intent, Process, Retry, Stage, Starter, State, Stopper, Volumes,
};
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

/// The longest record that is read: an environment has at most 2 MiB, and everything else is small.
const RECORD_BYTES_MAX: u64 = 16 << 20;

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
    /// How far its life has come, and what is owed; `phase` is what others see of it.
    pub life: State,
    /// How often the engine started it again; a copy of what is in `life`.
    pub restarts: i64,
    /// As earlier versions write it; read only where there is no `life`.
    #[serde(skip_serializing)]
    pub quick_ends: u32,
    /// As earlier versions write it; read only where there is no `life`.
    #[serde(skip_serializing)]
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

impl RunRecord {
    /// Takes a new state of its life, and shows it.
    pub fn adopt(&mut self, life: State) {
        let ran = self.started_at != Timestamp::ZERO;
        let resting = if ran { Phase::Exited } else { Phase::Created };
        self.phase = match (life.stage, life.intent) {
            (Stage::Running(Process::Alive), _) => Phase::Running,
            (Stage::Running(Process::Frozen), _) => Phase::Paused,
            (Stage::Remove(_) | Stage::Gone, _) => Phase::Removing,
            (Stage::Dead(_), _) => Phase::Dead,
            (_, Intent::Again(_)) => Phase::Restarting,
            (Stage::Start(_), _) if life.starter == Starter::Policy => Phase::Restarting,
            (Stage::Rest | Stage::Start(_) | Stage::Clean(_), _) => resting,
        };
        self.restarts = life.restarts;
        self.life = life;
    }

    /// The life of a container as far as records of earlier versions tell.
    fn earlier_life(&self) -> State {
        let held = |there: bool| if there { Holding::Held } else { Holding::Free };
        let alive = self.phase.is_alive();
        let (stage, intent) = match self.phase {
            Phase::Running if self.stopped_by_user => {
                (Stage::Running(Process::Alive), Intent::Rest)
            }
            Phase::Running => (Stage::Running(Process::Alive), Intent::Run),
            Phase::Paused => (Stage::Running(Process::Frozen), Intent::Run),
            Phase::Restarting => (Stage::Rest, Intent::Again(Timestamp::ZERO)),
            Phase::Removing | Phase::Dead => {
                (Stage::Remove(Retry::default()), Intent::Remove(Volumes::Keep))
            }
            Phase::Created | Phase::Exited => (Stage::Rest, Intent::Rest),
        };
        State {
            stage,
            intent,
            stopper: if self.stopped_by_user { Stopper::User } else { Stopper::Nobody },
            network: held(alive || self.attachment.is_some()),
            shim: held(alive),
            files: held(alive),
            restarts: self.restarts,
            quick_ends: self.quick_ends,
            ..State::default()
        }
    }
}

impl Record {
    /// What its configuration says about ends.
    pub fn rules(&self) -> Rules {
        let policy = self.host.restart_policy.as_ref();
        let policy = policy.map_or(Policy::No, |policy| match policy.name.as_str() {
            "always" => Policy::Always,
            "unless-stopped" => Policy::UnlessStopped,
            "on-failure" => Policy::OnFailure(policy.maximum_retry_count),
            _ => Policy::No,
        });
        let at_end = if self.auto_remove() { AtEnd::Remove } else { AtEnd::Keep };
        Rules { policy, at_end }
    }
}

/// Reads the record in `dir`.
pub(crate) fn read(dir: &Path) -> Result<Record, EngineError> {
    let path = dir.join(RECORD_FILE);
    let bytes = shoal_durable::read(&path, RECORD_BYTES_MAX)
        .map_err(EngineError::io("read", &path))?
        .ok_or_else(|| EngineError::io("read", &path)(std::io::ErrorKind::NotFound.into()))?;
    let bad = |source: crate::error::Cause| EngineError::Record { path: path.clone(), source };
    let outline: Outline = serde_json::from_slice(&bytes).map_err(|e| bad(Box::new(e)))?;
    if outline.version > RECORD_VERSION {
        let text = format!(
            "it has format version {}, this daemon knows {RECORD_VERSION}",
            outline.version
        );
        return Err(bad(text.into()));
    }
    let mut record: Record = serde_json::from_slice(&bytes).map_err(|e| bad(Box::new(e)))?;
    if outline.run.life.is_none() {
        record.run.life = record.run.earlier_life();
    }
    if dir.file_name().is_none_or(|name| name != record.id.as_str()) {
        return Err(bad(format!("it is the record of container {}", record.id).into()));
    }
    Ok(record)
}

/// What decides how the rest of a record is read.
#[derive(Deserialize)]
struct Outline {
    version: u32,
    run: RunOutline,
}

#[derive(Deserialize)]
struct RunOutline {
    life: Option<IgnoredAny>,
}

/// Writes `record` into `dir`, in the space that the one before had: that a container is stopped
/// must be remembered on a full disk too. Blocks.
pub(crate) fn write(dir: &Path, record: &Record) -> Result<(), EngineError> {
    let path = dir.join(RECORD_FILE);
    shoal_durable::replace_json_in_spare(&path, record).map_err(EngineError::io("write", path))
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
