//! What was done, in order, and what was found.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Lines before a finding that are printed with it; all are in the file.
const BEFORE: usize = 40;

/// The journal: a file, the last lines, the findings, the counts.
pub struct Journal {
    began: Instant,
    inner: Mutex<Inner>,
    /// Requests so far.
    pub operations: AtomicU64,
    /// Requests that were cut.
    pub cuts: AtomicU64,
    /// Processes that were killed.
    pub kills: AtomicU64,
}

struct Inner {
    file: BufWriter<File>,
    last: VecDeque<String>,
    /// By their text without ids: how often.
    findings: BTreeMap<String, u64>,
    /// The same of answers that a disturbance explains.
    odd: BTreeMap<String, u64>,
}

impl Journal {
    /// A journal in `path`.
    pub fn new(path: &Path) -> std::io::Result<Self> {
        let inner = Inner {
            file: BufWriter::new(File::create(path)?),
            last: VecDeque::new(),
            findings: BTreeMap::new(),
            odd: BTreeMap::new(),
        };
        Ok(Self {
            began: Instant::now(),
            inner: Mutex::new(inner),
            operations: AtomicU64::new(0),
            cuts: AtomicU64::new(0),
            kills: AtomicU64::new(0),
        })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Seconds since the start.
    pub fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }

    /// Notes what is done.
    pub fn note(&self, text: &str) {
        let line = format!("{:9.3} {text}", self.seconds());
        let mut inner = self.inner();
        // Ignored because: a journal on a full disk must not end the torture.
        let _ = writeln!(inner.file, "{line}");
        inner.last.push_back(line);
        if inner.last.len() > BEFORE {
            inner.last.pop_front();
        }
    }

    /// An answer that is no finding in a disturbed time, but worth counting.
    pub fn odd(&self, text: &str) {
        *self.inner().odd.entry(without_ids(text)).or_default() += 1;
    }

    /// Something is wrong. The first of each kind is printed with what happened before.
    pub fn finding(&self, text: &str) {
        self.note(&format!("FINDING {text}"));
        let mut inner = self.inner();
        let seen = inner.findings.entry(without_ids(text)).or_default();
        *seen += 1;
        if *seen == 1 {
            println!("\nFINDING at {:.1} s: {text}", self.began.elapsed().as_secs_f64());
            for line in &inner.last {
                println!("    {line}");
            }
        }
        // Ignored because: see above.
        let _ = inner.file.flush();
    }

    /// How many kinds of findings there are.
    pub fn found(&self) -> usize {
        self.inner().findings.len()
    }

    /// The line that says how far it is.
    pub fn progress(&self) -> String {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let operations = count(&self.operations);
        format!(
            "{:.0} s: {operations} operations ({:.0}/s), {} cut, {} kills, {} findings",
            self.seconds(),
            operations as f64 / self.seconds().max(0.1),
            count(&self.cuts),
            count(&self.kills),
            self.found()
        )
    }

    /// Prints what was odd and what was found.
    pub fn summary(&self) {
        let mut inner = self.inner();
        println!("\nanswers that a disturbance explains:");
        for (text, times) in &inner.odd {
            println!("  {times:6} {text}");
        }
        println!("findings:");
        for (text, times) in &inner.findings {
            println!("  {times:6} {text}");
        }
        // Ignored because: see above.
        let _ = inner.file.flush();
    }
}

/// `text` with ids and numbers replaced, so that equal kinds are equal.
fn without_ids(text: &str) -> String {
    let mut out = String::new();
    let mut word = String::new();
    for c in text.chars().chain(['\n']) {
        if c.is_ascii_alphanumeric() {
            word.push(c);
            continue;
        }
        let digits = word.chars().any(|c| c.is_ascii_digit());
        let number = word.trim_start_matches('u').bytes().all(|b| b.is_ascii_digit());
        out.push_str(match word.len() {
            12.. if digits => "ID",
            1.. if number => "N",
            _ => &word,
        });
        word.clear();
        out.push(c);
    }
    out.trim_end().to_owned()
}
