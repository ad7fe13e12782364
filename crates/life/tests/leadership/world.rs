//! A group on a virtual clock: members, their cores, and a net that loses, delays, doubles and
//! cuts.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::rc::Rc;
use std::time::Duration;

use shoal_life::leadership::Leadership;
use shoal_life::leadership::cadence::Cadence;
use shoal_life::leadership::event::{
    Answer, BeatNumber, Bidding, Command, Effect, Event, Evidence, Outcome, Position, Probe,
    RaftId, Round, Standing, Term, Voice, Word,
};
use shoal_life::leadership::voters::Voters;

use crate::consensus::{Core, Sent, Vote};

pub type Micros = u64;
pub const MS: Micros = 1_000;
/// `heartbeat_interval` × 3/2.
const HEARTBEAT: Micros = 750 * MS;

#[derive(Clone, Debug)]
pub enum Message {
    Beat { term: Term, number: BeatNumber, voice: Voice },
    Echo { number: BeatNumber },
    Probe { round: Round, probe: Probe },
    Answer { round: Round, answer: Answer },
    Bid(Bidding),
    Vote { vote: Vote, last: Position },
    VoteReply { asked: Vote, vote: Vote, granted: bool },
    Append { vote: Vote, log: Rc<Vec<u64>>, commit: usize },
    AppendReply { asked: Vote, refused: Option<Vote>, to: u64 },
}

#[derive(Debug)]
enum What {
    Deliver { from: u64, message: Message },
    Look,
    View,
    Heartbeat,
    Held,
    Lost { peer: u64, how: Evidence },
    Dialed { peer: u64 },
}

/// Splitmix64.
#[derive(Clone, Debug)]
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn of(&mut self, range: &Range<u64>) -> u64 {
        range.start + self.roll() % (range.end - range.start).max(1)
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.roll() % 100 < chance
    }
}

/// What the net and the hosts are like.
#[derive(Clone, Debug)]
pub struct Weather {
    pub delay: Range<Micros>,
    /// How long a vote or an append takes to reach the disk.
    pub sync: Range<Micros>,
    /// How late a look is.
    pub late: Range<Micros>,
    pub loses: u64,
    pub doubles: u64,
}

pub const FAIR: Weather =
    Weather { delay: 100..2_000, sync: MS..10 * MS, late: 0..2 * MS, loses: 0, doubles: 0 };

#[derive(Debug)]
pub struct Member {
    pub id: u64,
    life: Option<Leadership>,
    pub core: Core,
    /// Which process this is; 0 for none.
    process: u64,
    /// Whether its host answers for a process that is gone.
    host: bool,
    stopped_until: Micros,
    last_look: Micros,
    mute: bool,
    hold: bool,
    pub shown: Option<Standing>,
    pub rounds: u64,
    pub stood: u64,
    pub muted: u64,
    pub outcomes: Vec<Outcome>,
}

impl Member {
    pub const fn runs(&self) -> bool {
        self.process != 0
    }

    pub fn leads(&self) -> bool {
        self.runs() && matches!(self.shown, Some(Standing::Leading { .. }))
    }

    pub fn follows(&self, leader: u64) -> bool {
        let by = RaftId(leader);
        self.runs()
            && matches!(self.shown, Some(Standing::Following { leader, .. }) if leader == by)
    }
}

pub struct World {
    pub now: Micros,
    pub weather: Weather,
    pub members: Vec<Member>,
    pub cuts: BTreeSet<(u64, u64)>,
    pub dice: Dice,
    queue: BTreeMap<(Micros, u64), (u64, u64, What)>,
    count: u64,
    voters: Voters,
    won: BTreeMap<u64, u64>,
    confirmed: Vec<u64>,
    /// Up to where each member's confirmed entries were compared.
    checked: Vec<usize>,
}

