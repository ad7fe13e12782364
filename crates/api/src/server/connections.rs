//! How many clients may be connected, and who has to go when one more comes.
//!
//! Connections without a request cost a descriptor each, and descriptors are what containers,
//! images and the store need, too. So they are bounded; when the bound is reached, the one that has
//! been quiet for longest is closed for the new one. Clients that keep connections expect that.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio_util::sync::CancellationToken;

/// Most connections at a time, where the limit of descriptors allows it: some hundred clients that
/// each follow a dozen streams.
const CONNECTIONS_MAX: usize = 4096;
/// The part of this process's descriptors that connections may take: one in four.
const DESCRIPTORS_SHARE: usize = 4;
/// Limit of descriptors where it cannot be read: what every system gives.
const DESCRIPTORS_USUAL: usize = 1024;

/// All connections of the server. Clones share them.
#[derive(Clone)]
pub struct Connections {
    max: usize,
    all: Arc<Mutex<All>>,
}

#[derive(Default)]
struct All {
    next: u64,
    /// Counts requests and connections: a clock that orders, without time.
    tick: u64,
    open: BTreeMap<u64, One>,
}

struct One {
    requests: usize,
    quiet_since: u64,
    leave: CancellationToken,
}

/// A place among the connections; it is free again when this goes away.
pub struct Place {
    connections: Connections,
    id: u64,
    leave: CancellationToken,
}

/// A request that is being answered on a connection.
pub struct Busy {
    connections: Connections,
    id: u64,
}

impl Connections {
    /// As many as this process's limit of descriptors allows.
    #[must_use]
    pub fn within_limits() -> Self {
        let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let descriptors = soft_limit(&limits).unwrap_or(DESCRIPTORS_USUAL);
        Self::bounded(CONNECTIONS_MAX.min(descriptors / DESCRIPTORS_SHARE))
    }

    fn bounded(max: usize) -> Self {
        Self { max, all: Arc::default() }
    }

    /// How many clients are served at most.
    #[must_use]
    pub const fn max(&self) -> usize {
        self.max
    }

    /// Takes in one more; `None` if each of the others is being answered.
    #[must_use]
    pub fn admit(&self) -> Option<Arc<Place>> {
        let mut all = self.lock();
        if all.open.len() >= self.max {
            let quiet = all.open.iter().filter(|(_, one)| one.requests == 0);
            let id = *quiet.min_by_key(|(_, one)| one.quiet_since)?.0;
            if let Some(one) = all.open.remove(&id) {
                one.leave.cancel();
            }
        }
        all.next += 1;
        all.tick += 1;
        let (id, leave) = (all.next, CancellationToken::new());
        let one = One { requests: 0, quiet_since: all.tick, leave: leave.clone() };
        all.open.insert(id, one);
        Some(Arc::new(Place { connections: self.clone(), id, leave }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Resolves when the connection has to go.
    pub async fn must_leave(&self) {
        self.leave.cancelled().await;
    }

    /// A request has come.
    #[must_use]
    pub fn busy(&self) -> Busy {
        if let Some(one) = self.connections.lock().open.get_mut(&self.id) {
            one.requests += 1;
        }
        Busy { connections: self.connections.clone(), id: self.id }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.connections.lock().open.remove(&self.id);
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let mut all = self.connections.lock();
        all.tick += 1;
        let tick = all.tick;
        if let Some(one) = all.open.get_mut(&self.id) {
            one.requests = one.requests.saturating_sub(1);
            one.quiet_since = tick;
        }
    }
}

/// `Max open files            1024                 524288               files`.
fn soft_limit(limits: &str) -> Option<usize> {
    let line = limits.lines().find(|line| line.starts_with("Max open files"))?;
    let soft = line.split_whitespace().nth(3)?;
    if soft == "unlimited" { Some(usize::MAX) } else { soft.parse().ok() }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_quietest_goes_and_busy_ones_stay() {
        let connections = Connections::bounded(2);
        let first = connections.admit().unwrap();
        let second = connections.admit().unwrap();
        let busy = first.busy();
        let third = connections.admit().unwrap();
        assert!(second.leave.is_cancelled() && !first.leave.is_cancelled());
        let (_busy, last) = (third.busy(), connections.admit().is_none());
        assert!(last, "both are being answered");
        drop(busy);
        let fourth = connections.admit().unwrap();
        assert!(first.leave.is_cancelled() && !fourth.leave.is_cancelled());
        // What has left frees nobody else's place.
        drop((first, second));
        assert_eq!(connections.lock().open.len(), 2);
    }

    #[test]
    fn the_limit_of_descriptors_is_read() {
        let text = "Limit   Soft Limit  Hard Limit  Units\nMax open files   1024   4096   files\n";
        assert_eq!(soft_limit(text), Some(1024));
        assert!(soft_limit(&std::fs::read_to_string("/proc/self/limits").unwrap()).is_some());
    }
}
