//! Linux capabilities by name.

/// Every capability in the kernel's order: the position is the number.
pub const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// What Docker leaves to every container that is not privileged.
pub const DEFAULT: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// No such capability.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid capability '{name}'")]
pub struct UnknownCapability {
    /// What was given.
    pub name: String,
}

/// The number of the capability `name` (`CAP_…`).
#[must_use]
pub fn number(name: &str) -> Option<u32> {
    ALL.iter().position(|known| *known == name).and_then(|at| u32::try_from(at).ok())
}

/// The capabilities of a container by Docker's rules: `--privileged` gives all, `add` and `drop`
/// change the default set, both know `ALL`, names work with and without `CAP_` in any case, and
/// what is both added and dropped is added only if `drop` says `ALL`.
///
/// # Errors
/// [`UnknownCapability`] names the first word that is no capability.
pub fn resolve(
    privileged: bool,
    add: &[String],
    drop: &[String],
) -> Result<Vec<String>, UnknownCapability> {
    let (add, drop) = (normalise(add)?, normalise(drop)?);
    if privileged {
        return Ok(ALL.map(str::to_owned).to_vec());
    }
    let has = |list: &[String], name: &str| list.iter().any(|n| n == name);
    let keep = |name: &str| {
        if has(&add, "ALL") {
            !has(&drop, name)
        } else if has(&drop, "ALL") {
            has(&add, name)
        } else {
            !has(&drop, name) && (DEFAULT.contains(&name) || has(&add, name))
        }
    };
    Ok(ALL.iter().filter(|name| keep(name)).map(|name| (*name).to_owned()).collect())
}

fn normalise(words: &[String]) -> Result<Vec<String>, UnknownCapability> {
    let one = |word: &String| {
        let upper = word.to_ascii_uppercase();
        let name = match upper.as_str() {
            "ALL" | "CAP_ALL" => "ALL".to_owned(),
            name if name.starts_with("CAP_") => upper,
            name => format!("CAP_{name}"),
        };
        if name == "ALL" || number(&name).is_some() {
            Ok(name)
        } else {
            Err(UnknownCapability { name: word.clone() })
        }
    };
    words.iter().map(one).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|w| (*w).to_owned()).collect()
    }

    #[test]
    fn adds_and_drops_follow_docker() {
        let resolve = |add: &[&str], drop: &[&str]| resolve(false, &words(add), &words(drop));
        assert_eq!(resolve(&[], &[]).unwrap().len(), DEFAULT.len());
        assert!(resolve(&["net_admin"], &[]).unwrap().contains(&"CAP_NET_ADMIN".to_owned()));
        assert_eq!(resolve(&["CAP_KILL"], &["ALL"]).unwrap(), words(&["CAP_KILL"]));
        assert_eq!(resolve(&["ALL"], &["mknod"]).unwrap().len(), ALL.len() - 1);
        assert!(resolve(&["flying"], &[]).is_err());
        assert_eq!(number("CAP_SYS_ADMIN"), Some(21));
    }
}
