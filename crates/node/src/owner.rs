//! The owner of the membership: takes commands one at a time, runs the machine of
//! [`shoal_life::membership`], and carries out what it says, whoever still waits for an answer.

mod outcome;
mod trust;

use std::sync::Arc;
use std::time::Duration;

use shoal_agent::agent::Agent;
use shoal_identity::node_identity::NodeIdentity;
use shoal_life::membership::{Consent, Effect, Event, Membership, Stage};
use shoal_model::fault::report;
use shoal_model::id::NodeId;
use shoal_model::spec::node::NodeRole;
use shoal_store::UnlockKey;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinError, JoinSet};

use crate::error::NodeError;
use crate::node::{InitOptions, JoinOptions, Member, NodeConfig, RestoreOptions, Seen};
use crate::record::Folder;
use crate::seat::{News, Seat, Tools};
use crate::{keep, recover, renewal, seat, start, steps};

/// Pause before what failed is tried again: files that cannot be used, leftovers.
const RETRY: Duration = Duration::from_secs(5);

/// Where a command's answer goes; the id of the node, if it is a member then.
pub(crate) type Answer = oneshot::Sender<Result<Option<NodeId>, NodeError>>;

/// What the API asks of the membership.
pub(crate) enum Command {
    Init(Box<InitOptions>, Answer),
    Join(Box<JoinOptions>, Answer),
    Restore(Box<RestoreOptions>, Answer),
    Unlock(UnlockKey, Answer),
    Leave { force: bool, answer: Answer },
    Close,
}

/// How the node is to enter.
enum Way {
    Init(Box<InitOptions>),
    Join(Box<JoinOptions>),
    Restore(Box<RestoreOptions>),
    /// Try this key on what is here.
    Unlock(UnlockKey),
    /// Begin again from what is here.
    Recover(Box<InitOptions>),
}

/// What came of an effect.
enum Came {
    Resumed(Result<Option<Box<Member>>, NodeError>),
    Unlocked(Result<Option<Box<Member>>, NodeError>),
    Entered(Result<Box<Member>, NodeError>),
    Recovered(Result<Box<Member>, NodeError>),
    Forgotten(Result<(), NodeError>),
    Swept(Result<(), NodeError>),
    Plain(Event),
}

/// The owner.
pub(crate) struct Owner {
    config: NodeConfig,
    agent: Agent,
    folder: Folder,
    seen: Arc<Seen>,
    commands: mpsc::Receiver<Command>,
    life: Membership,
    /// Set while [`Stage::In`], and until it is closed.
    member: Option<Box<Member>>,
    /// Whether it manages, and its way there and back; set as `member` is, once that is public.
    seat: Option<Seat>,
    /// What the command that is under way asks for, until its effect begins.
    way: Option<Way>,
    /// Who waits for the command that is under way.
    waiting: Option<Answer>,
    /// Why the last effect failed.
    failure: Option<NodeError>,
    /// As it was last logged, so that a retry that fails alike is not logged again.
    logged: String,
    work: JoinSet<Came>,
    /// Brings the member's next identity, while there is a member.
    renewal: JoinSet<NodeIdentity>,
    /// Keeps a manager's files sealed as they are to be.
    keeper: JoinSet<()>,
    trust: trust::Heeded,
    /// What `work` is about, for an effect that panics.
    about: Option<Effect>,
}

impl Owner {
    pub(crate) fn new(
        config: NodeConfig,
        agent: Agent,
        seen: Arc<Seen>,
        commands: mpsc::Receiver<Command>,
    ) -> Self {
        let folder = Folder::new(&config.data_root);
        let (life, first) = Membership::begin();
        let mut this = Self {
            config,
            agent,
            folder,
            seen,
            commands,
            life,
            member: None,
            seat: None,
            way: None,
            waiting: None,
            failure: None,
            logged: String::new(),
            work: JoinSet::new(),
            renewal: JoinSet::new(),
            keeper: JoinSet::new(),
            trust: trust::Heeded::default(),
            about: None,
        };
        this.carry_out(first);
        this
    }

