//! The DNS appliance: `dns [--port N] [--zones PATH] [--zone TEXT] [--transfer NETWORK,...]`.
//!
//! Zone files are those in the folder `/zones` (mount one there, or say another with `--zones`).
//! See [`dns_server::settings`] for the same as environment variables.

#![cfg_attr(shoal_image, no_std, no_main)]

extern crate alloc;

mod serve;

unikernel::main! {
    main: serve::serve,
    devices: [net("net")],
    heap_bytes_min: 4 << 20,
}
