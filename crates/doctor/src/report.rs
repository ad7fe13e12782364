//! Results as text for people and as JSON for programs.

use serde_json::json;
use shoal_model::check::{CheckResult, Need, Verdict, blockers};

/// The narrowest last column; on narrower terminals lines are longer than the terminal.
const NARROWEST: usize = 24;
/// Space between columns.
const GAP: &str = "  ";

/// A table as wide as `width` columns. Nothing is cut: long texts go on in the next line.
#[must_use]
pub fn text(results: &[CheckResult], width: usize) -> String {
    let names = results.iter().map(|r| length(&r.name)).max().unwrap_or(0).max("CHECK".len());
    let verdicts = "skipped".len();
    let rest = width.saturating_sub(names + verdicts + 2 * GAP.len()).max(NARROWEST);
    let mut out = String::new();
    row(&mut out, names, "CHECK", "VERDICT", &["WHAT WAS SEEN".into()]);
    for result in results {
        let lines = wrap(&seen(result), rest);
        row(&mut out, names, &result.name, &result.verdict.to_string(), &lines);
    }
    out.push('\n');
    out.push_str(&summary(results));
    out
}

/// One row; further lines of the last column below each other.
fn row(out: &mut String, names: usize, name: &str, verdict: &str, lines: &[String]) {
    let pad = |text: &str, to: usize| " ".repeat(to.saturating_sub(length(text)));
    let verdicts = "skipped".len();
    let mut lines = lines.iter();
    let first = lines.next().map(String::as_str).unwrap_or_default();
    let head = format!("{name}{}{GAP}{verdict}{}{GAP}", pad(name, names), pad(verdict, verdicts));
    out.push_str(format!("{head}{first}").trim_end());
    out.push('\n');
    for line in lines {
        out.push_str(&" ".repeat(names + verdicts + 2 * GAP.len()));
        out.push_str(line);
        out.push('\n');
    }
}

/// What a row says: the detail, what to do, the id.
fn seen(result: &CheckResult) -> String {
    let mut text = result.detail.clone();
    if !result.remedy.is_empty() {
        if !text.is_empty() {
            text.push_str("; ");
        }
        text.push_str(&result.remedy);
    }
    if matches!(result.verdict, Verdict::Warn | Verdict::Fail) {
        text.push_str(&format!(" [{}]", result.id));
    }
    text
}

fn summary(results: &[CheckResult]) -> String {
    let count = |verdict: Verdict| results.iter().filter(|r| r.verdict == verdict).count();
    let mut out = format!(
        "{} ok, {} warning{}, {} failed, {} skipped\n",
        count(Verdict::Ok),
        count(Verdict::Warn),
        if count(Verdict::Warn) == 1 { "" } else { "s" },
        count(Verdict::Fail),
        count(Verdict::Skipped)
    );
    for (need, what) in NEEDS {
        match blockers(results, need) {
            None => out.push_str(&format!("{what}: yes\n")),
            Some(reason) => out.push_str(&format!("{what}: no: {reason}\n")),
        }
    }
    if count(Verdict::Warn) + count(Verdict::Fail) > 0 {
        out.push_str("'shoal doctor --explain <id>' says more about an id in brackets\n");
    }
    out
}

/// What a node is for, in the words of the summary.
const NEEDS: [(Need, &str); 3] = [
    (Need::Containers, "this node can run containers"),
    (Need::Overlay, "this node can join overlay networks"),
    (Need::Limits, "this node can limit memory, CPU and processes"),
];

/// The results as one JSON object.
#[must_use]
pub fn json(results: &[CheckResult]) -> String {
    let can = |need| blockers(results, need).is_none();
    let value = json!({
        "Ok": healthy(results),
        "Containers": can(Need::Containers),
        "Overlay": can(Need::Overlay),
        "Limits": can(Need::Limits),
        "Checks": results,
    });
    format!("{value:#}\n")
}

/// Whether nothing failed: the exit status of `shoal doctor`.
#[must_use]
pub fn healthy(results: &[CheckResult]) -> bool {
    results.iter().all(|result| result.verdict != Verdict::Fail)
}

fn length(text: &str) -> usize {
    text.chars().count()
}

/// Breaks at spaces; words that are too long are broken where the line ends.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        let mut word = word.to_owned();
        if !line.is_empty() && length(&line) + 1 + length(&word) > width {
            lines.push(std::mem::take(&mut line));
        }
        while length(&word) > width {
            let rest: String = word.chars().skip(width).collect();
            lines.push(word.chars().take(width).collect());
            word = rest;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(&word);
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn result(name: &str, verdict: Verdict, detail: &str, need: Need) -> CheckResult {
        let remedy = if verdict == Verdict::Fail { "repair it" } else { "" };
        CheckResult {
            id: "SH-DOC-101".into(),
            name: name.into(),
            verdict,
            detail: detail.into(),
            remedy: remedy.into(),
            needed_for: need,
        }
    }

    #[test]
    fn columns_are_aligned_and_nothing_is_lost() {
        let long = "a".repeat(50);
        let results = [
            result("kernel", Verdict::Ok, "Linux 6.1", Need::Nothing),
            result("vxlan device", Verdict::Fail, &format!("said {long}"), Need::Overlay),
        ];
        let text = text(&results, 60);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "CHECK         VERDICT  WHAT WAS SEEN");
        assert_eq!(lines[1], "kernel        ok       Linux 6.1");
        assert_eq!(lines[2], "vxlan device  fail     said");
        let joined: String = text.split_whitespace().collect();
        assert!(joined.contains(&long), "{text}");
        assert!(joined.contains("repairit[SH-DOC-101]"), "{text}");
        assert!(text.lines().take(6).all(|line| line.chars().count() <= 60), "{text}");
        assert!(text.contains("this node can run containers: yes"));
        assert!(text.contains("this node can join overlay networks: no: vxlan device missing"));
    }

    #[test]
    fn json_has_everything() {
        let results = [result("kernel", Verdict::Warn, "old", Need::Nothing)];
        let value: serde_json::Value = serde_json::from_str(&json(&results)).unwrap();
        assert_eq!(value["Ok"], true);
        assert_eq!(value["Checks"][0]["detail"], "old");
    }
}
