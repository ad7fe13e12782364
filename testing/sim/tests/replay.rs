//! A seed goes the same way in every process, and another one goes another way.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::process::Command;

fn last_line(seed: u64) -> String {
    let program = env!("CARGO_BIN_EXE_shoal-sim");
    let output = Command::new(program).args(["--seed", &seed.to_string()]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().last().unwrap().to_owned();
    assert!(line.starts_with(&format!("said {seed} ")), "{line}");
    assert!(line.ends_with(" ok"), "{line}");
    line
}

#[test]
fn a_seed_goes_the_same_way_again() {
    let digest = |line: &str| line.split(' ').nth(2).unwrap().to_owned();
    let first = last_line(14);
    assert_eq!(first, last_line(14));
    assert_ne!(digest(&first), digest(&last_line(13)));
}

#[test]
fn what_is_not_understood_is_said() {
    let program = env!("CARGO_BIN_EXE_shoal-sim");
    for wrong in [&["--seeds", "3"][..], &["--seed"], &["--nothing"]] {
        let output = Command::new(program).args(wrong).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{wrong:?}");
    }
}
