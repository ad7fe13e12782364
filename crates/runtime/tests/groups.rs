//! Control groups that come and go at the same time. Needs root.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use shoal_runtime::cgroup::{Cgroup, DevicePolicy};
use shoal_runtime::container_plan::Limits;

/// Whoever removes the last group removes its parent too, which the next one is about to use.
#[test]
fn a_group_can_be_made_while_the_last_one_beside_it_goes() {
    const ROUNDS: usize = 200;
    let parent = format!("shoal-groups-{}", std::process::id());
    std::thread::scope(|scope| {
        for name in ["a", "b", "c"] {
            let path = format!("{parent}/{name}");
            scope.spawn(move || {
                let group = Cgroup::open(&path).unwrap();
                for round in 0..ROUNDS {
                    let made = group.create(&Limits::default(), DevicePolicy::Standard);
                    made.unwrap_or_else(|error| panic!("round {round}: {error:?}"));
                    assert!(group.layout().roots().all(|root| root.join(&path).is_dir()));
                    group.kill_and_remove().unwrap();
                }
            });
        }
    });
    let layout = shoal_runtime::cgroup::Layout::detect().unwrap();
    assert!(layout.roots().all(|root| !root.join(&parent).exists()));
}
