//! What the composition root passes in.

use std::path::PathBuf;
use std::sync::Arc;

use shoal_model::id::InstanceId;
use shoal_model::time::Timestamp;

pub use shoal_model::time::Clock;

/// The system's clock.
#[must_use]
pub fn system_clock() -> Clock {
    Arc::new(|| {
        let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let nanos = since.map_or(0, |span| span.as_nanos());
        Timestamp(i64::try_from(nanos).unwrap_or(i64::MAX))
    })
}

/// Where the engine keeps its things, and what it tells containers.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// The daemon's data root: `containers/` and `volumes/` are made in it.
    pub data_root: PathBuf,
    /// The daemon's run-time root: `shims/` and `mounts/` are made in it.
    pub exec_root: PathBuf,
    /// The daemon's instance: names the cgroup parent.
    pub instance: InstanceId,
    /// Whether containers get an init process when they do not say.
    pub default_init: bool,
}
