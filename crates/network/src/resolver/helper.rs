//! The helper process: one for each daemon, alive while the daemon is not. It serves every
//! workload's namespace from the last snapshot, which it keeps in a file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use shoal_model::fault::chain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::control::{
    FRAME_LEN_MAX, LOCK, PROGRAM, Reply, Request, SNAPSHOT, SOCKET, checked_len, frame,
};
use super::server::{self, Asker, Shared};
use super::snapshot::{Change, FORMAT, Listen, Snapshot, View};
use crate::desired::SandboxId;

/// Where the host's own servers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Most daemons' connections at one time: one for requests, one to notice the helper's end, and
/// those of a daemon that is just being replaced.
const CONNECTIONS_MAX: usize = 16;

/// Longest file: as a frame.
const FILE_LEN_MAX: u64 = FRAME_LEN_MAX as u64;
/// A daemon that stops in the middle of a frame gives its connection up after this.
const FRAME_DEADLINE: Duration = Duration::from_secs(10);
/// How much later than a change the file follows.
const KEEP_AFTER: Duration = Duration::from_millis(200);
/// How long a helper that was told to end may hold the directory's lock.
const LOCK_DEADLINE: Duration = Duration::from_secs(3);
/// Between attempts to get it.
const POLL: Duration = Duration::from_millis(10);
/// Between looks whether the directory is still there.
const LOOK_PERIOD: Duration = Duration::from_secs(2);
/// After a failed accept (no more descriptors, say).
const PAUSE: Duration = Duration::from_millis(100);

/// Why the helper cannot work.
#[derive(Debug, thiserror::Error)]
enum HelperError {
    #[error("usage: shoal resolver --dir <directory>")]
    Usage,
    #[error("{action} '{}'", path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("another resolver serves '{}'", dir.display())]
    Running { dir: PathBuf },
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
}

/// The helper's whole life: `args` are those behind `shoal resolver`.
pub fn main(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    match parse(args).and_then(|dir| run(&dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal resolver: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn parse(args: impl IntoIterator<Item = OsString>) -> Result<PathBuf, HelperError> {
    let mut args = args.into_iter();
    match (args.next(), args.next(), args.next()) {
        (Some(flag), Some(dir), None) if flag == "--dir" => Ok(dir.into()),
        _ => Err(HelperError::Usage),
    }
}

fn run(dir: &Path) -> Result<(), HelperError> {
    let file = |action, path: PathBuf| move |source| HelperError::File { action, path, source };
    shoal_durable::make_private_dir(dir).map_err(file("make the directory", dir.to_owned()))?;
    let lock = lock(dir)?;
    // Ignored because: it fails only for the leader of a process group, which a shell makes us; the
    // daemon starts us within its own group.
    let _ = nix::unistd::setsid();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(HelperError::Runtime)?;
    runtime.block_on(async {
        let path = dir.join(SOCKET);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(file("remove the old socket", path)(e));
            }
            _ => {}
        }
        let helper = Arc::new(Helper::new(dir));
        helper.restore().await;
        let listener =
            UnixListener::bind(&path).map_err(file("listen on the socket", path.clone()))?;
        let place = dir.join(LOCK);
        let ours = lock.metadata().map_err(file("look at the lock", place.clone()))?;
        tokio::select! {
            () = accept(&helper, &listener) => {}
            () = helper.keep_up() => {}
            () = displaced(&place, number(&ours)) => {
                eprintln!("shoal resolver: its directory was removed; the daemon starts another");
                return Ok(());
            }
        }
        // Ignored because: the next helper removes it.
        let _ = fs::remove_file(&path);
        Ok(())
    })
}

/// Makes this the directory's only helper. One that was just told to end may need a moment.
fn lock(dir: &Path) -> Result<Flock<File>, HelperError> {
    let path = dir.join(LOCK);
    let file = |action| {
        let path = path.clone();
        move |source| HelperError::File { action, path, source }
    };
    let mut lock = File::create(&path).map_err(file("open the lock"))?;
    let deadline = Instant::now() + LOCK_DEADLINE;
    loop {
        match Flock::lock(lock, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((_, Errno::EWOULDBLOCK)) if Instant::now() >= deadline => {
                return Err(HelperError::Running { dir: dir.to_owned() });
            }
            Err((back, Errno::EWOULDBLOCK | Errno::EINTR)) => lock = back,
            Err((_, e)) => return Err(file("lock")(e.into())),
        }
        std::thread::sleep(POLL);
    }
}

/// Returns once the lock's file is not ours any more: then nobody finds this helper, and as long as
/// it holds the workloads' ports no other one can serve them.
async fn displaced(path: &Path, ours: (u64, u64)) {
    loop {
        match fs::metadata(path).map(|found| number(&found)) {
            Ok(found) if found != ours => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            // A look that fails for another reason says nothing.
            Ok(_) | Err(_) => tokio::time::sleep(LOOK_PERIOD).await,
        }
    }
}

async fn accept(helper: &Arc<Helper>, listener: &UnixListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = helper.stop.notified() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                // Ignored because: whoever wanted to connect is gone already, or descriptors are
                // short: the daemon tries again.
                let Ok((stream, _)) = accepted else {
                    tokio::time::sleep(PAUSE).await;
                    continue;
                };
                let helper = Arc::clone(helper);
                connections.spawn(async move {
                    // Ignored because: the daemon is gone; another one will connect.
                    let _ = helper.converse(stream).await;
                });
            }
        }
    }
}