impl World {
    pub fn new(count: u64, seed: u64, weather: Weather) -> Self {
        let voters = Voters::new([(1..=count).map(RaftId).collect()]);
        let mut world = Self {
            now: 0,
            weather,
            members: vec![],
            cuts: BTreeSet::new(),
            dice: Dice(seed),
            queue: BTreeMap::new(),
            count: 0,
            voters,
            won: BTreeMap::new(),
            confirmed: vec![],
            checked: vec![0; count as usize],
        };
        for id in 1..=count {
            let core = Core::new(id, world.voters.clone());
            world.members.push(Member {
                id,
                life: None,
                core,
                process: 0,
                host: true,
                stopped_until: 0,
                last_look: 0,
                mute: false,
                hold: false,
                shown: None,
                rounds: 0,
                stood: 0,
                muted: 0,
                outcomes: vec![],
            });
            world.start(id);
        }
        world
    }

    pub fn member(&mut self, id: u64) -> &mut Member {
        &mut self.members[id as usize - 1]
    }

    fn ids(&self) -> Vec<u64> {
        self.members.iter().map(|member| member.id).collect()
    }

    fn at(&mut self, after: Micros, who: u64, what: What) {
        let process = self.member(who).process;
        self.count += 1;
        self.queue.insert((self.now + after, self.count), (who, process, what));
    }

    fn send(&mut self, from: u64, to: u64, extra: Micros, message: &Message) {
        if from == to || self.cuts.contains(&(from, to)) || !self.member(to).runs() {
            return;
        }
        let copies = u64::from(!self.dice.percent(self.weather.loses))
            + u64::from(self.dice.percent(self.weather.doubles));
        for _ in 0..copies {
            let delay = extra + self.dice.of(&self.weather.delay.clone());
            self.at(delay, to, What::Deliver { from, message: message.clone() });
        }
    }

    // Faults.

    pub fn start(&mut self, id: u64) {
        self.count += 1;
        let (process, now) = (self.count, self.now);
        let member = self.member(id);
        if member.runs() {
            return;
        }
        member.core = member.core.restarted();
        member.life = Some(Leadership::begin(RaftId(id), Cadence::PRODUCT));
        (member.process, member.host, member.stopped_until) = (process, true, 0);
        (member.mute, member.hold, member.shown, member.last_look) = (false, false, None, now);
        self.at(0, id, What::View);
        self.at(0, id, What::Look);
        self.at(HEARTBEAT, id, What::Heartbeat);
        for peer in self.ids() {
            if peer != id {
                self.dial(id, peer, 0);
            }
        }
    }

    /// Kill -9: the kernel closes the connections, and refuses others.
    pub fn kill(&mut self, id: u64) {
        self.end(id);
        for peer in self.ids() {
            if peer != id && self.member(peer).runs() && !self.cuts.contains(&(id, peer)) {
                let after = self.dice.of(&self.weather.delay.clone());
                self.at(after, peer, What::Lost { peer: id, how: Evidence::Closed });
                self.dial(peer, id, after);
            }
        }
    }

    /// The host goes, and says nothing.
    pub fn vanish(&mut self, id: u64) {
        self.end(id);
        self.member(id).host = false;
    }

    fn end(&mut self, id: u64) {
        let member = self.member(id);
        (member.process, member.life, member.shown) = (0, None, None);
    }

    pub fn stop(&mut self, id: u64, length: Micros) {
        let until = self.now + length;
        self.member(id).stopped_until = until;
    }

    /// Dials at once, and again every 50 ms.
    fn dial(&mut self, from: u64, to: u64, after: Micros) {
        for wait in [0, 50 * MS, 100 * MS] {
            let way = self.dice.of(&self.weather.delay.clone());
            self.at(after + wait + way, from, What::Dialed { peer: to });
        }
    }

    pub fn heal(&mut self, weather: Weather) {
        (self.weather, self.cuts) = (weather, BTreeSet::new());
        for id in self.ids() {
            self.member(id).stopped_until = 0;
            self.start(id);
        }
    }

    pub fn isolate(&mut self, id: u64) {
        for other in self.ids() {
            self.cuts.extend([(id, other), (other, id)]);
        }
    }

    pub fn command(&mut self, id: u64, command: Command) {
        if self.member(id).runs() {
            self.give(id, Event::Command(command));
        }
    }

