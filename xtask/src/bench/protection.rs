//! The tests of memory protection, counted.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::steps::output;

/// Runs the tender's protection tests, each on every backend that this machine has; how many there
/// are, all of them passed.
///
/// # Errors
/// If one fails.
pub fn count(root: &Path) -> Result<u32> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let tests = ["test", "--package", "shoal-tender", "--test", "protection"];
    let said = output(Command::new(cargo).current_dir(root).args(tests))?;
    passed(&said).with_context(|| format!("find the result in: {said}"))
}

fn passed(said: &str) -> Option<u32> {
    let (_, rest) = said.split_once("test result: ok. ")?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_result_is_read() {
        let said = "test a ... ok\n\ntest result: ok. 11 passed; 0 failed; 0 ignored";
        assert_eq!(super::passed(said), Some(11));
        assert_eq!(super::passed("test result: FAILED. 10 passed; 1 failed"), None);
    }
}
