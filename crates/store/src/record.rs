//! What is written of consensus, on disk and to other members: records of our own, so that another
//! version of the consensus library, or another library, reads what is there.
//!
//! Each record says the version of its form. Unknown fields are ignored; a later version is
//! refused.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use openraft::{CommittedLeaderId, EntryPayload, LeaderId, Membership};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use shoal_model::change::Transaction;
use shoal_model::level;

use crate::consensus::{Entry, LogId, SnapshotMeta, StoredMembership, Vote};
use crate::peer::{Member, MemberNode};

/// The version of the records.
pub(crate) const RECORD_VERSION: u32 = 2;

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    /// It was written by a later program.
    #[error("it has version {found}, this program reads up to {RECORD_VERSION}")]
    Version { found: u32 },
    /// It needs a later program.
    #[error("the cluster writes format {found}, this program reads up to {reads}")]
    Level { found: u32, reads: u32 },
    /// A log entry without what its kind needs.
    #[error("an entry of kind '{kind}' has no body")]
    NoBody { kind: &'static str },
    /// A file of the first format without the number of its member.
    #[error("it has no number of a member")]
    NoNumber,
    /// It is no record.
    #[error(transparent)]
    Form(#[from] serde_json::Error),
}

impl RecordError {
    /// Whether a later program can read it.
    pub(crate) fn is_later(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::Level { .. })
    }

    /// Why `text`, which was not understood, was not: its version, if that is a later one.
    pub(crate) fn of(text: &[u8], error: serde_json::Error) -> Self {
        match serde_json::from_slice::<VersionOnly>(text) {
            Ok(VersionOnly { v }) if v > RECORD_VERSION => Self::Version { found: v },
            _ => Self::Form(error),
        }
    }
}

/// Of a later version, the rest may have any shape.
#[derive(Deserialize)]
struct VersionOnly {
    v: u32,
}

fn readable(version: u32) -> Result<(), RecordError> {
    if version > RECORD_VERSION {
        return Err(RecordError::Version { found: version });
    }
    Ok(())
}

/// What one log entry carries: transactions that were proposed at the same time, as the text
/// `{"level":…,"transactions":[…]}`. Made once by who proposes, read once when it is applied.
/// Cheap to clone.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Payload(Arc<RawValue>);

#[derive(Serialize)]
struct PayloadOut<'a> {
    level: u32,
    transactions: &'a [Transaction],
}

#[derive(Deserialize)]
struct PayloadIn {
    transactions: Vec<Transaction>,
}

/// Of a level beyond ours, the rest may have any shape.
#[derive(Deserialize)]
struct LevelOnly {
    #[serde(default = "first_level")]
    level: u32,
}

fn first_level() -> u32 {
    level::FIRST
}

/// The level that a text says; the first if it says none. Ours say it at the very beginning.
pub(crate) fn level_of(text: &[u8]) -> Result<u32, serde_json::Error> {
    let digits = text.strip_prefix(br#"{"level":"#).map(|rest| {
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        rest.split_at(count).0
    });
    let quick = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    match quick {
        Some(level) => Ok(level),
        None => Ok(serde_json::from_slice::<LevelOnly>(text)?.level),
    }
}

impl Payload {
    /// Of `transactions`, each of which is applied or refused on its own, in a cluster of `level`
    /// or a higher one that they raise it to.
    pub(crate) fn encode(level: u32, transactions: &[Transaction]) -> Result<Self, RecordError> {
        let needs = transactions.iter().map(Transaction::level);
        let level = needs.filter(|needs| *needs != level::UNKNOWN).fold(level, u32::max);
        let out = PayloadOut { level, transactions };
        Ok(Self(Arc::from(serde_json::value::to_raw_value(&out)?)))
    }

    /// Its length as text.
    pub(crate) fn bytes(&self) -> usize {
        self.0.get().len()
    }

    /// The lowest level that can apply it; one that says none makes no sense, and its content says
    /// so.
    pub(crate) fn level(&self) -> u32 {
        level_of(self.0.get().as_bytes()).unwrap_or(level::FIRST)
    }

