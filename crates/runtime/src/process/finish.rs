//! The last steps before a program runs: limits, user, system call filter, capabilities.
//!
//! The filter is installed while the process still has `CAP_SYS_ADMIN`, so that it does not have to
//! give up gaining privileges (set-user-ID programs work), and before capabilities are dropped.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Gid, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use super::channel::{Channel, Note};
use super::user::{self, User};
use super::{During, Step, describe, reaper, sys};
use crate::caps;
use crate::container_plan::{ProcessPlan, SeccompMode};
use crate::protocol::{Failure, FailureKind};
use crate::seccomp;

/// Where programs are looked for when the environment has no `PATH`: Docker's own default.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest user or group file that is read. A larger one is no reason to fill the memory.
const NAMES_BYTES_MAX: u64 = 4 << 20;

/// Everything that is decided before privileges are dropped.
#[derive(Debug)]
pub(crate) struct Ready {
    program: CString,
    shown: String,
    argv: Vec<CString>,
    env: Vec<CString>,
    cwd: String,
    user: User,
    capabilities: CapabilitySet,
    filters: Vec<Vec<seccompiler::sock_filter>>,
    no_new_privileges: bool,
    tty: bool,
}

/// Makes three descriptors the standard streams.
pub(crate) fn connect(ends: &[OwnedFd; 3]) -> Step<()> {
    for (number, end) in (0..).zip(ends) {
        sys::become_stdio(end.as_fd(), number).during("connect the standard streams")?;
    }
    Ok(())
}

impl Ready {
    /// Looks everything up inside the container, with all privileges; sets the process limits.
    pub(crate) fn new(plan: &ProcessPlan, filtered: bool, mode: SeccompMode) -> Step<Self> {
        set_limits(plan)?;
        let user = find_user(plan)?;
        // Nobody can give what the daemon itself does not have; Docker leaves those out too.
        let own = rustix::thread::capabilities(None).during("read the capabilities")?.permitted;
        let mut capabilities = CapabilitySet::empty();
        let mut numbers = Vec::new();
        for name in &plan.capabilities {
            let number = caps::number(name).ok_or_else(|| {
                Failure::new(FailureKind::Invalid, format!("invalid capability '{name}'"))
            })?;
            let one = CapabilitySet::from_bits_retain(1 << number);
            if own.contains(one) {
                numbers.push(number);
                capabilities |= one;
            }
        }
        let filters = match mode {
            SeccompMode::Default if filtered => seccomp::compile(&numbers).map_err(|reason| {
                let chain = vec!["compile the system call filter".to_owned(), reason];
                Failure { kind: FailureKind::Internal, chain }
            })?,
            _ => Vec::new(),
        };
        let mut env = plan.env.clone();
        if !env.iter().any(|entry| entry.starts_with("HOME=")) {
            env.push(format!("HOME={}", user.home));
        }
        let cwd = if plan.cwd.is_empty() { "/".to_owned() } else { plan.cwd.clone() };
        let (shown, program) = find_program(&plan.argv, &env, &cwd)?;
        chown_streams(&user)?;
        Ok(Self {
            program: text(&program)?,
            shown,
            argv: plan.argv.iter().map(|word| text(word)).collect::<Step<_>>()?,
            env: env.iter().map(|word| text(word)).collect::<Step<_>>()?,
            cwd,
            user,
            capabilities,
            filters,
            no_new_privileges: plan.no_new_privileges,
            tty: plan.tty,
        })
    }

    /// Drops privileges and runs the program; with `init`, in a child that this process watches
    /// over. Returns the exit status to end with if it cannot.
    pub(crate) fn run(self, init: bool, channel: Channel) -> i32 {
        let failure = match self.drop_privileges() {
            Ok(()) if init => match sys::fork() {
                Ok(sys::Forked::Parent(pid)) => {
                    drop(channel);
                    return reaper::run(pid);
                }
                Ok(sys::Forked::Child) => {
                    reaper::lead_group(self.tty);
                    self.execute()
                }
                Err(e) => super::failure("run the init process", &e),
            },
            Ok(()) => self.execute(),
            Err(failure) => failure,
        };
        // Ignored because: without a shim there is nobody to tell.
        let _ = channel.report(&Note::Failed(failure), None);
        1
    }

    fn drop_privileges(&self) -> Step<()> {
        let cwd = || format!("change to the working directory '{}'", self.cwd);
        std::env::set_current_dir(&self.cwd).during(cwd())?;
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).during("forbid gaining privileges")?;
        }
        for filter in &self.filters {
            sys::install_filter(filter).during("install the system call filter")?;
        }
        let action = "drop capabilities";
        for number in 0..u32::try_from(caps::ALL.len()).unwrap_or(0) {
            let one = CapabilitySet::from_bits_retain(1 << number);
            if !self.capabilities.contains(one)
                && rustix::thread::capability_is_in_bounding_set(one).unwrap_or(false)
            {
                rustix::thread::remove_capability_from_bounding_set(one).during(action)?;
            }
        }
        rustix::thread::clear_ambient_capability_set().during(action)?;
        self.become_user()?;
        let granted = if self.user.uid == 0 { self.capabilities } else { CapabilitySet::empty() };
        let sets = CapabilitySets {
            effective: granted,
            permitted: granted,
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, sets).during(action)?;
        // After the change of user, which clears it.
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
            .during("tie the process to its shim")
    }

    fn become_user(&self) -> Step<()> {
        let action = || format!("become user {} of group {}", self.user.uid, self.user.gid);
        let groups: Vec<Gid> = self.user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
        rustix::thread::set_thread_groups(&groups).during(action())?;
        let gid = Gid::from_raw(self.user.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid).during(action())?;
        let uid = Uid::from_raw(self.user.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid).during(action())
    }

    fn execute(&self) -> Failure {
        sys::reset_signals();
        if let Err(e) = sys::close_on_exec_from(3) {
            return Failure {
                kind: FailureKind::Internal,
                chain: vec!["close what the program must not have".to_owned(), e.to_string()],
            };
        }
        let error = sys::execve(&self.program, &self.argv, &self.env);
        let kind = match error.raw_os_error() {
            Some(libc::ENOENT) => FailureKind::ProgramNotFound,
            Some(libc::EACCES | libc::ENOEXEC | libc::EISDIR) => FailureKind::ProgramNotExecutable,
            _ => FailureKind::Internal,
        };
        Failure::new(kind, format!("exec {}: {}", self.shown, describe(&error)))
    }
}

