//! Logs for clients of managers that do not lead. The leader gathers; the other manager asks it
//! again and again for what has come, so that nothing waits without bound on either side, and a
//! manager that dies leaves nothing behind.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use shoal_model::fault::{Fault as _, FaultKind, report};
use shoal_model::id::NodeId;
use shoal_model::log::{LogSelection, LogsOf, TaskLog};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::control::Control;
use crate::error::ControlError;
use crate::gather::{Gathering, ITEMS_MAX};
use crate::requests::{ControlReply, ControlRequest};
use crate::tenure::Tenure;

/// How long one question waits for a first line.
const WAIT: Duration = Duration::from_secs(3);
/// A gathering that nobody has asked for so long is dropped.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Gatherings for other managers at the same time.
const RELAYS_MAX: usize = 256;
/// Bytes of lines in one answer: well below the bound of messages, base64 counted.
const BATCH_BYTES_MAX: usize = 512 << 10;

/// What a question about a gathering brings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogBatch {
    /// What has come.
    pub items: Vec<TaskLog>,
    /// Whether there is nothing more.
    pub over: bool,
}

struct Relay {
    /// The manager that opened it.
    from: NodeId,
    items: Arc<tokio::sync::Mutex<mpsc::Receiver<TaskLog>>>,
    asked: Instant,
}

/// The gatherings of one leadership that other managers read.
#[derive(Default)]
pub(crate) struct Relays(Mutex<Open>);

struct Open {
    relays: BTreeMap<u64, Relay>,
    last: u64,
}

impl Default for Open {
    /// Numbers of one leadership are not those of another: who asks for a log that the last leader
    /// gathered gets none, not somebody else's.
    fn default() -> Self {
        Self { relays: BTreeMap::new(), last: rand::random::<u64>() >> 1 }
    }
}

impl Relays {
    fn with<T>(&self, act: impl FnOnce(&mut Open) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps a gathering for its reader.
    fn enter(&self, from: &NodeId, items: mpsc::Receiver<TaskLog>) -> Result<u64, ControlError> {
        let asked = Instant::now();
        self.with(|open| {
            if open.relays.len() >= RELAYS_MAX {
                let message = format!("{RELAYS_MAX} logs are being read through this manager");
                return Err(ControlError::Precondition { message });
            }
            open.last += 1;
            let items = Arc::new(tokio::sync::Mutex::new(items));
            open.relays.insert(open.last, Relay { from: from.clone(), items, asked });
            Ok(open.last)
        })
    }

    /// What has come of a gathering; waits a moment for a first line.
    async fn next(&self, from: &NodeId, number: u64) -> Result<LogBatch, ControlError> {
        let items = self.with(|open| {
            let relay = open.relays.get_mut(&number).filter(|relay| relay.from == *from)?;
            relay.asked = Instant::now();
            Some(Arc::clone(&relay.items))
        });
        let gone = || ControlError::NotFound { kind: "log", word: number.to_string() };
        let items = items.ok_or_else(gone)?;
        let mut items = items.lock().await;
        let mut batch = LogBatch::default();
        let until = Instant::now() + WAIT;
        match timeout_at(until, items.recv()).await {
            Ok(Some(first)) => batch.items.push(first),
            Ok(None) => batch.over = true,
            Err(_) => {}
        }
        let mut bytes: usize = batch.items.iter().map(bytes_of).sum();
        while !batch.items.is_empty() && bytes < BATCH_BYTES_MAX {
            match items.try_recv() {
                Ok(item) => {
                    bytes += bytes_of(&item);
                    batch.items.push(item);
                }
                Err(mpsc::error::TryRecvError::Disconnected) => {
                    batch.over = true;
                    break;
                }
                Err(mpsc::error::TryRecvError::Empty) => break,
            }
        }
        if batch.over {
            self.close(from, number);
        }
        Ok(batch)
    }

    /// Nobody reads it any more.
    fn close(&self, from: &NodeId, number: u64) {
        self.with(|open| {
            if open.relays.get(&number).is_some_and(|relay| relay.from == *from) {
                open.relays.remove(&number);
            }
        });
    }

    /// Drops those that nobody asks for any more.
    fn sweep(&self) {
        self.with(|open| open.relays.retain(|_, relay| relay.asked.elapsed() < IDLE_MAX));
    }
}

fn bytes_of(item: &TaskLog) -> usize {
    match item {
        TaskLog::Line(line) => line.line.len(),
        TaskLog::Warning(text) => text.len(),
    }
}

/// Drops what nobody asks for any more, for as long as this manager leads: a reader that dies says
/// nothing.
pub(crate) async fn run(tenure: Arc<Tenure>) {
    let mut looks = tokio::time::interval(IDLE_MAX);
    loop {
        looks.tick().await;
        tenure.relays.sweep();
    }
}

impl Tenure {
    /// Begins to gather.
    pub(crate) fn gather(
        self: &Arc<Self>,
        selector: LogsOf,
        query: LogSelection,
    ) -> mpsc::Receiver<TaskLog> {
        let (out, items) = mpsc::channel(ITEMS_MAX);
        self.help(Gathering::new(Arc::clone(self), selector, query, out).run());
        items
    }

