//! Hosts: each has a disk that stays, and a process that comes and goes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use shoal_model::change::{Change, Expect, Object, Transaction};
use shoal_model::id::NodeId;
use shoal_model::net::NodeIndex;
use shoal_model::object::{Meta, Node, NodeDescription, NodeState, NodeStatus};
use shoal_model::spec::node::NodeSpec;
use shoal_model::time::Timestamp;
use shoal_store::{FIRST_RAFT_ID, Lead, Member, Store, StoreConfig, StoreError};
use tokio::time::sleep;

use crate::check::node_of;
use crate::disk::{Crash, Disk};
use crate::net::Plug;
use crate::world::{Life, SimOutside, World};

/// Pause before a process that could not open its store is started again.
const AGAIN: Duration = Duration::from_millis(500);

/// A host.
#[derive(Clone)]
struct Host {
    disk: Disk,
    life: Option<Arc<Life>>,
    store: Option<Store>,
}

/// All hosts. Cheap to clone.
#[derive(Clone)]
pub struct Hosts {
    world: World,
    dir: PathBuf,
    all: Arc<Mutex<BTreeMap<u64, Host>>>,
}

/// What a process does first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    Bootstrap,
    Join,
    Open,
}

pub fn name(raft_id: u64) -> String {
    format!("m{raft_id}")
}

pub fn member(raft_id: u64) -> Member {
    Member { node: name(raft_id), raft_id }
}

/// Writes `value` into a register.
pub fn put(register: u16, value: u64) -> Transaction {
    let node = Node {
        id: node_of(register),
        meta: Meta::default(),
        spec: NodeSpec::default(),
        description: NodeDescription::default(),
        status: NodeStatus {
            state: NodeState::Ready,
            message: value.to_string(),
            addr: String::new(),
            since: Timestamp::ZERO,
            back_by: None,
        },
        index: NodeIndex(register),
        data_path_addr: None,
        manager: None,
        tls: Default::default(),
        extra: Default::default(),
    };
    let change = Change::Put { object: Object::Node(Box::new(node)), expect: Expect::Any };
    Transaction { changes: vec![change], at: Timestamp::from_secs(1) }
}

impl Hosts {
    pub fn new(world: &World, dir: &Path) -> Self {
        Self { world: world.clone(), dir: dir.to_owned(), all: Arc::default() }
    }

    fn all(&self) -> MutexGuard<'_, BTreeMap<u64, Host>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers of all.
    pub fn ids(&self) -> Vec<u64> {
        self.all().keys().copied().collect()
    }

    /// Those whose store is open.
    pub fn stores(&self) -> Vec<Store> {
        self.all().values().filter_map(|host| host.store.clone()).collect()
    }

    pub fn store(&self, raft_id: u64) -> Option<Store> {
        self.all().get(&raft_id).and_then(|host| host.store.clone())
    }

    /// Who shows that it leads, if one does.
    pub fn leader(&self) -> Option<Store> {
        let leads = |store: &Store| matches!(*store.lead().borrow(), Lead::Leading { .. });
        self.stores().into_iter().find(leads)
    }

    /// Its living process.
    pub fn life(&self, raft_id: u64) -> Option<Arc<Life>> {
        let life = self.all().get(&raft_id).and_then(|host| host.life.clone());
        life.filter(|life| life.is_alive())
    }

    /// Starts its process, if it has none. The host is made if there is none.
    pub fn start(&self, raft_id: u64, begin: Begin) {
        let life = Life::begin(&self.world, &name(raft_id));
        {
            let mut all = self.all();
            let empty = || Host { disk: Disk::default(), life: None, store: None };
            let host = all.entry(raft_id).or_insert_with(empty);
            if host.life.as_ref().is_some_and(|life| life.is_alive()) {
                return;
            }
            host.life = Some(Arc::clone(&life));
        }
        self.world.note(life.name(), format_args!("starts: {begin:?}"));
        tokio::spawn(self.clone().run(raft_id, begin, life));
    }

