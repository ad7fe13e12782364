//! Why a unikernel ended: its tender leaves a record of a crash, or a last word in the log.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use shoal_model::id::ContainerId;

use crate::record::Files;

/// How the panic of Rust's allocator begins, which says how much was asked for.
const NO_MEMORY: &str = "memory allocation of ";
/// Status of a guest that crashed.
const CRASHED: i64 = 134;
/// Status of a tender that does not run what it is told.
const REFUSED: i64 = 125;
/// How much of the end of a log is looked at: the tender's last word has some hundred bytes.
const TAIL_BYTES: u64 = 16 << 10;
/// The longest crash record that is read; the tender writes at most half of it.
const RECORD_BYTES_MAX: u64 = 256 << 10;

#[derive(Deserialize)]
struct CrashRecord {
    kind: String,
    message: String,
    #[serde(default)]
    backtrace: Vec<CrashFrame>,
}

#[derive(Deserialize)]
struct CrashFrame {
    #[serde(default)]
    symbol: Option<String>,
}

#[derive(Deserialize)]
struct LogLine {
    log: String,
    #[serde(default)]
    stream: String,
}

/// What is known of an end with the status `code`, cause first; empty if nothing beyond it. Blocks.
pub(crate) fn explain(files: &Files<'_>, id: &ContainerId, code: i64) -> String {
    let said = match code {
        0 => return String::new(),
        CRASHED => crash(&files.crash()),
        REFUSED => last_error(&files.log(id)).map(|line| refusal(&line)),
        // What its main function answered; the library says it behind this word.
        _ => last_error(&files.log(id))
            .map(|line| line.strip_prefix("error: ").unwrap_or_default().to_owned()),
    };
    // Ignored because: without a record that can be read the exit status is all that is known.
    said.unwrap_or_default()
}

fn crash(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(RECORD_BYTES_MAX).read_to_string(&mut text)?;
    let record: CrashRecord = serde_json::from_str(text.trim())?;
    let place = record.backtrace.iter().find_map(|frame| frame.symbol.as_deref());
    let place = place.map(|symbol| format!(" in {symbol}")).unwrap_or_default();
    Ok(match (record.kind.as_str(), panicked(&record.message)) {
        // Not the guest's fault: there is no place in it.
        ("device", _) => record.message,
        ("panic", Some((_, words))) if words.starts_with(NO_MEMORY) => format!(
            "out of memory: its heap is used up ({words}{place}); give it a larger --memory \
             [SH-ENG-010]"
        ),
        ("panic", Some((at, words))) => format!("{words} (panicked at {at}{place})"),
        (kind, _) => format!("{kind}: {}{place}", record.message),
    })
}

/// Place and words of Rust's `panicked at src/main.rs:1:2:`, a line end, and the words.
fn panicked(message: &str) -> Option<(&str, &str)> {
    message.strip_prefix("panicked at ")?.split_once(":\n")
}

/// A tender's refusal: `SH-TEN-004: what: why`, with the id, and the path of a refused image, where
/// they do not hide the cause.
fn refusal(line: &str) -> String {
    let Some((id, said)) = line.split_once(": ").filter(|(id, _)| id.starts_with("SH-")) else {
        return line.to_owned();
    };
    match said.split_once("' is refused: ") {
        Some((image, cause)) => format!("{cause} ({image}') [{id}]"),
        None => format!("{said} [{id}]"),
    }
}

/// The last line of a log that is on standard error.
fn last_error(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    let lines = tail.rsplit(|byte| *byte == b'\n');
    let mut read = lines.filter_map(|line| serde_json::from_slice::<LogLine>(line).ok());
    let line = read.find(|line| line.stream == "stderr");
    Ok(line.map(|line| line.log.trim().to_owned()).unwrap_or_default())
}

/// Removes the record of an earlier run. Blocks.
pub(crate) fn forget(files: &Files<'_>) -> io::Result<()> {
    match fs::remove_file(files.crash()) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_crash_record_or_the_last_error_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let (files, id) = (Files(dir.path()), ContainerId::new("c"));
        let of = |code| explain(&files, &id, code);
        assert_eq!((of(0), of(1), of(CRASHED), of(REFUSED)), Default::default());
        let crashed = |kind: &str, message: &str| {
            let record = serde_json::json!({"format": 1, "kind": kind, "message": message,
                "backtrace": [{"address": "0x1"}, {"address": "0x2", "symbol": "dns::load+0x7"}]});
            fs::write(files.crash(), record.to_string()).unwrap();
            of(CRASHED)
        };
        let said = crashed("panic", "panicked at src/main.rs:1:2:\nno \"zone\"");
        assert_eq!(said, "no \"zone\" (panicked at src/main.rs:1:2 in dns::load+0x7)");
        assert_eq!(crashed("fault", "access to 0x0"), "fault: access to 0x0 in dns::load+0x7");
        assert_eq!(crashed("device", "device 'net' is gone"), "device 'net' is gone");
        let said = crashed("panic", "panicked at x:\nmemory allocation of 64 bytes failed");
        assert!(said.starts_with("out of memory: its heap is used up"), "{said}");

        let log = |last: &str| {
            let line = |log: &str, stream: &str| {
                serde_json::json!({"log": format!("{log}\n"), "stream": stream}).to_string() + "\n"
            };
            let text = line("one", "stderr") + &line(last, "stderr") + &line("two", "stdout");
            fs::write(files.log(&id), text).unwrap();
        };
        log("SH-TEN-005: cannot attach 'net': busy");
        assert_eq!(of(REFUSED), "cannot attach 'net': busy [SH-TEN-005]");
        log("SH-TEN-003: the manifest of the image '/i' is refused: it is malformed: x");
        let said = "it is malformed: x (the manifest of the image '/i') [SH-TEN-003]";
        assert_eq!(of(REFUSED), said);
        log("SH-TEN-005: cannot attach 'net': busy");
        assert_eq!(of(1), "");
        log("error: no zone file in '/zones'");
        assert_eq!(of(1), "no zone file in '/zones'");
        assert_eq!(of(0), "");
        forget(&files).unwrap();
        forget(&files).unwrap();
        assert_eq!(of(CRASHED), "");
    }
}
