//! Logs of this node's tasks, sent to the manager that asked.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use shoal_engine::stream::StdStream;
use shoal_model::fault::FaultKind;
use shoal_wire::error::WireError;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{LogChunk, LogEnd, LogLine, LogSource, NodeMessage, OpenLogs};
use shoal_wire::session::SessionSender;
use tokio::task::{AbortHandle, JoinSet};

use crate::agent::Agent;

/// Lines in one message at most.
const LINES_MAX: usize = 200;
/// Bytes in one message at most (a line has at most 16 KiB), far below the bound on messages.
const BYTES_MAX: usize = 256 * 1024;
/// How long lines are collected before they are sent: a reader should not notice.
const COLLECT: Duration = Duration::from_millis(20);
/// Logs that one session sends at a time.
const STREAMS_MAX: usize = 64;

/// The logs that one session sends. Dropping it stops them.
#[derive(Debug, Default)]
pub struct Streams {
    running: JoinSet<()>,
    handles: BTreeMap<u64, AbortHandle>,
}

impl Streams {
    /// Starts to send a log.
    pub fn open(&mut self, agent: &Agent, open: OpenLogs, sender: SessionSender<NodeMessage>) {
        while self.running.try_join_next().is_some() {}
        self.handles.retain(|_, handle| !handle.is_finished());
        let agent = agent.clone();
        let stream = open.stream;
        let full = self.handles.len() >= STREAMS_MAX;
        let handle = self.running.spawn(async move {
            let error = if full {
                Some(RemoteFault::new(FaultKind::Unavailable, "too many logs are being read"))
            } else {
                send(&agent, &open, &sender).await.err()
            };
            // Ignored because: without a session nobody waits for the end.
            let _ = sender.send(NodeMessage::LogEnd(LogEnd { stream, error })).await;
        });
        self.handles.insert(stream, handle);
    }

    /// Stops a log.
    pub fn close(&mut self, stream: u64) {
        if let Some(handle) = self.handles.remove(&stream) {
            handle.abort();
        }
    }
}

async fn send(
    agent: &Agent,
    open: &OpenLogs,
    sender: &SessionSender<NodeMessage>,
) -> Result<(), RemoteFault> {
    let Some(engine) = agent.engine() else { return Ok(()) };
    let Some(container) = agent.inner.tasks.container_of(&open.task_id) else {
        // A task without a container has no log: nothing to send is the truth.
        return Ok(());
    };
    let logs = engine.logs(container.as_str(), open.options.clone()).await;
    let session = logs.map_err(|e| RemoteFault::of(&e))?;
    let mut chunks =
        Box::pin(tokio_stream::StreamExt::chunks_timeout(session.lines, LINES_MAX, COLLECT));
    while let Some(entries) = chunks.next().await {
        let mut lines = Vec::with_capacity(entries.len());
        let mut bytes = 0;
        for entry in entries {
            let entry = entry.map_err(|e| RemoteFault::of(&e))?;
            let source = match entry.stream {
                StdStream::Stdout => LogSource::Stdout,
                StdStream::Stderr | StdStream::System => LogSource::Stderr,
            };
            bytes += entry.line.len();
            lines.push(LogLine { time: entry.time, source, line: entry.line.to_vec() });
            if bytes > BYTES_MAX {
                flush(open.stream, &mut lines, sender).await.map_err(|e| RemoteFault::of(&e))?;
                bytes = 0;
            }
        }
        flush(open.stream, &mut lines, sender).await.map_err(|e| RemoteFault::of(&e))?;
    }
    Ok(())
}

async fn flush(
    stream: u64,
    lines: &mut Vec<LogLine>,
    sender: &SessionSender<NodeMessage>,
) -> Result<(), WireError> {
    if lines.is_empty() {
        return Ok(());
    }
    let chunk = LogChunk { stream, lines: std::mem::take(lines) };
    sender.send(NodeMessage::LogChunk(chunk)).await
}
