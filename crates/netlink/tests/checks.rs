//! The checks themselves, on a kernel that has everything.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;

use shoal_model::check::Verdict;
use shoal_netlink::checks;

#[test]
fn all_checks_pass_on_a_complete_kernel_and_have_ids_of_their_own() {
    let results: Vec<_> = checks::all().iter().map(|check| check.run()).collect();
    for result in &results {
        assert_eq!(result.verdict, Verdict::Ok, "{}: {}", result.name, result.detail);
    }
    let ids: BTreeSet<_> = results.iter().map(|r| r.id.clone()).collect();
    assert_eq!(ids.len(), results.len());
    let leftover = std::fs::read_dir(std::env::temp_dir()).unwrap().any(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap_or_default();
        name.starts_with(&format!("shoal-check-{}-", std::process::id()))
    });
    assert!(!leftover);
}