    // Time.

    pub fn run(&mut self, length: Micros) {
        let until = self.now + length;
        while self.step(until) {}
        self.now = until;
    }

    /// Runs until `done` holds, at most for `limit`; how long it took.
    pub fn until(&mut self, limit: Micros, done: impl Fn(&Self) -> bool) -> Option<Micros> {
        let (began, until) = (self.now, self.now + limit);
        while !done(self) {
            if !self.step(until) {
                return None;
            }
        }
        Some(self.now - began)
    }

    fn step(&mut self, until: Micros) -> bool {
        match self.queue.first_key_value() {
            Some((key, _)) if key.0 <= until => {}
            _ => return false,
        }
        let ((at, number), (who, process, what)) = self.queue.pop_first().unwrap();
        self.now = at;
        let member = self.member(who);
        if member.process != process {
            return true;
        }
        if member.stopped_until > at {
            let later = member.stopped_until;
            self.queue.insert((later, number), (who, process, what));
            return true;
        }
        self.happen(who, what);
        self.check(who);
        true
    }

    fn happen(&mut self, who: u64, what: What) {
        match what {
            What::Look => {
                let passed = self.now - self.member(who).last_look;
                self.member(who).last_look = self.now;
                let (dice, late) = (self.dice.roll(), self.dice.of(&self.weather.late.clone()));
                self.at(25 * MS + late, who, What::Look);
                self.give(who, Event::Look { passed: Duration::from_micros(passed), dice });
            }
            What::View => {
                let view = self.member(who).core.view();
                self.give(who, Event::Core(view));
            }
            What::Heartbeat => {
                self.at(HEARTBEAT, who, What::Heartbeat);
                if self.member(who).core.leads() {
                    let sent = self.member(who).core.append();
                    self.pass_on(who, sent);
                }
            }
            What::Held => {
                let view = self.member(who).core.view();
                self.give(who, Event::Core(view));
                self.give(who, Event::Held);
            }
            What::Lost { peer, how } => self.give(who, Event::Lost { peer: RaftId(peer), how }),
            What::Dialed { peer } => {
                let way = !self.cuts.contains(&(who, peer)) && !self.cuts.contains(&(peer, who));
                let refuses = self.member(peer).host && !self.member(peer).runs();
                if way && refuses {
                    let (peer, how) = (RaftId(peer), Evidence::Refused);
                    self.give(who, Event::Lost { peer, how });
                }
            }
            What::Deliver { from, message } => self.deliver(who, from, &message),
        }
    }

    fn deliver(&mut self, who: u64, peer: u64, message: &Message) {
        let from = RaftId(peer);
        match message {
            Message::Beat { term, number, voice } => {
                let word = Word::Beat { number: *number, voice: *voice };
                self.give(who, Event::Heard { from, term: *term, word });
            }
            Message::Echo { number } => self.give(who, Event::Echo { from, number: *number }),
            Message::Probe { round, probe } => {
                for effect in self.turn(who, Event::Asked { from, probe: *probe }) {
                    if let Effect::Reply(answer) = effect {
                        self.send(who, peer, 0, &Message::Answer { round: *round, answer });
                    } else {
                        self.carry_out(who, effect);
                    }
                }
            }
            Message::Answer { round, answer } => {
                self.give(who, Event::Answered { from, round: *round, answer: *answer });
            }
            Message::Bid(bidding) => {
                self.give(who, Event::Command(Command::StandNow(*bidding)));
            }
            _ => {
                if let Message::Append { vote, .. } = message {
                    let (term, word) = (Term(vote.term), Word::Append);
                    self.give(who, Event::Heard { from, term, word });
                }
                let now = self.now;
                let sent = self.member(who).core.hear(peer, message, now);
                self.pass_on(who, sent);
                self.look_at_core(who);
            }
        }
    }

    /// What a core sends goes out once its disk has it; nothing of a mute one.
    fn pass_on(&mut self, who: u64, sent: Sent) {
        for (to, message) in sent {
            if matches!(message, Message::Append { .. }) && self.member(who).mute {
                continue;
            }
            let sync = self.dice.of(&self.weather.sync.clone());
            let all = self.ids();
            for to in to.map_or(all, |to| vec![to]) {
                self.send(who, to, sync, &message);
            }
        }
    }

