//! TAP devices: links whose other end is a program. They are made persistent here, with an owner,
//! so that they belong to their namespace like any other link; the program attaches later.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

use crate::error::{Cause, NetlinkError};
use crate::link::{LinkOptions, NAME_LEN_MAX};
use crate::netns::NetnsHandle;

/// The file through which TAP devices are made and attached to.
const DEVICE: &str = "/dev/net/tun";
/// Ethernet frames.
const IFF_TAP: i16 = 0x0002;
/// No extra header of the driver's own.
const IFF_NO_PI: i16 = 0x1000;
/// Each frame begins with a `virtio_net_hdr`: offloaded checksums and large frames.
const IFF_VNET_HDR: i16 = 0x4000;

const TUNSETIFF: u64 = 0x4004_54ca;
const TUNSETPERSIST: u64 = 0x4004_54cb;
const TUNSETOWNER: u64 = 0x4004_54cc;

/// `struct ifreq` (linux/if.h) as `TUNSETIFF` uses it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

mod request {
    #![allow(missing_docs)]
    nix::ioctl_write_ptr_bad!(set_interface, super::TUNSETIFF, super::InterfaceRequest);
    nix::ioctl_write_int_bad!(set_persist, super::TUNSETPERSIST);
    nix::ioctl_write_int_bad!(set_owner, super::TUNSETOWNER);
}

impl NetnsHandle {
    /// Creates a persistent TAP device (`IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`) that the user `owner`
    /// may attach to without privileges.
    ///
    /// # Errors
    /// The name is taken (`EEXIST`), or the kernel has no TAP devices.
    pub fn create_tap(
        &self,
        name: &str,
        owner: u32,
        options: &LinkOptions,
    ) -> Result<(), NetlinkError> {
        let refused = |cause: Cause| cause.of("create the TAP device", self.object(name));
        if name.is_empty() || name.len() > NAME_LEN_MAX {
            return Err(refused(Cause::Malformed("a link's name has 1 to 15 bytes")));
        }
        // `TUNSETIFF` would attach to a device that is there already.
        if self.link(name)?.is_some() {
            return Err(refused(Cause::errno(libc::EEXIST)));
        }
        let made = self.run(|| make(name, owner))?;
        made.map_err(|source| refused(Cause::system("ask the TUN driver", source)))?;
        self.settle_link(name, options)
    }

    /// Becomes the program at the other end of a TAP device that is there: each read gives a frame
    /// and each write sends one, with a `virtio_net_hdr` of ten bytes before it.
    ///
    /// # Errors
    /// There is no such device, or another program is attached to it (`EBUSY`).
    pub fn attach_tap(&self, name: &str) -> Result<File, NetlinkError> {
        self.link_index(name)?;
        let refused = |cause: Cause| cause.of("attach to the TAP device", self.object(name));
        let attached = self.run(|| attach(name))?;
        attached.map_err(|source| refused(Cause::system("ask the TUN driver", source)))
    }
}

fn make(name: &str, owner: u32) -> io::Result<()> {
    let file = attach(name)?;
    // SAFETY: the descriptor is open, and both requests take a number.
    unsafe {
        request::set_owner(file.as_raw_fd(), i32::try_from(owner).unwrap_or(-1))?;
        request::set_persist(file.as_raw_fd(), 1)?;
    }
    Ok(())
}

/// Attaches to the device in this thread's namespace, making it if there is none.
fn attach(name: &str) -> io::Result<File> {
    let file: File = OpenOptions::new().read(true).write(true).open(DEVICE)?;
    let mut wanted = InterfaceRequest {
        name: [0; 16],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    for (to, from) in wanted.name.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: `wanted` is laid out as the kernel's structure of 40 bytes and lives during the call;
    // the descriptor is open.
    unsafe { request::set_interface(file.as_raw_fd(), &wanted)? };
    Ok(file)
}
