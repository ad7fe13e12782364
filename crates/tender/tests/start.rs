//! Guests that start, speak, and end.

#![allow(clippy::unwrap_used)]

mod common;

use common::{ImageBuilder, Instance, backends};
use shoal_tender::stats::reader::Reader;

guest!(
    hello,
    "mov rbx, rdi",
    "lea rsi, [rip + 2f]",
    "mov edx, 6",
    "mov ecx, 1",
    "mov edi, 2",
    "call [rbx + {hypercall}]",
    "mov edi, 3",
    "mov esi, 7",
    "call [rbx + {hypercall}]",
    "ud2",
    "2: .ascii \"hello\\n\"",
);

#[test]
fn a_guest_speaks_and_ends() {
    for backend in backends() {
        let instance = Instance::new(backend, &ImageBuilder::new(hello::code()));
        let outcome = instance.run();
        assert_eq!(outcome.stdout, "hello\n", "{outcome:?}");
        assert_eq!(outcome.status, Some(7), "{outcome:?}");
        let counters = Reader::open(&instance.path("stats")).unwrap().snapshot();
        assert_eq!(counters.log_bytes, 6);
        assert_eq!(counters.backend, if backend == "kvm" { 1 } else { 2 });
        assert!(counters.start_ns > 0 && counters.start_ns < 10_000_000_000);
        eprintln!("{backend}: {} us from the start to the guest", counters.start_ns / 1000);
    }
}
