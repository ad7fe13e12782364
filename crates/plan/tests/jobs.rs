//! Jobs: every place is completed once in each iteration, by no more tasks at a time than may run.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod cluster;

use std::collections::BTreeMap;

use cluster::{Chance, FakeCluster, global_job_spec, job_spec, set_image};
use shoal_model::change::ObjectKey;
use shoal_model::id::{NodeId, ServiceId};
use shoal_model::object::{NodeState, Service, Task, UpdateState, UpdateStatus};
use shoal_model::spec::node::Availability;
use shoal_model::spec::service::{ReplicatedJob, ServiceSpec};
use shoal_model::spec::task::RestartPolicy;
use shoal_model::task_state::TaskState;
use shoal_model::time::Nanos;

fn node(index: u16) -> NodeId {
    NodeId::new(format!("node-{index}"))
}

/// Tasks of which something may run on a node.
fn busy(cluster: &FakeCluster, id: &ServiceId) -> usize {
    let runs = |t: &&std::sync::Arc<Task>| {
        (TaskState::Assigned..=TaskState::Running).contains(&t.status.state)
    };
    cluster.tasks(id).iter().filter(runs).count()
}

/// The places that are done, and by how many tasks, in the iteration that runs.
fn done(cluster: &FakeCluster, id: &ServiceId) -> BTreeMap<(u32, Option<NodeId>), usize> {
    let iteration = cluster.service(id).job_status().map(|s| s.iteration);
    let mut done = BTreeMap::new();
    for task in cluster.tasks(id).iter().filter(|t| t.is_done() && t.job_iteration == iteration) {
        let place = (task.slot, task.node_id.clone().filter(|_| task.slot == 0));
        *done.entry(place).or_default() += 1;
    }
    done
}

fn set_policy(spec: &mut ServiceSpec, condition: &str, max_attempts: Option<u64>) {
    spec.task_template.restart_policy = Some(RestartPolicy {
        condition: Some(condition.into()),
        delay: Some(Nanos::from_secs(2)),
        max_attempts,
        window: None,
    });
}

/// Runs on, and checks that no more tasks run at a time than may.
#[track_caller]
fn run(cluster: &mut FakeCluster, id: &ServiceId, most: usize, steps: usize) {
    let mut chance = Chance(7);
    for _ in 0..steps {
        cluster.run(&mut chance, 1, 0);
        assert!(busy(cluster, id) <= most, "{} tasks at a time", busy(cluster, id));
    }
}

#[test]
fn a_replicated_job_is_completed_so_often_and_then_rests() {
    let mut cluster = FakeCluster::new(2);
    let start = cluster.now;
    let id = cluster.add_service(job_spec("batch", 2, 5));
    cluster.plan();
    assert_eq!(cluster.live(&id).len(), 2, "no more at a time than may run");
    let names: Vec<u32> = cluster.live(&id).iter().map(|t| t.shown_slot()).collect();
    assert_eq!(names, [0, 1], "clients count a job's places from 0");
    run(&mut cluster, &id, 2, 80);
    let tasks = cluster.tasks(&id);
    assert_eq!(tasks.iter().map(|t| t.slot).collect::<Vec<_>>(), [1, 2, 3, 4, 5]);
    assert!(tasks.iter().all(|t| t.is_done() && t.job_iteration == Some(0)), "{tasks:#?}");
    let status = cluster.service(&id).job_status.unwrap();
    assert_eq!((status.iteration, status.last_execution), (0, start));
    cluster.plan();
    assert_eq!(cluster.wake_at, None, "nothing is left to do");
    // Where its tasks ran does not matter any more.
    cluster.set_node_state(&node(1), NodeState::Down);
    cluster.delete(ObjectKey::Node(node(2)));
    cluster.plan();
    assert_eq!(done(&cluster, &id).len(), 5);
    assert!(cluster.live(&id).is_empty());
}

