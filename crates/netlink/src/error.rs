//! The one error of this crate: what was tried on which object, and the kernel's answer.

use std::io;

use shoal_model::fault::{Fault, FaultId, FaultKind};

/// A request that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} '{object}'")]
pub struct NetlinkError {
    /// What was tried: `create the link`.
    pub action: &'static str,
    /// The object's name: `vx in /run/shoal/netns/n-1`.
    pub object: String,
    /// Why it did not work.
    #[source]
    pub cause: Cause,
}

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum Cause {
    /// The kernel refused it.
    #[error("{}{}{detail}", io::Error::from_raw_os_error(*errno), separator(detail))]
    Kernel {
        /// The error number.
        errno: i32,
        /// The kernel's own words, empty if it gave none.
        detail: String,
    },
    /// A system call beside the request failed: opening a socket, entering a namespace.
    #[error("{step}")]
    System {
        /// The step that failed.
        step: &'static str,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The request or the answer does not make sense.
    #[error("{0}")]
    Malformed(&'static str),
    /// The named object does not exist.
    #[error("no such {0}")]
    Missing(&'static str),
}

fn separator(detail: &str) -> &'static str {
    if detail.is_empty() { "" } else { ": " }
}

impl Cause {
    pub(crate) fn system(step: &'static str, source: impl Into<io::Error>) -> Self {
        Self::System { step, source: source.into() }
    }

    pub(crate) fn errno(errno: i32) -> Self {
        Self::Kernel { errno, detail: String::new() }
    }

    pub(crate) fn of(self, action: &'static str, object: impl Into<String>) -> NetlinkError {
        NetlinkError { action, object: object.into(), cause: self }
    }
}

impl NetlinkError {
    /// The error number, if the system gave one.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match &self.cause {
            Cause::Kernel { errno, .. } => Some(*errno),
            Cause::System { source, .. } => source.raw_os_error(),
            Cause::Missing(_) => Some(libc::ENOENT),
            Cause::Malformed(_) => None,
        }
    }

    /// Whether the object is already there.
    #[must_use]
    pub fn is_exists(&self) -> bool {
        self.errno() == Some(libc::EEXIST)
    }

    /// Whether the object, or the device it belongs to, is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        const GONE: [i32; 4] = [libc::ENOENT, libc::ENODEV, libc::ESRCH, libc::EADDRNOTAVAIL];
        self.errno().is_some_and(|errno| GONE.contains(&errno))
    }

    /// Whether the kernel does not have this feature.
    #[must_use]
    pub fn is_unsupported(&self) -> bool {
        const LACKING: [i32; 3] = [libc::EOPNOTSUPP, libc::EPROTONOSUPPORT, libc::EAFNOSUPPORT];
        self.errno().is_some_and(|errno| LACKING.contains(&errno))
    }
}

impl Fault for NetlinkError {
    fn kind(&self) -> FaultKind {
        if self.is_missing() {
            FaultKind::NotFound
        } else if self.is_exists() {
            FaultKind::Conflict
        } else {
            FaultKind::Internal
        }
    }

    fn id(&self) -> Option<FaultId> {
        Some(FaultId("SH-NET-080"))
    }

    fn remedy(&self) -> Option<String> {
        match self.errno() {
            Some(libc::EPERM | libc::EACCES) => {
                Some("run the daemon as root with CAP_NET_ADMIN and CAP_SYS_ADMIN".to_owned())
            }
            _ => Some("run 'shoal doctor' on this node".to_owned()),
        }
    }
}
