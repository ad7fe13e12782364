//! The helper process: one for each daemon, alive while the daemon is not. It serves every
//! workload's namespace from the last snapshot, which it keeps in a file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
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

use super::control::{LOCK, PROGRAM, Reply, Request, SNAPSHOT, SOCKET, checked_len, frame};
use super::server::{self, Asker, Shared};
use super::snapshot::{FORMAT, Snapshot, View};
use crate::desired::SandboxId;

/// Where the host's own servers are named.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Most daemons' connections at one time: one for requests, one to notice the helper's end, and
/// those of a daemon that is just being replaced.
const CONNECTIONS_MAX: usize = 16;

/// How long a helper that was told to end may hold the directory's lock.
const LOCK_DEADLINE: Duration = Duration::from_secs(3);
/// Between attempts to get it.
const POLL: Duration = Duration::from_millis(10);

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
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(file("make the directory", dir.to_owned()))?;
    let _lock = lock(dir)?;
    // Ignored because: it fails only if we lead a session already, which is what we want.
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
        accept(&helper, &listener).await;
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

async fn accept(helper: &Arc<Helper>, listener: &UnixListener) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = helper.stop.notified() => return,
            Some(_) = connections.join_next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                // Ignored because: whoever wanted to connect is gone already.
                let Ok((stream, _)) = accepted else { continue };
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
    stop: Notify,
}

/// A place that is served.
struct Serving {
    /// Which namespace its sockets are in: one that is made anew has another number.
    identity: (u64, u64),
    /// The sockets' tasks, ended when this is dropped.
    _tasks: JoinSet<()>,
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

impl Helper {
    fn new(dir: &Path) -> Self {
        Self {
            file: dir.join(SNAPSHOT),
            shared: Arc::new(Shared::new(RESOLV_CONF.into())),
            serving: Mutex::default(),
            stop: Notify::new(),
        }
    }

    /// Goes on where the last helper ended.
    async fn restore(&self) {
        // Ignored because: without a readable file of our format the daemon's next snapshot is the
        // first; it comes with the daemon's next look at the network.
        let Ok(text) = fs::read(&self.file) else { return };
        let Ok(snapshot) = serde_json::from_slice::<Snapshot>(&text) else { return };
        if snapshot.format == FORMAT {
            self.shared.set(Arc::new(snapshot));
            // Ignored because: what failed is asked for again with the daemon's first request.
            let _ = self.refresh().await;
        }
    }

    async fn converse(&self, mut stream: UnixStream) -> io::Result<()> {
        loop {
            let mut json = vec![0; checked_len(stream.read_u32().await?)?];
            stream.read_exact(&mut json).await?;
            let mut reply = Reply {
                format: FORMAT,
                program: PROGRAM.to_owned(),
                failed: BTreeMap::new(),
                error: None,
            };
            let mut ends = false;
            match serde_json::from_slice(&json) {
                Ok(Request::Publish(snapshot)) => match self.publish(*snapshot).await {
                    Ok(failed) => reply.failed = failed,
                    Err(error) => reply.error = Some(format!("keep the snapshot: {error}")),
                },
                Ok(Request::Check) => reply.failed = self.refresh().await,
                Ok(Request::Stop) => ends = true,
                Err(error) => reply.error = Some(format!("read the request: {error}")),
            }
            let written = stream.write_all(&frame(&reply)?).await;
            if ends {
                self.stop.notify_one();
            }
            written?;
        }
    }

    async fn publish(&self, snapshot: Snapshot) -> io::Result<BTreeMap<SandboxId, String>> {
        let json = serde_json::to_vec(&snapshot)?;
        self.shared.set(Arc::new(snapshot));
        let failed = self.refresh().await;
        let fresh = self.file.with_extension("new");
        tokio::fs::write(&fresh, json).await?;
        tokio::fs::rename(&fresh, &self.file).await?;
        Ok(failed)
    }

    /// Makes the sockets fit the snapshot. Returns who cannot be served.
    async fn refresh(&self) -> BTreeMap<SandboxId, String> {
        let snapshot = self.shared.get();
        let mut serving = self.serving.lock().await;
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
