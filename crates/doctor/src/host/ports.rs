//! The ports between nodes: free, ours, or held by whom.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use shoal_model::check::Need;
use shoal_model::net::{Port, Protocol};

use super::{Finding, HostCheck, HostConfig, read};

/// State of a listening TCP socket in `/proc/net/tcp`.
const LISTEN: &str = "0A";

pub(super) fn checks(config: &HostConfig) -> Vec<HostCheck> {
    let port = |protocol, number| Port { protocol, number };
    let check = |id, port: Port, use_: &'static str| {
        HostCheck::new(id, format!("port {port}"), Need::Nothing, move || check_port(port, use_))
    };
    vec![
        check("SH-DOC-140", port(Protocol::Tcp, config.manager_port), "a manager listens there"),
        check(
            "SH-DOC-141",
            port(Protocol::Udp, config.tunnel_port),
            "nodes probe their paths there",
        ),
        check("SH-DOC-142", port(Protocol::Udp, config.vxlan_port), "overlay networks use it"),
    ]
}

/// Who has a port.
#[derive(Debug, PartialEq, Eq)]
enum Holder {
    /// A socket without a process: the kernel's, as a VXLAN device has one.
    Kernel,
    Process {
        pid: u32,
        name: String,
        own: bool,
    },
}

fn check_port(port: Port, used_for: &str) -> Finding {
    let holders: Vec<Holder> = sockets_on(port).into_iter().map(holder).collect();
    let foreign = holders.iter().find_map(|holder| match holder {
        Holder::Process { pid, name, own: false } => Some((pid, name)),
        _ => None,
    });
    match (foreign, holders.first()) {
        (Some((pid, name)), _) => Finding::warn(
            format!("held by '{name}' (process {pid})"),
            format!("stop it or choose another port: {used_for}"),
        ),
        (None, Some(Holder::Process { pid, .. })) => {
            Finding::ok(format!("held by Shoal (process {pid})"))
        }
        (None, Some(Holder::Kernel)) if port.protocol == Protocol::Udp => {
            Finding::ok("held by the kernel, as for a VXLAN device")
        }
        (None, Some(Holder::Kernel)) => Finding::warn(
            "held by a socket whose process cannot be seen",
            format!("look on the host or in another container: {used_for}"),
        ),
        (None, None) => Finding::ok("free"),
    }
}

/// Inodes of the sockets that are bound to a port.
fn sockets_on(port: Port) -> Vec<u64> {
    let tables = match port.protocol {
        Protocol::Tcp => ["/proc/net/tcp", "/proc/net/tcp6"],
        _ => ["/proc/net/udp", "/proc/net/udp6"],
    };
    tables
        .iter()
        .flat_map(|table| {
            parse_sockets(&read(table).unwrap_or_default(), port.number, port.protocol)
        })
        .collect()
}

fn parse_sockets(text: &str, number: u16, protocol: Protocol) -> Vec<u64> {
    let parse = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (_, local) = words.get(1)?.rsplit_once(':')?;
        let bound = u16::from_str_radix(local, 16).ok()? == number;
        let listens = protocol != Protocol::Tcp || words.get(3) == Some(&LISTEN);
        (bound && listens).then_some(words.get(9)?.parse().ok()?)
    };
    text.lines().skip(1).filter_map(parse).collect()
}

/// The process that has a socket open, by its inode.
fn holder(inode: u64) -> Holder {
    let own = fs::metadata("/proc/self/exe").map(|about| (about.dev(), about.ino())).ok();
    let link = format!("socket:[{inode}]");
    // Processes come and go while we read: whatever vanishes holds nothing.
    for process in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if inode != 0 && has_open(&process.path(), &link) {
            let exe = process.path().join("exe");
            let program = fs::metadata(exe).map(|about| (about.dev(), about.ino())).ok();
            let name = read(&format!("/proc/{pid}/comm")).unwrap_or_default();
            return Holder::Process { pid, name, own: program.is_some() && program == own };
        }
    }
    Holder::Kernel
}

fn has_open(process: &Path, link: &str) -> bool {
    let files = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| to.as_os_str() == link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_sockets_are_found() {
        let text = "sl local_address rem_address st queues timer retrnsmt uid timeout inode\n\
            0: 00000000:0949 00000000:0000 0A 00000000:00000000 00:00000000 00000000 0 0 4711 1\n\
            1: 0100007F:0949 0100007F:1234 01 00000000:00000000 00:00000000 00000000 0 0 4712 1\n";
        assert_eq!(parse_sockets(text, 2377, Protocol::Tcp), [4711]);
        assert_eq!(parse_sockets(text, 2377, Protocol::Udp), [4711, 4712]);
        assert!(parse_sockets(text, 80, Protocol::Tcp).is_empty());
    }
}
