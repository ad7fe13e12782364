//! Whether this node manages the cluster, and its way there and back while it is a member: carries
//! out what the machine of [`shoal_life::role`] says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use shoal_agent::agent::Agent;
use shoal_identity::node_identity::NodeIdentity;
use shoal_life::role::{Doing, Effect, Event, Has, Role, Wish};
use shoal_manager::manager::Manager;
use shoal_model::fault::report;
use shoal_model::id::NodeId;
use shoal_model::spec::node::NodeRole;
use shoal_store::Store;
use shoal_wire::message::RoleWish;
use tokio::task::{JoinError, JoinSet};

use crate::error::NodeError;
use crate::node::{Member, NodeConfig};
use crate::record::{Folder, Record};
use crate::{renewal, start, steps};

/// Pause before what failed is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// Other managers by node, as a certificate came with them.
type Known = BTreeMap<NodeId, Vec<String>>;

/// What came of an effect.
pub(crate) enum Came {
    Certified(Result<Given, NodeError>),
    Opened(Result<Box<(Manager, Store, Record)>, NodeError>),
    Closed(Result<Record, NodeError>),
    Swept(Result<(), NodeError>),
    Waited,
}

/// A certificate, which is on the disk, and what came with it.
pub(crate) struct Given {
    identity: NodeIdentity,
    number: Option<u64>,
    known: Known,
}

/// What the owner of the membership has to do about it.
pub(crate) enum News {
    /// Nothing.
    None,
    /// The member has another certificate.
    Certified,
    /// The member manages, or does not any more.
    Changed,
}

/// A member's role and what is under way about it.
pub(crate) struct Seat {
    life: Role,
    work: JoinSet<Came>,
    known: Known,
    /// Why the last step failed; empty if it did not.
    trouble: String,
}

impl Seat {
    /// Takes up what the files of a member say.
    pub(crate) fn begin(tools: &Tools, member: &mut Member) -> Self {
        let has = match (&member.manager, member.record.opening) {
            (Some((_, store)), _) => Has::Manager(store.raft_id()),
            (None, Some(number)) => Has::Number(number),
            (None, None) if tools.folder.has_store() => Has::Leftovers,
            (None, None) => Has::Nothing,
        };
        let (life, first) = Role::begin(has, member.identity.role);
        let (work, known, trouble) = (JoinSet::new(), Known::new(), String::new());
        let mut seat = Self { life, work, known, trouble };
        seat.carry_out(first, tools, member);
        seat
    }

    /// Why this node is not what it is to be; empty if it is, or on its way.
    pub(crate) fn trouble(&self) -> &str {
        if self.life.doing() == Doing::Nothing { "" } else { &self.trouble }
    }

    /// Whether another command has to wait: the store is in somebody's hands.
    pub(crate) fn holds_store(&self) -> bool {
        self.life.holds_store()
    }

    /// What came of the effect under way; for ever nothing while there is none.
    pub(crate) async fn next(&mut self) -> Result<Came, JoinError> {
        match self.work.join_next().await {
            Some(came) => came,
            None => std::future::pending().await,
        }
    }

    /// Gives up what may be given up: another command comes first.
    pub(crate) fn interrupt(&mut self, tools: &Tools, member: &mut Member) {
        if !self.life.holds_store() {
            self.work.abort_all();
            self.work = JoinSet::new();
            self.follow(Event::Interrupted, tools, member);
        }
    }

    /// Goes on after an interruption, with what was said last.
    pub(crate) fn go_on(&mut self, tools: &Tools, member: &mut Member) {
        if self.life.doing() == Doing::Nothing {
            let wish = *tools.agent.follow_role().borrow();
            match wish {
                Some(wish) => self.told(wish, tools, member),
                None => self.follow(Event::Retry, tools, member),
            }
        }
    }

    /// The leader says what this node is to be.
    pub(crate) fn told(&mut self, wish: RoleWish, tools: &Tools, member: &mut Member) {
        let wish = match wish.role {
            NodeRole::Worker => Wish::Worker,
            NodeRole::Manager => Wish::Manager(wish.raft_id),
        };
        self.follow(Event::Told(wish), tools, member);
    }

    /// The leader says that this node is no member any more.
    pub(crate) fn removed(&mut self, tools: &Tools, member: &mut Member) {
        self.follow(Event::Removed, tools, member);
    }

    /// Keeps what an effect brought.
    pub(crate) fn came(
        &mut self,
        came: Result<Came, JoinError>,
        tools: &Tools,
        member: &mut Member,
    ) -> News {
        let (event, news) = match came {
            Ok(Came::Certified(Ok(given))) => {
                member.identity = given.identity;
                self.known = given.known;
                (Event::Certified(member.identity.role, given.number), News::Certified)
            }
            Ok(Came::Opened(Ok(opened))) => {
                let (manager, store, record) = *opened;
                tracing::info!(raft_id = store.raft_id(), "this node manages the cluster now");
                member.manager = Some((manager, store));
                member.record = record;
                (Event::Opened, News::Changed)
            }
            Ok(Came::Closed(Ok(record))) => {
                tracing::info!("this node does not manage the cluster any more");
                member.record = record;
                (Event::Closed, News::Changed)
            }
            Ok(Came::Swept(Ok(()))) => (Event::Swept, News::None),
            Ok(Came::Waited) => (Event::Retry, News::None),
            Ok(Came::Certified(Err(error))) => {
                (self.failed(Event::CertifyFailed, &error), News::None)
            }
            Ok(Came::Opened(Err(error))) => (self.failed(Event::OpenFailed, &error), News::None),
            Ok(Came::Closed(Err(error))) => {
                (self.failed(Event::CloseFailed, &error), News::Changed)
            }
            Ok(Came::Swept(Err(error))) => (self.failed(Event::SweepFailed, &error), News::None),
            Err(error) => (self.broke_off(&error), News::None),
        };
        self.follow(event, tools, member);
        news
    }

