//! What the monitor told this instance when it started.
//!
//! The one place that turns the addresses of [`BootInfo`] into slices: the monitor promises that
//! they stay valid and unchanged for as long as the instance runs (hosted instances leak them).

use core::cell::Cell;

use shoal_unikernel_abi::boot::{BootInfo, DeviceInfo, MountInfo, Span};
use shoal_unikernel_abi::manifest::DeviceKind;

local! {
    /// Set once, before anything else runs.
    static BOOT: Cell<Option<&'static BootInfo>> = Cell::new(None);
}

/// Remembers `boot` for this instance; `None`: there is none any more.
pub(crate) fn set(boot: Option<&'static BootInfo>) {
    BOOT.with(|cell| cell.set(boot));
}

/// The boot information. `None` on a hosted thread that runs no instance.
#[must_use]
pub fn info() -> Option<&'static BootInfo> {
    BOOT.with(Cell::get)
}

/// The elements of a span that the monitor gave.
fn slice<T>(span: Span, count: usize) -> &'static [T] {
    if span.start == 0 || count == 0 {
        return &[];
    }
    // SAFETY: the monitor maps what the boot information points to, aligned and initialised, and
    // neither unmaps nor changes it while the instance runs.
    unsafe { core::slice::from_raw_parts(span.start as *const T, count) }
}

/// The bytes of a span that the monitor gave.
#[must_use]
pub fn bytes(span: Span) -> &'static [u8] {
    slice(span, span.len as usize)
}

/// The text of a span; empty if it is not UTF-8.
#[must_use]
pub fn text(span: Span) -> &'static str {
    core::str::from_utf8(bytes(span)).unwrap_or_default()
}

/// The devices, attached or not, in the manifest's order.
#[must_use]
pub fn devices() -> &'static [DeviceInfo] {
    info().map_or(&[], |boot| {
        slice(boot.devices, boot.devices.len as usize / size_of::<DeviceInfo>())
    })
}

/// The archives given at start.
#[must_use]
pub fn mounts() -> &'static [MountInfo] {
    info().map_or(&[], |boot| slice(boot.mounts, boot.mounts.len as usize / size_of::<MountInfo>()))
}

/// The attached device of this kind and name, with its index; any name if `name` is `None`.
#[must_use]
pub fn device(kind: DeviceKind, name: Option<&str>) -> Option<(usize, &'static DeviceInfo)> {
    devices().iter().enumerate().find(|(_, device)| {
        let fits = name.is_none_or(|name| device_name(device) == name);
        device.kind == kind as u32 && device.present == 1 && fits
    })
}

/// A device's name.
#[must_use]
pub fn device_name(device: &DeviceInfo) -> &str {
    let end = device.name.iter().position(|byte| *byte == 0).unwrap_or(device.name.len());
    core::str::from_utf8(&device.name[..end]).unwrap_or_default()
}

/// Whether the monitor offers all these [`shoal_unikernel_abi::features`].
#[must_use]
pub fn offers(features: u64) -> bool {
    info().is_some_and(|boot| boot.features & features == features)
}
