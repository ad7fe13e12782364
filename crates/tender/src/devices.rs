//! The devices of a guest, as the tender serves them.
//!
//! All words that a guest can write are read once, and checked before they are used.

pub mod block;
pub mod net;
pub mod tap;

use crate::stats::Stats;

/// A guest broke the rules of a ring; it is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken(
    /// Which rule.
    pub &'static str,
);

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
    /// [`Broken`].
    pub fn serve(&mut self, stats: &mut Stats) -> Result<bool, Broken> {
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
