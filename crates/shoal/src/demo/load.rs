//! Requests from the outside client, one connection each, with the time that each took.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::net::TcpStream;

use super::machine::Machine;
use crate::tools::request::exchange;

/// A request that takes longer counts as failed.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(8);
/// Clients of the background load: while some wait for a lost task, others show what new
/// connections meet.
const CLIENTS: u32 = 8;
/// Pause between two requests of a client of the background load.
const PAUSE: Duration = Duration::from_millis(20);

/// What came of many requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How often each answer came.
    pub answers: BTreeMap<String, u32>,
    /// How often each failure happened.
    pub failures: BTreeMap<String, u32>,
    /// The longest that one request took.
    pub longest: Duration,
    /// The longest that one connection took until it was there, or failed.
    pub longest_connect: Duration,
}

impl Tally {
    fn count(&mut self, outcome: Result<String>, connect: Duration, took: Duration) {
        self.longest = self.longest.max(took);
        self.longest_connect = self.longest_connect.max(connect);
        match outcome {
            Ok(answer) => *self.answers.entry(answer.trim().to_owned()).or_default() += 1,
            Err(error) => *self.failures.entry(format!("{error:#}")).or_default() += 1,
        }
    }

    /// How many were answered.
    pub fn answered(&self) -> u32 {
        self.answers.values().sum()
    }

    /// How many were not.
    pub fn failed(&self) -> u32 {
        self.failures.values().sum()
    }
}

/// Sends `count` requests from `machine`, one after the other.
pub async fn requests(machine: &Machine, to: SocketAddr, count: u32) -> Result<Tally> {
    let tally = Arc::new(Mutex::new(Tally::default()));
    let stop = Arc::new(AtomicBool::new(false));
    run(machine, to, Some(count), Duration::ZERO, &tally, &stop).await?;
    let tally = tally.lock().unwrap_or_else(PoisonError::into_inner);
    Ok(tally.clone())
}

/// Load in the background.
#[derive(Debug)]
pub struct Background {
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Result<()>>,
}

impl Background {
    /// Begins to send requests from `machine`, for ever.
    pub fn begin(machine: &Machine, to: SocketAddr) -> Self {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let stop = Arc::new(AtomicBool::new(false));
        let task = {
            let (tally, stop) = (Arc::clone(&tally), Arc::clone(&stop));
            let netns = machine.netns.clone();
            tokio::task::spawn_blocking(move || {
                in_namespace(&netns, to, None, PAUSE, &tally, &stop)
            })
        };
        Self { tally, stop, task }
    }

    /// Ends it.
    pub async fn end(self) -> Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.context("wait for the load")??;
        let tally = self.tally.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(tally.clone())
    }
}

async fn run(
    machine: &Machine,
    to: SocketAddr,
    count: Option<u32>,
    pause: Duration,
    tally: &Arc<Mutex<Tally>>,
    stop: &Arc<AtomicBool>,
) -> Result<()> {
    let (tally, stop) = (Arc::clone(tally), Arc::clone(stop));
    let netns = machine.netns.clone();
    tokio::task::spawn_blocking(move || in_namespace(&netns, to, count, pause, &tally, &stop))
        .await
        .context("send requests")?
}

/// Sockets belong to the namespace of the thread that opens them: a runtime of its own, there.
fn in_namespace(
    netns: &std::path::Path,
    to: SocketAddr,
    count: Option<u32>,
    pause: Duration,
    tally: &Mutex<Tally>,
    stop: &AtomicBool,
) -> Result<()> {
    shoal_netlink::netns::run_in(netns, || -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let client = || async {
            let mut sent = 0;
            while count.is_none_or(|count| sent < count) && !stop.load(Ordering::Relaxed) {
                let (outcome, connect, took) = one_request(to).await;
                tally.lock().unwrap_or_else(PoisonError::into_inner).count(outcome, connect, took);
                sent += 1;
                tokio::time::sleep(pause).await;
            }
        };
        let clients = if count.is_some() { 1 } else { CLIENTS };
        let all = futures::future::join_all((0..clients).map(|_| client()));
        runtime.block_on(all);
        Ok(())
    })
    .context("enter the client's namespace")?
}

/// One request: what came of it, how long the connection took, how long everything took.
async fn one_request(to: SocketAddr) -> (Result<String>, Duration, Duration) {
    let began = Instant::now();
    let connected = tokio::time::timeout(REQUEST_TIMEOUT, TcpStream::connect(to)).await;
    let connect = began.elapsed();
    let late = || anyhow::anyhow!("no answer within {REQUEST_TIMEOUT:?}");
    let outcome = match connected {
        Err(_) => Err(late()),
        Ok(Err(error)) => Err(anyhow::Error::new(error).context(format!("connect to {to}"))),
        Ok(Ok(stream)) => {
            let left = REQUEST_TIMEOUT.saturating_sub(connect);
            let answer = tokio::time::timeout(left, exchange(stream, "demo", "/")).await;
            answer.unwrap_or_else(|_| Err(late()))
        }
    };
    (outcome, connect, began.elapsed())
}