    /// Runs until the node is closed, or nobody can give a command any more.
    pub(crate) async fn run(mut self, opened: oneshot::Sender<()>) {
        let mut opened = Some(opened);
        let mut inbox = Inbox::Open;
        let mut managers = self.agent.follow_managers();
        let (mut role, mut removed) = (self.agent.follow_role(), self.agent.follow_removed());
        let (mut trust, mut outdated) = (self.agent.follow_trust(), self.agent.follow_outdated());
        loop {
            if self.life.is_settled()
                && let Some(opened) = opened.take()
            {
                // Ignored because: whoever opened the node may have gone.
                let _ = opened.send(());
            }
            if self.life.stage() == Stage::Closed {
                return;
            }
            let open = inbox == Inbox::Open;
            let in_hands = self.seat.as_ref().is_some_and(Seat::holds_store);
            tokio::select! {
                biased;
                command = self.commands.recv(), if open && !in_hands => match command {
                    Some(command) => self.command(command),
                    None => {
                        inbox = Inbox::Gone;
                        self.follow(Event::Close);
                    }
                },
                Some(came) = self.work.join_next() => {
                    let event = match came {
                        Ok(came) => self.came(came),
                        Err(error) => self.broke_off(&error),
                    };
                    self.follow(event);
                }
                Ok(()) = managers.changed() => {
                    let known = managers.borrow_and_update().clone();
                    self.keep_managers(known).await;
                }
                Ok(()) = role.changed() => {
                    let wish = *role.borrow_and_update();
                    if let Some(wish) = wish {
                        self.sit(|seat, tools, member| seat.told(wish, tools, member));
                    }
                }
                Ok(()) = trust.changed() => {
                    let wish = trust.borrow_and_update().clone();
                    self.heed(wish).await;
                }
                Ok(()) = outdated.changed() => {
                    outdated.mark_unchanged();
                    self.renew_at_once();
                }
                Ok(()) = removed.changed() => {
                    if *removed.borrow_and_update() {
                        self.sit(Seat::removed);
                    }
                }
                came = async {
                    match &mut self.seat {
                        Some(seat) => seat.next().await,
                        None => std::future::pending().await,
                    }
                } => {
                    self.seated(came);
                    self.heed_again().await;
                }
                Some(ended) = self.renewal.join_next() => match ended {
                    Ok(identity) => {
                        self.renewed(identity).await;
                        self.heed_again().await;
                    }
                    Err(error) if error.is_panic() => {
                        tracing::error!(cause = %error, "the renewal of a certificate broke off");
                        self.renew(renewal::Begin::AfterRest);
                    }
                    Err(_) => {}
                },
            }
        }
    }

    fn command(&mut self, command: Command) {
        let (event, answer, way) = match command {
            Command::Init(options, answer)
                if options.force_new_cluster && !matches!(self.life.stage(), Stage::Out(_)) =>
            {
                if let Some(Err(error)) = self.member.as_deref().map(recover::may_recover) {
                    // Ignored because: a client that has gone needs no answer.
                    let _ = answer.send(Err(error));
                    return;
                }
                self.sit(Seat::interrupt);
                (Event::Recover, answer, Some(Way::Recover(options)))
            }
            Command::Init(options, answer) => (Event::Enter, answer, Some(Way::Init(options))),
            Command::Join(options, answer) => (Event::Enter, answer, Some(Way::Join(options))),
            Command::Restore(options, answer) => {
                (Event::Enter, answer, Some(Way::Restore(options)))
            }
            Command::Unlock(key, answer) => (Event::Unlock, answer, Some(Way::Unlock(key))),
            Command::Leave { force, answer } => {
                self.sit(Seat::interrupt);
                (Event::Leave(self.consent(force)), answer, None)
            }
            Command::Close => {
                self.sit(Seat::interrupt);
                return self.follow(Event::Close);
            }
        };
        let (life, effects) = self.life.step(event);
        if let Some(Effect::Refuse(refusal)) = effects.first() {
            let others = self.other_voters();
            // Ignored because: a client that has gone needs no answer.
            let _ = answer.send(Err(outcome::refused(event, *refusal, others)));
            self.sit(Seat::go_on);
            return;
        }
        self.way = way;
        self.waiting = Some(answer);
        self.apply(life, effects);
    }

    fn consent(&self, force: bool) -> Consent {
        let manages = self.member.as_ref().is_some_and(|member| member.manager.is_some());
        match manages || self.life.stage() == Stage::Locked {
            true if !force => Consent::Withheld,
            true if self.other_voters() > 0 => Consent::AfterResigning,
            _ => Consent::Given,
        }
    }

    /// How many managers vote beside this one, as far as it knows.
    fn other_voters(&self) -> usize {
        let store = self.member.as_ref().and_then(|member| Some(&member.manager.as_ref()?.1));
        store.map_or(0, |store| {
            let (own, group) = (store.raft_id(), store.group());
            let voters = group.borrow();
            voters.voters.iter().filter(|voter| voter.raft_id != own).count()
        })
    }

