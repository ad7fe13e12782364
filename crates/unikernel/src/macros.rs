//! [`main!`](crate::main).

/// Declares an application: its main function and the devices that it needs.
///
/// ```text
/// #![cfg_attr(shoal_image, no_std, no_main)]
///
/// unikernel::main! {
///     main: serve,
///     devices: [net("net"), block("data", optional)],
///     heap_bytes_min: 4 << 20,
///     stack_bytes: 128 << 10,
/// }
///
/// async fn serve() -> Result<(), unikernel::net::Error> { ... }
/// ```
///
/// Everything but `main` may be left out, but the order stays. The main function is `async`,
/// takes nothing and answers `()` or `Result<(), E>` with `E: Display`. Device kinds are `net` and
/// `block`; an image does not start if a device that is not `optional` is missing.
#[macro_export]
macro_rules! main {
    (
        main: $main:path
        $(, devices: [$($kind:ident($name:literal $(, $flag:ident)?)),* $(,)?])?
        $(, heap_bytes_min: $heap:expr)?
        $(, stack_bytes: $stack:expr)?
        $(,)?
    ) => {
        /// What the image needs, for the monitor.
        #[cfg_attr(shoal_image, used)]
        #[cfg_attr(shoal_image, unsafe(link_section = ".note.shoal"))]
        static SHOAL_NOTE: $crate::manifest::Note = $crate::manifest::Note::new(
            &[$($($crate::__device!($kind, $name $(, $flag)?)),*)?],
            [$($heap as u64,)? $crate::manifest::HEAP_BYTES_MIN][0],
            [$($stack as u64,)? $crate::manifest::STACK_BYTES][0],
        );

        #[cfg(shoal_image)]
        #[unsafe(no_mangle)]
        extern "C" fn shoal_image_main() -> u8 {
            $crate::__private::run_main($main())
        }

        #[cfg(not(shoal_image))]
        fn main() -> ::std::process::ExitCode {
            $crate::hosted::run_program(SHOAL_NOTE.manifest(), $main)
        }
    };
}

/// One device of [`main!`](crate::main).
#[doc(hidden)]
#[macro_export]
macro_rules! __device {
    (net, $name:literal) => {
        $crate::manifest::net($name, false)
    };
    (net, $name:literal, optional) => {
        $crate::manifest::net($name, true)
    };
    (block, $name:literal) => {
        $crate::manifest::block($name, false)
    };
    (block, $name:literal, optional) => {
        $crate::manifest::block($name, true)
    };
}
