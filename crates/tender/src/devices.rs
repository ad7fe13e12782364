//! The devices of a guest, as the tender serves them.
//!
//! All words that a guest can write are read once, and checked before they are used.

pub mod block;
pub mod net;
pub mod tap;

use crate::stats::Stats;

/// Why a device cannot be served any more: the instance is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The guest broke this rule of a ring.
    Broken(&'static str),
    /// The host's side of the device is gone for good: nothing will come, and nothing will go.
    Gone(HostError),
}

/// The kernel's error number for a device of the host that is not there any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostError(i32);

impl HostError {
    /// Whether an answer of a system call says so. `EIO` does not: an interface that is only down
    /// gives it, and may come up again.
    #[must_use]
    pub(crate) fn of(answer: isize) -> Option<Self> {
        let number = i32::try_from(answer).ok()?.checked_neg()?;
        let gone = [libc::EBADFD, libc::ENODEV, libc::ENXIO].contains(&number);
        gone.then_some(Self(number))
    }
}

impl core::fmt::Display for HostError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        // Not the C library's texts: they need thread-local storage.
        let name = match self.0 {
            libc::EBADFD => "EBADFD",
            libc::ENODEV => "ENODEV",
            _ => "ENXIO",
        };
        f.write_str(name)
    }
}

/// A device that is served.
#[derive(Debug)]
pub enum Device {
    /// A network interface.
    Net(net::Net),
    /// A block device.
    Block(block::Block),
}

impl Device {
    /// Index in the manifest.
    #[must_use]
    pub const fn index(&self) -> usize {
        match self {
            Self::Net(net) => net.index,
            Self::Block(block) => block.index,
        }
    }

    /// Does what the guest asked for and gives it what has come. Answers whether the device has
    /// something for the guest.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn serve(&mut self, stats: &mut Stats) -> Result<bool, Stopped> {
        match self {
            Self::Net(net) => net.serve(stats),
            Self::Block(block) => block.serve(stats),
        }
    }

    /// What to wait for before [`Self::serve`] can have more to do.
    #[must_use]
    pub const fn interest(&self) -> Option<(i32, i16)> {
        match self {
            Self::Net(net) => Some(net.interest()),
            Self::Block(_) => None,
        }
    }
}