    /// The core's metrics come a little later.
    fn look_at_core(&mut self, who: u64) {
        let after = self.dice.of(&(10..2 * MS));
        self.at(after, who, What::View);
    }

    fn turn(&mut self, who: u64, event: Event) -> Vec<Effect> {
        let life = self.member(who).life.take().unwrap();
        let (life, effects) = life.step(event);
        self.member(who).life = Some(life);
        effects
    }

    fn give(&mut self, who: u64, event: Event) {
        for effect in self.turn(who, event) {
            self.carry_out(who, effect);
        }
    }

    fn carry_out(&mut self, who: u64, effect: Effect) {
        let everybody = self.ids();
        match effect {
            Effect::Beat { term, number, voice } => {
                for to in everybody {
                    self.send(who, to, 0, &Message::Beat { term, number, voice });
                }
            }
            Effect::Echo { to, number } => self.send(who, to.0, 0, &Message::Echo { number }),
            Effect::Probe { round, to, probe } => {
                self.member(who).rounds += 1;
                for to in to {
                    self.send(who, to.0, 0, &Message::Probe { round, probe });
                }
            }
            Effect::Reply(_) => panic!("a reply that nobody asked for"),
            Effect::Stand => {
                self.member(who).stood += 1;
                let now = self.now;
                let sent = self.member(who).core.elect(now);
                self.pass_on(who, sent);
                self.look_at_core(who);
            }
            Effect::Mute(mute) => {
                self.member(who).mute = mute;
                self.member(who).muted += u64::from(mute);
            }
            Effect::Hold(hold) => {
                self.member(who).hold = hold;
                if hold {
                    self.at(5 * MS, who, What::Held);
                }
            }
            Effect::TellToStand { to, bidding } => {
                assert!(self.member(who).mute, "it tells before it is mute");
                self.send(who, to.0, 0, &Message::Bid(bidding));
            }
            Effect::Show(standing) => self.member(who).shown = Some(standing),
            Effect::Done(outcome) => self.member(who).outcomes.push(outcome),
        }
    }

    /// A client writes to whoever says that it leads.
    pub fn write(&mut self) {
        for id in self.ids() {
            let member = self.member(id);
            let open = member.leads() && !member.hold && member.stopped_until == 0;
            if open && member.core.leads() {
                let sent = member.core.propose();
                self.pass_on(id, sent);
                self.look_at_core(id);
            }
        }
    }

    // What must hold.

    fn check(&mut self, who: u64) {
        let core = &self.members[who as usize - 1].core;
        if core.leads() {
            let winner = *self.won.entry(core.vote.term).or_insert(who);
            assert_eq!(winner, who, "two won term {}", core.vote.term);
        }
        if core.commit == self.checked[who as usize - 1] {
            return;
        }
        self.checked[who as usize - 1] = core.commit;
        let confirmed = &core.log[..core.commit];
        let common = confirmed.len().min(self.confirmed.len());
        assert_eq!(confirmed[..common], self.confirmed[..common], "confirmed entries changed");
        if confirmed.len() > self.confirmed.len() {
            self.confirmed = confirmed.to_vec();
        }
    }

    /// The one that leads, if all others that run follow it.
    pub fn settled(&self) -> Option<u64> {
        let leader = self.leader()?;
        let mut rest = self.members.iter().filter(|member| member.runs() && member.id != leader);
        rest.all(|member| member.follows(leader)).then_some(leader)
    }

    pub fn leader(&self) -> Option<u64> {
        self.members.iter().find(|member| member.leads()).map(|member| member.id)
    }

    pub fn term(&self) -> u64 {
        self.members.iter().map(|member| member.core.vote.term).max().unwrap_or(0)
    }

    pub fn rounds(&self) -> u64 {
        self.members.iter().map(|member| member.rounds + member.stood).sum()
    }
}
