//! Tiny images made by hand, and the tender that runs them.

#![allow(dead_code, unused_imports)]
#![allow(clippy::unwrap_used)]

pub mod image;
pub mod run;

pub use image::ImageBuilder;
pub use run::{Instance, Outcome, backends};

/// Declares a guest's code: a function that answers the bytes between two labels.
///
/// The code is position independent and entered like any guest. `{hypercall}` and the other names
/// are offsets in the boot information.
#[macro_export]
macro_rules! guest {
    ($name:ident, $($line:literal),+ $(,)?) => {
        mod $name {
            use $crate::common::image::{Boot, DATA};

            core::arch::global_asm!(
                concat!(".pushsection .rodata.guest.", stringify!($name), ",\"a\",@progbits"),
                concat!("guest_start_", stringify!($name), ":"),
                $($line,)+
                concat!("guest_end_", stringify!($name), ":"),
                ".popsection",
                "# {hypercall} {image} {heap} {stack} {devices} {control} {args} {data}",
                hypercall = const core::mem::offset_of!(Boot, hypercall),
                image = const core::mem::offset_of!(Boot, image),
                heap = const core::mem::offset_of!(Boot, heap),
                stack = const core::mem::offset_of!(Boot, stack),
                devices = const core::mem::offset_of!(Boot, devices),
                control = const core::mem::offset_of!(Boot, control),
                args = const core::mem::offset_of!(Boot, args),
                data = const DATA,
            );
            unsafe extern "C" {
                #[link_name = concat!("guest_start_", stringify!($name))]
                static START: u8;
                #[link_name = concat!("guest_end_", stringify!($name))]
                static END: u8;
            }

            /// The code.
            pub fn code() -> &'static [u8] {
                // SAFETY: both labels are in the section above, in this order.
                unsafe {
                    let (start, end) = (&raw const START, &raw const END);
                    core::slice::from_raw_parts(start, end.offset_from(start) as usize)
                }
            }
        }
    };
}
