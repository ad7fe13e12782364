//! The KVM backend: the guest runs in ring 3 of a virtual machine with one processor.
//!
//! Ring 0 of it holds nothing but stubs that tell the tender of exceptions. The page tables are the
//! tender's: they are in guest-physical memory that no guest address leads to, no page is writable
//! and executable, and only the guest's own regions have the user bit. There are no interrupts and
//! no devices: the guest leaves by `out` to the one port that the task segment allows in ring 3.
//!
//! Such a guest runs at native speed also where ring 0 is emulated ([`flavour`]).

mod cpu;
pub mod flavour;
mod run;
pub(crate) mod setup;
mod tables;

pub(crate) use run::run;
pub(crate) use setup::Machine;

use std::io;

use crate::error::TenderError;

/// The first step, which fails where the machine has no KVM or the user may not have it.
pub(crate) const OPENING: &str = "opening /dev/kvm";

/// Port of the hypercall entry.
pub(crate) const CALL_PORT: u8 = 0x53;
/// Port of the exception stubs.
pub(crate) const EXCEPTION_PORT: u8 = 0x54;

/// An error of KVM as the tender's.
fn failed(action: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> TenderError {
    move |error| TenderError::Kvm { action, source: io::Error::from_raw_os_error(error.errno()) }
}
