//! What must hold, looked at after every message, every applied entry and every answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::NodeId;

/// States that are kept to compare: a member that is further behind takes a snapshot.
const STATES_KEPT: usize = 4_000;

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
struct At {
    term: u64,
    index: u64,
}

#[derive(Deserialize)]
struct Question<'q> {
    from: From,
    #[serde(borrow)]
    ask: Ask<'q>,
}

#[derive(Deserialize)]
struct From {
    raft_id: u64,
}

/// The kinds that are looked at.
#[derive(Deserialize)]
struct Ask<'q> {
    #[serde(borrow, default)]
    append: Option<Append<'q>>,
    #[serde(default)]
    vote: Option<Candidate>,
}

#[derive(Deserialize)]
struct Append<'q> {
    vote: Vote,
    #[serde(borrow)]
    entries: Vec<Entry<'q>>,
    commit: Option<At>,
}

#[derive(Deserialize)]
struct Candidate {
    vote: Vote,
}

#[derive(Deserialize)]
struct Vote {
    term: u64,
}

#[derive(Deserialize)]
struct Entry<'q> {
    term: u64,
    index: u64,
    kind: String,
    #[serde(borrow, default)]
    body: Option<&'q RawValue>,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    vote: Option<Voted>,
}

#[derive(Deserialize)]
struct Voted {
    granted: bool,
}

/// An entry that is confirmed, and the term in which that was said first.
#[derive(Clone, Copy)]
struct Confirmed {
    at: At,
    said_in: u64,
}

/// What clients know of one value that they count up.
#[derive(Clone, Debug, Default)]
pub struct Register {
    /// The highest that was ever tried.
    pub tried: u64,
    /// The highest that was answered.
    pub acknowledged: u64,
    /// The highest that a reader was shown who had asked a majority.
    pub read: u64,
    /// What was refused for certain.
    refused: BTreeSet<u64>,
}

/// What was seen so far.
#[derive(Default)]
pub struct Check {
    leaders: BTreeMap<u64, String>,
    votes: BTreeMap<(String, u64), u64>,
    entries: BTreeMap<At, [u8; 32]>,
    confirmed: BTreeMap<u64, Confirmed>,
    states: BTreeMap<u64, Arc<ClusterState>>,
    registers: BTreeMap<u16, Register>,
    pub acknowledged: u64,
    pub elections: u64,
}

/// The node in which a register is kept.
pub fn node_of(register: u16) -> NodeId {
    NodeId::new(format!("register{register:05}"))
}

/// What `state` holds of it, 0 if nothing.
pub fn value(state: &ClusterState, register: u16) -> Result<u64, String> {
    let Some(node) = state.nodes.get(&node_of(register)) else { return Ok(0) };
    let text = &node.status.message;
    text.parse().map_err(|_| format!("register {register} holds '{text}'"))
}

impl Check {
    /// `from` sends `body`.
    pub fn asked(&mut self, from: &str, body: &RawValue, _now: u64) -> Result<(), String> {
        if !body.get().contains("\"append\"") {
            return Ok(());
        }
        let question: Question<'_> =
            serde_json::from_str(body.get()).map_err(|e| format!("a question: {e}"))?;
        let Some(append) = question.ask.append else { return Ok(()) };
        let term = append.vote.term;
        self.leads(from, term)?;
        for entry in &append.entries {
            let at = At { term: entry.term, index: entry.index };
            let mut digest = Sha256::new();
            digest.update(entry.kind.as_bytes());
            digest.update(entry.body.map_or("", RawValue::get).as_bytes());
            let digest: [u8; 32] = digest.finalize().into();
            let known = self.entries.entry(at).or_insert(digest);
            if *known != digest {
                return Err(format!("{from} sends another entry as {at:?} than was sent before"));
            }
            if append.commit.is_some_and(|commit| commit.index >= at.index) {
                self.confirm(from, at, term)?;
            }
            let confirmed = self.confirmed.get(&at.index);
            if let Some(confirmed) = confirmed.filter(|c| term >= c.said_in && c.at != at) {
                let known = confirmed.at;
                return Err(format!(
                    "{from} leads term {term} with {at:?}, confirmed is {known:?}"
                ));
            }
        }
        append.commit.map_or(Ok(()), |at| self.confirm(from, at, term))
    }

