//! How much was said to the kernel: what a change of the network costs, whatever the machine's
//! speed.

use std::sync::atomic::{AtomicU64, Ordering};

static SENT: AtomicU64 = AtomicU64::new(0);
static RECEIVED_BYTES: AtomicU64 = AtomicU64::new(0);

/// What went through the netlink sockets of this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Pieces sent: requests, or whole transactions.
    pub sent: u64,
    /// Bytes of the kernel's answers.
    pub received_bytes: u64,
}

/// Everything since the process started.
#[must_use]
pub fn so_far() -> Traffic {
    Traffic {
        sent: SENT.load(Ordering::Relaxed),
        received_bytes: RECEIVED_BYTES.load(Ordering::Relaxed),
    }
}

pub(crate) fn count_sent() {
    SENT.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn count_received(bytes: usize) {
    RECEIVED_BYTES.fetch_add(bytes as u64, Ordering::Relaxed);
}
