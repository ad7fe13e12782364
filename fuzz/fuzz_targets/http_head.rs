//! Heads of requests: refused, or within their bounds.
#![no_main]

use unikernel::http::{Limits, parse};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = parse(bytes, &Limits::default());
});