    /// The transactions, if who reads up to level `reads` knows how to apply them.
    pub(crate) fn decode(&self, reads: u32) -> Result<Vec<Transaction>, RecordError> {
        let text = self.0.get();
        let found = level_of(text.as_bytes())?;
        if found > reads {
            return Err(RecordError::Level { found, reads });
        }
        Ok(serde_json::from_str::<PayloadIn>(text)?.transactions)
    }
}

/// A place in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct LogIdRecord {
    pub(crate) term: u64,
    pub(crate) index: u64,
}

impl From<LogId> for LogIdRecord {
    fn from(id: LogId) -> Self {
        Self { term: id.leader_id.term, index: id.index }
    }
}

impl From<LogIdRecord> for LogId {
    fn from(record: LogIdRecord) -> Self {
        // One leader a term: its number is not part of the place.
        Self::new(CommittedLeaderId::new(record.term, 0), record.index)
    }
}

/// For whom a member voted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct VoteRecord {
    pub(crate) v: u32,
    pub(crate) term: u64,
    /// Nobody before the first election.
    pub(crate) node: Option<u64>,
    /// Whether a majority voted so.
    pub(crate) committed: bool,
}

impl From<Vote> for VoteRecord {
    fn from(vote: Vote) -> Self {
        let (term, node) = (vote.leader_id.term, vote.leader_id.voted_for);
        Self { v: RECORD_VERSION, term, node, committed: vote.committed }
    }
}

impl TryFrom<VoteRecord> for Vote {
    type Error = RecordError;

    fn try_from(record: VoteRecord) -> Result<Self, RecordError> {
        readable(record.v)?;
        let leader_id = LeaderId { term: record.term, voted_for: record.node };
        Ok(Self { leader_id, committed: record.committed })
    }
}

/// Who is in the group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct GroupRecord {
    /// The numbers of those who vote; two sets while the group changes from one to the other.
    pub(crate) voters: Vec<BTreeSet<u64>>,
    /// All, with those who only learn.
    pub(crate) members: Vec<Member>,
}

type Group = Membership<u64, MemberNode>;

impl GroupRecord {
    /// How many vote, in either set.
    pub(crate) fn voters(&self) -> usize {
        self.voters.iter().flatten().collect::<BTreeSet<_>>().len()
    }
}

impl From<&Group> for GroupRecord {
    fn from(group: &Group) -> Self {
        let member =
            |(id, node): (&u64, &MemberNode)| Member { node: node.node.clone(), raft_id: *id };
        Self {
            voters: group.get_joint_config().clone(),
            members: group.nodes().map(member).collect(),
        }
    }
}

impl From<GroupRecord> for Group {
    fn from(record: GroupRecord) -> Self {
        let node = |member: Member| (member.raft_id, MemberNode { node: member.node });
        let nodes: BTreeMap<u64, MemberNode> = record.members.into_iter().map(node).collect();
        Self::new(record.voters, nodes)
    }
}

/// One entry of the log.
#[derive(Clone, Debug, Deserialize)]
#[serde(try_from = "EntryIn")]
pub(crate) struct EntryRecord {
    pub(crate) at: LogIdRecord,
    pub(crate) body: Body,
}

/// What an entry is for.
#[derive(Clone, Debug)]
pub(crate) enum Body {
    /// Begins a term.
    Blank,
    /// Changes the group.
    Group(GroupRecord),
    /// Changes the state.
    Data(Payload),
}

#[derive(Clone, Copy, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Blank,
    Group,
    Data,
}

