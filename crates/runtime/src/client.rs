//! The daemon's handle of one shim.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use shoal_model::id::ContainerId;
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::cgroup::{Cgroup, CgroupError};
use crate::client_io::{Connection, ExecHandle, OtherVersion, Streams};
use crate::container_plan::{ContainerPlan, ExecPlan, Limits, TtySize};
use crate::error::RuntimeError;
use crate::protocol::{
    Envelope, ExitStatus, PROTOCOL_VERSION, ProcessPhase, Reply, Request, ShimState, json_frame,
};
use crate::runtime::{EXIT_FILE, LOCK_FILE, SOCKET_FILE};
use crate::stats::{Stats, StatsError};
use crate::unikernel::{self, GuestFacts};

/// How long a shim may take for what is no more than a few system calls.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);

/// How long it may take to make or unmake a container: mounts and the removal of namespaces wait
/// for the kernel's own locks on a busy machine.
const LIFE_DEADLINE: Duration = Duration::from_secs(60);

/// How long a process whose connection broke may take to be gone, as polls and the pause between
/// them: a kernel takes milliseconds to unmake one.
const DYING_POLLS: u32 = 100;
const DYING_POLL: Duration = Duration::from_millis(10);

/// The longest exit file that is read: an error and 64 execs.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// One container's shim. Cheap to clone. Works on when the shim has ended: what it recorded answers
/// then.
#[derive(Clone, Debug)]
pub struct Shim {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    id: ContainerId,
    dir: PathBuf,
    plan: ContainerPlan,
}

impl Shim {
    pub(crate) fn new(dir: PathBuf, plan: ContainerPlan) -> Self {
        Self { inner: Arc::new(Inner { id: plan.id.clone(), dir, plan }) }
    }