    fn tools(&self) -> Tools {
        let (config, folder) = (self.config.clone(), self.folder.clone());
        Tools { config, folder, agent: self.agent.clone() }
    }

    /// Does something about the member's role, while it is one and stays.
    fn sit(&mut self, act: impl FnOnce(&mut Seat, &Tools, &mut Member)) {
        let tools = self.tools();
        if self.life.stage() == Stage::In
            && let (Some(seat), Some(member)) = (&mut self.seat, &mut self.member)
        {
            act(seat, &tools, member);
            self.show();
        }
    }

    /// Keeps what a step of the role brought.
    fn seated(&mut self, came: Result<seat::Came, JoinError>) {
        let tools = self.tools();
        let (Some(seat), Some(member)) = (&mut self.seat, &mut self.member) else { return };
        match seat.came(came, &tools, member) {
            News::None => {}
            News::Changed => self.keep_sealed(),
            News::Certified => {
                let identity = member.identity.clone();
                if identity.role == NodeRole::Manager
                    && let Some((manager, _)) = &member.manager
                    && let Err(error) = manager.set_identity(&identity)
                {
                    let cause = report(&error);
                    tracing::error!(cause, "the manager cannot use this node's new certificate");
                }
                self.agent.set_identity(identity);
                self.renew(renewal::Begin::WhenDue);
            }
        }
        self.show();
    }

    fn follow(&mut self, event: Event) {
        let (life, effects) = self.life.step(event);
        self.apply(life, effects);
    }

    fn apply(&mut self, life: Membership, effects: Vec<Effect>) {
        tracing::debug!(from = ?self.life.stage(), to = ?life.stage(), ?effects, "membership");
        self.life = life;
        let (answers, work): (Vec<_>, Vec<_>) =
            effects.into_iter().partition(|effect| matches!(effect, Effect::Answer(_)));
        for effect in work {
            self.carry_out(effect);
        }
        // Whoever is answered sees what was done.
        self.show();
        for answer in answers {
            self.answer(answer);
        }
        // A leave that failed leaves it where it was.
        self.sit(Seat::go_on);
    }

    fn carry_out(&mut self, effect: Effect) {
        if effect != Effect::Wait {
            self.about = Some(effect);
        }
        let (config, folder, agent) =
            (self.config.clone(), self.folder.clone(), self.agent.clone());
        match effect {
            Effect::Resume => {
                self.work
                    .spawn(async move { Came::Resumed(steps::resume(&config, &folder).await) });
            }
            Effect::Enter => {
                let Some(way) = self.way.take() else { return };
                self.work.spawn(async move {
                    let about = agent.description().await;
                    let member = match way {
                        Way::Init(options) => start::init(&config, &folder, about, *options).await,
                        Way::Join(options) => steps::join(&config, &folder, about, *options).await,
                        Way::Restore(options) => recover::restore(&config, &folder, *options).await,
                        Way::Recover(_) | Way::Unlock(_) => Err(NodeError::AlreadyMember),
                    };
                    Came::Entered(member.map(Box::new))
                });
            }
            Effect::Unlock => {
                let Some(Way::Unlock(key)) = self.way.take() else { return };
                self.work.spawn(async move {
                    folder.keyring().offer(key);
                    let resumed = steps::resume(&config, &folder).await;
                    if resumed.as_ref().is_err_and(NodeError::is_locked) {
                        folder.keyring().forget();
                    }
                    Came::Unlocked(resumed)
                });
            }
            Effect::Recover => {
                let Some(Way::Recover(options)) = self.way.take() else { return };
                self.rest();
                let manager = self.member.take().and_then(|member| member.manager);
                self.work.spawn(async move {
                    steps::close(manager).await;
                    Came::Recovered(recover::recover(&config, &folder, &options).await)
                });
            }
            Effect::Forget => {
                self.work.spawn_blocking(move || Came::Forgotten(folder.forget()));
            }
            Effect::Tell => {
                self.work.spawn(async move {
                    agent.say_leave().await;
                    Came::Plain(Event::Told)
                });
            }
            Effect::Drain => {
                self.work.spawn(async move {
                    steps::drain(&agent).await;
                    Came::Plain(Event::Drained)
                });
            }
            Effect::Resign => {
                let member = self.member.as_ref();
                let control = member.and_then(|m| Some(m.manager.as_ref()?.0.control()));
                let node = member.map(|member| member.identity.node_id.clone());
                self.work.spawn(async move {
                    if let (Some(control), Some(node)) = (control, node) {
                        steps::resign(&control, &node, &agent).await;
                    }
                    Came::Plain(Event::Resigned)
                });
            }
            Effect::CloseManager => {
                self.rest();
                let manager = self.member.take().and_then(|member| member.manager);
                self.work.spawn(async move {
                    steps::close(manager).await;
                    Came::Plain(Event::ManagerClosed)
                });
            }
            Effect::Sweep => {
                self.work.spawn_blocking(move || Came::Swept(folder.sweep()));
            }
            Effect::Wait => {
                self.work.spawn(async {
                    tokio::time::sleep(RETRY).await;
                    Came::Plain(Event::Retry)
                });
            }
            Effect::Publish => {
                let membership = self.member.as_ref().map(|member| start::membership(member));
                agent.set_membership(membership);
                self.renew(renewal::Begin::WhenDue);
                let tools = self.tools();
                self.seat = self.member.as_mut().map(|member| Seat::begin(&tools, member));
                self.keep_sealed();
            }
            Effect::Dismiss => {
                self.rest();
                agent.set_membership(None);
            }
            Effect::Answer(_) | Effect::Refuse(_) => {}
        }
    }

