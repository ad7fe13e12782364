//! Telling the other end of the serial line, one line for each thing.

use std::fs::File;
use std::io::Write;

use anyhow::{Context, Result};

use crate::node;

/// The second serial line.
const LINE: &str = "/dev/ttyS1";
/// How much of the daemon's log is shown on the console when a claim failed.
const LOG_TAIL_BYTES: usize = 16_000;

/// What is claimed, and how it is tried.
pub type Claim = (&'static str, fn() -> Result<()>);

/// The line, and whether a claim failed.
#[derive(Debug)]
pub struct Report {
    line: File,
    failed: bool,
}

impl Report {
    /// Opens the serial line.
    pub fn open() -> Result<Self> {
        let line = File::options().write(true).open(LINE).context("open the serial line")?;
        Ok(Self { line, failed: false })
    }

    /// Tries claims, one after the other; one that fails keeps no other from being tried.
    pub fn try_all(&mut self, claims: &[Claim]) -> Result<()> {
        for (name, claim) in claims {
            let held = claim();
            self.claim(name, &held)?;
        }
        Ok(())
    }

    /// Tells whether a claim held.
    pub fn claim(&mut self, name: &str, held: &Result<()>) -> Result<()> {
        match held {
            Ok(()) => self.tell(&format!("VM-CLAIM ok {name}")),
            Err(error) => {
                self.failed = true;
                let detail = format!("{error:#}").replace('\n', "\\n");
                self.tell(&format!("VM-CLAIM failed {name}: {detail}"))
            }
        }
    }

    /// Tells that the daemon acknowledged a change.
    pub fn acknowledged(&mut self, number: u32) -> Result<()> {
        self.tell(&format!("VM-ACK {number}"))
    }

    /// Tells that the stage came to its end.
    pub fn done(&mut self) -> Result<()> {
        if self.failed {
            // The first serial line is the console, which the other end keeps.
            println!("{}", node::log_tail(LOG_TAIL_BYTES));
        }
        self.tell("VM-DONE")
    }

    fn tell(&mut self, text: &str) -> Result<()> {
        // One write for each line, so that a power cut cuts no two of them.
        self.line.write_all(format!("{text}\n").as_bytes()).context("tell a result")
    }
}
