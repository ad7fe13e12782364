//! Which kernel settings a container may have: only those that the kernel keeps for each namespace.
//! Everything else would be written for the whole host.
//!
//! The rules are runc's. A name is written with dots (`net.ipv4.conf.eth0.rp_filter`, where a slash
//! stands for a dot within a part) or with slashes (`net/ipv4/conf/eth0.100/rp_filter`); the first
//! separator says which.

/// Longest name: deeper than anything below `/proc/sys`, and short enough for every message.
pub const SYSCTL_NAME_MAX: usize = 256;
/// Longest value: the kernel takes one page at most.
pub const SYSCTL_VALUE_MAX: usize = 4_095;

/// What the kernel keeps for each IPC namespace.
const IPC: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shm_rmid_forced",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

/// Which namespaces of its own a container has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnNamespaces {
    /// Not the host's network.
    pub network: bool,
    /// Not the host's IPC.
    pub ipc: bool,
    /// Not the host's names.
    pub uts: bool,
}

impl OwnNamespaces {
    /// All of them: what a task has that is not on its node's own network.
    pub const ALL: Self = Self { network: true, ipc: true, uts: true };
}

/// Why a kernel setting was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SysctlError {
    /// Not a name.
    #[error("invalid sysctl '{name}': not the name of a kernel setting")]
    Name {
        /// As it was given, cut to a readable length.
        name: String,
    },
    /// Not a value.
    #[error("invalid sysctl '{name}': its value is longer than 4095 bytes or has a zero byte")]
    Value {
        /// Of this setting.
        name: String,
    },
    /// The kernel has it once for the whole host.
    #[error(
        "invalid sysctl '{name}': not in a namespace of the container, it would change the whole \
         host"
    )]
    NotNamespaced {
        /// Which.
        name: String,
    },
    /// It belongs to a namespace that the container shares with the host.
    #[error("invalid sysctl '{name}': not allowed in the host's {namespace} namespace")]
    HostNamespace {
        /// Which.
        name: String,
        /// `network`, `IPC`, `UTS`.
        namespace: &'static str,
    },
    /// Another option sets it.
    #[error("invalid sysctl '{name}': the container's host name is set by its own option")]
    Hostname {
        /// Which.
        name: String,
    },
}

/// Whether a container with these namespaces may set `name` to `value`. Returns the path of its
/// file below `/proc/sys`.
///
/// # Errors
/// [`SysctlError`] says which rule it breaks.
pub fn check(name: &str, value: &str, own: OwnNamespaces) -> Result<String, SysctlError> {
    let path = path_of(name).ok_or_else(|| SysctlError::Name { name: readable(name) })?;
    let name = || name.to_owned();
    if value.len() > SYSCTL_VALUE_MAX || value.contains('\0') {
        return Err(SysctlError::Value { name: name() });
    }
    let needs = if IPC.contains(&path.as_str()) || path.starts_with("fs/mqueue/") {
        ("IPC", own.ipc)
    } else if path.starts_with("net/") {
        ("network", own.network)
    } else if path == "kernel/domainname" {
        ("UTS", own.uts)
    } else if path == "kernel/hostname" && own.uts {
        return Err(SysctlError::Hostname { name: name() });
    } else {
        return Err(SysctlError::NotNamespaced { name: name() });
    };
    match needs {
        (_, true) => Ok(path),
        (namespace, false) => Err(SysctlError::HostNamespace { name: name(), namespace }),
    }
}

/// The file below `/proc/sys`; `None` for what cannot be one, such as a way upwards.
fn path_of(name: &str) -> Option<String> {
    let printable = name.bytes().all(|b| b.is_ascii_graphic());
    if name.len() > SYSCTL_NAME_MAX || !printable {
        return None;
    }
    let first = name.find(['.', '/'])?;
    let swap = |c| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    let path: String = if name.get(first..).is_some_and(|rest| rest.starts_with('.')) {
        name.chars().map(swap).collect()
    } else {
        name.to_owned()
    };
    let fits = path.split('/').all(|part| !matches!(part, "" | "." | ".."));
    fits.then_some(path)
}

fn readable(name: &str) -> String {
    name.chars().take(SYSCTL_NAME_MAX).collect::<String>().escape_debug().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_namespaced_is_allowed_in_both_spellings() {
        for (name, path) in [
            ("net.core.somaxconn", "net/core/somaxconn"),
            ("net/core/somaxconn", "net/core/somaxconn"),
            ("net.ipv4.conf.eth0/100.rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
            ("net/ipv4/conf/eth0.100/rp_filter", "net/ipv4/conf/eth0.100/rp_filter"),
            ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
            ("kernel/sem", "kernel/sem"),
            ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
            ("kernel.domainname", "kernel/domainname"),
        ] {
            assert_eq!(check(name, "1", OwnNamespaces::ALL).as_deref(), Ok(path), "{name}");
        }
    }

    #[test]
    fn what_belongs_to_the_host_is_refused_in_both_spellings() {
        for name in [
            "vm.swappiness",
            "vm/swappiness",
            "kernel.core_pattern",
            "kernel/core_pattern",
            "kernel.msgmax.x",
            "kernel.sem/x",
            "fs.file-max",
            "fs.mqueue",
            "user.max_user_namespaces",
            "debug.exception-trace",
            "dev.cdrom.info",
            "sunrpc.x",
        ] {
            let refused = check(name, "1", OwnNamespaces::ALL);
            let whole = matches!(refused, Err(SysctlError::NotNamespaced { .. }));
            assert!(whole, "{name}: {refused:?}");
        }
        let hostname = check("kernel.hostname", "x", OwnNamespaces::ALL);
        assert!(matches!(hostname, Err(SysctlError::Hostname { .. })), "{hostname:?}");
    }

    #[test]
    fn a_namespace_that_is_the_hosts_is_left_alone() {
        let none = OwnNamespaces { network: false, ipc: false, uts: false };
        for (name, of) in [
            ("net.ipv4.ip_forward", "network"),
            ("net/ipv4/ip_forward", "network"),
            ("kernel.shmmax", "IPC"),
            ("fs/mqueue/msg_max", "IPC"),
            ("kernel.domainname", "UTS"),
        ] {
            match check(name, "1", none) {
                Err(SysctlError::HostNamespace { namespace, .. }) => assert_eq!(namespace, of),
                other => panic!("{name}: {other:?}"),
            }
        }
        let hostname = check("kernel.hostname", "x", none);
        assert!(matches!(hostname, Err(SysctlError::NotNamespaced { .. })), "{hostname:?}");
    }

    #[test]
    fn no_name_leads_upwards() {
        for name in [
            "",
            "net",
            "net.",
            ".net.core",
            "/net/core",
            "net..core",
            "net//core",
            "net/../kernel/panic",
            "net.//.kernel.panic",
            "net/./core",
            "net.core.x\0",
            "net.core.x\n",
            "net.core.a b",
            &format!("net.{}", "x".repeat(SYSCTL_NAME_MAX)),
        ] {
            let refused = check(name, "1", OwnNamespaces::ALL);
            assert!(matches!(refused, Err(SysctlError::Name { .. })), "{name:?}: {refused:?}");
        }
        for value in ["\0", &"1".repeat(SYSCTL_VALUE_MAX + 1)] {
            let refused = check("net.core.somaxconn", value, OwnNamespaces::ALL);
            assert!(matches!(refused, Err(SysctlError::Value { .. })), "{refused:?}");
        }
    }
}
