//! Turns a fresh process into a shim in the background.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::ExitCode;

use rustix::pipe::{PipeFlags, pipe_with};

use super::server::Server;
use crate::cgroup::Cgroup;
use crate::container_plan::FORMAT_VERSION;
use crate::process::sys;
use crate::runtime::{LOCK_FILE, PLAN_FILE, SOCKET_FILE, STDERR_FILE, read_plan};

/// What the background process says when it serves.
const READY: &[u8] = b"ready";

/// What its launcher says when it has heard that.
const GO: &[u8] = b"go";

/// The shim is the last process that a machine short of memory should lose: with it goes its
/// container, and the exit status.
const OOM_SCORE: &str = "-999";

pub(super) fn run(dir: &Path) -> ExitCode {
    match launch(dir) {
        Ok(text) if text == READY => ExitCode::SUCCESS,
        Ok(text) => {
            eprintln!("{}", String::from_utf8_lossy(&text));
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("start in the background: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Returns what the background process said before it served or ended.
fn launch(dir: &Path) -> io::Result<Vec<u8>> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let (hear, go) = pipe_with(PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        sys::Forked::Parent(_) => {
            drop((write, hear));
            let mut said = Vec::new();
            File::from(read).read_to_end(&mut said)?;
            if said == READY {
                File::from(go).write_all(GO)?;
            }
            Ok(said)
        }
        sys::Forked::Child => {
            drop((read, go));
            let mut tell = File::from(write);
            let code = match prepare(dir) {
                Ok(mut server) => {
                    // Ignored because: a launcher that is gone is seen by its not answering.
                    let _ = tell.write_all(READY);
                    drop(tell);
                    if is_wanted(File::from(hear)) { server.run() } else { 1 }
                }
                Err(error) => {
                    // Ignored because: as above.
                    let _ = tell.write_all(error.as_bytes());
                    1
                }
            };
            sys::exit_now(code)
        }
    }
}

/// Whether the launcher has heard that this process serves. One that was killed has not, and
/// whoever started it takes the launch for failed: then nobody would ever come.
fn is_wanted(mut hear: File) -> bool {
    let mut word = [0; GO.len()];
    hear.read_exact(&mut word).is_ok() && word == *GO
}

fn prepare(dir: &Path) -> Result<Server, String> {
    let step = |what: &'static str| move |e: io::Error| format!("{what}: {e}");
    rustix::process::setsid().map_err(|e| format!("begin a session: {e}"))?;
    // Socket, log and records are root's alone.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let dir = dir.canonicalize().map_err(step("find the directory"))?;
    let plan = read_plan(&dir.join(PLAN_FILE)).map_err(step("read the plan"))?;
    if plan.version != FORMAT_VERSION {
        return Err(format!(
            "the plan has format version {}, this program has {FORMAT_VERSION}",
            plan.version
        ));
    }
    let lock = lock(&dir).map_err(step("lock the directory"))?;
    redirect(&dir).map_err(step("redirect the standard streams"))?;
    std::env::set_current_dir("/").map_err(step("leave the working directory"))?;
    // Ignored because: it takes a privilege that the daemon's own cgroup may lack.
    let _ = fs::write("/proc/self/oom_score_adj", OOM_SCORE);
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).map_err(|e| format!("reap: {e}"))?;
    let cgroup = match plan.cgroups.clone() {
        Some(layout) => Cgroup::within(layout, &plan.cgroup_path),
        None => Cgroup::open(&plan.cgroup_path),
    };
    let cgroup = cgroup.map_err(|e| shoal_model::fault::chain(&e))?;
    let listener = bind(&dir).map_err(step("listen"))?;
    Server::new(dir, plan, cgroup, listener, lock).map_err(step("take signals"))
}

fn lock(dir: &Path) -> io::Result<File> {
    let file =
        OpenOptions::new().create(true).write(true).truncate(false).open(dir.join(LOCK_FILE))?;
    rustix::fs::fcntl_lock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)?;
    Ok(file)
}

fn redirect(dir: &Path) -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    let errors = OpenOptions::new().create(true).append(true).open(dir.join(STDERR_FILE))?;
    sys::become_stdio(null.as_fd(), 0)?;
    sys::become_stdio(null.as_fd(), 1)?;
    sys::become_stdio(errors.as_fd(), 2)
}

/// Binds by way of a descriptor: a socket's path may not be longer than 107 bytes.
fn bind(dir: &Path) -> io::Result<UnixListener> {
    let handle = File::open(dir)?;
    let listener =
        UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET_FILE}", handle.as_raw_fd()))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}
