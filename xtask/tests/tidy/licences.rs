//! Licences of everything that is built: only those that `deny.toml` allows.

use std::collections::BTreeSet;
use std::process::Command;

use super::{none, root};

/// The licences in the list `allow` of `deny.toml`.
fn allowed() -> BTreeSet<String> {
    let text = std::fs::read_to_string(root().join("deny.toml")).unwrap();
    let (_, list) = text.split_once("allow = [").expect("deny.toml has a list 'allow'");
    let (list, _) = list.split_once(']').expect("the list ends");
    list.lines()
        .filter_map(|line| line.trim().strip_prefix('"')?.split('"').next())
        .map(str::to_owned)
        .collect()
}

/// Cuts a licence expression into words and brackets; the old `MIT/Apache-2.0` means `OR`.
fn tokens(expression: &str) -> Vec<String> {
    expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ")
        .split_whitespace()
        .map(str::to_owned)
        .collect()
}

/// Whether a licensee can choose so that only allowed licences remain. `None`: not an expression.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> Option<bool> {
    let tokens = tokens(expression);
    let mut left = tokens.as_slice();
    let verdict = any_of(&mut left, allowed)?;
    left.is_empty().then_some(verdict)
}

/// Takes the next token if it is `word`.
fn take(left: &mut &[String], word: &str) -> bool {
    let found = left.first().is_some_and(|token| token == word);
    if found {
        *left = &left[1..];
    }
    found
}

/// Takes the next token if it can be a name.
fn take_name<'a>(left: &mut &'a [String]) -> Option<&'a str> {
    let (name, rest) = left.split_first()?;
    *left = rest;
    let is_name = !["AND", "OR", "WITH", "(", ")"].contains(&name.as_str());
    is_name.then_some(name)
}

fn any_of(left: &mut &[String], allowed: &BTreeSet<String>) -> Option<bool> {
    let mut verdict = all_of(left, allowed)?;
    while take(left, "OR") {
        verdict |= all_of(left, allowed)?;
    }
    Some(verdict)
}

fn all_of(left: &mut &[String], allowed: &BTreeSet<String>) -> Option<bool> {
    let mut verdict = licence(left, allowed)?;
    while take(left, "AND") {
        verdict &= licence(left, allowed)?;
    }
    Some(verdict)
}

fn licence(left: &mut &[String], allowed: &BTreeSet<String>) -> Option<bool> {
    if take(left, "(") {
        let verdict = any_of(left, allowed)?;
        return take(left, ")").then_some(verdict);
    }
    let mut name = take_name(left)?.to_owned();
    if take(left, "WITH") {
        // A licence with an exception is another licence, to be allowed by its whole name.
        name = format!("{name} WITH {}", take_name(left)?);
    }
    Some(allowed.contains(&name))
}

#[test]
fn licence_expressions_are_understood() {
    let allowed: BTreeSet<String> = ["MIT", "ISC", "Zlib"].map(str::to_owned).into();
    let cases = [
        ("MIT", Some(true)),
        ("GPL-3.0-only", Some(false)),
        ("GPL-3.0-only OR MIT", Some(true)),
        ("GPL-3.0-only/MIT", Some(true)),
        ("MIT AND GPL-3.0-only", Some(false)),
        ("GPL-3.0-only OR MIT AND ISC", Some(true)),
        ("MIT OR ISC AND GPL-3.0-only", Some(true)),
        ("(MIT OR ISC) AND GPL-3.0-only", Some(false)),
        ("(MIT OR GPL-3.0-only) AND ISC", Some(true)),
        ("MIT WITH Some-exception", Some(false)),
        ("MIT WITH Some-exception OR Zlib", Some(true)),
        ("MIT AND", None),
        ("(MIT", None),
        ("MIT ISC", None),
        ("", None),
    ];
    for (expression, expected) in cases {
        assert_eq!(is_allowed(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn everything_that_is_built_has_an_allowed_licence() {
    // Only what this machine builds: crates for other systems are not even downloaded.
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--format-version=1", "--offline", "--filter-platform=host-tuple"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 100, "only {} packages: it would prove nothing", packages.len());

    let allowed = allowed();
    assert!(allowed.contains("MIT"), "deny.toml's list was not understood: {allowed:?}");
    let mut wrong = Vec::new();
    for package in packages {
        let expression = package["license"].as_str().unwrap_or_default();
        if is_allowed(expression, &allowed) != Some(true) {
            wrong.push(format!("{} {}: '{expression}'", package["name"], package["version"]));
        }
    }
    none(&wrong, "licences that deny.toml does not allow");
}