/// Looks the user up in the container's own files, which are what it made of them. Numbers need
/// none.
fn find_user(plan: &ProcessPlan) -> Step<User> {
    let mut unread = None;
    let mut names = |path: &str| {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let read = root
            .map_err(std::io::Error::from)
            .and_then(|root| shoal_durable::read_beneath(&root, Path::new(path), NAMES_BYTES_MAX));
        match read {
            Ok(bytes) => String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned(),
            Err(error) => {
                unread = Some(super::failure(format!("read '{path}' of the container"), &error));
                String::new()
            }
        }
    };
    let (passwd, group) = (names("/etc/passwd"), names("/etc/group"));
    let found = user::resolve(&plan.user, &plan.groups, &passwd, &group);
    // Why there are no names says more than that this one is not among them.
    found.map_err(|failure| match unread {
        Some(Failure { chain, .. }) => Failure { kind: failure.kind, chain },
        None => failure,
    })
}

fn text(word: &str) -> Step<CString> {
    CString::new(word).map_err(|_| {
        Failure::new(FailureKind::Invalid, format!("the word {word:?} contains a zero byte"))
    })
}

/// A process that is not root may open its own standard streams again by name.
fn chown_streams(user: &User) -> Step<()> {
    if user.uid == 0 {
        return Ok(());
    }
    let (null, uid) = (rustix::fs::stat("/dev/null"), Uid::from_raw(user.uid));
    let streams = [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()];
    for stream in streams {
        let is_null = match (&null, rustix::fs::fstat(stream)) {
            (Ok(null), Ok(stat)) => null.st_rdev == stat.st_rdev,
            _ => false,
        };
        if !is_null {
            rustix::fs::fchown(stream, Some(uid), None)
                .during("give the standard streams to the user")?;
        }
    }
    Ok(())
}

/// Finds the program in the container; gives it as messages show it, and its path.
fn find_program(argv: &[String], env: &[String], cwd: &str) -> Step<(String, String)> {
    let Some(name) = argv.first().filter(|name| !name.is_empty()) else {
        return Err(Failure::new(FailureKind::Invalid, "no command specified"));
    };
    let shown = format!("{name:?}");
    let refuse = |kind, why: &str| Err(Failure::new(kind, format!("exec: {shown}: {why}")));
    if name.contains('/') {
        let path = Path::new(cwd).join(name);
        return match fs::metadata(&path) {
            Err(e) => {
                let kind = match e.raw_os_error() {
                    Some(libc::EACCES) => FailureKind::ProgramNotExecutable,
                    _ => FailureKind::ProgramNotFound,
                };
                refuse(kind, &format!("stat {name}: {}", describe(&e)))
            }
            Ok(m) if m.is_dir() => refuse(FailureKind::ProgramNotExecutable, "is a directory"),
            Ok(m) if m.permissions().mode() & 0o111 == 0 => {
                refuse(FailureKind::ProgramNotExecutable, "permission denied")
            }
            Ok(_) => Ok((shown, name.clone())),
        };
    }
    let path = env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
    for dir in path.unwrap_or(DEFAULT_PATH).split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let candidate = Path::new(cwd).join(dir).join(name);
        let fits = fs::metadata(&candidate)
            .is_ok_and(|m| m.is_file() && m.permissions().mode() & 0o111 != 0);
        if fits {
            return Ok((shown, candidate.to_string_lossy().into_owned()));
        }
    }
    refuse(FailureKind::ProgramNotFound, "executable file not found in $PATH")
}

fn set_limits(plan: &ProcessPlan) -> Step<()> {
    for limit in &plan.rlimits {
        let resource = resource(&limit.name).ok_or_else(|| {
            Failure::new(FailureKind::Invalid, format!("invalid ulimit type: {}", limit.name))
        })?;
        let bound = |value: u64| (value != u64::MAX).then_some(value);
        let wanted = Rlimit { current: bound(limit.soft), maximum: bound(limit.hard) };
        rustix::process::setrlimit(resource, wanted)
            .during(format!("set the limit '{}'", limit.name))?;
    }
    Ok(())
}

fn resource(name: &str) -> Option<Resource> {
    Some(match name {
        "as" => Resource::As,
        "core" => Resource::Core,
        "cpu" => Resource::Cpu,
        "data" => Resource::Data,
        "fsize" => Resource::Fsize,
        "locks" => Resource::Locks,
        "memlock" => Resource::Memlock,
        "msgqueue" => Resource::Msgqueue,
        "nice" => Resource::Nice,
        "nofile" => Resource::Nofile,
        "nproc" => Resource::Nproc,
        "rss" => Resource::Rss,
        "rtprio" => Resource::Rtprio,
        "rttime" => Resource::Rttime,
        "sigpending" => Resource::Sigpending,
        "stack" => Resource::Stack,
        _ => return None,
    })
}
