//! Attaching a client to a container's own process.

use std::sync::Arc;

use futures::StreamExt;
use shoal_model::log::LogSelection;
use shoal_runtime::container_plan::TtySize;
use tokio::sync::oneshot;

use crate::change::Phase;
use crate::container::{Container, PendingAttach};
use crate::detach_keys::DetachKeys;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::record::Record;
use crate::request::AttachOptions;
use crate::session::{self, AtEof, Manner, SessionEnd};
use crate::start::runtime_error;
use crate::stream::{Frame, FrameStream, StdioSession};

impl Engine {
    /// Joins a container's streams; before its start too, and then nothing of its output is missed.
    ///
    /// # Errors
    /// It is frozen, or the detach keys cannot be read.
    pub async fn attach(
        &self,
        word: &str,
        options: AttachOptions,
    ) -> Result<StdioSession, EngineError> {
        let container = self.find(word)?;
        let keys = DetachKeys::parse(options.detach_keys.as_deref())?;
        if container.phase() == Phase::Paused {
            return Err(EngineError::conflict(format!(
                "container {} is paused, unpause the container before attach",
                container.id
            )));
        }
        let (tty, open_stdin, stdin_once) = container.read(|record| {
            let on = |flag: Option<bool>| flag.unwrap_or(false);
            (record.tty(), on(record.config.open_stdin), on(record.config.stdin_once))
        });
        let before = self.logged_so_far(&container, &options).await?;
        if !options.stream {
            let output = before.unwrap_or_else(|| Box::pin(futures::stream::empty()));
            return Ok(StdioSession { tty, output, input: None });
        }
        let (engine, subject) = (self.clone(), Arc::clone(&container));
        let manner = Manner {
            tty,
            stdin: options.stdin && open_stdin,
            stdout: options.stdout,
            // A terminal has one stream only.
            stderr: options.stderr && !tty,
            at_eof: if stdin_once && !tty { AtEof::Close } else { AtEof::Leave },
            keys,
            before,
            on_end: Box::new(move |end| {
                if end == SessionEnd::Detached {
                    engine.note(&subject, "detach", &[]);
                }
            }),
        };
        let session = self.join_streams(&container, manner).await?;
        self.note(&container, "attach", &[]);
        Ok(session)
    }

    async fn join_streams(
        &self,
        container: &Arc<Container>,
        mut manner: Manner,
    ) -> Result<StdioSession, EngineError> {
        let (ready, streams) = oneshot::channel();
        let (stdin, stdout, stderr) = (manner.stdin, manner.stdout, manner.stderr);
        let before = manner.before.take();
        // In a turn, so that a start is either over or has not taken the waiting clients yet.
        let turn = container.turn().await?;
        match container.running_shim() {
            Ok(shim) => {
                let joined = shim.attach(stdin, stdout, stderr).await;
                let joined = joined.map_err(|e| runtime_error("attach to", container, e))?;
                // Ignored because: the receiver is in our hands.
                let _ = ready.send(joined);
            }
            Err(_) => {
                container.attach_later(PendingAttach { stdin, stdout, stderr, ready })?;
            }
        }
        drop(turn);
        let mut session = session::open(self, streams, manner);
        if let Some(before) = before {
            session.output = Box::pin(before.chain(session.output));
        }
        Ok(session)
    }

    async fn logged_so_far(
        &self,
        container: &Arc<Container>,
        options: &AttachOptions,
    ) -> Result<Option<FrameStream>, EngineError> {
        if !options.logs {
            return Ok(None);
        }
        let (stdout, stderr) = (options.stdout, options.stderr);
        let log = LogSelection { stdout, stderr, ..LogSelection::default() };
        let logged = self.logs(container.id.as_str(), log).await?;
        let frames = logged.lines.filter_map(|entry| async move {
            let entry = entry.ok()?;
            Some(Frame { stream: entry.stream, data: entry.line })
        });
        Ok(Some(Box::pin(frames)))
    }

    /// Changes the size of a container's terminal.
    ///
    /// # Errors
    /// It does not run or has no terminal.
    pub async fn resize(&self, word: &str, rows: u16, columns: u16) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let shim = container.running_shim()?;
        if !container.read(Record::tty) {
            let text = format!("container {} has no terminal", container.id);
            return Err(EngineError::conflict(text));
        }
        let resized = shim.resize(TtySize { rows, columns }).await;
        resized.map_err(|e| runtime_error("resize the terminal of", &container, e))?;
        let size = [("height", rows.to_string()), ("width", columns.to_string())];
        self.note(&container, "resize", &size);
        Ok(())
    }
}
