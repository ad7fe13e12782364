//! `shoal doctor`: what this machine can and cannot do, and what to do about it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use shoal_doctor::damage::Damage;
use shoal_doctor::host::HostConfig;
use shoal_doctor::leftovers::sweep;
use shoal_doctor::report;
use shoal_doctor::run::{DEADLINE, run_all};
use shoal_model::check::{Check, CheckResult, Verdict};
use shoal_network::node_network::NodeNetwork;

use crate::output;

/// Options of `shoal doctor`.
#[derive(Args, Clone, Debug, Default)]
pub struct DoctorArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Explain an error id, for example SH-NET-003.
    #[arg(long, value_name = "ID")]
    explain: Option<String>,
    /// Where a daemon's durable state is or will be.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/shoal")]
    data_root: PathBuf,
}

/// How often a node that starts, and a doctor without a node, try what fails.
const TRIES: u32 = 3;
/// Time between two tries.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// Makes a fresh set of checks.
type Checks = dyn Fn() -> Vec<Box<dyn Check>> + Send + Sync;

/// A set of checks that can be run again and again.
#[derive(Clone)]
pub struct Checkup {
    checks: Arc<Checks>,
}

impl Checkup {
    /// These checks, made anew for each run.
    #[cfg(test)]
    pub fn of(checks: impl Fn() -> Vec<Box<dyn Check>> + Send + Sync + 'static) -> Self {
        Self { checks: Arc::new(checks) }
    }

    /// The checks of a running node.
    pub fn of_node(network: &NodeNetwork, data_root: &Path) -> Self {
        let (network, config) = (network.clone(), HostConfig::new(data_root));
        let checks = move || {
            for problem in sweep(&config.data_root) {
                tracing::warn!(problem, "what a check left stays");
            }
            with_host(network.checks(), &config)
        };
        Self { checks: Arc::new(checks) }
    }

    /// Runs them until none fails, a few times at most. A machine that has just booted is still
    /// loading modules, and answers "not supported" until it has.
    pub fn run_at_start(&self) -> Vec<CheckResult> {
        until_none_fails(|| self.run())
    }

    /// The checks of a machine without a node.
    fn of_machine(data_root: &Path) -> Self {
        let config = HostConfig::new(data_root);
        let checks = move || {
            for problem in sweep(&config.data_root) {
                eprintln!("{problem}");
            }
            with_host(shoal_netlink::checks::all(), &config)
        };
        Self { checks: Arc::new(checks) }
    }

    /// With what the daemon itself knows to be damaged.
    #[must_use]
    pub fn with_damage(self, named: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        let (others, named) = (self.checks, Arc::new(named));
        let checks = move || {
            let named = Arc::clone(&named);
            let mut checks = others();
            checks.push(Box::new(Damage::new(move || named())));
            checks
        };
        Self { checks: Arc::new(checks) }
    }

    /// Runs them all.
    pub fn run(&self) -> Vec<CheckResult> {
        run_quietly((self.checks)())
    }

    /// Runs those again that failed in `found`, which an earlier run of the same set gave.
    pub fn run_failed(&self, found: &[CheckResult]) -> Vec<CheckResult> {
        let mut results = found.to_vec();
        let fails = |number: &usize| found.get(*number).is_some_and(|r| r.verdict == Verdict::Fail);
        let (numbers, checks): (Vec<usize>, Vec<_>) =
            (self.checks)().into_iter().enumerate().filter(|(n, _)| fails(n)).unzip();
        for (number, result) in numbers.into_iter().zip(run_quietly(checks)) {
            if let Some(slot) = results.get_mut(number) {
                *slot = result;
            }
        }
        results
    }

    /// The same for somebody who looks on, before a node does: the checks themselves have the
    /// kernel load its modules, and what one of them waits for another may not find yet.
    fn run_aloud(&self) -> Vec<CheckResult> {
        until_none_fails(|| {
            run_all((self.checks)(), DEADLINE, |slow| {
                eprintln!("waiting for: {} (the kernel may be loading modules)", slow.join(", "));
            })
        })
    }
}

/// Runs checks for a daemon, whose log says what takes long.
fn run_quietly(checks: Vec<Box<dyn Check>>) -> Vec<CheckResult> {
    run_all(checks, DEADLINE, |slow| {
        let list = slow.join(", ");
        tracing::info!(checks = list, "checks take long: the kernel may be loading modules");
    })
}

