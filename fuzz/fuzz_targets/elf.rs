//! Images: what the monitor's loader makes of any file.
#![no_main]

libfuzzer_sys::fuzz_target!(|file: &[u8]| shoal_tender::elf::fuzz(file));
