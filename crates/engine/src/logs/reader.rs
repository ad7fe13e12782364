//! Reads log files in Docker's json-file format, the rotated ones first, and goes on in the newest.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde::Deserialize;
use shoal_model::time::Timestamp;

use crate::error::EngineError;
use crate::stream::{LogEntry, StdStream};

/// How much is read at a time.
const BLOCK: usize = 64 << 10;

/// The longest line of a log file: a piece of 16 KiB, every byte escaped to six, and the rest of
/// the object. Longer ones are damage.
const LINE_MAX: usize = 128 << 10;

/// How many rotated files are looked for: nobody keeps more.
const ROTATED_MAX: u32 = 1_000;

/// A place in a container's log.
pub(crate) struct Reader {
    path: PathBuf,
    /// Files still to be read, oldest first; the last one is the newest.
    files: VecDeque<File>,
    /// Bytes of the current file that are no whole line yet.
    rest: Vec<u8>,
    /// Whether the rest of an overlong line is being skipped.
    skipping: bool,
}

impl Reader {
    /// Opens all files, at the last `tail` lines or at the beginning. No file is an empty log.
    pub fn open(path: &Path, tail: Option<u64>) -> Result<Self, EngineError> {
        let fail = |error| EngineError::io("read", path)(error);
        let mut files = VecDeque::new();
        for number in 0..ROTATED_MAX {
            match File::open(numbered(path, number)) {
                Ok(file) => files.push_front(file),
                Err(error) if error.kind() == ErrorKind::NotFound => break,
                Err(error) => return Err(fail(error)),
            }
        }
        if let Some(lines) = tail {
            skip_to_tail(&mut files, lines).map_err(fail)?;
        }
        Ok(Self { path: path.to_owned(), files, rest: Vec::new(), skipping: false })
    }

    /// The next entries, a few at a time; empty when there are none right now.
    pub fn next_batch(&mut self) -> Result<Vec<LogEntry>, EngineError> {
        let path = self.path.clone();
        self.read_some().map_err(EngineError::io("read", path))
    }

    fn read_some(&mut self) -> io::Result<Vec<LogEntry>> {
        let mut entries = Vec::new();
        while entries.is_empty() {
            if self.files.is_empty() {
                match File::open(&self.path) {
                    Ok(file) => self.files.push_back(file),
                    Err(error) if error.kind() == ErrorKind::NotFound => return Ok(entries),
                    Err(error) => return Err(error),
                }
            }
            let Some(file) = self.files.front_mut() else { return Ok(entries) };
            let mut block = vec![0; BLOCK];
            let len = file.read(&mut block)?;
            if len == 0 {
                if !self.advance()? {
                    return Ok(entries);
                }
                continue;
            }
            self.rest.extend(block.iter().take(len));
            self.split_lines(&mut entries);
        }
        Ok(entries)
    }

