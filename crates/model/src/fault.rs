//! What a failure tells its reader beyond its text: a class, a stable id, a remedy.
//!
//! `Display` of an error never repeats its source; [`chain`] is the one printer of whole chains.

use std::error::Error;
use std::io::{self, ErrorKind};

/// The stable name of a failure that a user can meet, for example `SH-NET-012`.
/// Each has a page `docs/errors/<id>.md`; a test holds both sides together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FaultId(pub &'static str);

/// What went wrong, as far as a caller's reaction depends on it. The API derives its status from
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// The named object does not exist (404).
    NotFound,
    /// The request cannot be right (400).
    Invalid,
    /// The request clashes with what is there (409).
    Conflict,
    /// The caller may not do this (403).
    Forbidden,
    /// The caller did not prove who it is (401).
    Unauthorized,
    /// Right now nobody here can answer: no swarm, not a manager, no leader (503).
    Unavailable,
    /// Nothing to do: it is already so (304).
    NotModified,
    /// Shoal does not have this yet (501).
    NotImplemented,
    /// Everything else (500).
    Internal,
}

/// An error that a user can meet.
pub trait Fault: Error + Send + Sync + 'static {
    /// How a caller should react.
    fn kind(&self) -> FaultKind;

    /// The stable id, if the failure has a page.
    fn id(&self) -> Option<FaultId> {
        None
    }

    /// What to do next, as one imperative phrase without a final dot.
    fn remedy(&self) -> Option<String> {
        None
    }
}

/// The whole chain of causes, joined by `: `. A cause whose text the line already ends with is not
/// said twice: other people's errors often repeat their source.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = readable(&cause.to_string());
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        next = cause.source();
    }
    line
}

/// The text with each run of characters that no terminal can show as one question mark: other
/// people's errors quote whatever bytes they met.
fn readable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if !c.is_control() && c != char::REPLACEMENT_CHARACTER {
            out.push(c);
        } else if !out.ends_with('?') {
            out.push('?');
        }
    }
    out
}

/// What to do next: what the failure itself says, or else what the system's error among its causes
/// calls for.
#[must_use]
pub fn remedy(fault: &dyn Fault) -> Option<String> {
    let of_system = || {
        let mut next = fault.source();
        while let Some(cause) = next {
            if let Some(text) = cause.downcast_ref().and_then(remedy_of_system) {
                return Some(text.to_owned());
            }
            next = cause.source();
        }
        None
    };
    fault.remedy().or_else(of_system)
}

/// What helps against an error of the system whatever was tried (errno(3)).
fn remedy_of_system(error: &io::Error) -> Option<&'static str> {
    const EIO: i32 = 5;
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    Some(match (error.kind(), error.raw_os_error()) {
        (ErrorKind::StorageFull, _) => "free space on its file system",
        (ErrorKind::QuotaExceeded, _) => "free space, or raise the quota of its file system",
        (ErrorKind::ReadOnlyFilesystem, _) => {
            "make its file system writable again; 'dmesg' says why it is not"
        }
        (_, Some(EIO)) => "check its disk; 'dmesg' says more",
        (_, Some(EMFILE)) => "raise the daemon's limit of open files (LimitNOFILE)",
        (_, Some(ENFILE)) => "raise the machine's limit of open files (sysctl fs.file-max)",
        _ => return None,
    })
}

/// The chain, then id and remedy: the line that a user reads.
#[must_use]
pub fn report(fault: &dyn Fault) -> String {
    let mut line = chain_of(fault);
    if let Some(remedy) = remedy(fault) {
        line.push_str("; ");
        line.push_str(&remedy);
    }
    if let Some(FaultId(id)) = fault.id() {
        line.push_str(" [");
        line.push_str(id);
        line.push(']');
    }
    line
}

fn chain_of(fault: &dyn Fault) -> String {
    let mut line = fault.to_string();
    if let Some(cause) = fault.source() {
        let rest = readable(&chain(cause));
        if !line.ends_with(&rest) {
            line.push_str(": ");
            line.push_str(&rest);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("write the file 'x'")]
    struct Outer(#[source] std::io::Error);

    impl Fault for Outer {
        fn kind(&self) -> FaultKind {
            FaultKind::Internal
        }
        fn id(&self) -> Option<FaultId> {
            Some(FaultId("SH-TST-001"))
        }
        fn remedy(&self) -> Option<String> {
            Some("free some space".into())
        }
    }

    #[test]
    fn a_report_names_action_cause_remedy_and_id() {
        let fault = Outer(std::io::Error::other("disk full"));
        assert_eq!(report(&fault), "write the file 'x': disk full; free some space [SH-TST-001]");
    }

    #[derive(Debug, thiserror::Error)]
    #[error("write the file 'x'")]
    struct Plain(#[source] std::io::Error);

    impl Fault for Plain {
        fn kind(&self) -> FaultKind {
            FaultKind::Internal
        }
    }

    #[test]
    fn an_error_of_the_system_has_a_remedy_whoever_met_it() {
        let full = || std::io::Error::from_raw_os_error(28);
        assert_eq!(
            report(&Plain(full())),
            "write the file 'x': No space left on device (os error 28); free space on its file \
             system"
        );
        assert!(report(&Plain(std::io::Error::from_raw_os_error(24))).contains("LimitNOFILE"));
        assert!(remedy(&Plain(std::io::Error::from_raw_os_error(2))).is_none());
        // Who knows better is heard.
        assert_eq!(remedy(&Outer(full())), Some("free some space".to_owned()));
    }

    #[test]
    fn bytes_that_nobody_can_read_do_not_reach_the_terminal() {
        let fault = Outer(std::io::Error::other("bad number \u{1b}[31m\0\n\u{fffd}\u{fffd}7"));
        assert!(report(&fault).starts_with("write the file 'x': bad number ?[31m?7; "));
    }
}
