//! Why a unikernel ended: its tender leaves a record of a crash, or a last word in the log.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use serde::Deserialize;
use shoal_model::id::ContainerId;

use crate::record::Files;

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
}

/// What is known of an end with the status `code`; empty if nothing beyond it. Blocks.
pub(crate) fn explain(files: &Files<'_>, id: &ContainerId, code: i64) -> String {
    let said = match code {
        CRASHED => crash(&files.crash()),
        REFUSED => last_line(&files.log(id)).map(|line| format!("refused by the tender: {line}")),
        _ => return String::new(),
    };
    // Ignored because: without a record the exit status is all that is known.
    said.unwrap_or_default()
}

fn crash(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(RECORD_BYTES_MAX).read_to_string(&mut text)?;
    let record: CrashRecord = serde_json::from_str(text.trim())?;
    let place = record.backtrace.iter().find_map(|frame| frame.symbol.as_deref());
    let place = place.map(|symbol| format!(" in {symbol}")).unwrap_or_default();
    Ok(format!("{}: {}{place}", record.kind, record.message))
}

fn last_line(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut tail)?;
    let line = tail.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty());
    let line: LogLine = serde_json::from_slice(line.unwrap_or_default())?;
    Ok(line.log.trim().to_owned())
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
    fn the_crash_record_or_the_last_line_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let (files, id) = (Files(dir.path()), ContainerId::new("c"));
        let of = |code| explain(&files, &id, code);
        assert_eq!((of(0), of(1), of(CRASHED), of(REFUSED)), Default::default());
        let record = r#"{"format":1,"kind":"panic","message":"no \"zone\"","backtrace":
            [{"address":"0x1"},{"address":"0x2","symbol":"dns::load+0x7"}]}"#;
        fs::write(files.crash(), record).unwrap();
        assert_eq!(of(CRASHED), "panic: no \"zone\" in dns::load+0x7");
        let lines =
            "{\"log\":\"one\\n\"}\n{\"log\":\"two: SH-TEN-004\\n\",\"stream\":\"stderr\"}\n";
        fs::write(files.log(&id), lines).unwrap();
        assert_eq!(of(REFUSED), "refused by the tender: two: SH-TEN-004");
        forget(&files).unwrap();
        forget(&files).unwrap();
        assert_eq!(of(CRASHED), "");
    }
}