#[derive(Serialize)]
struct EntryOut<'a> {
    v: u32,
    term: u64,
    index: u64,
    kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<BodyOut<'a>>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum BodyOut<'a> {
    Group(&'a GroupRecord),
    Data(&'a Payload),
}

#[derive(Deserialize)]
struct EntryIn {
    v: u32,
    term: u64,
    index: u64,
    kind: Kind,
    #[serde(default)]
    body: Option<Box<RawValue>>,
}

impl Serialize for EntryRecord {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (kind, body) = match &self.body {
            Body::Blank => (Kind::Blank, None),
            Body::Group(group) => (Kind::Group, Some(BodyOut::Group(group))),
            Body::Data(payload) => (Kind::Data, Some(BodyOut::Data(payload))),
        };
        let LogIdRecord { term, index } = self.at;
        EntryOut { v: RECORD_VERSION, term, index, kind, body }.serialize(serializer)
    }
}

impl TryFrom<EntryIn> for EntryRecord {
    type Error = RecordError;

    fn try_from(entry: EntryIn) -> Result<Self, RecordError> {
        readable(entry.v)?;
        let given = |kind| entry.body.ok_or(RecordError::NoBody { kind });
        let body = match entry.kind {
            Kind::Blank => Body::Blank,
            Kind::Group => Body::Group(serde_json::from_str(given("group")?.get())?),
            Kind::Data => Body::Data(Payload(Arc::from(given("data")?))),
        };
        Ok(Self { at: LogIdRecord { term: entry.term, index: entry.index }, body })
    }
}

impl From<&Entry> for EntryRecord {
    fn from(entry: &Entry) -> Self {
        let body = match &entry.payload {
            EntryPayload::Blank => Body::Blank,
            EntryPayload::Membership(group) => Body::Group(group.into()),
            EntryPayload::Normal(payload) => Body::Data(payload.clone()),
        };
        Self { at: entry.log_id.into(), body }
    }
}

impl From<EntryRecord> for Entry {
    fn from(record: EntryRecord) -> Self {
        let payload = match record.body {
            Body::Blank => EntryPayload::Blank,
            Body::Group(group) => EntryPayload::Membership(group.into()),
            Body::Data(payload) => EntryPayload::Normal(payload),
        };
        Self { log_id: record.at.into(), payload }
    }
}

/// What a snapshot is of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HeadRecord {
    pub(crate) v: u32,
    /// The lowest level that can read its content.
    pub(crate) level: u32,
    /// The last entry in it.
    pub(crate) last: Option<LogIdRecord>,
    /// The group as of that entry, and the entry that made it so.
    pub(crate) group: GroupRecord,
    pub(crate) group_at: Option<LogIdRecord>,
    /// Tells two snapshots of one place apart.
    pub(crate) id: String,
}

impl HeadRecord {
    /// Of a snapshot whose content needs `level`.
    pub(crate) fn new(meta: &SnapshotMeta, level: u32) -> Self {
        Self {
            v: RECORD_VERSION,
            level,
            last: meta.last_log_id.map(Into::into),
            group: meta.last_membership.membership().into(),
            group_at: meta.last_membership.log_id().map(Into::into),
            id: meta.snapshot_id.clone(),
        }
    }

    /// What it is of, if who reads up to level `reads` can read it.
    pub(crate) fn meta(self, reads: u32) -> Result<SnapshotMeta, RecordError> {
        readable(self.v)?;
        if self.level > reads {
            return Err(RecordError::Level { found: self.level, reads });
        }
        let group_at = self.group_at.map(Into::into);
        Ok(SnapshotMeta {
            last_log_id: self.last.map(Into::into),
            last_membership: StoredMembership::new(group_at, self.group.into()),
            snapshot_id: self.id,
        })
    }
}

