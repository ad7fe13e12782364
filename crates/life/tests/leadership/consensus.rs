//! A model of openraft 0.9's core: term, vote, lease and log, with elections only when told.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use shoal_life::leadership::event::{CoreView, Position, RaftId, Role, Term};
use shoal_life::leadership::voters::Voters;

use crate::world::{Message, Micros};

/// `election_timeout_max`.
const LEASE: Micros = 502_000;
/// `election_timeout_min`: votes that come later count no more.
const VOTES_WITHIN: Micros = 501_000;

/// A vote, in the classic form: one candidate for each term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    pub term: u64,
    pub node: u64,
    pub committed: bool,
}

impl Vote {
    /// Whether one who holds `self` takes `new`.
    fn takes(self, new: Self) -> bool {
        if new.term != self.term {
            return new.term > self.term;
        }
        if new.node == self.node { new.committed >= self.committed } else { new.committed }
    }
}

#[derive(Clone, Debug)]
pub struct Core {
    own: u64,
    pub vote: Vote,
    touched: Option<Micros>,
    /// The term of each entry.
    pub log: Rc<Vec<u64>>,
    pub commit: usize,
    voters: Voters,
    stood_at: Micros,
    granted: BTreeSet<u64>,
    matched: BTreeMap<u64, u64>,
    leads: bool,
}

/// What a core sends: to one, or to all.
pub type Sent = Vec<(Option<u64>, Message)>;

impl Core {
    pub fn new(own: u64, voters: Voters) -> Self {
        Self {
            own,
            vote: Vote { term: 0, node: 0, committed: false },
            touched: None,
            log: Rc::new(vec![]),
            commit: 0,
            voters,
            stood_at: 0,
            granted: BTreeSet::new(),
            matched: BTreeMap::new(),
            leads: false,
        }
    }

    /// The core of a process that began again: what is on its disk, the vote uncommitted.
    pub fn restarted(&self) -> Self {
        let mut new = Self::new(self.own, self.voters.clone());
        new.vote = Vote { committed: false, ..self.vote };
        new.log = Rc::clone(&self.log);
        new
    }

    pub const fn leads(&self) -> bool {
        self.leads
    }

    pub fn role(&self) -> Role {
        if self.leads {
            Role::Leader
        } else if !self.voters.contains(RaftId(self.own)) {
            Role::Learner
        } else if self.vote.node == self.own && !self.vote.committed && !self.granted.is_empty() {
            Role::Candidate
        } else {
            Role::Follower
        }
    }

    fn last(&self) -> Position {
        let term = Term(self.log.last().copied().unwrap_or(0));
        Position { term, index: self.log.len() as u64 }
    }

    pub fn view(&self) -> CoreView {
        let applied = self.commit.checked_sub(1).map_or(0, |at| self.log[at]);
        let matched = self.matched.iter().map(|(id, matched)| (RaftId(*id), *matched));
        CoreView {
            term: Term(self.vote.term),
            role: self.role(),
            leader: self.vote.committed.then_some(RaftId(self.vote.node)),
            last: self.last(),
            applied: Position { term: Term(applied), index: self.commit as u64 },
            voters: self.voters.clone(),
            matched: matched.collect(),
            ..CoreView::default()
        }
    }

    fn take(&mut self, vote: Vote, now: Micros) -> bool {
        if !self.vote.takes(vote) {
            return false;
        }
        if vote != self.vote {
            self.granted.clear();
            self.leads = false;
        }
        (self.vote, self.touched) = (vote, Some(now));
        true
    }

    /// `trigger().elect()`.
    pub fn elect(&mut self, now: Micros) -> Sent {
        if self.leads || !self.voters.contains(RaftId(self.own)) {
            return vec![];
        }
        let vote = Vote { term: self.vote.term + 1, node: self.own, committed: false };
        assert!(self.take(vote, now));
        self.stood_at = now;
        self.granted.insert(self.own);
        let ask = Message::Vote { vote, last: self.last() };
        let mut sent = vec![(None, ask)];
        sent.extend(self.count(now));
        sent
    }

    fn count(&mut self, now: Micros) -> Sent {
        if self.leads || !self.voters.majority(|voter| self.granted.contains(&voter.0)) {
            return vec![];
        }
        self.vote.committed = true;
        self.touched = Some(now);
        self.leads = true;
        self.matched.clear();
        self.propose()
    }

    /// A new entry; on a new leader the blank one.
    pub fn propose(&mut self) -> Sent {
        Rc::make_mut(&mut self.log).push(self.vote.term);
        self.confirm();
        self.append()
    }

    /// What a leader sends to all.
    pub fn append(&self) -> Sent {
        let (vote, log, commit) = (self.vote, Rc::clone(&self.log), self.commit);
        vec![(None, Message::Append { vote, log, commit })]
    }

    fn confirm(&mut self) {
        let mut index = self.log.len();
        while index > self.commit && self.log[index - 1] == self.vote.term {
            let has = |voter: RaftId| {
                let matched = self.matched.get(&voter.0).copied().unwrap_or(0);
                voter.0 == self.own || matched >= index as u64
            };
            if self.voters.majority(has) {
                self.commit = index;
                return;
            }
            index -= 1;
        }
    }

    pub fn hear(&mut self, from: u64, message: &Message, now: Micros) -> Sent {
        match message {
            Message::Vote { vote, last } => {
                let leased = self.vote.committed
                    && self.touched.is_some_and(|touched| now <= touched + LEASE);
                let granted = !leased && *last >= self.last() && self.take(*vote, now);
                let reply = Message::VoteReply { asked: *vote, vote: self.vote, granted };
                vec![(Some(from), reply)]
            }
            Message::VoteReply { asked, vote, granted } => {
                if self.role() != Role::Candidate || now > self.stood_at + VOTES_WITHIN {
                    return vec![];
                }
                if *granted && *asked == self.vote {
                    self.granted.insert(from);
                    return self.count(now);
                }
                self.take(Vote { committed: false, ..*vote }, now);
                vec![]
            }
            Message::Append { vote, log, commit } => {
                if !self.take(*vote, now) {
                    let reply =
                        Message::AppendReply { asked: *vote, refused: Some(self.vote), to: 0 };
                    return vec![(Some(from), reply)];
                }
                // An old one of the same leader is a beginning of what is here.
                if !self.log.starts_with(log) {
                    self.log = Rc::clone(log);
                }
                self.commit = self.commit.max((*commit).min(log.len()));
                let to = log.len() as u64;
                vec![(Some(from), Message::AppendReply { asked: *vote, refused: None, to })]
            }
            Message::AppendReply { asked, refused, to } => {
                if !self.leads || *asked != self.vote {
                    return vec![];
                }
                if let Some(higher) = refused {
                    self.take(*higher, now);
                    return vec![];
                }
                let matched = self.matched.entry(from).or_default();
                *matched = (*matched).max(*to);
                self.confirm();
                vec![]
            }
            _ => vec![],
        }
    }
}
