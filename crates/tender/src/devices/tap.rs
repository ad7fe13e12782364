//! Attaches a network device to a TAP interface or to an inherited file.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

use crate::config::Attach;
use crate::devices::net::VNET_BYTES;
use crate::error::TenderError;

const TUN_F_CSUM: libc::c_ulong = 1;
const TUN_F_TSO4: libc::c_ulong = 2;
const TUN_F_TSO6: libc::c_ulong = 4;

/// An attached file.
#[derive(Debug)]
pub struct Attached {
    /// It, not blocking.
    pub fd: OwnedFd,
    /// Whether the peer takes unfinished checksums and frames longer than the MTU.
    pub offers_offload: bool,
}

/// Attaches `device`. `takes_offload`: the guest takes such frames, so the peer is asked for them.
///
/// # Errors
/// [`TenderError::AttachNet`].
pub fn attach(device: &str, attach: &Attach, takes_offload: bool) -> Result<Attached, TenderError> {
    let failed =
        |action| move |source| TenderError::AttachNet { device: device.to_owned(), action, source };
    match attach {
        Attach::Fd { number, offload } => {
            // SAFETY: the configuration says that the tender inherits this descriptor; that it is
            // open is checked by the next call.
            let fd = unsafe { OwnedFd::from_raw_fd(*number) };
            not_blocking(&fd).map_err(failed("using the inherited file"))?;
            Ok(Attached { fd, offers_offload: *offload })
        }
        Attach::Tap { netns, name } => {
            let back = match netns {
                Some(path) => Some(enter(path).map_err(failed("entering the network namespace"))?),
                None => None,
            };
            let fd = open(name, takes_offload);
            if let Some(own) = back {
                join(&own).map_err(failed("leaving the network namespace"))?;
            }
            let fd = fd.map_err(|(action, source)| failed(action)(source))?;
            Ok(Attached { fd, offers_offload: true })
        }
    }
}

/// Enters a network namespace; answers the one before.
fn enter(path: &Path) -> io::Result<File> {
    let own = File::open("/proc/self/ns/net")?;
    join(&File::open(path)?)?;
    Ok(own)
}

fn join(namespace: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) })
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn not_blocking(fd: &impl AsRawFd) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe {
        let flags = libc::fcntl(fd.as_raw_fd(), libc::F_GETFL);
        check(flags)?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK))?;
        check(libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC))
    }
}

/// Opens an existing TAP of the current network namespace.
fn open(name: &str, takes_offload: bool) -> Result<OwnedFd, (&'static str, io::Error)> {
    let find = "finding the interface";
    let c_name = CString::new(name).map_err(|error| (find, error.into()))?;
    // The kernel would make an interface that is not there, and nothing would ever reach it.
    // SAFETY: the name is a C string.
    if unsafe { libc::if_nametoindex(c_name.as_ptr()) } == 0 {
        return Err((find, io::Error::last_os_error()));
    }
    let file = File::options().read(true).write(true).open("/dev/net/tun");
    let file = file.map_err(|error| ("opening /dev/net/tun", error))?;
    let failed = |action| move |error| (action, error);
    // SAFETY: a zeroed request is a valid one.
    let mut request: libc::ifreq = unsafe { core::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags =
        (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    let fd = file.as_raw_fd();
    let size = VNET_BYTES as libc::c_int;
    let offload = if takes_offload { TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 } else { 0 };
    // SAFETY: the pointers are valid for the calls.
    unsafe {
        check(libc::ioctl(fd, libc::TUNSETIFF, &raw mut request))
            .map_err(failed("attaching to the interface"))?;
        check(libc::ioctl(fd, libc::TUNSETVNETHDRSZ, &raw const size))
            .map_err(failed("setting the size of the header"))?;
        check(libc::ioctl(fd, libc::TUNSETOFFLOAD, offload))
            .map_err(failed("setting the offloads"))?;
    }
    not_blocking(&file).map_err(failed("setting the mode"))?;
    Ok(file.into())
}
