//! A switchboard in memory between the stores of a test. It can cut and slow a way, each direction
//! by itself, and it passes nothing on that the receiving store does not take by its door.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::value::RawValue;
use shoal_model::change::Transaction;
use shoal_model::id::NodeId;
use shoal_store::{
    Door, GroupStep, Lane, Lead, Member, OpenMedium, PeerError, Peers, Store, StoreConfig,
    StoreError,
};
use tokio::sync::watch;
use tokio::time::Instant;

/// Far above what anything here takes on a machine that stands still for seconds.
pub const DEADLINE: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Ways {
    doors: BTreeMap<String, Door>,
    /// How often a node was unplugged: then its connections end.
    unplugged: BTreeMap<String, u64>,
    cut: BTreeSet<(String, String)>,
    slow: BTreeMap<(String, String), Duration>,
    /// Pieces of snapshots that came through.
    bulk: usize,
    /// Says that a way is another one than before.
    changed: watch::Sender<()>,
}

/// The switchboard. Cheap to clone.
#[derive(Clone, Default)]
pub struct Board(Arc<Mutex<Ways>>);

/// A node's plug in it.
struct Plug {
    board: Board,
    own: String,
}

impl Board {
    pub fn cut(&self, from: u64, to: u64) {
        let mut ways = self.0.lock().unwrap();
        ways.cut.insert((name(from), name(to)));
        ways.changed.send_replace(());
    }

    /// No way to and from `member` any more.
    pub fn isolate(&self, member: u64, others: &[u64]) {
        for other in others {
            self.cut(member, *other);
            self.cut(*other, member);
        }
    }

    pub fn heal(&self) {
        let mut ways = self.0.lock().unwrap();
        ways.cut.clear();
        ways.slow.clear();
        ways.changed.send_replace(());
    }

    pub fn slow(&self, from: u64, to: u64, by: Duration) {
        self.0.lock().unwrap().slow.insert((name(from), name(to)), by);
    }

    pub fn bulk(&self) -> usize {
        self.0.lock().unwrap().bulk
    }

    fn plug_in(&self, store: &Store, node: u64) {
        self.0.lock().unwrap().doors.insert(name(node), store.door());
    }

    fn unplug(&self, node: u64) {
        let mut ways = self.0.lock().unwrap();
        ways.doors.remove(&name(node));
        *ways.unplugged.entry(name(node)).or_default() += 1;
        ways.changed.send_replace(());
    }

