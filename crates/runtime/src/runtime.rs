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

use crate::cgroup::{Cgroup, Layout};
use crate::client::{Shim, is_locked};
use crate::container_plan::{ContainerPlan, FORMAT_VERSION};
use crate::error::RuntimeError;
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

/// The longest plan that is read: an environment may have the kernel's 2 MiB, escaped.
const PLAN_BYTES_MAX: u64 = 32 << 20;

/// What a dead shim left behind, found by [`ContainerRuntime::sweep`].
#[derive(Clone, Debug, PartialEq)]
pub struct Leftover {
    /// Whose.
    pub id: ContainerId,
    /// How the container ended, if the shim could still record it.
    pub exit: Option<ExitStatus>,
}

/// Something in the directory of shims that is not as a daemon left it. It concerns at most one
/// container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What.
    pub path: PathBuf,
    /// Whose, if it is a shim's directory.
    pub container: Option<ContainerId>,
    /// What is wrong with it, as a chain of causes.
    pub problem: String,
}

/// What [`ContainerRuntime::sweep`] did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Swept {
    /// Containers that no shim observes any more.
    pub leftovers: Vec<Leftover>,
    /// What it could not do.
    pub damages: Vec<Damage>,
}

impl ContainerRuntime {
    /// A runtime; makes its directory.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new(config: RuntimeConfig) -> io::Result<Self> {
        let runtime = Self { config: Arc::new(config) };
        shoal_durable::make_private_dir(&runtime.shims())?;
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
            plan.cgroup_path = self.cgroup_path(&plan.id);
        }
        // So that not every shim reads the whole table of mounts, which grows with the containers.
        // Ignored because: without hierarchies the shim says so itself.
        plan.cgroups = Layout::of_this_machine().ok();
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
        let shim = Shim::new(dir, plan);
        match result {
            Ok(()) => Ok(shim),
            Err(error) => {
                // It may have left a shim: its launcher was killed, or too slow.
                // Ignored because: the launch's own error says more; what stays is seen by the next
                // launch, and by the next sweep.
                let _ = shim.delete().await;
                Err(error)
            }
        }
    }

    async fn launch(&self, dir: &Path, plan: &ContainerPlan) -> Result<(), RuntimeError> {
        let path = dir.join(PLAN_FILE);
        check(plan)?;
        let written = async {
            // Below the run-time directory nothing survives the machine, so nothing is synced; half
            // a plan has no shim yet, and the next sweep removes it.
            write_private(&path, &serde_json::to_vec(plan)?).await?;
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
    /// [`RuntimeError::NotFound`], or its plan cannot be read: then nobody knows what runs there,
    /// and only [`Self::remove`] is left.
    pub async fn connect(&self, id: &ContainerId) -> Result<Shim, RuntimeError> {
        let dir = self.shims().join(id.as_str());
        let path = dir.join(PLAN_FILE);
        let read = {
            let (dir, path) = (dir.clone(), path.clone());
            move || match read_plan(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound && !dir.exists() => Ok(None),
                Err(error) => Err(error),
                Ok(plan) => Ok(Some(plan)),
            }
        };
        match tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(io::Error::other(e))) {
            Ok(Some(plan)) => Ok(Shim::new(dir, plan)),
            Ok(None) => Err(RuntimeError::NotFound { container: id.clone() }),
            Err(source) => {
                Err(RuntimeError::File { action: "read", path, container: id.clone(), source })
            }
        }
    }

    /// Ends and removes whatever there is of a container here, also where its plan is gone or
    /// damaged. Its root file system and its log stay.
    ///
    /// # Errors
    /// As [`Shim::delete`].
    pub async fn remove(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let shim = match self.connect(id).await {
            Ok(shim) => shim,
            Err(RuntimeError::NotFound { .. }) => return Ok(()),
            Err(_) => Shim::new(self.shims().join(id.as_str()), self.plan_of(id)),
        };
        shim.delete().await
    }

    /// The containers that have a shim's directory, alive or not.
    ///
    /// # Errors
    /// The directory itself cannot be read.
    pub fn list(&self) -> io::Result<Vec<ContainerId>> {
        self.survey().map(|(ids, _)| ids)
    }

    /// As [`Self::list`], and what else is there. Something damaged keeps nobody from knowing the
    /// rest.
    ///
    /// # Errors
    /// The directory itself cannot be read.
    pub fn survey(&self) -> io::Result<(Vec<ContainerId>, Vec<Damage>)> {
        let (mut ids, mut damages) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(self.shims())? {
            let entry = entry?;
            let path = entry.path();
            let damage = |container, problem: &str| Damage {
                path: path.clone(),
                container,
                problem: problem.to_owned(),
            };
            let name = entry.file_name().into_string();
            let (Ok(true), Ok(name)) = (entry.file_type().map(|kind| kind.is_dir()), name) else {
                damages.push(damage(None, "it is no directory of a shim"));
                continue;
            };
            let id = ContainerId::new(name);
            // Whether it can be read is found when it is: by whoever needs it.
            if !path.join(PLAN_FILE).is_file() {
                damages.push(damage(Some(id.clone()), "a shim's directory without a plan"));
            }
            ids.push(id);
        }
        ids.sort();
        Ok((ids, damages))
    }

    /// For the daemon's start: kills what shims that died have left running and removes their
    /// cgroups, so that nothing runs unobserved. Directories stay until [`Shim::delete`], because a
    /// shim that ended properly recorded its container's exit status there; but those that no shim
    /// ever served (without a plan, or with half of one) go. What resists is in the answer and
    /// stands in nobody's way. Blocks.
    ///
    /// # Errors
    /// The directory of shims itself cannot be read.
    pub fn sweep(&self) -> Result<Swept, RuntimeError> {
        let shims = self.shims();
        let ids = self.list().map_err(|source| RuntimeError::File {
            action: "read",
            path: shims.clone(),
            container: ContainerId::new("*"),
            source,
        })?;
        let mut swept = Swept::default();
        for id in ids.iter().filter(|id| !is_locked(&shims.join(id.as_str()))) {
            let dir = shims.join(id.as_str());
            let exit = self.sweep_one(&dir, id).unwrap_or_else(|error| {
                let problem = shoal_model::fault::chain(&error);
                let container = Some(id.clone());
                swept.damages.push(Damage { path: dir.clone(), container, problem });
                None
            });
            swept.leftovers.push(Leftover { id: id.clone(), exit });
        }
        let parent = format!("shoal-{}", self.config.instance);
        for name in Cgroup::children(&parent) {
            let dir = shims.join(&name);
            if dir.exists() {
                continue;
            }
            let id = ContainerId::new(name);
            if let Err(error) = self.kill(&self.cgroup_path(&id), &id) {
                let problem = shoal_model::fault::chain(&error);
                swept.damages.push(Damage { path: dir, container: Some(id.clone()), problem });
            }
            swept.leftovers.push(Leftover { id, exit: None });
        }
        Ok(swept)
    }

    /// Of a shim that does not live.
    fn sweep_one(&self, dir: &Path, id: &ContainerId) -> Result<Option<ExitStatus>, RuntimeError> {
        self.kill(&self.cgroup_path(id), id)?;
        let path = dir.join(PLAN_FILE);
        // What the system refuses just now may be sound.
        if read_plan(&path).is_err_and(|error| error.raw_os_error().is_none()) {
            return fs::remove_dir_all(dir).map(|()| None).map_err(|source| RuntimeError::File {
                action: "remove",
                path: dir.to_owned(),
                container: id.clone(),
                source,
            });
        }
        Ok(Shim::new(dir.to_owned(), self.plan_of(id)).record()?.and_then(|state| state.exit))
    }

    fn cgroup_path(&self, id: &ContainerId) -> String {
        format!("shoal-{}/{id}", self.config.instance)
    }

    /// As much of a plan as its end needs.
    fn plan_of(&self, id: &ContainerId) -> ContainerPlan {
        let cgroup_path = self.cgroup_path(id);
        ContainerPlan { id: id.clone(), cgroup_path, ..ContainerPlan::default() }
    }

    fn kill(&self, path: &str, id: &ContainerId) -> Result<(), RuntimeError> {
        let fail =
            |source| RuntimeError::Cgroup { action: "remove", container: id.clone(), source };
        Cgroup::open(path).map_err(fail)?.kill_and_remove().map_err(fail)
    }
}

pub(crate) fn read_plan(path: &Path) -> io::Result<ContainerPlan> {
    let plan = shoal_durable::read_json(path, PLAN_BYTES_MAX)?;
    plan.ok_or_else(|| io::ErrorKind::NotFound.into())
}

/// What no container may have, however it came into the plan.
fn check(plan: &ContainerPlan) -> Result<(), RuntimeError> {
    plan.check_sysctls().map(drop).map_err(|source| RuntimeError::Refused {
        container: plan.id.clone(),
        action: "make",
        source,
    })
}

/// Writes a file that only root may read: environments are in it.
pub(crate) async fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = tokio::fs::OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(shoal_durable::PRIVATE_FILE);
    let mut file = options.open(path).await?;
    tokio::io::AsyncWriteExt::write_all(&mut file, bytes).await?;
    // Without this its end may still be under way, and nobody would be told of a full disk.
    tokio::io::AsyncWriteExt::flush(&mut file).await
}