struct Helper {
    file: PathBuf,
    shared: Arc<Shared>,
    serving: Mutex<BTreeMap<Asker, Serving>>,
    /// Number of the snapshot; none of one that came from the file.
    serial: Mutex<Option<u64>>,
    /// The file is behind.
    dirty: Notify,
    stop: Notify,
}

fn is_shared(view: Option<&View>) -> bool {
    view.is_some_and(|view| view.listen != Listen::Loopback)
}

/// A place that is served.
struct Serving {
    /// Which namespace its sockets are in: one that is made anew has another number.
    identity: (u64, u64),
    /// The sockets' tasks, ended when this is dropped.
    _tasks: JoinSet<()>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|found| number(&found))
}

/// What tells a file from every other one.
fn number(file: &fs::Metadata) -> (u64, u64) {
    (file.dev(), file.ino())
}

impl Helper {
    fn new(dir: &Path) -> Self {
        Self {
            file: dir.join(SNAPSHOT),
            shared: Arc::new(Shared::new(RESOLV_CONF.into())),
            serving: Mutex::default(),
            serial: Mutex::default(),
            dirty: Notify::new(),
            stop: Notify::new(),
        }
    }

    /// Goes on where the last helper ended.
    async fn restore(&self) {
        // Ignored because: without a readable file of our format the daemon's next snapshot is the
        // first; it comes with the daemon's next look at the network.
        let Ok(Some(snapshot)) = shoal_durable::read_json::<Snapshot>(&self.file, FILE_LEN_MAX)
        else {
            return;
        };
        if snapshot.format == FORMAT {
            self.shared.set(Arc::new(snapshot));
            // Ignored because: what failed is asked for again with the daemon's first request.
            let _ = self.refresh().await;
        }
    }

    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let mut json = vec![0; checked_len(stream.read_u32().await?)?];
            timeout(FRAME_DEADLINE, stream.read_exact(&mut json)).await??;
            let mut reply = Reply {
                format: FORMAT,
                program: PROGRAM.to_owned(),
                failed: BTreeMap::new(),
                error: None,
            };
            let mut ends = false;
            match serde_json::from_slice(&json) {
                Ok(Request::Publish { serial, snapshot }) => {
                    reply.failed = self.publish(serial, *snapshot).await;
                }
                Ok(Request::Change(change)) => match self.change(*change).await {
                    Some(failed) => reply.failed = failed,
                    None => reply.error = Some("the change is of another snapshot".to_owned()),
                },
                Ok(Request::Check) => reply.failed = self.refresh().await,
                Ok(Request::Stop) => ends = true,
                Err(error) => reply.error = Some(format!("read the request: {error}")),
            }
            if ends {
                self.keep().await;
            }
            let answer = frame(&reply)?;
            let written = timeout(FRAME_DEADLINE, stream.write_all(&answer)).await;
            if ends {
                self.stop.notify_one();
            }
            written??;
        }
    }

    async fn publish(&self, serial: u64, snapshot: Snapshot) -> BTreeMap<SandboxId, String> {
        self.shared.set(Arc::new(snapshot));
        *self.serial.lock().await = Some(serial);
        let failed = self.refresh().await;
        self.dirty.notify_one();
        failed
    }

    /// Nothing if it is not the next change of what is here.
    async fn change(&self, change: Change) -> Option<BTreeMap<SandboxId, String>> {
        let mut serial = self.serial.lock().await;
        if *serial != Some(change.base) {
            return None;
        }
        *serial = Some(change.serial);
        let old = self.shared.get();
        let touched: BTreeMap<SandboxId, bool> = change
            .views
            .iter()
            .map(|(id, new)| (id.clone(), is_shared(new.as_ref()) || is_shared(old.views.get(id))))
            .collect();
        // Not ours any more, so that it need not be copied.
        drop(old);
        self.shared.change(|snapshot| snapshot.apply(change));
        drop(serial);
        let failed = if touched.values().any(|shared| *shared) {
            self.refresh().await
        } else {
            self.refresh_own(touched.keys()).await
        };
        self.dirty.notify_one();
        Some(failed)
    }

    /// Makes the sockets of workloads with a place of their own fit the snapshot.
    async fn refresh_own(
        &self,
        ids: impl Iterator<Item = &SandboxId>,
    ) -> BTreeMap<SandboxId, String> {
        let mut serving = self.serving.lock().await;
        let snapshot = self.shared.get();
        let mut failed = BTreeMap::new();
        for id in ids {
            let asker = Asker::One(id.clone());
            let view = snapshot.views.get(id);
            let now = view.and_then(|view| identity(&view.netns));
            let Some(view) = view else {
                serving.remove(&asker);
                continue;
            };
            if serving.get(&asker).is_some_and(|served| Some(served.identity) == now) {
                continue;
            }
            match self.open(&asker, view).await {
                Ok(fresh) => {
                    serving.insert(asker, fresh);
                }
                Err(text) => {
                    serving.remove(&asker);
                    failed.insert(id.clone(), text);
                }
            }
        }
        failed
    }

    /// Writes the snapshot to its file some time after each change, for ever.
    async fn keep_up(&self) {
        loop {
            self.dirty.notified().await;
            // What else comes meanwhile is written with it.
            tokio::time::sleep(KEEP_AFTER).await;
            self.keep().await;
        }
    }

    /// Writes the snapshot to its file: for the next helper, should this one and the daemon end at
    /// the same time. As long as one of them lives, the file is not asked.
    async fn keep(&self) {
        let (file, snapshot) = (self.file.clone(), self.shared.get());
        let written = tokio::task::spawn_blocking(move || {
            shoal_durable::replace_json(&file, snapshot.as_ref())
        });
        match written.await {
            Ok(Ok(())) => {}
            // The log of the helper is a file beside it; the next change tries again.
            Ok(Err(error)) => eprintln!("shoal resolver: keep the snapshot: {error}"),
            Err(error) => eprintln!("shoal resolver: keep the snapshot: {error}"),
        }
    }

    /// Makes the sockets fit the snapshot. Returns who cannot be served.
    async fn refresh(&self) -> BTreeMap<SandboxId, String> {
        let mut serving = self.serving.lock().await;
        let snapshot = self.shared.get();
        let mut places: BTreeMap<Asker, (&View, Vec<&SandboxId>)> = BTreeMap::new();
        for (id, view) in &snapshot.views {
            places.entry(Asker::of(id, view)).or_insert_with(|| (view, Vec::new())).1.push(id);
        }
        serving.retain(|asker, served| {
            let place = places.get(asker);
            place.is_some_and(|(view, _)| identity(&view.netns) == Some(served.identity))
        });
        let mut failed = BTreeMap::new();
        for (asker, (view, ids)) in places {
            if serving.contains_key(&asker) {
                continue;
            }
            match self.open(&asker, view).await {
                Ok(fresh) => {
                    serving.insert(asker, fresh);
                }
                Err(text) => failed.extend(ids.into_iter().map(|id| (id.clone(), text.clone()))),
            }
        }
        failed
    }

    async fn open(&self, asker: &Asker, view: &View) -> Result<Serving, String> {
        let missing = || format!("no namespace at '{}'", view.netns.display());
        let identity = identity(&view.netns).ok_or_else(missing)?;
        let wanted = view.clone();
        let opened = tokio::task::spawn_blocking(move || server::open(&wanted)).await;
        let sockets = match opened {
            Ok(Ok(sockets)) => sockets,
            Ok(Err(error)) => return Err(chain(&error)),
            Err(error) => return Err(chain(&error)),
        };
        let tasks = server::serve(&self.shared, asker, sockets)
            .map_err(|e| format!("watch the resolver's sockets: {e}"))?;
        Ok(Serving { identity, _tasks: tasks })
    }
}
