//! The network: messages take time, are lost, come twice and overtake each other; ways are cut,
//! each direction by itself; connections end when a process dies, if the news can arrive.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::value::RawValue;
use shoal_model::id::NodeId;
use shoal_store::{Door, Lane, PeerError, Peers, StoreError};
use tokio::sync::{oneshot, watch};
use tokio::time::{sleep, timeout};

use crate::disk::Crash;
use crate::world::{Inner, Life, World, pause};

/// How long a connection is tried, and one without a sign of life kept.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
const KEPT_ALIVE: Duration = Duration::from_secs(12);

/// How the ways behave at present, in thousandths of messages and milliseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    pub lost: u64,
    pub twice: u64,
    pub late: u64,
    pub late_by: u64,
}

/// One that can be asked.
#[derive(Clone)]
struct Listener {
    door: Door,
    life: Arc<Life>,
}

/// The network.
#[derive(Default)]
pub struct Net {
    listeners: BTreeMap<String, Listener>,
    cut: BTreeSet<(String, String)>,
    pub weather: Weather,
    changed: watch::Sender<()>,
}

impl Net {
    /// `life` listens from now on.
    pub fn listen(&mut self, door: Door, life: &Arc<Life>) {
        let listener = Listener { door, life: Arc::clone(life) };
        self.listeners.insert(life.name().to_owned(), listener);
        self.change();
    }

    pub fn cut(&mut self, from: &str, to: &str) {
        self.cut.insert((from.to_owned(), to.to_owned()));
        self.change();
    }

    /// All ways are open, and the weather is fine.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.weather = Weather::default();
        self.change();
    }

    /// Says that a way may be another one than before.
    pub fn change(&self) {
        self.changed.send_replace(());
    }

    fn is_cut(&self, from: &str, to: &str) -> bool {
        self.cut.contains(&(from.to_owned(), to.to_owned()))
    }

    /// Who listens at `to`, and whether its host has power.
    fn at(&self, to: &str) -> (Option<Listener>, bool) {
        let Some(listener) = self.listeners.get(to) else { return (None, true) };
        match listener.life.death() {
            None => (Some(listener.clone()), true),
            Some(how) => (None, how == Crash::Kill),
        }
    }
}

/// A process's way to the others.
pub struct Plug {
    world: World,
    life: Arc<Life>,
}

impl Plug {
    pub fn new(world: &World, life: &Arc<Life>) -> Self {
        Self { world: world.clone(), life: Arc::clone(life) }
    }

    /// Takes one direction's time; whether the message arrives.
    async fn travel(&self, from: &str, to: &str) -> bool {
        let (millis, lost) = {
            let mut inner = self.world.lock();
            let Inner { dice, net, .. } = &mut *inner;
            let weather = net.weather;
            let late = dice.happens(weather.late);
            let extra = if late { dice.below(weather.late_by + 1) } else { 0 };
            (dice.below(3) + extra, dice.happens(weather.lost) || net.is_cut(from, to))
        };
        pause(Duration::from_millis(millis)).await;
        !lost && !self.world.lock().net.is_cut(from, to)
    }

    /// Delivers `body` to who listens at `to`. It is carried out whoever waits.
    async fn deliver(&self, to: &str, body: &RawValue) -> Result<Box<RawValue>, PeerError> {
        let (listener, power) = self.world.lock().net.at(to);
        let Some(Listener { door, life }) = listener else {
            if power {
                return Err(PeerError::Refused);
            }
            return std::future::pending().await;
        };
        let (from, body) = (NodeId::new(self.life.name()), body.to_owned());
        let (done, answer) = oneshot::channel();
        let at = Arc::clone(&life);
        let world = self.world.clone();
        tokio::spawn(async move {
            let answer = door.call(&from, &body).await;
            if at.is_alive() {
                if let Ok(answer) = &answer {
                    world.check(|check, _| check.answered(at.name(), &body, answer));
                }
                // Ignored because: who asked may have gone.
                let _ = done.send(answer);
            }
        });
        match answer.await {
            Ok(answer) => answer.map_err(|error| match error {
                StoreError::Stranger { .. } => PeerError::Stranger { text: error.to_string() },
                error => PeerError::Other(error.to_string()),
            }),
            Err(_) if life.death() == Some(Crash::Power) => std::future::pending().await,
            Err(_) => Err(PeerError::Closed),
        }
    }

