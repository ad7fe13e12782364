//! Who has a port that we wanted: for messages only.

use std::fs;
use std::path::Path;

use shoal_model::net::{Port, Protocol};
use shoal_netlink::netns::NetnsHandle;
use shoal_netlink::sockdiag::{STATE_LISTEN, SocketInfo, Transport};

use super::socket::HostNetns;

/// `'nginx' (pid 77) listens on 0.0.0.0:80`; nothing if nobody can be found.
pub(super) fn find(netns: &HostNetns, port: Port) -> Option<String> {
    // Ignored because: the error to report is the taken port; this only adds who has it.
    let handle = match &netns.0 {
        Some(path) => NetnsHandle::open(path).ok()?,
        None => NetnsHandle::current().ok()?,
    };
    let transport = match port.protocol {
        Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
        Protocol::Sctp => return None,
    };
    let holds = |socket: &SocketInfo| {
        let listens = transport == Transport::Udp || socket.state == STATE_LISTEN;
        listens && socket.local.port() == port.number
    };
    let socket = handle.sockets(transport).ok()?.into_iter().find(holds)?;
    let verb = if transport == Transport::Tcp { "listens on" } else { "is bound to" };
    Some(match process(socket.inode) {
        Some((pid, name)) => format!("'{name}' (pid {pid}) {verb} {}", socket.local),
        None => format!("a process that cannot be seen from here {verb} {}", socket.local),
    })
}

/// The process that has the socket open.
fn process(inode: u32) -> Option<(u32, String)> {
    let wanted = format!("socket:[{inode}]");
    let has = |fds: &Path| {
        // Ignored because: processes come and go while we look, and some are not ours to see.
        let Ok(entries) = fs::read_dir(fds) else { return false };
        entries.flatten().any(|fd| {
            fs::read_link(fd.path()).is_ok_and(|link| link.as_os_str() == wanted.as_str())
        })
    };
    let entries = fs::read_dir("/proc").ok()?;
    entries.flatten().find_map(|entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        has(&entry.path().join("fd")).then_some(())?;
        let name = fs::read_to_string(entry.path().join("comm")).ok()?;
        Some((pid, name.trim().to_owned()))
    })
}
