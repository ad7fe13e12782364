//! Makes shims, finds them again after a restart, and removes what dead ones left.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use shoal_model::id::{ContainerId, InstanceId};
use tokio::process::Command;
use tokio::time::timeout;

use crate::cgroup::Cgroup;
use crate::client::{Shim, is_locked};
use crate::error::RuntimeError;
use crate::plan::{ContainerPlan, FORMAT_VERSION};
use crate::protocol::ExitStatus;
use crate::unikernel;

/// The plan in a shim's directory.
pub(crate) const PLAN_FILE: &str = "plan.json";
/// The socket in a shim's directory.
pub(crate) const SOCKET_FILE: &str = "shim.sock";
/// Held locked by a shim as long as it lives.
pub(crate) const LOCK_FILE: &str = "lock";
/// Written when the container has ended.
pub(crate) const EXIT_FILE: &str = "exit.json";
/// Where a shim's own complaints go; it has no others than a panic.
pub(crate) const STDERR_FILE: &str = "shim.err";

/// How long the helper may take until it serves. It does nothing but bind a socket; a machine that
/// needs longer than this is out of memory.
const LAUNCH_DEADLINE: Duration = Duration::from_secs(20);

/// Where and how containers are run.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// This daemon's instance: the parent of its cgroups is `shoal-<instance>`.
    pub instance: InstanceId,
    /// The daemon's run-time directory; shims live in `shims/` below it.
    pub exec_root: PathBuf,
    /// Program and first arguments that run the helper; the shim's directory is appended:
    /// `["/proc/self/exe", "shim"]`.
    pub helper: Vec<OsString>,
    /// Program and first arguments that run a unikernel; its configuration is appended. Empty:
    /// unikernels are refused.
    pub tender: Vec<String>,
}

/// Runs containers. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ContainerRuntime {
    config: Arc<RuntimeConfig>,
}

/// What a dead shim left behind, found by [`ContainerRuntime::sweep`].
#[derive(Clone, Debug, PartialEq)]
pub struct Leftover {
    /// Whose.
    pub id: ContainerId,
    /// How the container ended, if the shim could still record it.
    pub exit: Option<ExitStatus>,
}

