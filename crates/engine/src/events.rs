//! What happened on this node: a bounded ring and live subscribers.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use futures::{Stream, StreamExt, stream};
use shoal_model::event::{Event, Scope};
use shoal_model::filter::Filters;
use shoal_model::spec::StringMap;
use shoal_model::time::Timestamp;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use crate::config::Clock;
use crate::error::EngineError;

/// How many past events are kept. Docker keeps 256; one `docker compose up` of a few dozen
/// containers makes more than that, and a reader with `since` would miss its beginning. About
/// 400 bytes each, so well under a megabyte.
pub const RING_LEN: usize = 1_000;

/// How far a live reader may fall behind before it is cut off. Past this it would miss events, so
/// its stream ends rather than lying.
const LIVE_LEN: usize = 1_024;

/// Events of this node (and, passed on by the agent or the API, of the cluster).
#[derive(Clone)]
pub struct EventHub {
    inner: Arc<Inner>,
}

struct Inner {
    clock: Clock,
    ring: Mutex<VecDeque<Event>>,
    live: broadcast::Sender<Event>,
}

/// Which events a reader wants.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EventQuery {
    /// Past events from this time on; `None`: no past ones, unless `until` is given.
    pub since: Option<Timestamp>,
    /// The reader ends at this time; `None`: never.
    pub until: Option<Timestamp>,
    /// Which kinds, objects, actions and labels.
    pub filters: Filters,
}

/// Events in order.
pub type EventStream = Pin<Box<dyn Stream<Item = Event> + Send>>;

impl EventHub {
    /// An empty ring.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        let (live, _) = broadcast::channel(LIVE_LEN);
        Self { inner: Arc::new(Inner { clock, ring: Mutex::default(), live }) }
    }

    /// Records an event of this node, now.
    pub fn emit(&self, kind: &str, action: &str, id: &str, attributes: StringMap) {
        self.publish(Event {
            kind: kind.to_owned(),
            action: action.to_owned(),
            id: id.to_owned(),
            attributes,
            scope: Scope::Local,
            time: (self.inner.clock)(),
        });
    }

    /// Records an event that was made elsewhere, for example by the cluster.
    pub fn publish(&self, event: Event) {
        let mut ring = self.inner.ring.lock().unwrap_or_else(PoisonError::into_inner);
        if ring.len() == RING_LEN {
            ring.pop_front();
        }
        ring.push_back(event.clone());
        // Sent under the lock, so that a reader that copies the ring and subscribes under the same
        // lock sees every event exactly once. Ignored because: no reader is no failure.
        let _ = self.inner.live.send(event);
    }

    /// Past events, then live ones, as `query` says. The stream ends at `until`, and when the
    /// reader is more than a thousand events behind.
    ///
    /// # Errors
    /// A filter that is not known.
    pub fn subscribe(&self, query: EventQuery) -> Result<EventStream, EngineError> {
        query.filters.only(KNOWN_FILTERS)?;
        let (past, live) = {
            let ring = self.inner.ring.lock().unwrap_or_else(PoisonError::into_inner);
            (ring.iter().cloned().collect::<Vec<_>>(), self.inner.live.subscribe())
        };
        let now = (self.inner.clock)();
        let wants_past = query.since.is_some() || query.until.is_some();
        let first = query.since.unwrap_or(Timestamp::ZERO);
        let last = query.until.unwrap_or(Timestamp(i64::MAX));
        let past: Vec<Event> = past
            .into_iter()
            .filter(|e| wants_past && e.time >= first && e.time <= last)
            .filter(|e| matches(&query.filters, e))
            .collect();
        let remaining = last.since(now);
        if query.until.is_some() && remaining.is_zero() {
            return Ok(Box::pin(stream::iter(past)));
        }
        let filters = query.filters;
        let live = stream::unfold(live, |mut live| async move {
            // A reader that lags gets an end, see LIVE_LEN.
            live.recv().await.ok().map(|event| (event, live))
        })
        .filter(move |event| {
            let wanted = event.time >= first && event.time <= last && matches(&filters, event);
            std::future::ready(wanted)
        });
        let all = stream::iter(past).chain(live);
        if query.until.is_none() {
            return Ok(Box::pin(all));
        }
        Ok(Box::pin(all.take_until(tokio::time::sleep(remaining))))
    }

    /// The same, ending also when `stop` is cancelled.
    ///
    /// # Errors
    /// As [`Self::subscribe`].
    pub fn subscribe_until(
        &self,
        query: EventQuery,
        stop: CancellationToken,
    ) -> Result<EventStream, EngineError> {
        let all = self.subscribe(query)?;
        Ok(Box::pin(all.take_until(stop.cancelled_owned())))
    }
}

/// The filters of `GET /events`.
const KNOWN_FILTERS: &[&str] = &[
    "config",
    "container",
    "daemon",
    "event",
    "image",
    "label",
    "network",
    "node",
    "plugin",
    "scope",
    "secret",
    "service",
    "type",
    "volume",
];

