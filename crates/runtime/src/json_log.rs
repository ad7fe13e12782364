//! Docker's json-file log: one object for each line, files set aside by size.
//!
//! A line that cannot be written is counted, never a reason to stop the container.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use shoal_model::time::Timestamp;

use crate::container_plan::LogPlan;
use crate::protocol::LogState;

/// Longer lines are cut into pieces of this size, as Docker's are.
const LINE_BYTES_MAX: usize = 16 << 10;

/// Which output a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    Stdout,
    Stderr,
}

#[derive(Serialize)]
struct Line<'a> {
    log: &'a str,
    stream: &'a str,
    time: Timestamp,
}

/// Writes one container's log.
#[derive(Debug)]
pub(crate) struct JsonLog {
    plan: LogPlan,
    file: Option<File>,
    size: u64,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    state: LogState,
}

impl JsonLog {
    pub(crate) fn new(plan: LogPlan) -> Self {
        Self {
            plan,
            file: None,
            size: 0,
            stdout: Vec::new(),
            stderr: Vec::new(),
            state: LogState::default(),
        }
    }

    pub(crate) fn state(&self) -> &LogState {
        &self.state
    }

    /// Takes output; whole lines are written, the rest waits for its end.
    pub(crate) fn take(&mut self, source: Source, mut bytes: &[u8], now: Timestamp) {
        if self.plan.path.is_none() {
            return;
        }
        while !bytes.is_empty() {
            let pending = match source {
                Source::Stdout => &mut self.stdout,
                Source::Stderr => &mut self.stderr,
            };
            let room = LINE_BYTES_MAX - pending.len();
            let end = bytes.iter().take(room).position(|b| *b == b'\n');
            let (piece, rest) = bytes.split_at(end.map_or(room.min(bytes.len()), |at| at + 1));
            pending.extend_from_slice(piece);
            bytes = rest;
            if end.is_some() || pending.len() == LINE_BYTES_MAX {
                let line = std::mem::take(pending);
                self.write(source, &line, now);
            }
        }
    }

    /// Writes what waits for its end.
    pub(crate) fn finish(&mut self, now: Timestamp) {
        for source in [Source::Stdout, Source::Stderr] {
            let pending = match source {
                Source::Stdout => &mut self.stdout,
                Source::Stderr => &mut self.stderr,
            };
            let line = std::mem::take(pending);
            if !line.is_empty() {
                self.write(source, &line, now);
            }
        }
    }

    fn write(&mut self, source: Source, line: &[u8], time: Timestamp) {
        let stream = match source {
            Source::Stdout => "stdout",
            Source::Stderr => "stderr",
        };
        let log = String::from_utf8_lossy(line);
        // Cannot fail: text keys and a time that prints itself.
        let mut text = serde_json::to_vec(&Line { log: &log, stream, time }).unwrap_or_default();
        text.push(b'\n');
        if let Err(error) = self.append(&text) {
            self.state.lost_lines += 1;
            self.state.last_error = error.to_string();
        }
    }

    fn append(&mut self, text: &[u8]) -> io::Result<()> {
        let Some(path) = self.plan.path.clone() else { return Ok(()) };
        let len = text.len() as u64;
        let full = self.plan.max_bytes.is_some_and(|max| self.size > 0 && self.size + len > max);
        if full {
            self.file = None;
            rotate(&path, self.plan.max_files.max(1))?;
        }
        if self.file.is_none() {
            let mut options = OpenOptions::new();
            options.create(true).append(true).mode(shoal_durable::PRIVATE_FILE);
            let file = options.open(&path)?;
            self.size = file.metadata()?.len();
            self.file = Some(file);
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        if let Err(error) = file.write_all(text) {
            // Half a line would spoil the next one for every reader.
            let cut = file.set_len(self.size);
            self.file = None;
            return Err(cut.err().unwrap_or(error));
        }
        self.size += len;
        Ok(())
    }
}

/// Makes room for a new file: `log` becomes `log.1` and so on; the oldest goes.
fn rotate(path: &Path, files: u32) -> io::Result<()> {
    if files == 1 {
        return OpenOptions::new().write(true).open(path)?.set_len(0);
    }
    let numbered = |n: u32| {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    };
    for n in (1..files - 1).rev() {
        rename(&numbered(n), &numbered(n + 1))?;
    }
    rename(path, &numbered(1))
}

fn rename(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}
