//! Frames: what the library OS's network stack makes of any conversation.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| unikernel::net::fuzz::frames(input));
