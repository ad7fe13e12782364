//! SPEC.md: every bound has its constant with that value, and a test.

use super::{none, root};

/// The texts between backticks.
fn quoted(cell: &str) -> Vec<&str> {
    cell.split('`').skip(1).step_by(2).collect()
}

/// What is wrong with a row of the tables; nothing if it is none.
fn judge(line: &str) -> Option<String> {
    let cells: Vec<&str> = line.strip_prefix("| ")?.split(" | ").collect();
    let [what, value, constant, test] = cells[..] else {
        return Some(format!("not four cells: {line}"));
    };
    if what == "what" {
        return None;
    }
    let (value, constant, test) = (quoted(value), quoted(constant), quoted(test));
    let ([value], [file, constant], [test_file, test]) = (&value[..], &constant[..], &test[..])
    else {
        return Some(format!("{what}: not a value, a constant and a test"));
    };
    let text = std::fs::read_to_string(root().join(file)).unwrap_or_default();
    let Some((_, declared)) = text.split_once(&format!("const {constant}: ")) else {
        return Some(format!("{what}: '{file}' has no constant '{constant}'"));
    };
    let declared = declared.split_once(" = ").and_then(|(_, rest)| rest.split_once(';'));
    let declared = declared.map(|(value, _)| value).unwrap_or_default();
    if declared != *value {
        return Some(format!("{what}: {constant} is {declared}, not {value}"));
    }
    let tests = std::fs::read_to_string(root().join(test_file)).unwrap_or_default();
    let found = tests.contains(&format!("fn {test}("));
    (!found).then(|| format!("{what}: '{test_file}' has no test '{test}'"))
}

#[test]
fn every_bound_has_its_constant_and_its_test() {
    let spec = std::fs::read_to_string(root().join("SPEC.md")).unwrap();
    let rows = spec.lines().filter(|line| line.starts_with("| ")).count();
    assert!(rows > 20, "only {rows} rows found: the check would prove nothing");
    let wrong: Vec<String> = spec.lines().filter_map(judge).collect();
    none(&wrong, "SPEC.md");
}

#[test]
fn rows_that_do_not_hold_are_found() {
    let (file, test) = ("`xtask/tests/tidy/bounds.rs`", "`rows_that_do_not_hold_are_found`");
    let own = "`xtask/tests/tidy/sources.rs` `LINE_CHARS_MAX`";
    let row = |value: &str, constant: &str, test: &str| {
        judge(&format!("| x | `{value}` | {constant} | {file} {test} |"))
    };
    assert_eq!(row("100", own, test), None);
    assert!(row("101", own, test).is_some());
    assert!(row("100", "`xtask/tests/tidy/sources.rs` `NO_SUCH`", test).is_some());
    assert!(row("100", own, "`no_such_test`").is_some());
    assert!(judge("| x | y |").is_some());
}