impl ContainerRuntime {
    /// A runtime; makes its directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(config: RuntimeConfig) -> io::Result<Self> {
        let runtime = Self { config: Arc::new(config) };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(runtime.shims())?;
        Ok(runtime)
    }

    /// Where the shims' directories are.
    #[must_use]
    pub fn shims(&self) -> PathBuf {
        self.config.exec_root.join("shims")
    }

    /// Starts a shim for `plan`. The container itself is made by [`Shim::start`]; clients can be
    /// attached before that.
    ///
    /// # Errors
    /// [`RuntimeError::Exists`], or the helper cannot be run.
    pub async fn create(&self, plan: &ContainerPlan) -> Result<Shim, RuntimeError> {
        let mut plan = plan.clone();
        plan.version = FORMAT_VERSION;
        if plan.cgroup_path.is_empty() {
            plan.cgroup_path = format!("shoal-{}/{}", self.config.instance, plan.id);
        }
        if let Some(unikernel) = &mut plan.unikernel
            && unikernel.tender.is_empty()
        {
            unikernel.tender.clone_from(&self.config.tender);
        }
        let dir = self.shims().join(plan.id.as_str());
        if let Err(source) = fs::DirBuilder::new().mode(0o700).create(&dir) {
            let container = plan.id.clone();
            return Err(match source.kind() {
                io::ErrorKind::AlreadyExists => RuntimeError::Exists { container },
                _ => RuntimeError::File { action: "make", path: dir, container, source },
            });
        }
        let result = self.launch(&dir, &plan).await;
        if result.is_err() {
            // Ignored because: the launch's own error says more, and the next sweep tries again.
            let _ = tokio::fs::remove_dir_all(&dir).await;
        }
        result.map(|()| Shim::new(dir, plan))
    }

    async fn launch(&self, dir: &Path, plan: &ContainerPlan) -> Result<(), RuntimeError> {
        let path = dir.join(PLAN_FILE);
        // Cannot fail: the plan has text keys only.
        let text = serde_json::to_vec(plan).unwrap_or_default();
        let written = async {
            tokio::fs::write(&path, text).await?;
            unikernel::write_config(dir, plan).await
        };
        written.await.map_err(|source| RuntimeError::File {
            action: "write",
            path: path.clone(),
            container: plan.id.clone(),
            source,
        })?;
        let fail = |source| RuntimeError::Launch { container: plan.id.clone(), source };
        let (program, arguments) = self
            .config
            .helper
            .split_first()
            .ok_or_else(|| fail(io::Error::other("no helper program is configured")))?;
        let output = Command::new(program)
            .args(arguments)
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .output();
        let output = timeout(LAUNCH_DEADLINE, output)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(fail)?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(fail(io::Error::other(format!("it ended with {}: {said}", output.status))))
    }

    /// Finds the shim of a container again, alive or ended.
    ///
    /// # Errors
    /// [`RuntimeError::NotFound`], or its plan cannot be read.
    pub async fn connect(&self, id: &ContainerId) -> Result<Shim, RuntimeError> {
        let dir = self.shims().join(id.as_str());
        let path = dir.join(PLAN_FILE);
        let fail = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => RuntimeError::NotFound { container: id.clone() },
            _ => RuntimeError::File {
                action: "read",
                path: path.clone(),
                container: id.clone(),
                source,
            },
        };
        let text = tokio::fs::read(&path).await.map_err(fail)?;
        let plan: ContainerPlan = serde_json::from_slice(&text)
            .map_err(|e| fail(io::Error::new(io::ErrorKind::InvalidData, e)))?;
        Ok(Shim::new(dir, plan))
    }

    /// The containers that have a shim's directory, alive or not.
    ///
    /// # Errors
    /// The directory cannot be read.
    pub fn list(&self) -> io::Result<Vec<ContainerId>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(self.shims())? {
            let name = entry?.file_name();
            ids.push(ContainerId::new(name.to_string_lossy().into_owned()));
        }
        ids.sort();
        Ok(ids)
    }

    /// For the daemon's start: kills what shims that died have left running and removes their
    /// cgroups, so that nothing runs unobserved. Directories stay until [`Shim::delete`], because a
    /// shim that ended properly recorded its container's exit status there. Blocks.
    ///
    /// # Errors
    /// A directory cannot be read, or processes cannot be killed.
    pub fn sweep(&self) -> Result<Vec<Leftover>, RuntimeError> {
        let shims = self.shims();
        let ids = self.list().map_err(|source| RuntimeError::File {
            action: "read",
            path: shims.clone(),
            container: ContainerId::new("*"),
            source,
        })?;
        let parent = format!("shoal-{}", self.config.instance);
        let mut found = Vec::new();
        for id in ids.iter().filter(|id| !is_locked(&shims.join(id.as_str()))) {
            let record = Shim::new(shims.join(id.as_str()), plan_of(id)).record()?;
            let exit = record.and_then(|state| state.exit);
            self.kill(&format!("{parent}/{id}"), id)?;
            found.push(Leftover { id: id.clone(), exit });
        }
        for name in Cgroup::children(&parent) {
            if !shims.join(&name).exists() {
                let id = ContainerId::new(name.clone());
                self.kill(&format!("{parent}/{name}"), &id)?;
                found.push(Leftover { id, exit: None });
            }
        }
        Ok(found)
    }

    fn kill(&self, path: &str, id: &ContainerId) -> Result<(), RuntimeError> {
        let fail =
            |source| RuntimeError::Cgroup { action: "remove", container: id.clone(), source };
        Cgroup::open(path).map_err(fail)?.kill_and_remove().map_err(fail)
    }
}

fn plan_of(id: &ContainerId) -> ContainerPlan {
    ContainerPlan { id: id.clone(), ..ContainerPlan::default() }
}