/// Whose file it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MemberRecord {
    pub(crate) v: u32,
    pub(crate) member: Member,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    /// The texts are what is on disks and on the wire: they may gain fields, never change.
    fn same<T>(record: &T, text: &str)
    where
        T: Serialize + serde::de::DeserializeOwned,
    {
        assert_eq!(serde_json::to_string(record).unwrap(), text);
        let read: T = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
    }

    fn entry(payload: EntryPayload<crate::consensus::Types>) -> Entry {
        Entry { log_id: LogIdRecord { term: 3, index: 9 }.into(), payload }
    }

    fn group() -> Group {
        let nodes = [(1, "one"), (2, "two"), (3, "three")];
        let nodes = nodes.map(|(id, node)| (id, MemberNode { node: node.to_owned() }));
        Membership::new(vec![BTreeSet::from([1]), BTreeSet::from([1, 2])], BTreeMap::from(nodes))
    }

    #[test]
    fn records_have_their_form() {
        let mut vote = Vote::new(7, 2);
        vote.commit();
        let text = r#"{"v":2,"term":7,"node":2,"committed":true}"#;
        same(&VoteRecord::from(vote), text);
        let read: VoteRecord = serde_json::from_str(text).unwrap();
        assert_eq!(Vote::try_from(read).unwrap(), vote);
        same(
            &VoteRecord::from(Vote::default()),
            r#"{"v":2,"term":0,"node":null,"committed":false}"#,
        );

        let blank = r#"{"v":2,"term":3,"index":9,"kind":"blank"}"#;
        same(&EntryRecord::from(&entry(EntryPayload::Blank)), blank);
        let member = |id, node| format!(r#"{{"node":"{node}","raft_id":{id}}}"#);
        let members = [member(1, "one"), member(2, "two"), member(3, "three")].join(",");
        let body = format!(r#"{{"voters":[[1],[1,2]],"members":[{members}]}}"#);
        let text = format!(r#"{{"v":2,"term":3,"index":9,"kind":"group","body":{body}}}"#);
        let changed = entry(EntryPayload::Membership(group()));
        same(&EntryRecord::from(&changed), &text);
        let read: EntryRecord = serde_json::from_str(&text).unwrap();
        let EntryPayload::Membership(read) = Entry::from(read).payload else { panic!("no group") };
        assert_eq!(read, group());

        let payload = Payload::encode(1, &[]).unwrap();
        let text =
            r#"{"v":2,"term":3,"index":9,"kind":"data","body":{"level":1,"transactions":[]}}"#;
        same(&EntryRecord::from(&entry(EntryPayload::Normal(payload))), text);

        let meta = SnapshotMeta {
            last_log_id: Some(LogIdRecord { term: 3, index: 9 }.into()),
            last_membership: StoredMembership::new(None, group()),
            snapshot_id: "x".to_owned(),
        };
        let head = HeadRecord::new(&meta, 1);
        let at = r#"{"term":3,"index":9}"#;
        let text =
            format!(r#"{{"v":2,"level":1,"last":{at},"group":{body},"group_at":null,"id":"x"}}"#);
        same(&head, &text);
    }

    /// Fields that are not known are no reason to refuse; a version or level beyond ours is.
    #[test]
    fn later_forms_are_refused_unless_they_only_say_more() {
        let more = r#"{"v":2,"term":3,"index":9,"kind":"blank","more":[{"a":1}]}"#;
        serde_json::from_str::<EntryRecord>(more).unwrap();
        for (text, part) in [
            (r#"{"v":3,"term":3,"index":9,"kind":"blank"}"#, "version 3"),
            (r#"{"v":2,"term":3,"index":9,"kind":"odd"}"#, "odd"),
            (r#"{"v":2,"term":3,"index":9,"kind":"data"}"#, "no body"),
        ] {
            let error = serde_json::from_str::<EntryRecord>(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        let vote: VoteRecord =
            serde_json::from_str(r#"{"v":9,"term":1,"node":1,"committed":true}"#).unwrap();
        assert!(matches!(Vote::try_from(vote), Err(RecordError::Version { found: 9 })));
        let payload: Payload = serde_json::from_str(r#"{"level":2,"transactions":"odd"}"#).unwrap();
        assert!(matches!(payload.decode(1), Err(RecordError::Level { found: 2, reads: 1 })));
        for text in [
            r#"{"level":2,"transactions":[]}"#,
            r#"{ "transactions": [], "level": 2 }"#,
            r#"{"more":"{","level":2,"changes":7}"#,
        ] {
            let payload: Payload = serde_json::from_str(text).unwrap();
            assert_eq!(payload.level(), 2, "{text}");
            assert!(matches!(payload.decode(1), Err(RecordError::Level { found: 2, reads: 1 })));
        }
        let payload: Payload = serde_json::from_str(r#"{"level":1,"transactions":"x"}"#).unwrap();
        assert!(matches!(payload.decode(1), Err(RecordError::Form(_))));
        assert!(payload.decode(0).is_err());
    }
}