    fn confirm(&mut self, from: &str, at: At, said_in: u64) -> Result<(), String> {
        let known = self.confirmed.entry(at.index).or_insert(Confirmed { at, said_in });
        known.said_in = known.said_in.min(said_in);
        if known.at != at {
            return Err(format!("{from} confirms {at:?}, but {:?} is confirmed", known.at));
        }
        Ok(())
    }

    /// `voter` has answered `body`.
    pub fn answered(
        &mut self,
        voter: &str,
        body: &RawValue,
        answer: &RawValue,
    ) -> Result<(), String> {
        if !body.get().contains("\"ask\":{\"vote\"") {
            return Ok(());
        }
        let question: Question<'_> =
            serde_json::from_str(body.get()).map_err(|e| format!("a question: {e}"))?;
        let answer: Answer =
            serde_json::from_str(answer.get()).map_err(|e| format!("an answer: {e}"))?;
        let (Some(asked), Some(Voted { granted: true })) = (question.ask.vote, answer.vote) else {
            return Ok(());
        };
        let (term, candidate) = (asked.vote.term, question.from.raft_id);
        let known = *self.votes.entry((voter.to_owned(), term)).or_insert(candidate);
        if known != candidate {
            return Err(format!("{voter} votes in term {term} for {known} and for {candidate}"));
        }
        Ok(())
    }

    fn leads(&mut self, who: &str, term: u64) -> Result<(), String> {
        if !self.leaders.contains_key(&term) {
            self.elections += 1;
        }
        let known = self.leaders.entry(term).or_insert_with(|| who.to_owned());
        if known != who {
            return Err(format!("{known} and {who} lead in term {term}"));
        }
        Ok(())
    }

    /// `who` shows that it leads, with `state`.
    pub fn leading(&mut self, who: &str, term: u64, state: &ClusterState) -> Result<(), String> {
        self.leads(who, term)?;
        for (number, register) in &self.registers {
            let (found, least) = (value(state, *number)?, register.acknowledged);
            if found < least {
                return Err(format!(
                    "{who} leads term {term} with {found} in register {number}; {least} was \
                     acknowledged"
                ));
            }
        }
        Ok(())
    }

    /// `who` shows `state`.
    pub fn shows(&mut self, who: &str, state: &Arc<ClusterState>) -> Result<(), String> {
        let revision = state.revision.0;
        let known = self.states.entry(revision).or_insert_with(|| Arc::clone(state));
        if !Arc::ptr_eq(known, state) && known != state {
            return Err(format!("{who} has another state at revision {revision} than others"));
        }
        if self.states.len() > STATES_KEPT {
            self.states.pop_first();
        }
        for (number, register) in &self.registers {
            let found = value(state, *number)?;
            if found > register.tried || register.refused.contains(&found) {
                return Err(format!("{who} shows {found} in register {number}, which was refused"));
            }
        }
        Ok(())
    }

    /// A client begins to write the next value of a register.
    pub fn next(&mut self, register: u16) -> u64 {
        let register = self.registers.entry(register).or_default();
        register.tried += 1;
        register.tried
    }

    pub fn acknowledge(&mut self, register: u16, value: u64) {
        self.acknowledged += 1;
        let register = self.registers.entry(register).or_default();
        register.acknowledged = register.acknowledged.max(value);
    }

    pub fn refuse(&mut self, register: u16, value: u64) {
        self.registers.entry(register).or_default().refused.insert(value);
    }

    /// What a reader must be shown at least who begins now.
    pub fn least(&self, register: u16) -> u64 {
        self.registers.get(&register).map_or(0, |it| it.acknowledged.max(it.read))
    }

