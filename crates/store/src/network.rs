//! The consensus library's way to the other members.
//!
//! The library gives an append a moment and then sends it again. Here it goes on, and the next try
//! waits for it: a slow line would carry the same entries for ever otherwise. What fails is tried
//! again after a pause of ours; the library's own would hold a member that came back for longer
//! than it waits for a leader.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{
    Fatal, InstallSnapshotError, NetworkError, RPCError, RaftError, ReplicationClosed,
    StreamingError,
};
use openraft::network::{RPCOption, RaftNetwork, RaftNetworkFactory};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    SnapshotResponse, VoteRequest, VoteResponse,
};
use openraft::{EntryPayload, Snapshot};
use serde_json::value::RawValue;
use shoal_model::level;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::consensus::{LogId, Types, Vote};
use crate::links::Links;
use crate::peer::{Lane, Member, MemberNode, PeerError};
use crate::question::{Ask, PIECE_BYTES, QUESTION_VERSION, Question, Reply, digest, raw};
use crate::record::{EntryRecord, HeadRecord, level_of};

/// First pause after a failure, and the longest: shorter than the silence after which a member that
/// came back stands for election.
const PAUSE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(150));
/// How long an append may go on: a second, and another one for each of so many bytes.
const APPEND_LIMIT: Duration = Duration::from_secs(1);
const APPEND_BYTES_A_SECOND: u64 = 256 << 10;
/// How long one piece of a snapshot may take.
const PIECE_LIMIT: Duration = Duration::from_secs(10);
/// How long a member may take to install a snapshot.
const INSTALL_LIMIT: Duration = Duration::from_secs(60);

/// Makes ways to members.
pub(crate) struct Network {
    links: Arc<Links>,
}

impl Network {
    pub(crate) fn new(links: Arc<Links>) -> Self {
        Self { links }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: u64, node: &MemberNode) -> Way {
        let to = Member { node: node.node.clone(), raft_id: target };
        let links = Arc::clone(&self.links);
        Way { links, to, pause: Pause::default(), entries: None, beat: None }
    }
}

/// Why nothing came back.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WayError {
    #[error("ask {to}")]
    Peer { to: Member, source: PeerError },
    #[error("put what is asked of {to} into words, or read its answer")]
    Form { to: Member, source: serde_json::Error },
    #[error("ask {to}: its answer does not fit: {reply}")]
    Reply { to: Member, reply: String },
    #[error("ask {to}: this manager has no majority, or hands over, and says nothing meanwhile")]
    Mute { to: Member },
    #[error("ask {to}: the runtime stops")]
    Stopped { to: Member },
}

impl Links {
    /// Asks `to`. The answer counts as a sign of life.
    pub(crate) async fn put(
        &self,
        to: &Member,
        lane: Lane,
        ask: Ask,
        limit: Duration,
    ) -> Result<Reply, WayError> {
        let form = |source| WayError::Form { to: to.clone(), source };
        let from = self.own.clone();
        let epoch = self.epoch().unwrap_or_default().id;
        let question = Question { v: QUESTION_VERSION, epoch, from, to: to.raft_id, ask };
        let body: Box<RawValue> = raw(&question).map_err(form)?;
        drop(question);
        let answer = self.ask(to, lane, body, limit).await;
        let answer = answer.map_err(|source| WayError::Peer { to: to.clone(), source })?;
        serde_json::from_str(answer.get()).map_err(form)
    }
}

impl Links {
    /// Asks whether `to` is there.
    pub(crate) async fn ping(&self, to: &Member, limit: Duration) -> Result<(), PeerError> {
        match self.put(to, Lane::Vote, Ask::Ping {}, limit).await {
            Ok(_) => Ok(()),
            Err(WayError::Peer { source, .. }) => Err(source),
            Err(error) => Err(PeerError::Other(error.to_string())),
        }
    }
}

/// Keeps apart the tries of what fails.
#[derive(Default)]
struct Pause {
    until: Option<Instant>,
    last: Duration,
}

impl Pause {
    /// Returns when it is over; who gives up meanwhile waits for the rest next time.
    async fn over(&self) {
        if let Some(until) = self.until {
            sleep_until(until).await;
        }
    }