    /// The container.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.inner.id
    }

    /// The shim's own directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// What the container was made from.
    #[must_use]
    pub fn plan(&self) -> &ContainerPlan {
        &self.inner.plan
    }

    /// Makes the container and runs its process; returns its process id on the host, which is never
    /// 0. After a failure the shim is still there, to be deleted.
    ///
    /// # Errors
    /// [`RuntimeError::Refused`] with the whole chain of causes from inside the container.
    pub async fn start(&self) -> Result<u32, RuntimeError> {
        match self.ask(Request::Start, "start", LIFE_DEADLINE).await? {
            Reply::Started { pid, .. } => Ok(pid),
            other => Err(self.unexpected("start", &other)),
        }
    }

    /// How things are. Answers from the record if the shim has ended.
    ///
    /// # Errors
    /// [`RuntimeError::ShimDied`] if it ended without a record; its workload is killed then.
    pub async fn state(&self) -> Result<ShimState, RuntimeError> {
        match self.ask(Request::State, "look at", ANSWER_DEADLINE).await {
            Ok(Reply::State(state)) => Ok(*state),
            Ok(other) => Err(self.unexpected("look at", &other)),
            Err(error) => match self.record_if_gone(error).await? {
                Some(state) => Ok(state),
                None => Err(RuntimeError::ShimDied { container: self.inner.id.clone() }),
            },
        }
    }

    /// Waits until the container has ended; its output has been logged by then.
    ///
    /// # Errors
    /// [`RuntimeError::ShimDied`] if the shim ended without a record; its workload is killed then.
    pub async fn wait(&self) -> Result<ExitStatus, RuntimeError> {
        let answer = async {
            let mut connection = self.open(Request::Wait, "wait for").await?;
            connection.reply().await.map_err(|source| self.talk("wait for", source))
        };
        match answer.await {
            Ok(Reply::Exited(status)) => Ok(status),
            Ok(other) => Err(self.unexpected("wait for", &other)),
            Err(error) => match self.record_if_gone(error).await? {
                Some(ShimState { exit: Some(status), .. }) => Ok(status),
                _ => Err(RuntimeError::ShimDied { container: self.inner.id.clone() }),
            },
        }
    }

    /// Sends a signal to the container's first process.
    ///
    /// # Errors
    /// Refused when it does not run.
    pub async fn signal(&self, signal: i32) -> Result<(), RuntimeError> {
        self.done(Request::Signal { signal, all: false }, "signal").await
    }

    /// Sends a signal to every process of the container.
    ///
    /// # Errors
    /// Refused when it does not run.
    pub async fn signal_all(&self, signal: i32) -> Result<(), RuntimeError> {
        self.done(Request::Signal { signal, all: true }, "signal").await
    }

    /// Joins the container's streams, from now on: before the start too, and any number of clients
    /// at once. A client that takes nothing for five seconds while its buffer in the shim is full
    /// is cut off with [`crate::OutputChunk::Lagged`].
    ///
    /// # Errors
    /// The shim cannot be reached, or the container has ended.
    pub async fn attach(
        &self,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<Streams, RuntimeError> {
        let request = Request::Attach { stdin, stdout, stderr };
        let (connection, reply) = self.converse(request, "attach to", ANSWER_DEADLINE).await?;
        match reply {
            Reply::Done => Ok(connection.into_streams()),
            other => Err(self.unexpected("attach to", &other)),
        }
    }

    /// Runs a further process in the container.
    ///
    /// # Errors
    /// [`RuntimeError::Refused`] with the whole chain of causes from inside the container.
    pub async fn exec(&self, plan: ExecPlan) -> Result<ExecHandle, RuntimeError> {
        let request = Request::Exec(Box::new(plan));
        let (connection, reply) = self.converse(request, "exec in", LIFE_DEADLINE).await?;
        match reply {
            Reply::Started { pid, .. } => {
                Ok(ExecHandle { pid, streams: connection.into_streams() })
            }
            other => Err(self.unexpected("exec in", &other)),
        }
    }

    /// Waits until an exec has ended. The shim remembers the last 64 that ended.
    ///
    /// # Errors
    /// Refused if there is no such exec.
    pub async fn exec_wait(&self, exec: &str) -> Result<ExitStatus, RuntimeError> {
        let request = Request::ExecWait { exec: exec.to_owned() };
        let mut connection = self.open(request, "wait for an exec in").await?;
        let reply = connection.reply().await.map_err(|e| self.talk("wait for an exec in", e))?;
        match self.accept(reply, "wait for an exec in")? {
            Reply::Exited(status) => Ok(status),
            other => Err(self.unexpected("wait for an exec in", &other)),
        }
    }

    /// Sends a signal to an exec.
    ///
    /// # Errors
    /// Refused if there is no such exec or it has ended.
    pub async fn exec_signal(&self, exec: &str, signal: i32) -> Result<(), RuntimeError> {
        let request = Request::ExecSignal { exec: exec.to_owned(), signal };
        self.done(request, "signal an exec in").await
    }

    /// Changes the size of the container's terminal.
    ///
    /// # Errors
    /// Refused if it has none.
    pub async fn resize(&self, size: TtySize) -> Result<(), RuntimeError> {
        self.done(Request::Resize { exec: None, size }, "resize the terminal of").await
    }

    /// Changes the size of an exec's terminal.
    ///
    /// # Errors
    /// Refused if there is no such exec or it has none.
    pub async fn exec_resize(&self, exec: &str, size: TtySize) -> Result<(), RuntimeError> {
        let request = Request::Resize { exec: Some(exec.to_owned()), size };
        self.done(request, "resize the terminal of").await
    }

    /// Stops every process of the container from running.
    ///
    /// # Errors
    /// Refused if it does not run or is paused already.
    pub async fn pause(&self) -> Result<(), RuntimeError> {
        self.done(Request::Pause, "pause").await
    }

    /// Lets the processes of a paused container run again.
    ///
    /// # Errors
    /// Refused if it is not paused.
    pub async fn resume(&self) -> Result<(), RuntimeError> {
        self.done(Request::Resume, "unpause").await
    }

    /// What the container uses, and how much it may. Reads the kernel's files, asks nobody else.
    ///
    /// # Errors
    /// The container does not run, or a file cannot be read.
    pub async fn stats(&self) -> Result<Stats, RuntimeError> {
        let pid = self.state().await?.pid;
        let guest = self.inner.plan.unikernel.is_some().then(|| self.inner.dir.clone());
        let read = move |cgroup: &Cgroup| {
            let mut stats = crate::stats::read(cgroup, pid)?;
            if let Some(dir) = guest {
                // The tender is in the host's namespace, whose interfaces are not its guest's.
                let counters = unikernel::counters(&dir);
                stats.networks = counters.map(|c| unikernel::interfaces(&c)).unwrap_or_default();
            }
            Ok(stats)
        };
        self.blocking("read", move |cgroup| {
            read(cgroup).map_err(|StatsError { path, source }| CgroupError::File {
                action: "read",
                path,
                source,
            })
        })
        .await
    }

    /// What a running unikernel says of itself; nothing for containers, and before it runs.
    pub async fn guest_facts(&self) -> Option<GuestFacts> {
        self.inner.plan.unikernel.as_ref()?;
        let dir = self.inner.dir.clone();
        tokio::task::spawn_blocking(move || unikernel::facts(&dir)).await.ok().flatten()
    }

    /// The host's ids of every process in the container.
    ///
    /// # Errors
    /// A file of the cgroup cannot be read.
    pub async fn processes(&self) -> Result<Vec<u32>, RuntimeError> {
        self.blocking("read", Cgroup::processes).await
    }

    /// Changes the limits of a running container; what is `None` stays as it is.
    ///
    /// # Errors
    /// The kernel refuses one of them.
    pub async fn update(&self, limits: Limits) -> Result<(), RuntimeError> {
        self.blocking("change the limits of", move |cgroup| cgroup.update(&limits)).await
    }

    /// The container's root file system as the host sees it, while it runs. Follow no link in it:
    /// open what is below with `RESOLVE_IN_ROOT`.
    ///
    /// # Errors
    /// The shim cannot be reached.
    pub async fn rootfs_path(&self) -> Result<Option<PathBuf>, RuntimeError> {
        let pid = self.state().await?.pid;
        Ok((pid != 0).then(|| PathBuf::from(format!("/proc/{pid}/root"))))
    }

    /// Kills what still runs and removes everything of the container but its root file system and
    /// its log. Works also when the shim is dead or has gone.
    ///
    /// # Errors
    /// A process does not end, or a file or cgroup cannot be removed.
    pub async fn delete(&self) -> Result<(), RuntimeError> {
        if let Ok(mut connection) = self.open(Request::Shutdown, "remove").await {
            // Ignored because: the end of the connection is the answer, and if the shim does not
            // end in time, what follows kills its workload.
            let _ = timeout(ANSWER_DEADLINE, connection.reply()).await;
            let _ = timeout(ANSWER_DEADLINE, connection.reply()).await;
        }
        self.blocking("remove", |cgroup| cgroup.kill_and_remove()).await?;
        self.end_shim().await?;
        match tokio::fs::remove_dir_all(&self.inner.dir).await {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(RuntimeError::File {
                action: "remove",
                path: self.inner.dir.clone(),
                container: self.inner.id.clone(),
                source,
            }),
            _ => Ok(()),
        }
    }

    /// A shim ends with its container. One that does not (it is stopped, or has gone wrong) is
    /// killed, so that none serves a directory that is gone.
    async fn end_shim(&self) -> Result<(), RuntimeError> {
        for round in 0..DYING_POLLS {
            if !self.is_alive() {
                return Ok(());
            }
            if round == DYING_POLLS / 2
                && let Some(pid) = lock_holder(&self.inner.dir)
            {
                // Ignored because: whether it is gone is looked at next.
                let _ = crate::process::sys::kill(pid, libc::SIGKILL);
            }
            tokio::time::sleep(DYING_POLL).await;
        }
        Err(self.talk("end", io::ErrorKind::TimedOut.into()))
    }

    /// Whether the shim's process is there.
    #[must_use]
    pub fn is_alive(&self) -> bool {
        is_locked(&self.inner.dir)
    }

    async fn done(&self, request: Request, action: &'static str) -> Result<(), RuntimeError> {
        match self.ask(request, action, ANSWER_DEADLINE).await? {
            Reply::Done => Ok(()),
            other => Err(self.unexpected(action, &other)),
        }
    }

    async fn ask(
        &self,
        request: Request,
        action: &'static str,
        deadline: Duration,
    ) -> Result<Reply, RuntimeError> {
        self.converse(request, action, deadline).await.map(|(_, reply)| reply)
    }

    async fn converse(
        &self,
        request: Request,
        action: &'static str,
        deadline: Duration,
    ) -> Result<(Connection, Reply), RuntimeError> {
        let talk = async {
            let mut connection = self.open(request, action).await?;
            let reply = connection.reply().await.map_err(|source| self.talk(action, source))?;
            Ok((connection, self.accept(reply, action)?))
        };
        timeout(deadline, talk)
            .await
            .unwrap_or_else(|_| Err(self.talk(action, io::ErrorKind::TimedOut.into())))
    }

    async fn open(
        &self,
        request: Request,
        action: &'static str,
    ) -> Result<Connection, RuntimeError> {
        let talk = |source| self.talk(action, source);
        let mut connection = Connection::new(connect(&self.inner.dir).await.map_err(talk)?);
        let message = json_frame(&Envelope::new(request));
        timeout(ANSWER_DEADLINE, connection.send(&message))
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
            .map_err(talk)?;
        Ok(connection)
    }

    fn accept(&self, reply: Reply, action: &'static str) -> Result<Reply, RuntimeError> {
        match reply {
            Reply::Failed(source) => {
                Err(RuntimeError::Refused { container: self.inner.id.clone(), action, source })
            }
            other => Ok(other),
        }
    }

    fn talk(&self, action: &'static str, source: io::Error) -> RuntimeError {
        let container = self.inner.id.clone();
        let version = source.get_ref().and_then(|e| e.downcast_ref::<OtherVersion>());
        match version {
            Some(OtherVersion(theirs)) => {
                RuntimeError::Version { container, theirs: *theirs, ours: PROTOCOL_VERSION }
            }
            None => RuntimeError::Talk { container, action, source },
        }
    }

    fn unexpected(&self, action: &'static str, reply: &Reply) -> RuntimeError {
        self.talk(action, io::Error::other(format!("unexpected reply: {reply:?}")))
    }

    /// Turns "cannot be reached" into what the shim recorded before it ended. `Ok(None)`: it died
    /// without a record; whatever it left running is killed. An error of another kind, or from a
    /// shim that is there, stays.
    async fn record_if_gone(&self, error: RuntimeError) -> Result<Option<ShimState>, RuntimeError> {
        if !matches!(error, RuntimeError::Talk { .. }) {
            return Err(error);
        }
        // A connection can break a moment before the process behind it is really gone.
        for _ in 0..DYING_POLLS {
            if let Some(record) = self.record()? {
                return Ok(Some(record));
            }
            if !self.is_alive() {
                break;
            }
            tokio::time::sleep(DYING_POLL).await;
        }
        if self.is_alive() {
            return Err(error);
        }
        // Once more: it may have been written between the two looks.
        if let Some(record) = self.record()? {
            return Ok(Some(record));
        }
        if !self.inner.dir.exists() {
            return Err(RuntimeError::NotFound { container: self.inner.id.clone() });
        }
        self.blocking("kill", |cgroup| cgroup.kill_and_remove()).await?;
        Ok(None)
    }

    /// What the shim recorded when its container had ended.
    pub(crate) fn record(&self) -> Result<Option<ShimState>, RuntimeError> {
        let path = self.inner.dir.join(EXIT_FILE);
        let fail = |source| RuntimeError::File {
            action: "read",
            path: path.clone(),
            container: self.inner.id.clone(),
            source,
        };
        let state: Option<ShimState> =
            shoal_durable::read_json(&path, RECORD_BYTES_MAX).map_err(fail)?;
        Ok(state.map(|state| ShimState {
            phase: ProcessPhase::Exited,
            pid: 0,
            shim_pid: 0,
            ..state
        }))
    }

    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        action: &'static str,
        work: impl FnOnce(&Cgroup) -> Result<T, CgroupError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let path = self.inner.plan.cgroup_path.clone();
        let done = tokio::task::spawn_blocking(move || work(&Cgroup::open(&path)?)).await;
        let container = self.inner.id.clone();
        match done {
            Ok(result) => {
                result.map_err(|source| RuntimeError::Cgroup { action, container, source })
            }
            Err(join) => Err(self.talk(action, io::Error::other(join))),
        }
    }
}

/// Connects to the shim whose directory is `dir`. By way of a descriptor of the directory, because
/// a socket's path may not be longer than 107 bytes.
async fn connect(dir: &Path) -> io::Result<UnixStream> {
    let handle = fs::File::open(dir)?;
    UnixStream::connect(format!("/proc/self/fd/{}/{SOCKET_FILE}", handle.as_raw_fd())).await
}

/// Whether a living shim holds the lock of `dir`.
pub(crate) fn is_locked(dir: &Path) -> bool {
    let Ok(file) = fs::OpenOptions::new().write(true).open(dir.join(LOCK_FILE)) else {
        return false;
    };
    let lock = rustix::fs::FlockOperation::NonBlockingLockExclusive;
    rustix::fs::fcntl_lock(&file, lock).is_err()
}

/// The process that holds the lock of `dir`.
pub(crate) fn lock_holder(dir: &Path) -> Option<u32> {
    let file = fs::OpenOptions::new().write(true).open(dir.join(LOCK_FILE)).ok()?;
    let mut lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETLK(&mut lock)).ok()?;
    (lock.l_type != libc::F_UNLCK as libc::c_short)
        .then(|| u32::try_from(lock.l_pid).ok())
        .flatten()
        .filter(|pid| *pid != 0)
}