    /// Ends what looks after the member.
    fn rest(&mut self) {
        self.renewal.abort_all();
        self.seen.renewal_fails(String::new());
        self.keeper = JoinSet::new();
        self.seat = None;
    }

    /// Begins to look after what the member's files are sealed with, if it is a manager.
    fn keep_sealed(&mut self) {
        self.keeper = JoinSet::new();
        if let Some((_, store)) = self.member.as_ref().and_then(|member| member.manager.as_ref()) {
            self.keeper.spawn(keep::keep_sealed(self.folder.clone(), store.clone()));
        }
    }

    /// Begins to look after the member's certificate.
    fn renew(&mut self, begin: renewal::Begin) {
        self.renewal.abort_all();
        self.trust.begins(begin);
        let Some(member) = &self.member else { return };
        let renewal = renewal::Renewal {
            config: self.config.clone(),
            folder: self.folder.clone(),
            store: member.manager.as_ref().map(|(_, store)| store.clone()),
            agent: self.agent.clone(),
            known: trust::managers_of(member),
            identity: member.identity.clone(),
            seen: Arc::clone(&self.seen),
        };
        self.renewal.spawn(renewal.next(begin));
    }

    /// Keeps where managers are: those of the day on which this node joined may be gone by its next
    /// start.
    async fn keep_managers(&mut self, known: Vec<String>) {
        // A step of the role writes the same file.
        let busy = self.seat.as_ref().is_some_and(Seat::holds_store);
        let is_in = self.life.stage() == Stage::In && !busy;
        let Some(member) = self.member.as_mut().filter(|_| is_in) else { return };
        // A manager's own agent begins with itself; that is no news.
        if known.is_empty() || known == member.record.managers || member.manager.is_some() {
            return;
        }
        member.record.managers = known;
        let (folder, record) = (self.folder.clone(), member.record.clone());
        let kept = tokio::task::spawn_blocking(move || folder.write(&record)).await;
        match kept {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(cause = report(&error), "where managers are could not be kept");
            }
            Err(error) => tracing::error!(cause = %error, "keeping where managers are broke off"),
        }
    }

    /// Takes a renewed certificate into use.
    async fn renewed(&mut self, identity: NodeIdentity) {
        let Some(member) = &self.member else { return };
        // Another role needs more than a certificate: its own way brings one.
        if identity.role != member.identity.role {
            return self.renew(renewal::Begin::AfterRest);
        }
        match self.folder.keep_identity(identity.clone()).await {
            Ok(()) => {
                tracing::info!(until = ?identity.not_after, "this node's certificate was renewed");
            }
            // The old one still counts after a restart; then it is renewed once more.
            Err(error) => {
                let cause = report(&error);
                tracing::error!(cause, "this node's renewed certificate could not be kept");
            }
        }
        self.take(identity);
        self.renew(renewal::Begin::AfterRest);
    }

    /// Takes another identity of this member into use. Connections that are open stay.
    fn take(&mut self, identity: NodeIdentity) {
        let Some(member) = &mut self.member else { return };
        if let Some((manager, _)) = &member.manager
            && let Err(error) = manager.set_identity(&identity)
        {
            let cause = report(&error);
            tracing::error!(cause, "the manager cannot use this node's new identity");
        }
        member.identity = identity.clone();
        self.agent.set_identity(identity);
    }
}

/// Whether commands can still come.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Inbox {
    Open,
    Gone,
}
