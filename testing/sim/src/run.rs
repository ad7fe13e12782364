//! One run: a group that is tormented for a while, and then has to be whole.

use std::collections::BTreeSet;
use std::time::Duration;

use shoal_store::{FIRST_RAFT_ID, Group, GroupStep, Lead, Member, Store};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::chance::Dice;
use crate::clients;
use crate::disk::{Crash, Mood};
use crate::host::{Begin, Hosts, member, name};
use crate::net::Weather;
use crate::world::World;

/// How long a group may take to begin.
const BEGIN: Duration = Duration::from_secs(60);
/// Once faults have stopped: until somebody leads and writes, and until all show the same.
const LEADS_WITHIN: Duration = Duration::from_secs(10);
const WHOLE_WITHIN: Duration = Duration::from_secs(60);
/// Registers that are written.
const REGISTERS: u16 = 3;
/// The most members of a group.
const MEMBERS_MAX: usize = 7;

/// What may go wrong in this run.
#[derive(Clone, Debug)]
struct Plan {
    members: u64,
    lasts: Duration,
    faults: Vec<Fault>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    KillAtWrite,
    Power,
    PowerAtWrite,
    AllAtOnce,
    Cut,
    Part,
    Weather,
    SlowDisk,
    FailingDisk,
    FullDisk,
    Snapshot,
    HandOver,
    Group,
}

const FAULTS: [Fault; 14] = [
    Fault::Kill,
    Fault::KillAtWrite,
    Fault::Power,
    Fault::PowerAtWrite,
    Fault::AllAtOnce,
    Fault::Cut,
    Fault::Part,
    Fault::Weather,
    Fault::SlowDisk,
    Fault::FailingDisk,
    Fault::FullDisk,
    Fault::Snapshot,
    Fault::HandOver,
    Fault::Group,
];

impl Plan {
    /// Each run has some kinds of faults only: what hides behind others shows there.
    fn draw(dice: &mut Dice) -> Self {
        let members = *dice.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 7]).unwrap_or(&3);
        let lasts = Duration::from_millis(dice.between(8_000, 40_000));
        let mut faults: Vec<Fault> = FAULTS.into_iter().filter(|_| dice.happens(400)).collect();
        if faults.is_empty() {
            faults.push(Fault::Kill);
        }
        Self { members, lasts, faults }
    }
}

/// What is under way.
struct Run {
    world: World,
    hosts: Hosts,
    /// Who should be in the group, as far as the operators know.
    members: BTreeSet<u64>,
    next: u64,
    steps: JoinSet<()>,
}

/// Torments a group; what was found is said to `world`.
pub async fn run(world: &World, hosts: &Hosts) {
    let plan = world.dice(Plan::draw);
    world.note("plan", format_args!("{plan:?}"));
    let mut run = Run {
        world: world.clone(),
        hosts: hosts.clone(),
        members: BTreeSet::new(),
        next: FIRST_RAFT_ID + 1,
        steps: JoinSet::new(),
    };
    match timeout(BEGIN, run.begin(plan.members)).await {
        Ok(Ok(())) => {}
        Ok(Err(problem)) => return world.found(format!("the group does not begin: {problem}")),
        Err(_) => return world.found("the group does not begin in time".to_owned()),
    }
    let mut clients = JoinSet::new();
    for register in 1..=REGISTERS {
        clients.spawn(clients::write(world.clone(), hosts.clone(), register));
    }
    clients.spawn(clients::read(world.clone(), hosts.clone()));
    clients.spawn(clients::read(world.clone(), hosts.clone()));
    let end = Instant::now() + plan.lasts;
    while Instant::now() < end {
        let millis = world.dice(|dice| dice.between(20, 1_500));
        sleep(Duration::from_millis(millis)).await;
        if let Some(fault) = world.dice(|dice| dice.pick(&plan.faults).copied()) {
            run.happens(fault);
        }
        run.bring_back(300);
    }
    run.calm();
    run.becomes_whole().await;
    clients.shutdown().await;
    run.steps.shutdown().await;
}

impl Run {
    /// The first members, without any fault.
    async fn begin(&mut self, members: u64) -> Result<(), String> {
        self.hosts.start(FIRST_RAFT_ID, Begin::Bootstrap);
        self.members.insert(FIRST_RAFT_ID);
        while self.members.len() < usize::try_from(members).unwrap_or(1) {
            let raft_id = self.next;
            self.next += 1;
            self.hosts.start(raft_id, Begin::Join);
            while self.hosts.store(raft_id).is_none() || self.hosts.leader().is_none() {
                sleep(Duration::from_millis(20)).await;
            }
            let Some(leader) = self.hosts.leader() else { continue };
            add(&leader, raft_id).await?;
            self.members.insert(raft_id);
        }
        Ok(())
    }

    fn some_member(&self) -> u64 {
        let all: Vec<u64> = self.hosts.ids();
        self.world.dice(|dice| dice.pick(&all).copied()).unwrap_or(FIRST_RAFT_ID)
    }

