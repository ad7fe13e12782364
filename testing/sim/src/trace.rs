//! What happened: a digest of all of it, and the text if somebody wants to read it.

use std::fmt::Write as _;

use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

/// The events of a run.
pub struct Trace {
    begun: Instant,
    digest: Sha256,
    events: u64,
    shown: bool,
    line: String,
}

impl Trace {
    /// Nothing yet; `shown` events are printed as they come.
    pub fn new(shown: bool) -> Self {
        let (digest, line) = (Sha256::new(), String::new());
        Self { begun: Instant::now(), digest, events: 0, shown, line }
    }

    /// Milliseconds since the beginning.
    pub fn now(&self) -> u64 {
        u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Something happened to `who`.
    pub fn note(&mut self, who: &str, what: std::fmt::Arguments<'_>) {
        self.line.clear();
        // Ignored because: a string takes everything.
        let _ = writeln!(self.line, "{:>8} {who}: {what}", self.now());
        self.digest.update(self.line.as_bytes());
        self.events += 1;
        if self.shown {
            print!("{}", self.line);
        }
    }

    /// How many events there were.
    pub fn events(&self) -> u64 {
        self.events
    }

    /// What tells whether two runs were the same.
    pub fn digest(&self) -> String {
        hex::encode(&self.digest.clone().finalize()[..16])
    }
}
