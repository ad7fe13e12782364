//! What the daemon says of itself and its machine.

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::Value;
use shoal_model::check::CheckResult;
use shoal_model::event::Event;
use shoal_model::filter::Filters;
use shoal_model::spec::generic::GenericResource;
use shoal_model::time::Timestamp;

use crate::error::ApiResult;

/// What this daemon is and runs on; fixed at its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The daemon's version.
    pub version: String,
    /// The commit that it was built from.
    pub commit: String,
    /// `info.ID`.
    pub id: String,
    /// The node's name: host name or `--node-name`.
    pub name: String,
    /// `name=value`.
    pub labels: Vec<String>,
    /// `--node-generic-resource`.
    pub generic_resources: Vec<GenericResource>,
    /// For example `6.8.0`.
    pub kernel: String,
    /// For example `Debian GNU/Linux 12 (bookworm)`.
    pub os: String,
    /// `VERSION_ID` of the operating system.
    pub os_version: String,
    /// As the kernel says it: `x86_64`.
    pub architecture: String,
    /// CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory: u64,
    /// Where durable things are.
    pub data_root: String,
    /// Whether it logs details.
    pub debug: bool,
    /// Registries that may be spoken to without TLS.
    pub insecure_registries: Vec<String>,
    /// When it began.
    pub started_at: Timestamp,
    /// Whether containers get an init process when they do not say.
    pub default_init: bool,
    /// How unikernels can run here, the preferred way first, and what is known of each.
    pub unikernel_backends: Vec<(String, String)>,
}

/// Which events a reader wants.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EventQuery {
    /// Past events from this time on.
    pub since: Option<Timestamp>,
    /// The stream ends at this time.
    pub until: Option<Timestamp>,
    /// Which kinds, objects, actions and labels.
    pub filters: Filters,
}

/// What happened on this node, and in the cluster as far as this node hears of it.
pub trait EventBackend: Send + Sync {
    /// Past events that are still held, then new ones, as the query says.
    ///
    /// # Errors
    /// 400 for a filter that is not known.
    fn subscribe(&self, query: EventQuery) -> ApiResult<BoxStream<'static, Event>>;
    /// Records an event of the cluster, so that readers with `since` find it.
    fn publish(&self, event: Event);
}

/// Checks and the state of the data plane.
#[async_trait]
pub trait Diagnostics: Send + Sync {
    /// Runs this node's checks.
    ///
    /// # Errors
    /// 500 if they cannot be run.
    async fn checks(&self) -> ApiResult<Vec<CheckResult>>;
    /// The state of the node's data plane, for `/shoal/network`.
    ///
    /// # Errors
    /// 503 if there is none.
    async fn network(&self) -> ApiResult<Value>;
    /// What of this node's state is damaged, and what it owes and tries again; one text each.
    async fn warnings(&self) -> Vec<String>;
    /// Open descriptors and tasks of the daemon, for `info` with debug: `(fds, tasks)`.
    fn load(&self) -> (u64, u64) {
        (0, 0)
    }
}