    fn happens(&mut self, fault: Fault) {
        let who = self.some_member();
        self.world.note("fault", format_args!("{fault:?} of {who}"));
        let life = self.hosts.life(who);
        let writes = self.world.dice(|dice| dice.between(1, 120));
        match (fault, life) {
            (Fault::Kill, Some(life)) => life.die(Crash::Kill),
            (Fault::Power, Some(life)) => life.die(Crash::Power),
            (Fault::KillAtWrite, Some(life)) => life.die_at(writes, Crash::Kill),
            (Fault::PowerAtWrite, Some(life)) => life.die_at(writes, Crash::Power),
            (Fault::AllAtOnce, _) => self.all_at_once(),
            (Fault::Cut, _) => self.cut(who),
            (Fault::Part, _) => self.part(),
            (Fault::Weather, _) => self.weather(),
            (Fault::SlowDisk, Some(life)) => {
                let slow = self.world.dice(|dice| dice.between(5, 900));
                life.set_mood(Mood { slow, ..life.mood() });
            }
            (Fault::FailingDisk, Some(life)) => {
                let fails = self.world.dice(|dice| dice.between(1, 60));
                life.set_mood(Mood { fails, ..life.mood() });
            }
            (Fault::FullDisk, Some(life)) => life.set_mood(Mood { full: true, ..life.mood() }),
            (Fault::Snapshot, _) => self.snapshot(who),
            (Fault::HandOver, _) => self.hand_over(),
            (Fault::Group, _) => self.change_group(),
            (_, None) => {}
        }
    }

    fn all_at_once(&self) {
        let how = self
            .world
            .dice(|dice| *dice.pick(&[Crash::Kill, Crash::Power]).unwrap_or(&Crash::Kill));
        for id in self.hosts.ids() {
            if let Some(life) = self.hosts.life(id) {
                life.die(how);
            }
        }
    }

    /// One way, both, or all of one host.
    fn cut(&self, who: u64) {
        let other = self.some_member();
        let kind = self.world.dice(|dice| dice.below(4));
        let ids = self.hosts.ids();
        let mut inner = self.world.lock();
        match kind {
            0 => inner.net.cut(&name(who), &name(other)),
            1 => {
                inner.net.cut(&name(who), &name(other));
                inner.net.cut(&name(other), &name(who));
            }
            // It hears, and is not heard; or the other way round.
            2 => ids.iter().for_each(|id| inner.net.cut(&name(who), &name(*id))),
            _ => ids.iter().for_each(|id| inner.net.cut(&name(*id), &name(who))),
        }
    }

    /// Two parts that do not reach each other.
    fn part(&self) {
        let ids = self.hosts.ids();
        let sides: Vec<bool> =
            self.world.dice(|dice| ids.iter().map(|_| dice.happens(400)).collect());
        let mut inner = self.world.lock();
        inner.net.heal();
        for (a, left) in ids.iter().zip(&sides) {
            for (b, right) in ids.iter().zip(&sides) {
                if left != right {
                    inner.net.cut(&name(*a), &name(*b));
                }
            }
        }
    }

    fn weather(&self) {
        let mut inner = self.world.lock();
        let lost = inner.dice.below(200);
        let twice = inner.dice.below(100);
        let late = inner.dice.below(400);
        let late_by = inner.dice.between(5, 800);
        inner.net.weather = Weather { lost, twice, late, late_by };
    }

    fn snapshot(&mut self, who: u64) {
        if let Some(store) = self.hosts.store(who) {
            // Ignored because: it may be killed meanwhile.
            self.steps.spawn(async move { drop(store.snapshot().await) });
        }
    }

    fn hand_over(&mut self) {
        let Some(leader) = self.hosts.leader() else { return };
        let world = self.world.clone();
        self.steps.spawn(async move {
            let by = Instant::now() + Duration::from_secs(3);
            let outcome = leader.hand_over(None, by).await.map_err(|e| e.to_string());
            world.note("operator", format_args!("hand over: {outcome:?}"));
        });
    }

    /// Adds a new member, or removes one. What is half done is finished by whoever comes next.
    fn change_group(&mut self) {
        let Some(leader) = self.hosts.leader() else { return };
        let group = leader.group().borrow().clone();
        let all = group.voters.len() + group.learners.len();
        let grows = all < 2 || self.world.dice(|dice| dice.happens(550)) && all < MEMBERS_MAX;
        let (world, hosts) = (self.world.clone(), self.hosts.clone());
        if grows {
            let raft_id = self.next;
            self.next += 1;
            self.hosts.start(raft_id, Begin::Join);
            self.steps.spawn(async move {
                let outcome = add(&leader, raft_id).await;
                world.note("operator", format_args!("add m{raft_id}: {outcome:?}"));
            });
            return;
        }
        let members: Vec<u64> =
            group.voters.iter().chain(&group.learners).map(|member| member.raft_id).collect();
        let Some(gone) = self.world.dice(|dice| dice.pick(&members).copied()) else { return };
        self.steps.spawn(async move {
            let by = Instant::now() + Duration::from_secs(5);
            let outcome = leader.change_group(GroupStep::Remove(gone), by).await;
            let said = outcome.as_ref().map_err(ToString::to_string);
            world.note("operator", format_args!("remove m{gone}: {said:?}"));
            // Sometimes nobody tells it.
            if outcome.is_ok() && world.dice(|dice| dice.happens(600)) {
                hosts.remove(gone);
            }
        });
    }

