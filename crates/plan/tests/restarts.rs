//! What a task that cannot run costs: one attempt in each delay, whatever fails and wherever.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::BTreeMap;
use std::time::Duration;

use cluster::{Chance, FakeCluster, SlotName, global_spec, set_image, spec};
use shoal_model::id::ServiceId;
use shoal_model::spec::service::{ServiceSpec, UpdateConfig};
use shoal_model::spec::task::RestartPolicy;
use shoal_model::time::{Nanos, Timestamp};

/// Steps of half a second in an hour.
const HOUR: usize = 7200;

fn policy(delay: Option<i64>, max: Option<u64>, window: Option<i64>) -> Option<RestartPolicy> {
    Some(RestartPolicy {
        condition: None,
        delay: delay.map(Nanos::from_secs),
        max_attempts: max,
        window: window.map(Nanos::from_secs),
    })
}

/// The ends of each place, in order.
fn by_place(cluster: &FakeCluster, id: &ServiceId) -> BTreeMap<SlotName, Vec<Timestamp>> {
    let mut places: BTreeMap<SlotName, Vec<Timestamp>> = BTreeMap::new();
    for (at, _, place) in cluster.failures.iter().filter(|(_, service, _)| service == id) {
        places.entry(place.clone()).or_default().push(*at);
    }
    places
}

#[track_caller]
fn never_faster_than(cluster: &FakeCluster, id: &ServiceId, secs: i64) {
    for (place, ends) in by_place(cluster, id) {
        for (one, next) in ends.iter().zip(ends.iter().skip(1)) {
            let apart = next.0 - one.0;
            assert!(apart >= secs * 1_000_000_000, "{place:?}: two failures {apart} ns apart");
        }
    }
}

/// Every kind of failure, on several nodes, for an hour.
#[test]
fn a_task_that_cannot_run_costs_one_attempt_in_each_delay() {
    let services: [(&str, ServiceSpec); 2] =
        [("replicated", spec("web", 2, &[])), ("global", global_spec("web", &[]))];
    for (mode, wanted) in services {
        for (refused, delay) in [(true, None), (true, Some(7)), (false, None), (false, Some(7))] {
            let mut cluster = FakeCluster::new(3);
            let images =
                if refused { &mut cluster.missing_images } else { &mut cluster.broken_images };
            images.push("web:1".into());
            let mut wanted = wanted.clone();
            wanted.task_template.restart_policy = policy(delay, None, None);
            let id = cluster.add_service(wanted);
            cluster.plan();
            let mut most = 0;
            let mut chance = Chance(9);
            for _ in 0..HOUR {
                cluster.run(&mut chance, 1, 0);
                most = most.max(cluster.tasks(&id).len());
            }
            let secs = delay.unwrap_or(5);
            never_faster_than(&cluster, &id, secs);
            let places = by_place(&cluster, &id);
            let hour = HOUR as i64 / 2;
            for (place, ends) in &places {
                let ends = ends.len() as i64;
                assert!(ends <= hour / secs + 1, "{mode} {refused} {place:?}: {ends} attempts");
                // It goes on trying: nothing is given up by being slow.
                assert!(ends >= hour / (secs + 4), "{mode} {refused} {place:?}: {ends} attempts");
            }
            let history = 5 + 1;
            assert!(most <= places.len() * history, "{mode} {refused}: {most} tasks at once");
        }
    }
}

/// The first attempt is made at once.
#[test]
fn the_first_attempt_does_not_wait() {
    let mut cluster = FakeCluster::new(1);
    cluster.missing_images.push("web:1".into());
    let id = cluster.add_service(spec("web", 1, &[]));
    let start = cluster.now;
    cluster.plan();
    cluster.run(&mut Chance(1), 5, 0);
    // Accepted, preparing, refused: one step of half a second each.
    let ends = by_place(&cluster, &id);
    let first = ends.values().next().unwrap()[0];
    assert!(first.since(start) <= Duration::from_secs(2), "{first} {start}");
}

/// Attempts are counted whatever failed, and what was given up stays so when the window has passed.
#[test]
fn attempts_are_counted_for_refused_tasks_too() {
    for (max, window) in [(1, None), (3, None), (3, Some(60)), (2, Some(3600))] {
        let mut cluster = FakeCluster::new(2);
        cluster.missing_images.push("web:1".into());
        let mut wanted = spec("web", 1, &[]);
        wanted.task_template.restart_policy = policy(Some(2), Some(max), window);
        let id = cluster.add_service(wanted);
        cluster.plan();
        cluster.run(&mut Chance(2), 1200, 0);
        assert_eq!(cluster.failures.len() as u64, max + 1, "max {max}, window {window:?}");
        assert_eq!(cluster.live(&id).len(), 0);
    }
    // Failures that are further apart than the window never add up.
    let mut cluster = FakeCluster::new(2);
    cluster.missing_images.push("web:1".into());
    let mut wanted = spec("web", 1, &[]);
    wanted.task_template.restart_policy = policy(Some(20), Some(2), Some(15));
    cluster.add_service(wanted);
    cluster.plan();
    cluster.run(&mut Chance(2), 1200, 0);
    assert!(cluster.failures.len() > 20, "{}", cluster.failures.len());
}

/// An update to something that cannot run is no faster either, however it is configured.
#[test]
fn an_update_that_is_refused_costs_one_attempt_in_each_delay() {
    for order in ["stop-first", "start-first"] {
        for action in ["continue", "pause", "rollback"] {
            let mut cluster = FakeCluster::new(3);
            cluster.missing_images.push("web:2".into());
            let mut wanted = spec("web", 3, &[]);
            wanted.update_config = Some(UpdateConfig {
                parallelism: 2,
                failure_action: Some(action.into()),
                order: Some(order.into()),
                ..UpdateConfig::default()
            });
            let id = cluster.add_service(wanted);
            cluster.run(&mut Chance(4), 40, 0);
            cluster.update_service(&id, |spec| set_image(spec, "web:2"));
            cluster.plan();
            cluster.run(&mut Chance(4), HOUR / 4, 0);
            never_faster_than(&cluster, &id, 5);
            assert!(!cluster.failures.is_empty(), "{order} {action}");
        }
    }
}
