//! Whether the other members' processes are there, as connections tell: a process that is killed
//! ends its connections and refuses new ones within milliseconds, which no silence tells as fast.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::leadership::Elections;
use crate::links::Links;
use crate::peer::{Member, PeerError};

/// A connection that lasted this long was one: its end is news.
const STOOD: Duration = Duration::from_millis(250);
/// Attempts after the end of a connection, and the pause between them: two that are refused within
/// a moment prove a death.
const QUICK: (u32, Duration) = (3, Duration::from_millis(50));
/// Pause between attempts while there is no connection.
const SLOW: Duration = Duration::from_millis(500);

/// How long a member may take to say that it is there: opening a connection is part of it.
const PRESENT_WITHIN: Duration = Duration::from_secs(5);

/// One task for each other member.
#[derive(Default)]
pub(crate) struct Pulses(BTreeMap<u64, (Member, JoinHandle<()>)>);

impl Pulses {
    /// Feels the pulse of `members`, and of nobody else.
    pub(crate) fn follow(
        &mut self,
        elections: &Arc<Elections>,
        links: &Arc<Links>,
        members: &BTreeMap<u64, Member>,
    ) {
        self.0.retain(|id, (member, task)| {
            let stays = members.get(id) == Some(member);
            if !stays {
                task.abort();
            }
            stays
        });
        for (id, member) in members.iter().filter(|(_, member)| !member.node.is_empty()) {
            self.0.entry(*id).or_insert_with(|| {
                let (to, links) = (member.clone(), Arc::clone(links));
                let task = tokio::spawn(feel(Arc::downgrade(elections), links, to));
                (member.clone(), task)
            });
        }
    }

    pub(crate) fn end(&mut self) {
        for (_, task) in std::mem::take(&mut self.0).into_values() {
            task.abort();
        }
    }
}

impl Drop for Pulses {
    fn drop(&mut self) {
        self.end();
    }
}

/// Tells `elections` whenever a connection to `peer` stands or ends.
async fn feel(elections: Weak<Elections>, links: Arc<Links>, peer: Member) {
    let mut quick = 0;
    loop {
        let mut began = None;
        let why = match links.ping(&peer, PRESENT_WITHIN).await {
            Ok(()) => {
                let Some(elections) = elections.upgrade() else { return };
                elections.present(peer.raft_id);
                drop(elections);
                began = Some(Instant::now());
                links.lost(&peer).await
            }
            Err(why) => why,
        };
        let Some(elections) = elections.upgrade() else { return };
        elections.lost(peer.raft_id, &why);
        drop(elections);
        let stood = began.is_some_and(|began| began.elapsed() >= STOOD);
        if stood && why == PeerError::Closed {
            // At once.
            quick = QUICK.0;
            continue;
        }
        quick = u32::saturating_sub(quick, 1);
        sleep(if quick > 0 { QUICK.1 } else { SLOW }).await;
    }
}
