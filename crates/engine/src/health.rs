//! Health checks: a process in the container every so often (or a question to a unikernel), and the
//! verdict that follows.

use std::sync::Arc;
use std::time::Duration;

use shoal_life::container::Event;
use shoal_model::fault;
use shoal_model::spec::container::HealthConfig;
use shoal_model::time::{Nanos, Timestamp};
use shoal_runtime::container_plan::{ExecPlan, ProcessPlan};
use shoal_runtime::{OutputChunk, Shim};
use tokio_util::sync::CancellationToken;

use crate::change::Phase;
use crate::container::Container;
use crate::engine::Engine;
use crate::record::Record;
use crate::unikernel::{self, Workload};
use crate::view::container::{Health, HealthResult};

/// Docker's values for what nobody says.
const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: i64 = 3;

/// How many results are kept, as Docker's.
const LOG_LEN: usize = 5;

/// How much of a check's output is kept, as Docker's.
const OUTPUT_BYTES_MAX: usize = 4_096;

/// How long a killed check may take to end before it is left to the shim.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// What is done at each check.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    /// A command in the container.
    Command(Vec<String>),
    /// A question over the network, for unikernels.
    Network(unikernel::probe::Probe),
}

/// A check, with every default applied.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Probe {
    test: Test,
    interval: Duration,
    start_interval: Duration,
    start_period: Duration,
    timeout: Duration,
    retries: i64,
}

fn probe(record: &Record) -> Option<Probe> {
    let config = record.config.healthcheck.as_ref();
    if record.workload == Workload::Container {
        let test = Test::Command(command(config?)?);
        return Some(with_defaults(test, config?));
    }
    let disabled = |config: &&HealthConfig| {
        config.test.as_ref().and_then(|test| test.first()).is_some_and(|kind| kind == "NONE")
    };
    if config.as_ref().is_some_and(disabled) {
        return None;
    }
    let test = Test::Network(unikernel::probe::read(record.config.labels.as_ref())?);
    Some(with_defaults(test, config.unwrap_or(&HealthConfig::default())))
}

fn command(config: &HealthConfig) -> Option<Vec<String>> {
    let (kind, rest) = config.test.as_deref()?.split_first()?;
    Some(match kind.as_str() {
        "CMD" => rest.to_vec(),
        "CMD-SHELL" => vec!["/bin/sh".to_owned(), "-c".to_owned(), rest.first()?.clone()],
        _ => return None,
    })
}

fn with_defaults(test: Test, config: &HealthConfig) -> Probe {
    let span = |value: Option<Nanos>, default: Duration| {
        value.map(Nanos::duration).filter(|d| !d.is_zero()).unwrap_or(default)
    };
    Probe {
        test,
        interval: span(config.interval, INTERVAL),
        start_interval: span(config.start_interval, START_INTERVAL),
        start_period: span(config.start_period, Duration::ZERO),
        timeout: span(config.timeout, TIMEOUT),
        retries: config.retries.filter(|n| *n > 0).unwrap_or(RETRIES),
    }
}

/// The health of a container that has just started; `None` if it is not checked.
pub(crate) fn starting(record: &Record) -> Option<Health> {
    probe(record).map(|_| Health { status: "starting".into(), ..Health::default() })
}

/// Puts a result into the record; says whether the status changed. Failures within the start
/// period do not count, unless the container was healthy already.
fn judge(health: &mut Health, probe: &Probe, started: Timestamp, result: HealthResult) -> bool {
    let before = health.status.clone();
    let in_start_period = result.start.since(started) < probe.start_period;
    if result.exit_code == 0 {
        health.failing_streak = 0;
        health.status = "healthy".into();
    } else if !(in_start_period && before == "starting") {
        health.failing_streak += 1;
        if health.failing_streak >= probe.retries {
            health.status = "unhealthy".into();
        }
    }
    health.log.push(result);
    let surplus = health.log.len().saturating_sub(LOG_LEN);
    health.log.drain(..surplus);
    before != health.status
}

/// Checks the container until its run ends.
pub(crate) fn spawn(
    engine: &Engine,
    container: &Arc<Container>,
    shim: Shim,
    run: CancellationToken,
) {
    let Some(probe) = container.read(probe) else {
        return;
    };
    let own = engine.clone();
    let container = Arc::clone(container);
    engine.spawn(async move {
        run.run_until_cancelled(check_on(&own, &container, &shim, &probe)).await;
    });
}

async fn check_on(engine: &Engine, container: &Arc<Container>, shim: &Shim, probe: &Probe) {
    for number in 0_u64.. {
        let (started, waiting) = container.read(|record| {
            let status = record.run.health.as_ref().map(|h| h.status.as_str());
            (record.run.started_at, status == Some("starting"))
        });
        let early = waiting && engine.now().since(started) < probe.start_period;
        tokio::time::sleep(if early { probe.start_interval } else { probe.interval }).await;
        if container.phase() == Phase::Paused {
            continue;
        }
        let result = check_once(engine, container, shim, probe, number).await;
        let changed = container.change(|record| {
            let health = record.run.health.get_or_insert_default();
            judge(health, probe, started, result)
        });
        container.report(Event::Changed).await;
        if changed {
            let status = container.facts(false).health.as_str();
            engine.note(container, &format!("health_status: {status}"), &[]);
            engine.publish(container, false);
        }
    }
}