    /// Whether a node is plugged in, and how often it was unplugged.
    fn connection(&self, node: &str) -> (bool, u64) {
        let ways = self.0.lock().unwrap();
        (ways.doors.contains_key(node), ways.unplugged.get(node).copied().unwrap_or_default())
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.0.lock().unwrap().cut.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Takes the time of one direction; a message on a way that is cut never arrives.
    async fn travel(&self, from: &str, to: &str) {
        let slow = self.0.lock().unwrap().slow.get(&(from.to_owned(), to.to_owned())).copied();
        if let Some(by) = slow {
            tokio::time::sleep(by).await;
        }
        if self.is_cut(from, to) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Peers for Plug {
    async fn call(
        &self,
        to: &NodeId,
        lane: Lane,
        body: Box<RawValue>,
        limit: Duration,
    ) -> Result<Box<RawValue>, PeerError> {
        assert!(body.get().len() <= 1 << 20 || lane == Lane::Log, "a piece is too large");
        let call = async {
            self.board.travel(&self.own, to.as_str()).await;
            let door = self.board.0.lock().unwrap().doors.get(to.as_str()).cloned();
            let door = door.ok_or(PeerError::Refused)?;
            let answer = door.call(&NodeId::new(self.own.clone()), &body).await;
            if lane == Lane::Bulk {
                self.board.0.lock().unwrap().bulk += 1;
            }
            self.board.travel(to.as_str(), &self.own).await;
            answer.map_err(|e| match e {
                StoreError::Stranger { .. } => PeerError::Stranger { text: e.to_string() },
                e => PeerError::Other(e.to_string()),
            })
        };
        let late = |_| PeerError::Late { after: limit };
        tokio::time::timeout(limit, call).await.map_err(late)?
    }

    async fn lost(&self, to: &NodeId, _lane: Lane) -> PeerError {
        let (there, stood) = self.board.connection(to.as_str());
        if !there {
            return PeerError::Refused;
        }
        let mut changed = self.board.0.lock().unwrap().changed.subscribe();
        // A way that is cut ends no connection.
        while self.board.connection(to.as_str()).1 == stood
            || self.board.is_cut(to.as_str(), &self.own)
        {
            changed.changed().await.unwrap();
        }
        PeerError::Closed
    }
}

pub fn name(raft_id: u64) -> String {
    format!("manager{raft_id}")
}

pub fn member(raft_id: u64) -> Member {
    Member { node: name(raft_id), raft_id }
}

/// Some stores of one group, each in a directory of its own.
pub struct Trio {
    pub board: Board,
    pub stores: BTreeMap<u64, Store>,
    dir: tempfile::TempDir,
    /// Stores that live elsewhere.
    elsewhere: BTreeMap<u64, PathBuf>,
    /// What lies beneath all of them.
    pub medium: Option<OpenMedium>,
    /// What each reads, if not what this program does.
    pub reads: BTreeMap<u64, u32>,
}

impl Trio {
    /// A first store that leads.
    pub async fn first(first: Transaction) -> Self {
        let mut this = Self::empty();
        this.begin(first).await;
        this
    }

    /// No store yet.
    pub fn empty() -> Self {
        Self {
            board: Board::default(),
            stores: BTreeMap::new(),
            dir: tempfile::tempdir().unwrap(),
            elsewhere: BTreeMap::new(),
            medium: None,
            reads: BTreeMap::new(),
        }
    }

    /// Makes the first store, which leads.
    pub async fn begin(&mut self, first: Transaction) {
        let store = Store::bootstrap(self.config(1), first).await.unwrap();
        self.add(1, store);
    }

    /// Three stores, all of them voters; the first leads.
    pub async fn new(first: Transaction) -> Self {
        let mut this = Self::first(first).await;
        for raft_id in [2, 3] {
            this.join(raft_id).await;
        }
        this
    }

    pub fn config(&self, raft_id: u64) -> StoreConfig {
        let peers = Arc::new(Plug { board: self.board.clone(), own: name(raft_id) });
        let config = StoreConfig::new(self.path(raft_id), NodeId::new(name(raft_id)), peers);
        let reads = self.reads.get(&raft_id).copied().unwrap_or(config.reads);
        StoreConfig { medium: self.medium.clone(), reads, ..config }
    }

    /// The store of `raft_id` is made below `dir`.
    pub fn put_into(&mut self, raft_id: u64, dir: &Path) {
        self.elsewhere.insert(raft_id, dir.to_owned());
    }

    pub fn path(&self, raft_id: u64) -> PathBuf {
        let dir = self.elsewhere.get(&raft_id).map_or_else(|| self.dir(), PathBuf::as_path);
        dir.join(name(raft_id))
    }

    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub fn store(&self, raft_id: u64) -> &Store {
        &self.stores[&raft_id]
    }

    fn add(&mut self, raft_id: u64, store: Store) {
        self.board.plug_in(&store, raft_id);
        self.stores.insert(raft_id, store);
    }

    /// An empty store that nobody has added yet.
    pub async fn open_empty(&mut self, raft_id: u64) {
        let store = Store::join(self.config(raft_id), raft_id).await.unwrap();
        assert_eq!(store.raft_id(), raft_id);
        self.add(raft_id, store);
    }

    pub async fn join(&mut self, raft_id: u64) {
        self.open_empty(raft_id).await;
        self.change(GroupStep::Learn(member(raft_id))).await;
        self.change(GroupStep::Promote(raft_id)).await;
    }

    /// Asks whoever leads until it is done.
    pub async fn change(&self, step: GroupStep) {
        self.insist(|store| {
            let step = step.clone();
            async move { store.change_group(step, soon()).await }
        })
        .await;
    }

    /// Writes by whoever leads, until it is confirmed.
    pub async fn write(&self, what: Transaction) {
        self.insist(|store| {
            let what = what.clone();
            async move { store.propose(what, soon()).await.map(drop) }
        })
        .await;
    }

    async fn insist<F: Future<Output = Result<(), StoreError>>>(&self, ask: impl Fn(Store) -> F) {
        let until = Instant::now() + DEADLINE;
        loop {
            let leader = self.leader().await;
            match ask(self.store(leader).clone()).await {
                Ok(()) => return,
                Err(error) => {
                    assert!(Instant::now() < until, "it does not happen: {error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// Who leads, once somebody does.
    pub async fn leader(&self) -> u64 {
        self.leader_among(&self.stores.keys().copied().collect::<Vec<_>>()).await
    }

    pub async fn leader_among(&self, these: &[u64]) -> u64 {
        leading(these.iter().map(|raft_id| self.store(*raft_id))).await.raft_id()
    }

    /// Stops a store without a word to the others, and drops it.
    pub async fn stop(&mut self, raft_id: u64) {
        self.board.unplug(raft_id);
        self.stores.remove(&raft_id).unwrap().shutdown().await;
    }

    pub async fn open(&mut self, raft_id: u64) {
        let store = Store::open(self.config(raft_id)).await.unwrap();
        self.add(raft_id, store);
    }

    pub async fn end(self) {
        for store in self.stores.values() {
            store.shutdown().await;
        }
    }
}

/// Until when a request may take that fails otherwise at once.
pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(2)
}

/// Waits until `holds` of what `store` shows.
/// The one of `stores` that leads, as soon as one does.
pub async fn leading<'s>(stores: impl IntoIterator<Item = &'s Store>) -> &'s Store {
    let leads = stores.into_iter().map(|store| {
        let mut lead = store.lead();
        Box::pin(async move {
            lead.wait_for(|lead| matches!(lead, Lead::Leading { .. })).await.unwrap();
            store
        })
    });
    let first = futures::future::select_all(leads);
    tokio::time::timeout(DEADLINE, first).await.expect("somebody leads in time").0
}

pub async fn until(what: &str, store: &Store, holds: impl Fn(&Store) -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds(store) {
        assert!(Instant::now() < end, "never: {what}; {:?}", store.lead().borrow());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