    fn note<T, E>(&mut self, outcome: &Result<T, E>) {
        if outcome.is_ok() {
            *self = Self::default();
        } else {
            self.last = (self.last * 2).clamp(PAUSE.0, PAUSE.1);
            self.until = Some(Instant::now() + self.last);
        }
    }
}

/// An append under way, from after `prev` up to `last`. It ends with its owner.
struct Call {
    prev: Option<LogId>,
    last: Option<LogId>,
    task: JoinHandle<Result<Reply, WayError>>,
}

impl Drop for Call {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The way to one member.
pub(crate) struct Way {
    links: Arc<Links>,
    to: Member,
    pause: Pause,
    /// Entries under way, and a sign of life under way.
    entries: Option<Call>,
    beat: Option<Call>,
}

impl Way {
    fn append(&self, rpc: AppendEntriesRequest<Types>) -> Call {
        let (prev, last) = ends(&rpc);
        let bytes: usize = rpc.entries.iter().map(payload_bytes).sum();
        let ask = Ask::Append {
            vote: rpc.vote.into(),
            prev: prev.map(Into::into),
            entries: rpc.entries.iter().map(EntryRecord::from).collect(),
            commit: rpc.leader_commit.map(Into::into),
        };
        let seconds = u64::try_from(bytes).unwrap_or(u64::MAX) / APPEND_BYTES_A_SECOND;
        let limit = APPEND_LIMIT + Duration::from_secs(seconds);
        let (links, to) = (Arc::clone(&self.links), self.to.clone());
        let task = tokio::spawn(async move { links.put(&to, Lane::Log, ask, limit).await });
        Call { prev, last, task }
    }

    async fn send_snapshot(
        &self,
        vote: Vote,
        snapshot: Snapshot<Types>,
    ) -> Result<SnapshotResponse<u64>, WayError> {
        let level = level_of(snapshot.snapshot.get_ref()).unwrap_or(level::FIRST);
        let head = HeadRecord::new(&snapshot.meta, level);
        let id = head.id.clone();
        let content = snapshot.snapshot.into_inner();
        let bytes = u64::try_from(content.len()).unwrap_or(u64::MAX);
        let put = async |ask, limit| {
            self.speaks()?;
            self.links.put(&self.to, Lane::Bulk, ask, limit).await
        };
        let ask = Ask::Head { vote: vote.into(), head, bytes };
        if let Some(end) = self.ended(put(ask, PIECE_LIMIT).await?)? {
            return Ok(end);
        }
        let mut offset = 0;
        for piece in content.chunks(PIECE_BYTES) {
            let ask = Ask::Piece { id: id.clone(), offset, data: piece.to_vec() };
            if let Some(end) = self.ended(put(ask, PIECE_LIMIT).await?)? {
                return Ok(end);
            }
            offset += u64::try_from(piece.len()).unwrap_or_default();
        }
        let ask = Ask::End { id, digest: digest(&content) };
        drop(content);
        let reply = put(ask, INSTALL_LIMIT).await?;
        let text = format!("{reply:?}");
        self.ended(reply)?.ok_or(WayError::Reply { to: self.to.clone(), reply: text })
    }

    /// What ends the sending of a snapshot; `None` if it goes on.
    fn ended(&self, reply: Reply) -> Result<Option<SnapshotResponse<u64>>, WayError> {
        match reply {
            Reply::Next {} => Ok(None),
            Reply::Installed { vote } => match Vote::try_from(vote) {
                Ok(vote) => Ok(Some(SnapshotResponse { vote })),
                Err(_) => Err(self.unfit(&Reply::Installed { vote })),
            },
            reply => Err(self.unfit(&reply)),
        }
    }

    /// Whether what a leader says goes out. Whatever a member hears of it makes that member refuse
    /// others its vote for a while: with a way out but none back that would never end.
    fn speaks(&self) -> Result<(), WayError> {
        if self.links.is_mute() { Err(WayError::Mute { to: self.to.clone() }) } else { Ok(()) }
    }

    fn unfit(&self, reply: &Reply) -> WayError {
        WayError::Reply { to: self.to.clone(), reply: format!("{reply:?}") }
    }