    /// Starts again what is down, each with `permille`; old troubles pass as well.
    fn bring_back(&mut self, permille: u64) {
        while self.steps.try_join_next().is_some() {}
        for id in self.hosts.ids() {
            let happens = self.world.dice(|dice| dice.happens(permille));
            match self.hosts.life(id) {
                None if happens => self.hosts.start(id, Begin::Open),
                Some(life) if happens => life.set_mood(Mood::default()),
                _ => {}
            }
        }
        if self.world.dice(|dice| dice.happens(permille / 2)) {
            self.world.lock().net.heal();
        }
    }

    /// No fault any more; everybody comes back.
    fn calm(&mut self) {
        self.world.note("plan", format_args!("calm"));
        self.world.lock().net.heal();
        for id in self.hosts.ids() {
            match self.hosts.life(id) {
                None => self.hosts.start(id, Begin::Open),
                Some(life) => {
                    life.disarm();
                    life.set_mood(Mood::default());
                }
            }
        }
    }

    async fn becomes_whole(&self) {
        let begun = Instant::now();
        let written = async {
            loop {
                if let Some(leader) = self.hosts.leader()
                    && clients::write_once(&self.world, &leader, REGISTERS + 1).await
                {
                    return leader;
                }
                sleep(Duration::from_millis(20)).await;
            }
        };
        let Ok(leader) = timeout(LEADS_WITHIN, written).await else {
            let all = self.say();
            return self.world.found(format!("nobody leads and writes once all is calm: {all}"));
        };
        let after = begun.elapsed().as_millis();
        self.world.note("plan", format_args!("m{} leads after {after} ms", leader.raft_id()));
        let least = leader.state().revision;
        let whole = async {
            while !self.is_whole(least.0) {
                // Managers do that, which are not here.
                if let Some(leader) = self.hosts.leader()
                    && !leader.group().borrow().settled
                {
                    let by = Instant::now() + Duration::from_secs(2);
                    // Ignored because: it is asked again.
                    let _ = leader.change_group(GroupStep::Settle, by).await;
                }
                sleep(Duration::from_millis(50)).await;
            }
        };
        if timeout(WHOLE_WITHIN, whole).await.is_err() {
            let all = self.say();
            self.world.found(format!("not everybody has {} once all is calm: {all}", least.0));
        }
    }

    /// Whether every member of the group shows what a majority had a while ago.
    fn is_whole(&self, least: u64) -> bool {
        let Some(leader) = self.hosts.leader() else { return false };
        let group: Group = leader.group().borrow().clone();
        group.settled
            && group.voters.iter().chain(&group.learners).all(|member| {
                let store = self.hosts.store(member.raft_id);
                store.is_some_and(|store| store.state().revision.0 >= least)
            })
    }

    fn say(&self) -> String {
        let mut all = Vec::new();
        for id in self.hosts.ids() {
            let Some(store) = self.hosts.store(id) else {
                all.push(format!("m{id} is not open"));
                continue;
            };
            let (lead, health) = (store.lead().borrow().clone(), store.health());
            let group = store.group().borrow().clone();
            let of = |members: &[Member]| -> Vec<u64> {
                members.iter().map(|member| member.raft_id).collect()
            };
            let (voters, learners) = (of(&group.voters), of(&group.learners));
            let (revision, settled) = (store.state().revision.0, group.settled);
            let who = match lead {
                Lead::Leading { term } => format!("leads {term}"),
                Lead::Following { leader, term } => format!("follows {leader} in {term}"),
                Lead::Nobody { missing, .. } => format!("misses {:?}", of(&missing)),
                Lead::Closed => "is closed".to_owned(),
            };
            all.push(format!(
                "m{id} at {revision} {who}, {health:?}, voters {voters:?}, learners \
                 {learners:?}, settled: {settled}"
            ));
        }
        all.join("; ")
    }
}

/// Makes `raft_id` a voter.
async fn add(leader: &Store, raft_id: u64) -> Result<(), String> {
    for step in [GroupStep::Learn(member(raft_id)), GroupStep::Promote(raft_id)] {
        let by = Instant::now() + Duration::from_secs(10);
        leader.change_group(step, by).await.map_err(|e| e.to_string())?;
    }
    Ok(())
}
