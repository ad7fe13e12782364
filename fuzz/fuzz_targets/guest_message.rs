//! Messages of a guest: what user-mode networking makes of any bytes.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| shoal_usernet::fuzz(input));
