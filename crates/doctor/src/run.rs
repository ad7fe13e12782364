//! Runs checks side by side, each with a deadline.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use shoal_model::check::{Check, CheckResult, Need, Verdict};

/// How long all checks together may take. On a warm machine they need a second or two; a kernel
/// that loads modules from a slow disk for the first of them needs as long as it takes.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// After this, whoever waits is told what for.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// The id of a check that does not end.
const STUCK: &str = "SH-DOC-100";

/// Runs all checks at once and gives their results in the order of `checks`. A check that has not
/// ended by `deadline` counts as failed; its thread is left alone, because a thread that hangs in
/// the kernel cannot be ended. `waiting` hears once, after [`PATIENCE`], what has not ended yet.
/// Blocks.
#[must_use]
pub fn run_all(
    checks: Vec<Box<dyn Check>>,
    deadline: Duration,
    waiting: impl FnOnce(&[&str]),
) -> Vec<CheckResult> {
    let end = Instant::now() + deadline;
    let mut waiting = Some(waiting);
    let mut told_at = Instant::now() + PATIENCE.min(deadline);
    // Every check finds room, so that one that is late does not hang on its result.
    let (sender, receiver) = mpsc::sync_channel(checks.len());
    let labels: Vec<String> = checks.iter().map(|check| check.label()).collect();
    let mut results: Vec<Option<CheckResult>> = checks.iter().map(|_| None).collect();
    for (number, check) in checks.into_iter().enumerate() {
        let sender = sender.clone();
        let run = move || {
            // Ignored because: nobody waits any more after the deadline.
            let _ = sender.send((number, check.run()));
        };
        if let Err(error) = thread::Builder::new().name(format!("check-{number}")).spawn(run) {
            let label = labels.get(number).map_or("a check", String::as_str);
            let result = unfinished(label, format!("start a thread for it: {error}"));
            if let Some(slot) = results.get_mut(number) {
                *slot = Some(result);
            }
        }
    }
    drop(sender);
    while results.iter().any(Option::is_none) {
        let left = end.min(told_at).saturating_duration_since(Instant::now());
        let (number, result) = match receiver.recv_timeout(left) {
            Ok(ended) => ended,
            Err(RecvTimeoutError::Timeout) if waiting.is_some() => {
                told_at = end;
                let slow = labels.iter().zip(&results).filter(|(_, result)| result.is_none());
                let slow: Vec<&str> = slow.map(|(label, _)| label.as_str()).collect();
                if let Some(waiting) = waiting.take() {
                    waiting(&slow);
                }
                continue;
            }
            // A check that panics only closes its end of the channel; the others go on.
            Err(_) => break,
        };
        if let Some(slot) = results.get_mut(number) {
            *slot = Some(result);
        }
    }
    let late = format!("it did not end within {} s", deadline.as_secs());
    let filled = |(result, label): (Option<CheckResult>, &String)| {
        result.unwrap_or_else(|| unfinished(label, late.clone()))
    };
    results.into_iter().zip(&labels).map(filled).collect()
}

fn unfinished(label: &str, detail: String) -> CheckResult {
    CheckResult {
        id: STUCK.into(),
        name: label.into(),
        verdict: Verdict::Fail,
        detail,
        remedy:
            "the kernel may still be loading modules: try again; if not, a file system or driver \
                 hangs: 'dmesg' names it"
                .into(),
        needed_for: Need::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Fixed(&'static str, Duration);

    impl Check for Fixed {
        fn run(&self) -> CheckResult {
            // The only way to test a deadline is to miss it.
            thread::park_timeout(self.1);
            CheckResult {
                id: "SH-DOC-999".into(),
                name: self.0.into(),
                verdict: Verdict::Ok,
                detail: String::new(),
                remedy: String::new(),
                needed_for: Need::Nothing,
            }
        }
        fn label(&self) -> String {
            self.0.into()
        }
    }

    #[test]
    fn results_keep_their_order_and_late_ones_fail() {
        let checks: Vec<Box<dyn Check>> = vec![
            Box::new(Fixed("late", Duration::from_secs(60))),
            Box::new(Fixed("quick", Duration::ZERO)),
        ];
        let mut slow = Vec::new();
        let results = run_all(checks, Duration::from_millis(30), |names| {
            slow.extend(names.iter().map(|name| (*name).to_owned()));
        });
        assert!(slow.contains(&"late".to_owned()), "{slow:?}");
        let seen: Vec<_> = results.iter().map(|r| (r.name.as_str(), r.verdict)).collect();
        assert_eq!(seen, [("late", Verdict::Fail), ("quick", Verdict::Ok)]);
        assert_eq!(results[0].id, STUCK);
    }
}
