//! What the demonstration prints: each step's actual answer, and whether its claim held.

use std::time::Instant;

use anyhow::{Result, bail};
use serde_json::json;

use crate::output::{BAD, GOOD, paint};

/// Collects claims.
#[derive(Debug)]
pub struct Report {
    json: bool,
    began: Instant,
    step: String,
    held: u32,
    broken: Vec<String>,
}

impl Report {
    /// An empty one.
    pub fn new(json: bool) -> Self {
        Self { json, began: Instant::now(), step: String::new(), held: 0, broken: Vec::new() }
    }

    /// A step begins; `command` is what a user would type.
    pub fn step(&mut self, title: &str, command: &str) {
        self.step = title.to_owned();
        let at = self.began.elapsed().as_secs_f64();
        if self.json {
            println!("{}", json!({"at_s": at, "step": title, "command": command}));
        } else {
            println!("\n{} {title}", paint(1, &format!("[{at:5.1} s]")));
            if !command.is_empty() {
                println!("  $ {command}");
            }
        }
    }

    /// What was answered.
    pub fn said(&self, text: &str) {
        if self.json {
            println!("{}", json!({"step": self.step, "answer": text}));
            return;
        }
        for line in text.trim_end().lines() {
            println!("    {line}");
        }
    }

    /// A claim, and whether it held.
    pub fn claim(&mut self, held: bool, claim: &str) {
        if held {
            self.held += 1;
        } else {
            self.broken.push(format!("{}: {claim}", self.step));
        }
        if self.json {
            println!("{}", json!({"step": self.step, "claim": claim, "held": held}));
        } else {
            let mark = if held { paint(GOOD, "ok  ") } else { paint(BAD, "FAIL") };
            println!("  {mark} {claim}");
        }
    }

    /// The summary; fails if a claim did not hold.
    pub fn finish(self) -> Result<()> {
        let took = self.began.elapsed().as_secs_f64();
        if self.json {
            let broken = &self.broken;
            println!("{}", json!({"took_s": took, "held": self.held, "broken": broken}));
        } else {
            println!(
                "\n{} of {} claims held, {took:.1} s",
                self.held,
                self.held as usize + self.broken.len()
            );
        }
        if self.broken.is_empty() {
            return Ok(());
        }
        bail!("claims that did not hold:\n  {}", self.broken.join("\n  "))
    }
}