/// Whether `event` passes `filters`.
#[must_use]
pub fn matches(filters: &Filters, event: &Event) -> bool {
    let scope = match event.scope {
        Scope::Local => "local",
        Scope::Swarm => "swarm",
    };
    let action = |want: &str| {
        // `exec_start` matches `exec_start: sh -c …`, `health_status` matches `health_status: x`.
        event.action == want
            || event.action.strip_prefix(want).is_some_and(|rest| rest.starts_with(':'))
    };
    filters.any("event", action)
        && filters.exact("type", &event.kind)
        && filters.exact("scope", scope)
        && filters.labels("label", &event.attributes)
        && OBJECT_FILTERS.iter().all(|name| object_matches(filters, name, event))
}

/// Filters that name an object of the same kind.
const OBJECT_FILTERS: &[&str] = &[
    "config",
    "container",
    "daemon",
    "image",
    "network",
    "node",
    "plugin",
    "secret",
    "service",
    "volume",
];

fn object_matches(filters: &Filters, kind: &str, event: &Event) -> bool {
    if !filters.has(kind) {
        return true;
    }
    let name = event.attributes.get("name").map_or("", String::as_str);
    // Events of containers also carry their image: `--filter image=x` means both.
    let image = event.attributes.get("image").map_or("", String::as_str);
    filters.any(kind, |want| match kind {
        "image" if event.kind == "container" => same_image(want, image),
        "image" => event.kind == "image" && (same_image(want, &event.id) || same_image(want, name)),
        _ => {
            event.kind == kind
                && (event.id == want
                    || name == want
                    || (kind == "container" && !want.is_empty() && event.id.starts_with(want)))
        }
    })
}

fn same_image(want: &str, have: &str) -> bool {
    let bare = |name: &str| match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository.to_owned(),
        _ => name.to_owned(),
    };
    want == have || want == bare(have)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicI64, Ordering};

    fn hub() -> EventHub {
        let ticks = AtomicI64::new(0);
        EventHub::new(Arc::new(move || Timestamp::from_secs(ticks.fetch_add(1, Ordering::Relaxed))))
    }

    fn named(name: &str) -> StringMap {
        StringMap::from([("name".to_owned(), name.to_owned())])
    }

    async fn read(hub: &EventHub, since: i64, until: i64, filters: Filters) -> Vec<String> {
        let query = EventQuery {
            since: Some(Timestamp::from_secs(since)),
            until: Some(Timestamp::from_secs(until)),
            filters,
        };
        hub.subscribe(query).unwrap().map(|e| format!("{} {}", e.action, e.id)).collect().await
    }

    #[tokio::test]
    async fn past_events_are_bounded_by_time_and_number() {
        let hub = hub();
        for n in 0..RING_LEN + 10 {
            hub.emit("container", "start", &n.to_string(), StringMap::new());
        }
        let all = read(&hub, 0, 1_000_000_000, Filters::default());
        let all = tokio::time::timeout(std::time::Duration::from_millis(20), all).await;
        assert!(all.is_err(), "until lies in the future, so the stream waits");
        assert_eq!(read(&hub, 20, 21, Filters::default()).await, ["start 20", "start 21"]);
        assert!(read(&hub, 0, 9, Filters::default()).await.is_empty(), "the oldest are gone");
    }

    #[tokio::test]
    async fn filters_choose_by_kind_name_prefix_and_action() {
        let hub = hub();
        hub.emit("container", "exec_start: sh", "abcdef", named("web"));
        hub.emit("container", "die", "abcdef", named("web"));
        hub.emit("network", "connect", "net1", named("front"));
        let read = |filters| read(&hub, 0, 2, filters);
        let by = |name: &str, value: &str| Filters::default().with(name, value);
        assert_eq!(read(by("event", "exec_start")).await.len(), 1);
        assert_eq!(read(by("container", "abc")).await.len(), 2);
        assert_eq!(read(by("container", "web")).await.len(), 2);
        assert_eq!(read(by("network", "front")).await, ["connect net1"]);
        assert_eq!(read(by("type", "container").with("event", "die")).await, ["die abcdef"]);
        assert!(hub.subscribe(EventQuery { filters: by("x", "y"), ..Default::default() }).is_err());
    }

    #[tokio::test]
    async fn a_reader_that_falls_behind_gets_an_end() {
        let hub = hub();
        let follow = || hub.subscribe(EventQuery::default()).unwrap();
        let emit = |count: usize| {
            for n in 0..count {
                hub.emit("container", "start", &n.to_string(), StringMap::new());
            }
        };
        let in_time = follow();
        emit(LIVE_LEN);
        assert_eq!(in_time.take(LIVE_LEN).count().await, LIVE_LEN);
        let late = follow();
        emit(LIVE_LEN + 1);
        assert_eq!(late.count().await, 0);
    }
}