/// Runs checks until none fails, a few times at most.
fn until_none_fails(run: impl Fn() -> Vec<CheckResult>) -> Vec<CheckResult> {
    let mut found = run();
    for _ in 1..TRIES {
        if found.iter().all(|check| check.verdict != Verdict::Fail) {
            break;
        }
        std::thread::sleep(BETWEEN_TRIES);
        found = run();
    }
    found
}

/// The network's checks, the runtime's and the host's.
fn with_host(mut checks: Vec<Box<dyn Check>>, config: &HostConfig) -> Vec<Box<dyn Check>> {
    checks.extend(shoal_runtime::checks::checks());
    checks.extend(shoal_doctor::host::checks(config));
    checks
}

/// Runs the checks, or explains an id. Exit status: 0 all is well, 1 something fails, 2 bad usage.
pub fn run(args: &DoctorArgs) -> ExitCode {
    if let Some(id) = &args.explain {
        return match shoal_doctor::explain::explain(id) {
            Some(page) => {
                print!("{page}");
                ExitCode::SUCCESS
            }
            None => {
                eprintln!("shoal doctor: no page for '{id}'");
                ExitCode::from(2)
            }
        };
    }
    let results = Checkup::of_machine(&args.data_root).run_aloud();
    if args.json {
        println!("{}", report::json(&results));
    } else {
        print!("{}", report::text(&results, output::width()));
    }
    if report::healthy(&results) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use shoal_model::check::Need;

    use super::*;

    /// Fails until it was tried so often.
    struct Loading(Arc<AtomicU32>, u32);

    impl Check for Loading {
        fn run(&self) -> CheckResult {
            let tried = self.0.fetch_add(1, Ordering::SeqCst) + 1;
            CheckResult {
                id: "SH-DOC-999".into(),
                name: "loading".into(),
                verdict: if tried < self.1 { Verdict::Fail } else { Verdict::Ok },
                detail: String::new(),
                remedy: String::new(),
                needed_for: Need::Nothing,
            }
        }
        fn label(&self) -> String {
            "loading".into()
        }
    }

    fn tried(succeeds_at: u32, run: impl Fn(&Checkup) -> Vec<CheckResult>) -> (u32, Verdict) {
        let tries = Arc::new(AtomicU32::new(0));
        let count = Arc::clone(&tries);
        let checks: Arc<Checks> = Arc::new(move || {
            vec![Box::new(Loading(Arc::clone(&count), succeeds_at)) as Box<dyn Check>]
        });
        let found = run(&Checkup { checks });
        (tries.load(Ordering::SeqCst), found[0].verdict)
    }

    #[test]
    fn only_what_failed_is_tried_again() {
        let counts = [1, 3].map(|succeeds_at| (Arc::new(AtomicU32::new(0)), succeeds_at));
        let tries = counts.clone();
        let checks: Arc<Checks> = Arc::new(move || {
            let check = |(count, at): &(Arc<AtomicU32>, u32)| -> Box<dyn Check> {
                Box::new(Loading(Arc::clone(count), *at))
            };
            tries.iter().map(check).collect()
        });
        let checkup = Checkup { checks };
        let mut found = checkup.run();
        let mut seen = Vec::new();
        for _ in 0..3 {
            found = checkup.run_failed(&found);
            seen.push(found.iter().map(|r| r.verdict).collect::<Vec<_>>());
        }
        let (ok, fail) = (Verdict::Ok, Verdict::Fail);
        assert_eq!(seen, [[ok, fail], [ok, ok], [ok, ok]]);
        assert_eq!(counts.map(|(count, _)| count.load(Ordering::SeqCst)), [1, 3]);
    }

    #[test]
    fn what_fails_before_or_when_a_node_starts_is_tried_again_and_what_does_not_is_not() {
        for run in [Checkup::run_at_start, Checkup::run_aloud] {
            assert_eq!(tried(1, run), (1, Verdict::Ok));
            assert_eq!(tried(2, run), (2, Verdict::Ok));
            assert_eq!(tried(9, run), (TRIES, Verdict::Fail));
        }
    }
}
