//! The control page: what the tender tells a running guest, without a call. Read-only for it.

use core::sync::atomic::AtomicU32;

/// See the module.
#[derive(Debug)]
#[repr(C)]
pub struct ControlPage {
    /// 1 once the guest is asked to stop.
    pub stop_requested: AtomicU32,
    /// Must be zero.
    pub reserved: AtomicU32,
}
