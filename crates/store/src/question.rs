//! What members ask each other: our own words, so that another version of the consensus library
//! understands them.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use sha2::{Digest as _, Sha256};

use crate::peer::Member;
use crate::record::{EntryRecord, HeadRecord, LogIdRecord, VoteRecord};

/// The version of questions and answers.
pub(crate) const QUESTION_VERSION: u32 = 1;
/// Bytes of a snapshot in one piece: as text, with all around it, less than 1 MiB.
pub(crate) const PIECE_BYTES: usize = 720 << 10;

/// A question. Unknown fields are ignored.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Question {
    pub(crate) v: u32,
    /// The asker's: see [`crate::epoch`].
    #[serde(default)]
    pub(crate) epoch: u64,
    pub(crate) from: Member,
    /// For which member it is meant: a node that came back under another number is another one.
    pub(crate) to: u64,
    pub(crate) ask: Ask,
}

/// What is asked.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Ask {
    /// Whether somebody is there.
    Ping {},
    /// Where the log ends.
    Reach {},
    /// To echo a leader's beat; a mute one does nothing with its office.
    Beat { term: u64, number: u64, mute: bool },
    /// Whether the asker would get a vote in `term`, with a log that ends with `last`.
    Probe { term: u64, last: Option<LogIdRecord> },
    /// To stand for election, as the asker, which leads in `term`, goes. Its last beat was `beat`.
    Stand { term: u64, last: Option<LogIdRecord>, beat: u64 },
    /// For a vote.
    Vote { vote: VoteRecord, last: Option<LogIdRecord> },
    /// To append entries, or none: then it is a sign of life.
    Append {
        vote: VoteRecord,
        prev: Option<LogIdRecord>,
        entries: Vec<EntryRecord>,
        commit: Option<LogIdRecord>,
    },
    /// To take a snapshot of so many bytes, whose pieces follow.
    Head { vote: VoteRecord, head: HeadRecord, bytes: u64 },
    /// To take a piece of it.
    Piece {
        id: String,
        offset: u64,
        #[serde(with = "shoal_model::bytes_text")]
        data: Vec<u8>,
    },
    /// To install it.
    End { id: String, digest: String },
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reply {
    Pong {},
    /// Here.
    Reach {
        last: Option<LogIdRecord>,
    },
    /// It was this beat.
    Echo {
        number: u64,
        /// Whether who says it could not lead: it cannot read the whole log.
        #[serde(default)]
        barred: bool,
    },
    /// Nothing is said to that.
    Silent {},
    /// Yes or why not, for how long no vote is given, and who leads as far as is heard.
    Would {
        why: WhyWord,
        lease_ms: u64,
        leader: Option<u64>,
    },
    Vote {
        vote: VoteRecord,
        granted: bool,
        last: Option<LogIdRecord>,
    },
    Appended {},
    /// Entries up to this one.
    AppendedTo {
        last: Option<LogIdRecord>,
    },
    /// The entry before the first one is another one here.
    Conflict {},
    /// Somebody else has a higher vote.
    Higher {
        vote: VoteRecord,
    },
    /// Go on with the snapshot.
    Next {},
    /// It is installed, or older than what is here; `vote` says whether its sender still leads.
    Installed {
        vote: VoteRecord,
    },
}

/// Whether a vote would be given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WhyWord {
    Yes,
    Leads,
    Hears,
    Behind,
    Promised,
    Voted,
    Stands,
    Stranger,
    /// A later program's word; no yes.
    #[serde(other)]
    Unknown,
}

/// What tells whether a snapshot arrived whole.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// As it is sent.
pub(crate) fn raw<T: Serialize>(value: &T) -> Result<Box<RawValue>, serde_json::Error> {
    serde_json::value::to_raw_value(value)
}
