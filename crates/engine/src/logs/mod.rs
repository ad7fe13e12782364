//! A container's log: what was written, and what is being written.

mod reader;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use crate::container::Container;
use crate::engine::{Engine, blocking};
use crate::error::EngineError;
use crate::record::Record;
use crate::session::receiver;
use crate::stream::{LogEntry, LogSession};

use reader::Reader;
use shoal_model::log::LogSelection;

/// Entries on their way to a client; one is 16 KiB at most.
const ENTRIES: usize = 64;

/// How often a followed log is looked at. The shim writes and tells nobody; a look costs two system
/// calls.
const LOOK_EVERY: Duration = Duration::from_millis(50);

impl Engine {
    /// A container's log.
    ///
    /// # Errors
    /// Neither stream was asked for, or the container has no log.
    pub async fn logs(&self, word: &str, options: LogSelection) -> Result<LogSession, EngineError> {
        let container = self.find(word)?;
        if !options.stdout && !options.stderr {
            return Err(EngineError::invalid(
                "Bad parameters: you must choose at least one stream",
            ));
        }
        let driver = container.read(|r| r.host.log_config.clone().unwrap_or_default().driver);
        if driver == "none" {
            return Err(EngineError::missing(
                "reading logs: configured logging driver does not support reading",
            ));
        }
        let tty = container.read(Record::tty);
        let path = container.files().log(&container.id);
        let tail = options.tail;
        // Opened before this returns, so that nothing is missed and a removal changes nothing.
        let reader = blocking("open a log", move || Reader::open(&path, tail)).await?;
        let (entries, lines) = mpsc::channel(ENTRIES);
        let engine = self.clone();
        self.spawn(async move {
            let sender = entries.clone();
            tokio::select! {
                () = sender.closed() => {}
                () = engine.pump_log(container, reader, options, entries) => {}
            }
        });
        Ok(LogSession { tty, details: Vec::new(), lines: receiver(lines) })
    }

    async fn pump_log(
        &self,
        container: Arc<Container>,
        mut reader: Reader,
        options: LogSelection,
        entries: mpsc::Sender<Result<LogEntry, EngineError>>,
    ) {
        // A log is followed as long as the run lasts that it was asked for in.
        let run = container.live(|live| live.run.clone());
        let mut follow = options.follow && container.phase().is_alive();
        loop {
            // Asked before reading: what is written until then is seen by the read.
            let over = !follow || run.is_cancelled() || !container.phase().is_alive();
            let read = blocking("read a log", move || {
                let batch = reader.next_batch()?;
                Ok((batch, reader))
            });
            let batch = match read.await {
                Ok((batch, back)) => {
                    reader = back;
                    batch
                }
                Err(error) => {
                    // Ignored because: the reader is gone or hears it; either way this ends.
                    let _ = entries.send(Err(error)).await;
                    return;
                }
            };
            let idle = batch.is_empty();
            for entry in batch {
                if options.until.is_some_and(|until| entry.time > until) {
                    return;
                }
                if wanted(&options, &entry) && entries.send(Ok(entry)).await.is_err() {
                    return;
                }
            }
            if !idle {
                continue;
            }
            if over || options.until.is_some_and(|until| self.now() > until) {
                return;
            }
            follow &= options.follow;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}

fn wanted(options: &LogSelection, entry: &LogEntry) -> bool {
    use crate::stream::StdStream;
    let stream = match entry.stream {
        StdStream::Stdout => options.stdout,
        StdStream::Stderr => options.stderr,
        StdStream::System => true,
    };
    stream && options.since.is_none_or(|since| entry.time >= since)
}

/// Reads `10m`, `64k`, `1g`, plain bytes; `None` if it is no positive size.
pub(crate) fn parse_size(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let bare = lower.strip_suffix('b').unwrap_or(&lower);
    let (number, factor) = match bare.strip_suffix(['k', 'm', 'g', 't']) {
        Some(number) => {
            let shift = match bare.as_bytes().last() {
                Some(b'k') => 10,
                Some(b'm') => 20,
                Some(b'g') => 30,
                _ => 40,
            };
            (number, 1_u64 << shift)
        }
        None => (bare, 1),
    };
    number.parse::<u64>().ok()?.checked_mul(factor).filter(|n| *n > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_units() {
        for (text, want) in [("10", 10), ("1k", 1024), ("10m", 10 << 20), ("2GB", 2 << 30)] {
            assert_eq!(parse_size(text), Some(want), "{text}");
        }
        for bad in ["", "0", "-1", "x", "1.5m", "99999999999999999999"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }
}
