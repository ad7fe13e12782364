//! A container's root directory, as a handle that nothing below can lead out of.
//!
//! While the container runs its own root is entered through its process. While it does not, its
//! overlay is mounted on a thread with a mount namespace of its own, which vanishes with the
//! thread: nothing is ever left mounted on the host.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use tokio::sync::oneshot;

use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::mounts::MountSource;
use crate::record::Record;
use crate::start::runtime_error;

/// How many archives, exports and copies run at once: each holds a thread and reads a whole tree.
pub(crate) const ROOTS_MAX: usize = 16;

/// A container's `/`.
pub(crate) struct Root {
    dir: OwnedFd,
}

impl Root {
    /// Opens a path below the root; links in it lead nowhere else.
    pub fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        // A leading slash means this root; an empty path means the root itself.
        let path = if path.as_os_str().is_empty() { Path::new("/") } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC;
        Ok(rustix::fs::openat2(&self.dir, path, flags, Mode::empty(), resolve)?)
    }

    /// Opens a directory below the root for looking things up in it.
    pub fn open_dir(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlags::RDONLY | OFlags::DIRECTORY)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// What a stopped container's root shows; a running one's always shows everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shows {
    /// With its volumes and binds.
    Everything,
    /// Only its image and what it wrote over it.
    OwnFiles,
}

/// How a root is reached.
enum Way {
    /// Through the running process.
    Process(PathBuf),
    /// By mounting its overlay.
    Overlay(Box<Overlay>),
}

struct Overlay {
    layers: Vec<PathBuf>,
    upper: PathBuf,
    work: PathBuf,
    target: PathBuf,
    /// Host path and path inside, the shallow ones first.
    binds: Vec<(PathBuf, PathBuf)>,
}

impl Engine {
    /// Runs `work` with the container's root on a thread of its own, and gives what it returns.
    pub(crate) async fn with_root<T: Send + 'static>(
        &self,
        container: &Arc<Container>,
        work: impl FnOnce(&Root) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        self.ask_root(container, Shows::Everything, work).await
    }

    /// The same without the container's mounts: what its image and it itself wrote.
    pub(crate) async fn with_image_root<T: Send + 'static>(
        &self,
        container: &Arc<Container>,
        work: impl FnOnce(&Root) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        self.ask_root(container, Shows::OwnFiles, work).await
    }

    async fn ask_root<T: Send + 'static>(
        &self,
        container: &Arc<Container>,
        shows: Shows,
        work: impl FnOnce(&Root) -> Result<T, EngineError> + Send + 'static,
    ) -> Result<T, EngineError> {
        let (answer, answered) = oneshot::channel();
        self.enter_root(container, shows, move |root| {
            // Ignored because: a caller that went away wants no answer.
            let _ = answer.send(root.and_then(|root| work(&root)));
        })
        .await?;
        answered.await.unwrap_or(Err(EngineError::Worker { action: "enter a container's root" }))
    }

    /// Starts a thread that has the container's root, or the reason why not. While the container
    /// does not run, the thread has a turn, so that nobody starts or removes it meanwhile.
    pub(crate) async fn enter_root(
        &self,
        container: &Arc<Container>,
        shows: Shows,
        work: impl FnOnce(Result<Root, EngineError>) + Send + 'static,
    ) -> Result<(), EngineError> {
        let limit = Arc::clone(&self.inner.roots).acquire_owned().await;
        let permit = limit.map_err(|_| EngineError::ShuttingDown)?;
        let turn = container.turn().await?;
        let (way, turn) = match container.running_shim() {
            Ok(shim) => {
                let path = shim.rootfs_path().await;
                let path = path.map_err(|e| runtime_error("enter the root of", container, e))?;
                let path = path.ok_or_else(|| container.not_running())?;
                (Way::Process(path), None)
            }
            Err(_) => (Way::Overlay(Box::new(self.overlay(container, shows)?)), Some(turn)),
        };
        let what = container.dir.clone();
        let thread = std::thread::Builder::new().name("container-root".into());
        let spawned = thread.spawn(move || {
            let _held = (permit, turn);
            let entered = match &way {
                Way::Process(path) => File::open(path).map(|file| Root { dir: file.into() }),
                Way::Overlay(overlay) => mount_overlay(overlay),
            };
            work(entered.map_err(EngineError::io("enter the root of", what)));
        });
        spawned.map(drop).map_err(EngineError::io("start a thread for", &container.dir))
    }

    fn overlay(&self, container: &Container, shows: Shows) -> Result<Overlay, EngineError> {
        let files = container.files();
        let target = self.inner.config.exec_root.join("mounts");
        shoal_durable::make_private_dir(&target)
            .map_err(EngineError::io("create the directory", &target))?;
        let mut binds = container.read(|record: &Record| {
            let bind = |mount: &crate::mounts::MountRecord| {
                let source = match &mount.source {
                    MountSource::Bind { path, .. } => PathBuf::from(path),
                    MountSource::Volume { name, .. } => self.inner.volumes.path(name),
                    MountSource::Tmpfs { .. } => return None,
                };
                Some((source, PathBuf::from(&mount.target)))
            };
            record.mounts.iter().filter_map(bind).collect::<Vec<_>>()
        });
        if shows == Shows::OwnFiles {
            binds.clear();
        }
        binds.sort_by_key(|(_, inside)| inside.components().count());
        Ok(Overlay {
            layers: self.layers(container)?,
            upper: files.upper(),
            work: files.work(),
            target,
            binds,
        })
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Mounts the overlay and what belongs into it, for this thread alone.
fn mount_overlay(overlay: &Overlay) -> io::Result<Root> {
    let none = None::<&str>;
    // Also gives the thread a working directory of its own.
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let base = overlay.layers.first().and_then(|layer| layer.parent());
    // Layers are named relative to their directory: the kernel takes one page of options.
    nix::unistd::chdir(base.unwrap_or(Path::new("/")))?;
    let option = |path: &Path| {
        let text = path.to_string_lossy();
        text.replace('\\', "\\\\").replace(':', "\\:").replace(',', "\\,")
    };
    let lower: Vec<String> = overlay
        .layers
        .iter()
        .map(|layer| option(base.and_then(|base| layer.strip_prefix(base).ok()).unwrap_or(layer)))
        .collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        option(&overlay.upper),
        option(&overlay.work)
    );
    let flags = MsFlags::MS_NODEV;
    mount(Some("overlay"), &overlay.target, Some("overlay"), flags, Some(options.as_str()))?;
    nix::unistd::chdir("/")?;
    let root = Root { dir: File::open(&overlay.target)?.into() };
    for (source, inside) in &overlay.binds {
        let place = match root.open(inside, OFlags::PATH) {
            Ok(place) => place,
            // The place is made at the first start; until then there is nothing to see.
            Err(error) if is_absent(&error) => continue,
            Err(error) => return Err(error),
        };
        let place = PathBuf::from(format!("/proc/self/fd/{}", place.as_raw_fd()));
        if source.exists() {
            mount(Some(source), &place, none, MsFlags::MS_BIND | MsFlags::MS_REC, none)?;
        }
    }
    Ok(root)
}