    async fn ask(&self, to: &str, body: Box<RawValue>) -> Result<Box<RawValue>, PeerError> {
        let own = self.life.name();
        if !self.life.is_alive() {
            return Err(PeerError::Closed);
        }
        {
            let text = body.get();
            let what = text.find("\"ask\":").map_or(text, |at| &text[at + 6..]);
            let what = &what[..what.len().min(120)];
            self.world.note(own, format_args!("asks {to} {what}"));
        }
        self.world.check(|check, now| check.asked(own, &body, now));
        if !self.travel(own, to).await {
            return std::future::pending().await;
        }
        if self.world.dice_for(|dice, weather| dice.happens(weather.twice)) {
            let (again, to, body) = (self.again(), to.to_owned(), body.clone());
            tokio::spawn(async move {
                if again.travel(again.life.name(), &to).await {
                    // Ignored because: the first answer is the one that is heard.
                    let _ = timeout(CONNECT_LIMIT, again.deliver(&to, &body)).await;
                }
            });
        }
        let answer = self.deliver(to, &body).await;
        if !self.travel(to, own).await {
            return std::future::pending().await;
        }
        if !self.life.is_alive() {
            return Err(PeerError::Closed);
        }
        answer
    }

    fn again(&self) -> Self {
        Self { world: self.world.clone(), life: Arc::clone(&self.life) }
    }
}

impl World {
    fn dice_for<T>(&self, draw: impl FnOnce(&mut crate::chance::Dice, Weather) -> T) -> T {
        let mut inner = self.lock();
        let weather = inner.net.weather;
        draw(&mut inner.dice, weather)
    }

    /// Follows the changes of ways.
    fn ways(&self) -> watch::Receiver<()> {
        self.lock().net.changed.subscribe()
    }
}

#[async_trait]
impl Peers for Plug {
    async fn call(
        &self,
        to: &NodeId,
        _lane: Lane,
        body: Box<RawValue>,
        limit: Duration,
    ) -> Result<Box<RawValue>, PeerError> {
        let late = |_| PeerError::Late { after: limit };
        timeout(limit, self.ask(to.as_str(), body)).await.map_err(late)?
    }

    async fn lost(&self, to: &NodeId, _lane: Lane) -> PeerError {
        let (own, to) = (self.life.name(), to.as_str());
        let mut ways = self.world.ways();
        if !self.life.is_alive() {
            return std::future::pending().await;
        }
        if !self.travel(own, to).await || !self.travel(to, own).await {
            sleep(CONNECT_LIMIT).await;
            return PeerError::Late { after: CONNECT_LIMIT };
        }
        let (listener, power) = self.world.lock().net.at(to);
        let Some(Listener { life, .. }) = listener else {
            if power {
                return PeerError::Refused;
            }
            sleep(CONNECT_LIMIT).await;
            return PeerError::Late { after: CONNECT_LIMIT };
        };
        loop {
            let (there, back, dead) = {
                let inner = self.world.lock();
                let net = &inner.net;
                (!net.is_cut(own, to), !net.is_cut(to, own), life.death())
            };
            if dead == Some(Crash::Kill) && back {
                pause(Duration::from_millis(1)).await;
                return PeerError::Closed;
            }
            let silent = dead.is_some() || !there || !back;
            // Ignored because: the world has the other end.
            if silent {
                if timeout(KEPT_ALIVE, ways.changed()).await.is_err() {
                    return PeerError::Closed;
                }
            } else {
                let _ = ways.changed().await;
            }
        }
    }
}
