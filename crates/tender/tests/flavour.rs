//! The self-test of KVM.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use shoal_stopwatch::Stopwatch;

#[test]
fn the_self_test_is_quick_and_tells_rings_apart() {
    if !std::path::Path::new("/dev/kvm").exists() {
        eprintln!("skipped: there is no /dev/kvm");
        return;
    }
    let begin = Stopwatch::start();
    let flavour = shoal_tender::kvm::flavour::flavour().unwrap();
    let took = begin.elapsed();
    eprintln!("{flavour}; the self-test took {took:?}");
    // Ring 3 is native everywhere: two instructions take less than ten nanoseconds.
    assert!(flavour.ring3_ns > 0.05 && flavour.ring3_ns < 10.0, "{flavour:?}");
    assert!(flavour.ring0_ns > 0.05, "{flavour:?}");
    // Meant to take 100 ms; other tests run beside it.
    assert!(took < Duration::from_secs(1), "{took:?}");
}