    /// A reader of `who` was shown `found`, who had to be shown `least`.
    pub fn read(&mut self, who: &str, register: u16, found: u64, least: u64) -> Result<(), String> {
        if found < least {
            return Err(format!(
                "a reader of {who} is shown {found} in register {register} after {least} was known"
            ));
        }
        let register = self.registers.entry(register).or_default();
        register.read = register.read.max(found);
        Ok(())
    }

    pub fn registers(&self) -> Vec<u16> {
        self.registers.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::value::to_raw_value;

    use super::*;

    fn append(from: u64, term: u64, entries: &[(u64, u64, u64)], commit: u64) -> Box<RawValue> {
        let entries: Vec<_> = entries
            .iter()
            .map(|(term, index, body)| {
                serde_json::json!({"term": term, "index": index, "kind": "data", "body": body})
            })
            .collect();
        let commit = serde_json::json!({"term": term, "index": commit});
        let vote = serde_json::json!({"term": term});
        let append = serde_json::json!({"vote": vote, "entries": entries, "commit": commit});
        let from = serde_json::json!({"raft_id": from});
        to_raw_value(&serde_json::json!({"from": from, "ask": {"append": append}})).unwrap()
    }

    #[test]
    fn two_leaders_of_one_term_are_found() {
        let mut check = Check::default();
        check.asked("a", &append(1, 5, &[], 1), 0).unwrap();
        check.asked("a", &append(1, 5, &[(5, 2, 7)], 1), 0).unwrap();
        let found = check.asked("b", &append(2, 5, &[], 1), 0).unwrap_err();
        assert!(found.contains("a and b lead in term 5"), "{found}");
    }

    #[test]
    fn another_entry_in_the_same_place_is_found() {
        let mut check = Check::default();
        check.asked("a", &append(1, 5, &[(5, 2, 7)], 1), 0).unwrap();
        let found = check.asked("a", &append(1, 5, &[(5, 2, 8)], 1), 0).unwrap_err();
        assert!(found.contains("another entry"), "{found}");
    }

    #[test]
    fn a_later_leader_without_what_is_confirmed_is_found() {
        let mut check = Check::default();
        check.asked("a", &append(1, 5, &[(5, 2, 7)], 2), 0).unwrap();
        // One of before may have had something else there, which nobody confirmed.
        check.asked("c", &append(3, 4, &[(4, 2, 1)], 1), 0).unwrap();
        let found = check.asked("b", &append(2, 6, &[(6, 2, 7)], 1), 0).unwrap_err();
        assert!(found.contains("confirmed is"), "{found}");
    }

    #[test]
    fn two_votes_in_one_term_are_found() {
        let ask = |from: u64| {
            let vote = serde_json::json!({"vote": {"vote": {"term": 3}}});
            to_raw_value(&serde_json::json!({"ask": vote, "from": {"raft_id": from}})).unwrap()
        };
        let yes = to_raw_value(&serde_json::json!({"vote": {"granted": true}})).unwrap();
        let no = to_raw_value(&serde_json::json!({"vote": {"granted": false}})).unwrap();
        let mut check = Check::default();
        check.answered("v", &ask(1), &yes).unwrap();
        check.answered("v", &ask(2), &no).unwrap();
        check.answered("v", &ask(1), &yes).unwrap();
        assert!(check.answered("v", &ask(2), &yes).unwrap_err().contains("votes in term 3"));
    }

    #[test]
    fn what_was_acknowledged_must_be_there() {
        let mut check = Check::default();
        let value = check.next(1);
        check.acknowledge(1, value);
        let empty = Arc::new(ClusterState::default());
        assert!(check.leading("a", 2, &empty).unwrap_err().contains("1 was acknowledged"));
        let least = check.least(1);
        assert!(check.read("a", 1, 0, least).unwrap_err().contains("after 1 was known"));
    }
}
