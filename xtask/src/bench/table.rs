//! What was measured, as a table: printed, and written into `docs/benchmarks.md`.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// The rows of one benchmark.
#[derive(Debug, Default)]
pub struct Table {
    rows: Vec<[String; 5]>,
}

impl Table {
    /// Adds a row, and prints it.
    pub fn add(&mut self, what: &str, must: &str, aim: &str, better: String, other: String) {
        println!("{what}: {better} | {other} (must {must}, aim {aim})");
        self.rows.push([what, must, aim, &better, &other].map(str::to_owned));
    }

    fn markdown(&self) -> String {
        let mut out =
            String::from("| what | must | aim | process | KVM |\n|---|---|---|---|---|\n");
        for row in &self.rows {
            // Cannot fail: writing to a string.
            let _ = writeln!(out, "| {} |", row.join(" | "));
        }
        out
    }

    /// Replaces what stands between this benchmark's marks in the file.
    ///
    /// # Errors
    /// If the file cannot be read or written, or has no such marks.
    pub fn write(&self, file: &Path, name: &str, preface: &str) -> Result<()> {
        let text = std::fs::read_to_string(file).context("read the page of measurements")?;
        let (begin, end) = (format!("<!-- begin {name} -->\n"), format!("<!-- end {name} -->"));
        let (before, rest) = text.split_once(&begin).context("no mark where the table begins")?;
        let (_, after) = rest.split_once(&end).context("no mark where the table ends")?;
        let table = self.markdown();
        let new = format!("{before}{begin}{preface}\n\n{table}{end}{after}");
        std::fs::write(file, new).context("write the page of measurements")
    }
}

/// The middle of several measurements.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