    /// What the library makes of an answer to an append that went up to `sent`, asked for `wanted`.
    fn appended(
        &self,
        reply: Reply,
        sent: Option<LogId>,
        wanted: Option<LogId>,
    ) -> Result<AppendEntriesResponse<u64>, WayError> {
        Ok(match reply {
            Reply::Appended {} if sent == wanted => AppendEntriesResponse::Success,
            Reply::Appended {} => AppendEntriesResponse::PartialSuccess(sent),
            Reply::AppendedTo { last } => {
                AppendEntriesResponse::PartialSuccess(last.map(Into::into))
            }
            Reply::Conflict {} => AppendEntriesResponse::Conflict,
            Reply::Higher { vote } => match Vote::try_from(vote) {
                Ok(vote) => AppendEntriesResponse::HigherVote(vote),
                Err(_) => return Err(self.unfit(&Reply::Higher { vote })),
            },
            reply => return Err(self.unfit(&reply)),
        })
    }
}

/// The entry before the first of an append, and its last one.
fn ends(rpc: &AppendEntriesRequest<Types>) -> (Option<LogId>, Option<LogId>) {
    let last = rpc.entries.last().map(|entry| entry.log_id);
    (rpc.prev_log_id, last.or(rpc.prev_log_id))
}

fn payload_bytes(entry: &openraft::Entry<Types>) -> usize {
    match &entry.payload {
        EntryPayload::Normal(payload) => payload.bytes(),
        _ => 0,
    }
}

fn network(error: &WayError) -> NetworkError {
    NetworkError::new(error)
}

type RpcResult<T, E = openraft::error::Infallible> =
    Result<T, RPCError<u64, MemberNode, RaftError<u64, E>>>;

impl RaftNetwork<Types> for Way {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> RpcResult<AppendEntriesResponse<u64>> {
        self.pause.over().await;
        if let Err(mute) = self.speaks() {
            self.pause.note(&Err::<(), _>(&mute));
            return Err(RPCError::Network(network(&mute)));
        }
        let (prev, last) = ends(&rpc);
        let is_beat = rpc.entries.is_empty();
        let slot = if is_beat { self.beat.take() } else { self.entries.take() };
        // What is under way and says a part of this, or the same, is waited for.
        let fits = |call: &Call| call.prev == prev && call.last <= last;
        let call = match slot {
            Some(call) if fits(&call) => call,
            _ => self.append(rpc),
        };
        let sent = call.last;
        let slot = if is_beat { &mut self.beat } else { &mut self.entries };
        // It stays there if the library gives up on it.
        let call = slot.insert(call);
        let outcome = (&mut call.task).await;
        *slot = None;
        let reply = outcome
            .unwrap_or_else(|_| Err(WayError::Stopped { to: self.to.clone() }))
            .and_then(|reply| self.appended(reply, sent, last));
        self.pause.note(&reply);
        reply.map_err(|e| RPCError::Network(network(&e)))
    }

    async fn install_snapshot(
        &mut self,
        _rpc: InstallSnapshotRequest<Types>,
        _option: RPCOption,
    ) -> RpcResult<InstallSnapshotResponse<u64>, InstallSnapshotError> {
        // The library asks for whole snapshots, see below.
        let reply = "snapshots are not sent this way".to_owned();
        Err(network(&WayError::Reply { to: self.to.clone(), reply }).into())
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot<Types>,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<u64>, StreamingError<Types, Fatal<u64>>> {
        let send = async {
            self.pause.over().await;
            self.send_snapshot(vote, snapshot).await
        };
        let sent = tokio::select! {
            biased;
            closed = cancel => return Err(StreamingError::Closed(closed)),
            sent = send => sent,
        };
        self.pause.note(&sent);
        sent.map_err(|e| StreamingError::Network(network(&e)))
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<u64>,
        option: RPCOption,
    ) -> RpcResult<VoteResponse<u64>> {
        let ask = Ask::Vote { vote: rpc.vote.into(), last: rpc.last_log_id.map(Into::into) };
        let reply = self.links.put(&self.to, Lane::Vote, ask, option.hard_ttl()).await;
        let reply = reply.and_then(|reply| match reply {
            Reply::Vote { vote, granted, last } => match Vote::try_from(vote) {
                Ok(vote) => Ok(VoteResponse::new(vote, last.map(Into::into), granted)),
                Err(_) => Err(self.unfit(&Reply::Vote { vote, granted, last })),
            },
            reply => Err(self.unfit(&reply)),
        });
        reply.map_err(|e| RPCError::Network(network(&e)))
    }
}
