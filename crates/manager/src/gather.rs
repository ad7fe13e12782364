//! Gathers logs from the nodes that have them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use shoal_model::cluster_state::ClusterState;
use shoal_model::fault::report;
use shoal_model::id::{NodeId, TaskId};
use shoal_model::log::{LogSelection, LogsOf, TaskLog, TaskLogLine};
use shoal_model::object::Task;
use shoal_model::task_state::TaskState;
use shoal_model::time::Timestamp;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::{CloseLogs, LogChunk, LogEnd, LogSource, ManagerMessage, OpenLogs};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::time::{Instant, sleep_until, timeout};

use crate::tenure::Tenure;

/// Chunks of one gathering that may wait for its reader.
const CHUNKS_MAX: usize = 256;
/// Lines that may wait for the reader of a gathered log.
pub(crate) const ITEMS_MAX: usize = 256;
/// How long a node's session waits for a reader that is too slow, before it drops that reader:
/// other messages of the node wait as long.
const READER_PATIENCE: Duration = Duration::from_millis(500);
/// How long a node may take for its first word on a log that has an end.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// What arrives for one gathering.
enum Arrival {
    Chunk(LogChunk),
    End {
        stream: u64,
        error: Option<String>,
    },
    /// Its session has a successor, which knows nothing of it.
    Again {
        stream: u64,
    },
}

struct Route {
    node: NodeId,
    to: mpsc::Sender<Arrival>,
}

/// Brings what nodes send to who asked for it.
#[derive(Default)]
pub(crate) struct Router {
    routes: Mutex<BTreeMap<u64, Route>>,
    /// Streams that are to be opened again, to whose gathering that could not be said.
    unsaid: Mutex<BTreeSet<u64>>,
    next: AtomicU64,
}

