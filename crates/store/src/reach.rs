//! How far the logs of the members reach: for who has to choose one of them to go on from, because
//! the majority is gone for good.

use std::time::Duration;

use tokio::task::JoinSet;

use crate::core::Core;
use crate::peer::{Lane, Member};
use crate::question::{Ask, Reply};
use crate::record::LogIdRecord;

/// Where a member's log ends. Of two, the greater one holds all that was ever confirmed of what the
/// other one holds: the "more up-to-date" log of the Raft paper, section 5.4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogEnd {
    /// The term of its last entry.
    pub term: u64,
    /// The number of its last entry.
    pub index: u64,
}

impl From<Option<LogIdRecord>> for LogEnd {
    fn from(last: Option<LogIdRecord>) -> Self {
        last.map(|at| Self { term: at.term, index: at.index }).unwrap_or_default()
    }
}

impl Core {
    /// Where the logs of this member and of all others end that answer within `limit`; those that
    /// learn, too.
    pub(crate) async fn reach(&self, limit: Duration) -> Vec<(Member, LogEnd)> {
        let group = self.group(&self.raft.metrics().borrow());
        let members = group.voters.into_iter().chain(group.learners);
        let mut asked = JoinSet::new();
        for member in members.filter(|member| member.raft_id != self.raft_id) {
            let links = self.links.clone();
            asked.spawn(async move {
                let answer = links.put(&member, Lane::Vote, Ask::Reach {}, limit).await;
                (member, answer)
            });
        }
        let mut found = vec![(self.links.own.clone(), self.disk.last().into())];
        for (member, answer) in asked.join_all().await {
            match answer {
                Ok(Reply::Reach { last }) => found.push((member, last.into())),
                Ok(other) => tracing::warn!(%member, ?other, "no answer to where its log ends"),
                Err(error) => tracing::info!(%member, cause = %error, "where its log ends"),
            }
        }
        found
    }
}
