//! Answers of name servers, as the library OS's resolver reads them.
#![no_main]

libfuzzer_sys::fuzz_target!(|message: &[u8]| unikernel::net::fuzz::name_answer(message));
