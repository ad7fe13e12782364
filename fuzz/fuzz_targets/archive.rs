//! Archives: what the library OS reads of any bytes that are mounted.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| unikernel::fs::fuzz_archive(input));