#[test]
fn what_failed_is_tried_again_as_the_policy_says() {
    let cases = [("none", None, 1), ("on-failure", Some(3), 4), ("any", Some(2), 3)];
    for (condition, max, attempts) in cases {
        let mut cluster = FakeCluster::new(1);
        cluster.broken_images.push("web:1".into());
        let mut wanted = job_spec("batch", 1, 2);
        set_policy(&mut wanted, condition, max);
        let id = cluster.add_service(wanted);
        cluster.plan();
        run(&mut cluster, &id, 1, 200);
        let per_place = |slot| cluster.failures.iter().filter(|(_, _, p)| p.0 == slot).count();
        assert_eq!((per_place(1), per_place(2)), (attempts, attempts), "{condition}");
        assert!(cluster.live(&id).is_empty(), "{condition}: it was given up");
        // What ends well is not repeated, whatever the policy says; an update begins anew.
        cluster.broken_images.clear();
        cluster.update_service(&id, |spec| spec.task_template.force_update = Some(1));
        cluster.plan();
        run(&mut cluster, &id, 1, 200);
        let places = done(&cluster, &id).into_iter().map(|((slot, _), n)| (slot, n));
        assert_eq!(places.collect::<Vec<_>>(), [(1, 1), (2, 1)], "{condition}");
        assert_eq!(cluster.service(&id).job_status().unwrap().iteration, 1);
    }
    // Without a bound it goes on until it works.
    let mut cluster = FakeCluster::new(2);
    let mut wanted = job_spec("batch", 3, 9);
    set_policy(&mut wanted, "any", None);
    let id = cluster.add_service(wanted);
    let mut chance = Chance(3);
    for _ in 0..600 {
        cluster.run(&mut chance, 1, 6);
        assert!(busy(&cluster, &id) <= 3);
    }
    assert!(cluster.failures.len() > 3, "{}", cluster.failures.len());
    assert_eq!(done(&cluster, &id).len(), 9);
}

#[test]
fn each_change_of_its_tasks_begins_the_next_iteration() {
    let mut cluster = FakeCluster::new(2);
    let id = cluster.add_service(job_spec("batch", 1, 3));
    run(&mut cluster, &id, 1, 60);
    let first: Vec<_> = cluster.tasks(&id).iter().map(|t| t.id.clone()).collect();
    assert_eq!(first.len(), 3);
    // Nothing that concerns a task: nothing is run again.
    let same = |spec: &mut ServiceSpec| {
        spec.labels.insert("a".into(), "b".into());
        let job = ReplicatedJob { max_concurrent: None, total_completions: Some(3) };
        spec.mode.as_mut().unwrap().replicated_job = Some(job);
    };
    for _ in 0..2 {
        cluster.update_service(&id, same);
        run(&mut cluster, &id, 1, 20);
    }
    assert_eq!(cluster.tasks(&id).iter().map(|t| t.id.clone()).collect::<Vec<_>>(), first);
    // One that comes while tasks run: they stop before new ones start.
    let began = cluster.now;
    cluster.update_service(&id, |spec| set_image(spec, "web:2"));
    run(&mut cluster, &id, 1, 4);
    cluster.update_service(&id, |spec| set_image(spec, "web:3"));
    run(&mut cluster, &id, 1, 80);
    let status = cluster.service(&id).job_status.unwrap();
    assert_eq!(status.iteration, 2);
    assert!(status.last_execution > began);
    assert_eq!(done(&cluster, &id).into_values().collect::<Vec<_>>(), [1, 1, 1]);
    let kept = |iteration| {
        let of = |t: &&std::sync::Arc<Task>| t.job_iteration == Some(iteration);
        cluster.tasks(&id).iter().filter(of).count()
    };
    assert_eq!((kept(0), kept(2)), (3, 3), "what ran before is kept as history");
    assert_eq!(kept(1), 1);
    // More often, then less often.
    let times = |total| {
        move |spec: &mut ServiceSpec| {
            let job = ReplicatedJob { max_concurrent: Some(2), total_completions: Some(total) };
            spec.mode.as_mut().unwrap().replicated_job = Some(job);
        }
    };
    for (total, iteration) in [(5, 3), (2, 4)] {
        cluster.update_service(&id, times(total));
        run(&mut cluster, &id, 2, 80);
        assert_eq!(done(&cluster, &id).len() as u64, total);
        assert_eq!(cluster.service(&id).job_status.unwrap().iteration, iteration);
        assert!(cluster.tasks(&id).iter().all(|t| u64::from(t.slot) <= total));
    }
    // However often: the history has its bound.
    for round in 0..12 {
        cluster.update_service(&id, |spec| spec.task_template.force_update = Some(100 + round));
        run(&mut cluster, &id, 2, 40);
    }
    assert_eq!(cluster.tasks(&id).len(), 10, "five for each place");
}

