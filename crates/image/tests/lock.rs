//! The store's lock. A program of its own, because it starts very many children.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::sync::atomic::{AtomicBool, Ordering};

use common::options;
use shoal_image::store::ImageStore;

/// Children that start meanwhile have copies of the lock's descriptor for a moment.
#[test]
fn a_closed_store_opens_again_while_children_start() {
    let directory = tempfile::tempdir().unwrap();
    let starting = AtomicBool::new(true);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while starting.load(Ordering::Relaxed) {
                assert!(std::process::Command::new("true").status().unwrap().success());
            }
        });
        let failed = (0..2_000).find_map(|_| ImageStore::open(options(directory.path())).err());
        starting.store(false, Ordering::Relaxed);
        assert!(failed.is_none(), "{failed:?}");
    });
}