impl Router {
    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<u64, Route>) -> T) -> T {
        act(&mut self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn open(&self, node: &NodeId, to: &mpsc::Sender<Arrival>) -> u64 {
        let stream = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let route = Route { node: node.clone(), to: to.clone() };
        self.with(|routes| routes.insert(stream, route));
        stream
    }

    fn close(&self, stream: u64) {
        self.with(|routes| routes.remove(&stream));
        self.is_unsaid(stream);
    }

    /// Whether a stream is to be opened again and nobody has said so; asked once.
    fn is_unsaid(&self, stream: u64) -> bool {
        self.unsaid.lock().unwrap_or_else(PoisonError::into_inner).remove(&stream)
    }

    /// Nobody hears a stream of another node.
    fn target(&self, node: &NodeId, stream: u64) -> Option<mpsc::Sender<Arrival>> {
        self.with(|routes| routes.get(&stream).filter(|r| r.node == *node).map(|r| r.to.clone()))
    }

    /// Lines that a node sent.
    pub async fn chunk(&self, node: &NodeId, chunk: LogChunk) {
        let stream = chunk.stream;
        let Some(to) = self.target(node, stream) else { return };
        let sent = timeout(READER_PATIENCE, to.send(Arrival::Chunk(chunk))).await;
        if !matches!(sent, Ok(Ok(()))) {
            // The gathering finds its route gone and says so.
            self.close(stream);
        }
    }

    /// The end of a stream.
    pub async fn end(&self, node: &NodeId, end: LogEnd) {
        let stream = end.stream;
        let Some(to) = self.target(node, stream) else { return };
        let error = end.error.map(|fault: RemoteFault| report(&fault));
        // Ignored because: a reader that takes nothing any more learns nothing either.
        let _ = timeout(READER_PATIENCE, to.send(Arrival::End { stream, error })).await;
        // Only now: a gathering that finds its route gone takes it for cut off.
        self.close(stream);
    }

    /// Ends the streams of a node whose session is over.
    pub fn node_lost(&self, node: &NodeId, why: &str) {
        self.cut(node, |stream, route| {
            let end = Arrival::End { stream, error: Some(why.to_owned()) };
            // Ignored because: a full queue is drained first; the gathering then finds the route
            // gone, and says that the log was cut off.
            let _ = route.to.try_send(end);
        });
    }

    /// Has the streams of a node opened again whose session has a successor.
    pub fn node_again(&self, node: &NodeId) {
        self.cut(node, |stream, route| {
            if let Err(TrySendError::Full(_)) = route.to.try_send(Arrival::Again { stream }) {
                // It drains its queue, finds the route gone, and asks why.
                self.unsaid.lock().unwrap_or_else(PoisonError::into_inner).insert(stream);
            }
        });
    }

    /// Takes the routes of a node out, each once `word` of it was given: whoever finds one gone
    /// has it.
    fn cut(&self, node: &NodeId, word: impl Fn(u64, &Route)) {
        self.with(|routes| {
            let cut = routes.extract_if(.., |_, route| route.node == *node);
            cut.for_each(|(stream, route)| word(stream, &route));
        });
    }

    fn is_open(&self, stream: u64) -> bool {
        self.with(|routes| routes.contains_key(&stream))
    }
}

struct Source {
    task: Arc<Task>,
    node: NodeId,
    opened: Instant,
    spoke: bool,
    /// The time of the last line that came.
    last: Option<Timestamp>,
    /// Lines up to this one came by an earlier stream.
    after: Option<Timestamp>,
}

/// One gathered log on its way to its reader.
pub(crate) struct Gathering {
    tenure: Arc<Tenure>,
    selector: LogsOf,
    query: LogSelection,
    out: mpsc::Sender<TaskLog>,
    to: mpsc::Sender<Arrival>,
    arrivals: mpsc::Receiver<Arrival>,
    sources: BTreeMap<u64, Source>,
    seen: BTreeSet<TaskId>,
    warned: BTreeSet<NodeId>,
    /// Up to which line the logs came that are to be opened again, if there was one.
    again: BTreeMap<TaskId, Option<Timestamp>>,
}

/// The reader is gone.
struct Gone;

impl Gathering {
    pub fn new(
        tenure: Arc<Tenure>,
        selector: LogsOf,
        query: LogSelection,
        out: mpsc::Sender<TaskLog>,
    ) -> Self {
        let (to, arrivals) = mpsc::channel(CHUNKS_MAX);
        Self {
            tenure,
            selector,
            query,
            out,
            to,
            arrivals,
            sources: BTreeMap::new(),
            seen: BTreeSet::new(),
            warned: BTreeSet::new(),
            again: BTreeMap::new(),
        }
    }

    /// Gathers until everything has been said, or the reader is gone.
    pub async fn run(mut self) {
        // Ignored because: both ways it is over.
        let _ = self.gather().await;
        for (stream, source) in std::mem::take(&mut self.sources) {
            self.tenure.logs.close(stream);
            if let Some(sender) = self.tenure.sessions.sender(&source.node) {
                // Ignored because: without a session the node sends nothing anyway.
                let _ = sender.send(ManagerMessage::CloseLogs(CloseLogs { stream })).await;
            }
        }
    }

    async fn gather(&mut self) -> Result<(), Gone> {
        let mut revision = self.tenure.shared.store.watch();
        self.open_all(true).await?;
        loop {
            if self.sources.is_empty() && self.is_over() {
                return Ok(());
            }
            let next_check = Instant::now() + FIRST_WORD;
            tokio::select! {
                biased;
                () = self.out.closed() => return Err(Gone),
                changed = revision.changed(), if self.query.follow => {
                    if changed.is_err() {
                        return Ok(());
                    }
                    self.open_all(false).await?;
                }
                arrival = self.arrivals.recv() => match arrival {
                    Some(arrival) => self.take(arrival).await?,
                    None => return Ok(()),
                },
                () = sleep_until(next_check) => {}
            }
            self.give_up_on_silent().await?;
        }
    }

    /// Whether no further task can come.
    fn is_over(&self) -> bool {
        if !self.query.follow {
            return true;
        }
        let state = self.tenure.shared.state();
        match &self.selector {
            LogsOf::Service(id) => !state.services.contains_key(id),
            LogsOf::Task(id) => {
                let ended = |t: &Arc<Task>| t.status.state.is_terminal();
                state.tasks.get(id).is_none_or(ended) || self.seen.contains(id)
            }
        }
    }

    /// Asks for the logs of every task that can have one and was not asked for yet.
    async fn open_all(&mut self, first: bool) -> Result<(), Gone> {
        let state = self.tenure.shared.state();
        for task in selected(&state, &self.selector) {
            let ready = task.status.container.is_some() || task.status.state >= TaskState::Starting;
            if self.seen.contains(&task.id) || !ready {
                continue;
            }
            let Some(node) = task.node_id.clone() else { continue };
            self.seen.insert(task.id.clone());
            let Some(sender) = self.tenure.sessions.sender(&node) else {
                self.warn_of_node(&state, &node).await?;
                continue;
            };
            let stream = self.tenure.logs.open(&node, &self.to);
            let again = self.again.remove(&task.id);
            let after = again.flatten();
            // A task that begins while we follow is shown from its first line.
            let tail = self.query.tail.filter(|_| first || again.is_some() && after.is_none());
            let since = after.or(self.query.since);
            let options = LogSelection { tail, since, ..self.query.clone() };
            let open = OpenLogs { stream, task_id: task.id.clone(), options };
            if sender.send(ManagerMessage::OpenLogs(open)).await.is_err() {
                self.tenure.logs.close(stream);
                self.warn_of_node(&state, &node).await?;
                continue;
            }
            let opened = Instant::now();
            let source = Source { task, node, opened, spoke: false, last: after, after };
            self.sources.insert(stream, source);
        }
        Ok(())
    }

    async fn warn_of_node(&mut self, state: &ClusterState, node: &NodeId) -> Result<(), Gone> {
        if !self.warned.insert(node.clone()) {
            return Ok(());
        }
        let name = state.nodes.get(node).map(|n| n.description.hostname.as_str());
        let text = match name {
            Some(name) => {
                format!("node '{name}' cannot be reached: the logs of its tasks are missing")
            }
            None => {
                format!("node '{node}' is no member any more: the logs of its tasks are missing")
            }
        };
        self.say(TaskLog::Warning(text)).await
    }

    async fn take(&mut self, arrival: Arrival) -> Result<(), Gone> {
        match arrival {
            Arrival::Chunk(chunk) => {
                let Some(source) = self.sources.get_mut(&chunk.stream) else { return Ok(()) };
                source.spoke = true;
                let (task, node) = (Arc::clone(&source.task), source.node.clone());
                let after = source.after;
                source.last = chunk.lines.last().map(|line| line.time).max(source.last);
                for line in chunk.lines.into_iter().filter(|line| Some(line.time) > after) {
                    let item = TaskLog::Line(TaskLogLine {
                        node_id: node.clone(),
                        service_id: task.service_id.clone(),
                        task_id: task.id.clone(),
                        time: line.time,
                        stderr: line.source == LogSource::Stderr,
                        line: line.line,
                    });
                    self.say(item).await?;
                }
            }
            Arrival::Again { stream } => {
                let Some(source) = self.sources.remove(&stream) else { return Ok(()) };
                self.seen.remove(&source.task.id);
                self.again.insert(source.task.id.clone(), source.last);
                self.open_all(false).await?;
            }
            Arrival::End { stream, error } => {
                let Some(source) = self.sources.remove(&stream) else { return Ok(()) };
                if let Some(error) = error {
                    let name = source.task.name();
                    let text = format!("the log of task '{name}' is incomplete: {error}");
                    self.say(TaskLog::Warning(text)).await?;
                }
            }
        }
        Ok(())
    }

    /// Drops sources that do not answer, or that were cut off because we read too slowly.
    async fn give_up_on_silent(&mut self) -> Result<(), Gone> {
        let now = Instant::now();
        let (mut lost, mut again) = (Vec::new(), Vec::new());
        for (stream, source) in &self.sources {
            let silent = !source.spoke && !self.query.follow && now > source.opened + FIRST_WORD;
            let cut = !self.tenure.logs.is_open(*stream) && self.arrivals.is_empty();
            if cut && self.tenure.logs.is_unsaid(*stream) {
                again.push(*stream);
            } else if silent || cut {
                lost.push((*stream, if silent { "its node does not answer" } else { "cut off" }));
            }
        }
        for stream in again {
            self.take(Arrival::Again { stream }).await?;
        }
        for (stream, why) in lost {
            self.tenure.logs.close(stream);
            if let Some(source) = self.sources.remove(&stream) {
                let name = source.task.name();
                let text = format!("the log of task '{name}' is incomplete: {why}");
                self.say(TaskLog::Warning(text)).await?;
            }
        }
        Ok(())
    }

    async fn say(&self, item: TaskLog) -> Result<(), Gone> {
        self.out.send(item).await.map_err(|_| Gone)
    }
}

fn selected(state: &ClusterState, selector: &LogsOf) -> Vec<Arc<Task>> {
    match selector {
        LogsOf::Task(id) => state.tasks.get(id).cloned().into_iter().collect(),
        LogsOf::Service(id) => {
            let own = |t: &&Arc<Task>| t.service_id.as_ref() == Some(id);
            state.tasks.values().filter(own).cloned().collect()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Whatever waits for a slow reader, a log is opened again; of one that was lost nothing is
    /// kept.
    #[test]
    fn a_full_queue_hides_no_word_of_a_new_session() {
        let (router, node) = (Router::default(), NodeId::new("n"));
        let (to, mut arrivals) = mpsc::channel(1);
        let said = router.open(&node, &to);
        router.node_again(&node);
        assert!(
            matches!(arrivals.try_recv().unwrap(), Arrival::Again { stream } if stream == said)
        );
        assert!(!router.is_open(said) && !router.is_unsaid(said));

        let [first, second] = [(); 2].map(|()| router.open(&node, &to));
        router.node_again(&node);
        assert!(
            matches!(arrivals.try_recv().unwrap(), Arrival::Again { stream } if stream == first)
        );
        assert!(!router.is_open(second) && !router.is_unsaid(first));
        assert!(router.is_unsaid(second), "nobody says it");
        assert!(!router.is_unsaid(second), "it is said twice");

        let lost = router.open(&node, &to);
        to.try_send(Arrival::Again { stream: 0 }).unwrap();
        router.node_lost(&node, "gone");
        assert!(!router.is_open(lost) && !router.is_unsaid(lost));
        drop(arrivals);
        let ended = router.open(&node, &to);
        router.node_again(&node);
        assert!(!router.is_unsaid(ended), "its gathering is over");
    }
}
