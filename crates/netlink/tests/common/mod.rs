//! Scratch namespaces that vanish with the test.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use shoal_netlink::netns::{self, NetnsHandle};

static COUNT: AtomicU32 = AtomicU32::new(0);

/// A scratch namespace.
pub struct Scratch {
    pub path: PathBuf,
    pub ns: NetnsHandle,
}

impl Scratch {
    pub fn new() -> Self {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("shoal-netlink-{}-{count}", std::process::id());
        let path = std::env::temp_dir().join(name);
        netns::create(&path).expect("tests of this crate need root");
        let ns = NetnsHandle::open(&path).unwrap();
        Self { path, ns }
    }

    /// Output of a command run inside, for comparing ours with other tools' view.
    pub fn output(&self, command: &[&str]) -> String {
        let out = self.ns.run(|| Command::new(command[0]).args(&command[1..]).output()).unwrap();
        let out = out.expect("the tool is installed");
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Ignored because: a failed clean-up must not hide why the test failed.
        let _ = netns::delete(&self.path);
    }
}