async fn check_once(
    engine: &Engine,
    container: &Container,
    shim: &Shim,
    probe: &Probe,
    number: u64,
) -> HealthResult {
    let start = engine.now();
    let (exit_code, output) = match &probe.test {
        Test::Command(argv) => run_command(container, shim, probe, argv, start, number).await,
        Test::Network(ask) => unikernel::probe::ask(engine, container, ask, probe.timeout).await,
    };
    let output = String::from_utf8_lossy(&output).into_owned();
    HealthResult { start, end: engine.now(), exit_code, output }
}

async fn run_command(
    container: &Container,
    shim: &Shim,
    probe: &Probe,
    argv: &[String],
    start: Timestamp,
    number: u64,
) -> (i64, Vec<u8>) {
    // The start time keeps ids apart when another daemon has taken the container over.
    let id = format!("health-{}-{number}", start.0);
    let plan = ExecPlan {
        id: id.clone(),
        process: ProcessPlan {
            argv: argv.to_vec(),
            env: container.read(|record| crate::exec::exec_env(record, false, None)),
            ..ProcessPlan::default()
        },
        privileged: false,
        attach_output: true,
    };
    match tokio::time::timeout(probe.timeout, run(shim, plan)).await {
        Ok(done) => done,
        Err(_) => {
            // Ignored because: a check that ended just now needs no signal, and a shim that does
            // not answer is the container's own watcher's business.
            let _ = shim.exec_signal(&id, crate::signal::KILL).await;
            let _ = tokio::time::timeout(KILL_DEADLINE, shim.exec_wait(&id)).await;
            let text = format!("Health check exceeded timeout ({:?})", probe.timeout);
            (-1, text.into_bytes())
        }
    }
}

/// Runs a check; gives its exit status and the first part of its output.
async fn run(shim: &Shim, plan: ExecPlan) -> (i64, Vec<u8>) {
    let mut handle = match shim.exec(plan).await {
        Ok(handle) => handle,
        Err(error) => return (-1, fault::report(&error).into_bytes()),
    };
    let mut output = Vec::new();
    loop {
        match handle.streams.output.next().await {
            Ok(Some(OutputChunk::Stdout(data) | OutputChunk::Stderr(data))) => {
                keep(&mut output, &data);
            }
            Ok(Some(OutputChunk::Exited(status))) => return (i64::from(status.code), output),
            Ok(Some(OutputChunk::Lagged) | None) => {
                return (-1, b"the check's connection ended early".to_vec());
            }
            Err(error) => return (-1, format!("read the check's output: {error}").into_bytes()),
        }
    }
}

/// Adds to a check's output what there is room for.
fn keep(output: &mut Vec<u8>, data: &[u8]) {
    let room = OUTPUT_BYTES_MAX.saturating_sub(output.len());
    output.extend(data.iter().take(room));
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn config(test: &[&str]) -> HealthConfig {
        let test = Some(test.iter().map(|w| (*w).to_owned()).collect());
        HealthConfig { test, ..HealthConfig::default() }
    }

    #[test]
    fn tests_become_command_lines() {
        let argv = |test: &[&str]| command(&config(test)).map(|argv| argv.join("|"));
        assert_eq!(argv(&["CMD", "a", "b"]).unwrap(), "a|b");
        assert_eq!(argv(&["CMD-SHELL", "x y"]).unwrap(), "/bin/sh|-c|x y");
        assert_eq!(argv(&["NONE"]), None);
        assert_eq!(argv(&[]), None);
    }

    #[test]
    fn a_verdict_needs_enough_failures_outside_the_start_period() {
        let mut config = config(&["CMD", "x"]);
        config.retries = Some(2);
        config.start_period = Some(Nanos::from_secs(10));
        let probe = with_defaults(Test::Command(Vec::new()), &config);
        let mut health = Health { status: "starting".into(), ..Health::default() };
        let started = Timestamp::from_secs(100);
        let mut step = |at: i64, exit_code: i64| {
            let start = Timestamp::from_secs(at);
            let result = HealthResult { start, exit_code, ..HealthResult::default() };
            let changed = judge(&mut health, &probe, started, result);
            (health.status.clone(), health.failing_streak, changed)
        };
        assert_eq!(step(101, 1), ("starting".into(), 0, false));
        assert_eq!(step(111, 1), ("starting".into(), 1, false));
        assert_eq!(step(112, 1), ("unhealthy".into(), 2, true));
        assert_eq!(step(113, 0), ("healthy".into(), 0, true));
        for at in 114..130 {
            step(at, 0);
        }
        assert_eq!(health.log.len(), LOG_LEN);
    }

    #[test]
    fn only_the_first_part_of_an_output_is_kept() {
        let mut output = Vec::new();
        for byte in [b'a', b'b', b'c'] {
            keep(&mut output, &[byte; OUTPUT_BYTES_MAX - 1]);
        }
        assert_eq!(output.len(), OUTPUT_BYTES_MAX);
        assert!(output.ends_with(b"ab"));
    }
}