    /// At the end of a file: goes to the next one if this one gets no more lines.
    fn advance(&mut self) -> io::Result<bool> {
        if self.files.len() > 1 {
            self.next_file();
            return Ok(true);
        }
        let Some(file) = self.files.front_mut() else { return Ok(false) };
        let here = file.metadata()?;
        let current = match fs::metadata(&self.path) {
            Ok(current) => current,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        if (here.dev(), here.ino()) == (current.dev(), current.ino()) {
            let position = file.stream_position()?;
            if here.len() < position {
                // Emptied in place, since only one file is kept.
                file.seek(SeekFrom::Start(0))?;
                self.rest.clear();
                return Ok(here.len() > 0);
            }
            return Ok(false);
        }
        if here.len() > file.stream_position()? {
            // Lines came between the read and the look.
            return Ok(true);
        }
        let next = File::open(&self.path)?;
        self.files.push_back(next);
        self.next_file();
        Ok(true)
    }

    fn next_file(&mut self) {
        self.files.pop_front();
        self.rest.clear();
        self.skipping = false;
    }

    fn split_lines(&mut self, entries: &mut Vec<LogEntry>) {
        let mut start = 0;
        while let Some(at) = self.rest.iter().skip(start).position(|b| *b == b'\n') {
            let end = start + at;
            let line = self.rest.get(start..end).unwrap_or_default();
            start = end + 1;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            if !line.is_empty() {
                entries.push(parse(line).unwrap_or_else(damaged));
            }
        }
        self.rest.drain(..start);
        if self.rest.len() > LINE_MAX {
            self.rest.clear();
            if !std::mem::replace(&mut self.skipping, true) {
                entries.push(damaged());
            }
        }
    }
}

fn numbered(path: &Path, number: u32) -> PathBuf {
    if number == 0 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    log: Cow<'a, str>,
    stream: StdStream,
    time: Timestamp,
}

fn parse(line: &[u8]) -> Option<LogEntry> {
    let line: Line<'_> = serde_json::from_slice(line).ok()?;
    let text = Bytes::from(line.log.into_owned());
    Some(LogEntry { stream: line.stream, time: line.time, line: text })
}

/// Said instead of a line that cannot be read, so that nobody takes a damaged log for a whole one.
fn damaged() -> LogEntry {
    LogEntry {
        stream: StdStream::System,
        time: Timestamp::ZERO,
        line: Bytes::from_static(b"a damaged line of the log file was left out\n"),
    }
}

/// Drops and positions files so that `lines` lines are left.
fn skip_to_tail(files: &mut VecDeque<File>, lines: u64) -> io::Result<()> {
    let mut wanted = lines;
    for index in (0..files.len()).rev() {
        let Some(file) = files.get_mut(index) else { break };
        let (start, found) = tail_start(file, wanted)?;
        file.seek(SeekFrom::Start(start))?;
        wanted -= found;
        if wanted == 0 {
            files.drain(..index);
            break;
        }
    }
    Ok(())
}

/// Where the last `lines` lines of a file begin, and how many there are.
fn tail_start(file: &File, lines: u64) -> io::Result<(u64, u64)> {
    let mut end = file.metadata()?.len();
    if lines == 0 {
        return Ok((end, 0));
    }
    let mut found = 0;
    let mut block = vec![0; BLOCK];
    let mut at_last_byte = true;
    while end > 0 {
        let len = usize::try_from(end).unwrap_or(BLOCK).min(BLOCK);
        let begin = end - len as u64;
        let part = block.get_mut(..len).unwrap_or_default();
        file.read_exact_at(part, begin)?;
        for (offset, byte) in part.iter().enumerate().rev() {
            // The last line's own line feed begins no further line.
            if *byte == b'\n' && !std::mem::take(&mut at_last_byte) {
                found += 1;
                if found == lines {
                    return Ok((begin + offset as u64 + 1, found));
                }
            }
            at_last_byte = false;
        }
        end = begin;
    }
    // The first line has no line feed before it.
    let any = u64::from(file.metadata()?.len() > 0);
    Ok((0, found + any))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::Write;

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let path =
                std::env::temp_dir().join(format!("shoal-log-{}-{name}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
        fn log(&self) -> PathBuf {
            self.0.join("x.log")
        }
        fn append(&self, text: &str) {
            let log = File::options().append(true).create(true).open(self.log());
            log.unwrap().write_all(text.as_bytes()).unwrap();
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            // Ignored because: a test's leftovers in the temporary directory harm nobody.
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn line(number: u32) -> String {
        let time = Timestamp::from_secs(i64::from(number));
        format!("{{\"log\":\"{number}\\n\",\"stream\":\"stdout\",\"time\":\"{time}\"}}\n")
    }

    fn drain(reader: &mut Reader) -> String {
        let mut text = String::new();
        loop {
            let batch = reader.next_batch().unwrap();
            if batch.is_empty() {
                return text;
            }
            for entry in batch {
                text.push_str(&String::from_utf8_lossy(&entry.line).replace('\n', " "));
            }
        }
    }

    #[test]
    fn tails_reach_into_rotated_files() {
        let dir = Dir::new("tail");
        for (number, lines) in [(2, 1..3), (1, 3..6), (0, 6..8)] {
            let text: String = lines.map(line).collect();
            fs::write(numbered(&dir.log(), number), text).unwrap();
        }
        let read = |tail| drain(&mut Reader::open(&dir.log(), tail).unwrap());
        assert_eq!(read(None), "1 2 3 4 5 6 7 ");
        assert_eq!(read(Some(0)), "");
        assert_eq!(read(Some(1)), "7 ");
        assert_eq!(read(Some(2)), "6 7 ");
        assert_eq!(read(Some(4)), "4 5 6 7 ");
        assert_eq!(read(Some(99)), "1 2 3 4 5 6 7 ");
    }

    #[test]
    fn a_reader_goes_on_through_rotation_and_truncation() {
        let dir = Dir::new("follow");
        let mut reader = Reader::open(&dir.log(), None).unwrap();
        assert_eq!(drain(&mut reader), "");
        dir.append(&line(1));
        let half = line(2);
        let (first, second) = half.split_at(10);
        dir.append(first);
        assert_eq!(drain(&mut reader), "1 ");
        dir.append(second);
        fs::rename(dir.log(), numbered(&dir.log(), 1)).unwrap();
        dir.append(&line(3));
        assert_eq!(drain(&mut reader), "2 3 ");
        File::options().write(true).open(dir.log()).unwrap().set_len(0).unwrap();
        assert_eq!(drain(&mut reader), "");
        dir.append(&line(4));
        assert_eq!(drain(&mut reader), "4 ");
    }

    #[test]
    fn damage_is_named_and_bounded() {
        let dir = Dir::new("damage");
        dir.append("nonsense\n");
        dir.append(&"x".repeat(3 * LINE_MAX));
        dir.append(&format!("\n{}", line(5)));
        let text = drain(&mut Reader::open(&dir.log(), None).unwrap());
        assert_eq!(text.matches("damaged").count(), 2);
        assert!(text.ends_with("5 "));
    }
}
