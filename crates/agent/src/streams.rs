//! Streams that this node opens to a manager because it was asked to: by them clients of managers
//! reach the containers of its tasks. What is said on them is another room's; here is who may ask,
//! how many there are, and when they end.

use std::io;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use futures::future::BoxFuture;
use shoal_model::fault::{FaultKind, report};
use shoal_wire::client;
use shoal_wire::error::WireError;
use shoal_wire::fault::RemoteFault;
use shoal_wire::message::OpenStream;
use shoal_wire::stream::Tunnel;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::agent::{Agent, lock};

/// Streams that this node has open at the same time. An exec has two, for a moment.
const STREAMS_MAX: usize = 256;
/// How long a stream waits for its turn; the manager waits a little longer.
const TURN_MAX: Duration = Duration::from_secs(3);

/// Serves what comes on a stream.
pub trait StreamService: Send + Sync + 'static {
    /// Serves `stream` until it ends.
    fn serve(&self, stream: Tunnel) -> BoxFuture<'static, ()>;
}

/// The streams of this node.
pub(crate) struct Streams {
    service: OnceLock<Arc<dyn StreamService>>,
    places: Arc<Semaphore>,
    running: Mutex<JoinSet<()>>,
}

impl Default for Streams {
    fn default() -> Self {
        Self {
            service: OnceLock::new(),
            places: Arc::new(Semaphore::new(STREAMS_MAX)),
            running: Mutex::default(),
        }
    }
}

impl Streams {
    pub(crate) fn serve(&self, service: Arc<dyn StreamService>) {
        if self.service.set(service).is_err() {
            tracing::error!("streams are served already");
        }
    }

    /// Opens the stream that a manager asks for in this node's session, beside it.
    pub(crate) fn open(&self, agent: &Agent, open: OpenStream) {
        let mut running = lock(&self.running);
        while running.try_join_next().is_some() {}
        let (agent, stop) = (agent.clone(), agent.stopping());
        running.spawn(async move {
            let manager = open.manager.node_id.clone();
            let opened = async {
                if let Err(error) = run(&agent, open).await {
                    tracing::warn!(%manager, cause = report(&error), "no stream to a manager");
                }
            };
            stop.run_until_cancelled(opened).await;
        });
    }
}

async fn run(agent: &Agent, open: OpenStream) -> Result<(), RemoteFault> {
    let streams = &agent.inner.streams;
    let mut membership = agent.inner.membership.subscribe();
    let identity = membership.borrow_and_update().as_ref().map(|member| member.identity.clone());
    // Whoever asks in a session knows this node as a member; it has left since.
    let Some(identity) = identity else { return Ok(()) };
    let unavailable = |text: String| RemoteFault::new(FaultKind::Unavailable, text);
    let turn = tokio::time::timeout(TURN_MAX, Arc::clone(&streams.places).acquire_owned()).await;
    let Ok(Ok(place)) = turn else {
        return Err(unavailable(format!("{STREAMS_MAX} streams are open, no more are taken now")));
    };
    let refused = |error: WireError| RemoteFault::of(&error);
    // It must be that manager, by its certificate; this node's is proven to it.
    let manager = &open.manager;
    let client = client::connect_to(&manager.addr, &identity, &manager.node_id).await;
    let stream = client.map_err(refused)?.stream(open.number).await.map_err(refused)?;
    let Some(service) = streams.service.get() else {
        stream.refuse(&unavailable("this node is still starting".to_owned())).await;
        return Ok(());
    };
    let stop = agent.stopping();
    let left = async move {
        tokio::select! {
            biased;
            () = stop.cancelled_owned() => {}
            // Ignored because: an agent that is gone ends its streams, too.
            _ = membership.changed() => {}
        }
        io::Error::new(io::ErrorKind::ConnectionAborted, "this node has left, or stops")
    };
    service.serve(stream.until(left).keeping(place)).await;
    Ok(())
}