    fn failed(&mut self, event: Event, error: &NodeError) -> Event {
        let text = format!("this node cannot change its role yet: {}", report(error));
        if self.trouble != text {
            tracing::warn!(
                cause = report(error),
                "this node cannot change its role yet; tried again"
            );
            self.trouble = text;
        }
        event
    }

    /// A step that broke off, by a fault in this program, has failed like any other.
    fn broke_off(&mut self, error: &JoinError) -> Event {
        tracing::error!(cause = %error, step = ?self.life.doing(), "a step of a role broke off");
        match self.life.doing() {
            Doing::Certifying(_) => Event::CertifyFailed,
            Doing::Opening => Event::OpenFailed,
            Doing::Closing => Event::CloseFailed,
            Doing::Sweeping => Event::SweepFailed,
            Doing::Pausing | Doing::Nothing => Event::Retry,
        }
    }

    fn follow(&mut self, event: Event, tools: &Tools, member: &mut Member) {
        let (life, effect) = self.life.step(event);
        tracing::debug!(?event, from = ?self.life, to = ?life, ?effect, "role");
        self.life = life;
        if life.is_settled() {
            self.trouble.clear();
        }
        self.carry_out(effect, tools, member);
    }

    fn carry_out(&mut self, effect: Option<Effect>, tools: &Tools, member: &mut Member) {
        let (config, folder) = (tools.config.clone(), tools.folder.clone());
        match effect {
            None => {}
            Some(Effect::Certify(role)) => {
                let managers = tools.other_managers(&member.record);
                let addr = (role == NodeRole::Manager).then_some(member.record.advertise);
                let identity = member.identity.clone();
                self.work.spawn(async move {
                    let asked = renewal::ask_any(&managers, &identity, addr).await;
                    Came::Certified(match asked {
                        Ok((identity, reply)) => keep(&folder, identity).await.map(|identity| {
                            let known =
                                reply.managers.into_iter().map(|m| (m.node_id, vec![m.addr]));
                            Given { identity, number: reply.raft_id, known: known.collect() }
                        }),
                        Err(error) => Err(error),
                    })
                });
            }
            Some(Effect::Open(number)) => {
                member.record = member.record.as_opening(number);
                let (opening, record) = (member.record.clone(), member.record.as_manager());
                let (identity, known) = (member.identity.clone(), self.known.clone());
                self.work.spawn(async move {
                    if let Err(error) = folder.write(&opening) {
                        return Came::Opened(Err(error));
                    }
                    let opened =
                        start::join_group(&config, &folder, &identity, &record, number, known);
                    let (manager, store) = match opened.await {
                        Ok(opened) => opened,
                        Err(error) => return Came::Opened(Err(error)),
                    };
                    // Until it has learned enough it has nothing to say to its users.
                    if !start::votes(&store).await {
                        tracing::warn!("this manager does not vote yet; the leader goes on trying");
                    }
                    Came::Opened(Ok(Box::new((manager, store, record))))
                });
            }
            Some(Effect::Close) => {
                let record = member.record.as_worker(tools.other_managers(&member.record));
                let manager = member.manager.take();
                self.work.spawn(async move {
                    steps::close(manager).await;
                    Came::Closed(folder.write(&record).map(|()| record))
                });
            }
            Some(Effect::Sweep) => {
                self.work.spawn_blocking(move || Came::Swept(folder.sweep_store()));
            }
            Some(Effect::Wait) => {
                self.work.spawn(async {
                    tokio::time::sleep(RETRY).await;
                    Came::Waited
                });
            }
        }
    }
}

/// What the steps of a role need.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) config: NodeConfig,
    pub(crate) folder: Folder,
    pub(crate) agent: Agent,
}

impl Tools {
    /// Managers that are not this node.
    fn other_managers(&self, record: &Record) -> Vec<String> {
        let told = self.agent.managers();
        let all = if told.is_empty() { record.managers.clone() } else { told };
        all.into_iter().filter(|addr| !record.is_own(addr)).collect()
    }
}

/// Keeps a certificate on the disk: what the next daemon goes by.
async fn keep(folder: &Folder, identity: NodeIdentity) -> Result<NodeIdentity, NodeError> {
    let (folder, fresh) = (folder.clone(), Arc::new(identity));
    let saved = Arc::clone(&fresh);
    let kept = tokio::task::spawn_blocking(move || folder.save_identity(&saved)).await;
    kept.map_err(|error| NodeError::BrokeOff { problem: error.to_string() })??;
    Ok(Arc::unwrap_or_clone(fresh))
}
