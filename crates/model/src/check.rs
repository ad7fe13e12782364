//! Checks: what a node tries before it takes work, and what `shoal doctor` prints.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The verdict of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Works.
    Ok,
    /// Was not tried; the detail says why. Also what a later version says.
    Skipped,
    /// Works, with a reservation.
    Warn,
    /// Does not work.
    Fail,
}

impl<'de> Deserialize<'de> for Verdict {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Ok(match String::deserialize(from)?.as_str() {
            "ok" => Self::Ok,
            "warn" => Self::Warn,
            "fail" => Self::Fail,
            _ => Self::Skipped,
        })
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Skipped => "skipped",
            Self::Warn => "warn",
            Self::Fail => "fail",
        })
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckResult {
    /// Its stable id with a page in docs/errors, for example `SH-DOC-003`.
    pub id: String,
    /// What was tried, a few words: `vxlan device`.
    pub name: String,
    /// How it went.
    pub verdict: Verdict,
    /// What was seen; for failures the whole chain of causes.
    pub detail: String,
    /// What to do; empty when all is well.
    pub remedy: String,
    /// Whether tasks with containers need it.
    pub needed_for: Need,
}

/// What a failed check rules out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Need {
    /// Any container at all.
    Containers,
    /// Tasks on overlay networks, and published ports.
    Overlay,
    /// Limits on memory, CPU or processes.
    Limits,
    /// Nothing: good to know. Also what a later version says.
    #[serde(other)]
    Nothing,
}

/// One check. Crates export theirs; `doctor` composes them.
pub trait Check: Send + Sync {
    /// Tries it. May take up to about a second, may block, must leave nothing behind.
    fn run(&self) -> CheckResult;

    /// What it tries, a few words, for a runner that gave up waiting for its result.
    fn label(&self) -> String {
        "a check".to_owned()
    }
}

/// The failed checks that rule out `need`, as one line beginning with the missing thing.
#[must_use]
pub fn blockers(results: &[CheckResult], need: Need) -> Option<String> {
    let rules_out = |r: &&CheckResult| r.verdict == Verdict::Fail && r.needed_for == need;
    let mut failed = results.iter().filter(rules_out);
    let first = failed.next()?;
    let mut line = format!("{} missing: {}", first.name, first.detail);
    if !first.remedy.is_empty() {
        line.push_str("; ");
        line.push_str(&first.remedy);
    }
    line.push_str(&format!(" [{}]", first.id));
    for other in failed {
        line.push_str(&format!("; also {} ({})", other.name, other.id));
    }
    Some(line)
}