#[test]
fn a_rollback_of_a_job_is_an_iteration_and_no_update() {
    let mut cluster = FakeCluster::new(1);
    let id = cluster.add_service(job_spec("batch", 1, 1));
    run(&mut cluster, &id, 1, 20);
    let mut service = cluster.service(&id).clone();
    service.spec_version += 1;
    service.update_status = Some(UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: cluster.now,
        completed_at: None,
        message: "manually requested rollback".into(),
    });
    cluster.put(shoal_model::change::Object::Service(Box::new(service)));
    run(&mut cluster, &id, 1, 20);
    assert_eq!(cluster.service(&id).update_status, None);
    assert_eq!(cluster.service(&id).job_status.unwrap().iteration, 1);
    assert_eq!(done(&cluster, &id).len(), 1);
}

#[test]
fn a_global_job_is_completed_once_on_each_node() {
    let mut cluster = FakeCluster::new(3);
    cluster.edit_node(&node(3), |n| n.spec.availability = Availability::Pause);
    let id = cluster.add_service(global_job_spec("scan"));
    run(&mut cluster, &id, 2, 30);
    let nodes = |c: &FakeCluster| {
        let keys = done(c, &id).into_iter().map(|((_, node), n)| (node.unwrap(), n));
        keys.collect::<Vec<_>>()
    };
    assert_eq!(nodes(&cluster), [(node(1), 1), (node(2), 1)]);
    // Nodes that come, or come back, follow; what is done stays done.
    cluster.edit_node(&node(3), |n| n.spec.availability = Availability::Active);
    cluster.add_node(4);
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
    run(&mut cluster, &id, 2, 30);
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Active);
    run(&mut cluster, &id, 2, 30);
    let all = [(node(1), 1), (node(2), 1), (node(3), 1), (node(4), 1)];
    assert_eq!(nodes(&cluster), all);
    assert_eq!(cluster.tasks(&id).len(), 4);
    cluster.update_service(&id, |spec| spec.task_template.force_update = Some(1));
    run(&mut cluster, &id, 4, 30);
    assert_eq!(nodes(&cluster), all);
    assert_eq!(cluster.tasks(&id).len(), 8, "the iteration before is history");
}

#[test]
fn what_was_cut_short_begins_anew_and_never_twice_at_a_time() {
    let mut cluster = FakeCluster::new(2);
    let id = cluster.add_service(job_spec("batch", 4, 4));
    cluster.plan();
    cluster.run(&mut Chance(1), 1, 0);
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Drain);
    let mut chance = Chance(11);
    for _ in 0..60 {
        cluster.run(&mut chance, 1, 0);
        let mut places: Vec<u32> = cluster
            .tasks(&id)
            .iter()
            .filter(|t| (TaskState::Starting..=TaskState::Running).contains(&t.status.state))
            .map(|t| t.slot)
            .collect();
        let before = places.len();
        places.dedup();
        assert_eq!(places.len(), before, "two tasks of one place at a time");
    }
    assert_eq!(done(&cluster, &id).len(), 4);
    assert!(cluster.tasks(&id).len() > 4, "tasks of the drained node were begun anew");
    // A node that is lost: nobody waits for it.
    cluster.edit_node(&node(1), |n| n.spec.availability = Availability::Active);
    cluster.update_service(&id, |spec| set_image(spec, "web:2"));
    cluster.run(&mut Chance(1), 1, 0);
    cluster.set_node_state(&node(1), NodeState::Down);
    cluster.run(&mut Chance(1), 60, 0);
    assert_eq!(done(&cluster, &id).into_values().collect::<Vec<_>>(), [1, 1, 1, 1]);
}

#[test]
fn services_and_tasks_of_versions_before_jobs_are_read() {
    let mut cluster = FakeCluster::new(1);
    let id = cluster.add_service(cluster::spec("web", 1, &[]));
    cluster.plan();
    let mut service = serde_json::to_value(cluster.service(&id)).unwrap();
    service.as_object_mut().unwrap().remove("job_status");
    let service: Service = serde_json::from_value(service).unwrap();
    assert_eq!(&service, cluster.service(&id));
    let known = cluster.tasks(&id)[0].clone();
    let mut task = serde_json::to_value(&*known).unwrap();
    task.as_object_mut().unwrap().remove("job_iteration");
    let task: Task = serde_json::from_value(task).unwrap();
    assert_eq!(task, *known);
    assert_eq!(task.job_iteration, None);
}