    /// Takes a host away for good.
    pub fn remove(&self, raft_id: u64) {
        if let Some(life) = self.life(raft_id) {
            life.die(Crash::Power);
        }
        self.all().remove(&raft_id);
    }

    async fn run(self, raft_id: u64, begin: Begin, life: Arc<Life>) {
        let serving = self.serve(raft_id, begin, &life);
        let how = tokio::select! {
            biased;
            how = life.ended() => how,
            () = serving => return,
        };
        let store = {
            let mut all = self.all();
            let Some(host) = all.get_mut(&raft_id) else { return };
            let (loose, kept) = self.world.dice(|dice| host.disk.crash(how, dice));
            self.world.note(life.name(), format_args!("of {loose} writes {kept} are there"));
            host.store.take()
        };
        // Of a process that is dead this only frees memory.
        if let Some(store) = store {
            store.shutdown().await;
        }
    }

    fn config(&self, raft_id: u64, life: &Arc<Life>) -> Option<StoreConfig> {
        let disk = self.all().get(&raft_id)?.disk.clone();
        let peers = Arc::new(Plug::new(&self.world, life));
        let node = NodeId::new(name(raft_id));
        let mut config = StoreConfig::new(self.dir.join(name(raft_id)), node, peers);
        config.medium = Some(disk.medium(&self.world, life));
        config.outside = Arc::new(SimOutside(Arc::clone(life)));
        Some(config)
    }

    async fn serve(&self, raft_id: u64, begin: Begin, life: &Arc<Life>) {
        let store = loop {
            let Some(config) = self.config(raft_id, life) else { return };
            let opened = match begin {
                Begin::Bootstrap if raft_id == FIRST_RAFT_ID => {
                    Store::bootstrap(config, put(0, 0)).await
                }
                Begin::Join if !Store::exists(&config.dir) => Store::join(config, raft_id).await,
                Begin::Bootstrap | Begin::Join | Begin::Open => Store::open(config).await,
            };
            match opened {
                Ok(store) => break store,
                Err(error) => self.not_opened(life, &error),
            }
            sleep(AGAIN).await;
        };
        self.world.note(life.name(), format_args!("is open at {}", store.state().revision.0));
        self.world.lock().net.listen(store.door(), life);
        if let Some(host) = self.all().get_mut(&raft_id) {
            host.store = Some(store.clone());
        }
        self.watch(life, &store).await;
    }

    /// A disk that fails is no news; one that holds something else than was written is.
    fn not_opened(&self, life: &Life, error: &StoreError) {
        self.world.note(life.name(), format_args!("does not open: {error}"));
        let excused = matches!(
            error,
            StoreError::Disk { .. }
                | StoreError::Full { .. }
                | StoreError::Failing { .. }
                | StoreError::Stopped { .. }
        );
        if !excused && life.is_alive() {
            self.world.found(format!("{} does not open: {error}", life.name()));
        }
    }

    /// Looks at everything that the store shows.
    async fn watch(&self, life: &Life, store: &Store) {
        let (mut lead, mut revision) = (store.lead(), store.watch());
        let (mut last, mut led) = (0, None);
        loop {
            let now = lead.borrow_and_update().clone();
            let term = match &now {
                Lead::Leading { term } => Some(*term),
                _ => None,
            };
            revision.borrow_and_update();
            let state = store.state();
            if term.is_some() && term != led {
                self.world.note(life.name(), format_args!("leads: {now:?}"));
            }
            self.world.check(|check, _| {
                if state.revision.0 < last {
                    let now = state.revision.0;
                    return Err(format!("{} goes back from {last} to {now}", life.name()));
                }
                last = state.revision.0;
                check.shows(life.name(), &state)?;
                match term.filter(|_| term != led) {
                    Some(term) => check.leading(life.name(), term, &state),
                    None => Ok(()),
                }
            });
            led = term;
            let goes_on = tokio::select! {
                biased;
                changed = lead.changed() => changed.is_ok(),
                changed = revision.changed() => changed.is_ok(),
            };
            if !goes_on || now == Lead::Closed {
                std::future::pending::<()>().await;
            }
        }
    }
}