    /// Begins to gather for another manager's client.
    pub(crate) fn open_log(
        self: &Arc<Self>,
        from: &NodeId,
        selector: LogsOf,
        query: LogSelection,
    ) -> Result<ControlReply, ControlError> {
        let items = self.gather(selector, query);
        Ok(ControlReply::Log { number: self.relays.enter(from, items)? })
    }

    pub(crate) async fn read_log(
        &self,
        from: &NodeId,
        number: u64,
    ) -> Result<ControlReply, ControlError> {
        Ok(ControlReply::LogBatch { batch: self.relays.next(from, number).await? })
    }

    pub(crate) fn close_log(&self, from: &NodeId, number: u64) -> ControlReply {
        self.relays.close(from, number);
        ControlReply::Done {}
    }
}

impl Control {
    /// Logs, gathered by the manager that leads.
    pub(crate) async fn log_of_leader(
        &self,
        selector: LogsOf,
        query: LogSelection,
    ) -> Result<mpsc::Receiver<TaskLog>, ControlError> {
        let reply = self.ask(ControlRequest::OpenLog { selector, query }).await?;
        let ControlReply::Log { number } = reply else { return Err(reply.unexpected()) };
        let (out, items) = mpsc::channel(ITEMS_MAX);
        let control = self.clone();
        self.shared.help(async move { control.pump(number, out).await });
        Ok(items)
    }

    /// Asks for what has come until it is over or nobody reads it.
    async fn pump(&self, number: u64, out: mpsc::Sender<TaskLog>) {
        loop {
            let asked = tokio::select! {
                biased;
                () = out.closed() => break,
                asked = self.ask(ControlRequest::ReadLog { number }) => asked,
            };
            let batch = match asked {
                Ok(ControlReply::LogBatch { batch }) => batch,
                Ok(other) => return say(&out, &other.unexpected()).await,
                // Another manager leads by now, which does not know of it.
                Err(error) if error.kind() == FaultKind::NotFound => {
                    return tell(&out, "ask again: another manager leads now".to_owned()).await;
                }
                Err(error) => return say(&out, &error).await,
            };
            for item in batch.items {
                if out.send(item).await.is_err() {
                    break;
                }
            }
            if batch.over {
                return;
            }
        }
        // Ignored because: the leader drops what nobody asks for within a minute.
        let _ = self.ask(ControlRequest::CloseLog { number }).await;
    }
}

async fn say(out: &mpsc::Sender<TaskLog>, error: &ControlError) {
    tell(out, report(error)).await;
}

async fn tell(out: &mpsc::Sender<TaskLog>, why: String) {
    let text = format!("the log is cut off here: {why}");
    // Ignored because: a reader that has gone needs no warning.
    let _ = out.send(TaskLog::Warning(text)).await;
}
