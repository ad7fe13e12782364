//! What all processes share: chance, the trace, the network, and who looks whether all is well.

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use shoal_store::{Outside, Unfinished, Work};
use tokio::sync::watch;
use tokio::time::sleep;

use crate::chance::Dice;
use crate::check::Check;
use crate::disk::{Crash, Mood};
use crate::net::Net;
use crate::trace::Trace;

/// The world of one run. Cheap to clone.
#[derive(Clone)]
pub struct World(Arc<Shared>);

struct Shared {
    inner: Mutex<Inner>,
    /// Why the run is over, once it is.
    over: watch::Sender<Option<String>>,
}

/// What is behind the world's lock.
pub struct Inner {
    pub dice: Dice,
    pub trace: Trace,
    pub net: Net,
    pub check: Check,
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("World").finish_non_exhaustive()
    }
}

impl World {
    /// A world that follows from `seed`.
    pub fn new(seed: u64, shown: bool) -> Self {
        let inner = Inner {
            dice: Dice::new(seed),
            trace: Trace::new(shown),
            net: Net::default(),
            check: Check::default(),
        };
        Self(Arc::new(Shared { inner: Mutex::new(inner), over: watch::Sender::new(None) }))
    }

    /// What is shared. Never held over an await.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something drawn.
    pub fn dice<T>(&self, draw: impl FnOnce(&mut Dice) -> T) -> T {
        draw(&mut self.lock().dice)
    }

    /// Something happened.
    pub fn note(&self, who: &str, what: fmt::Arguments<'_>) {
        self.lock().trace.note(who, what);
    }

    /// Looks whether something holds; the first that does not ends the run.
    pub fn check(&self, look: impl FnOnce(&mut Check, u64) -> Result<(), String>) {
        let mut inner = self.lock();
        let Inner { check, trace, .. } = &mut *inner;
        let wrong = look(check, trace.now());
        drop(inner);
        if let Err(problem) = wrong {
            self.found(problem);
        }
    }

    /// Something is wrong.
    pub fn found(&self, problem: String) {
        self.note("FOUND", format_args!("{problem}"));
        self.0.over.send_if_modified(|over| {
            let first = over.is_none();
            if first {
                *over = Some(problem);
            }
            first
        });
    }

    /// Returns once something was found.
    pub async fn over(&self) -> String {
        let mut over = self.0.over.subscribe();
        // Ignored because: the sender is held here.
        let _ = over.wait_for(Option::is_some).await;
        self.finding().unwrap_or_default()
    }

    /// What was found.
    pub fn finding(&self) -> Option<String> {
        self.0.over.borrow().clone()
    }
}

/// One process, from its start to its death.
#[derive(Debug)]
pub struct Life {
    name: String,
    world: World,
    dead: watch::Sender<Option<Crash>>,
    /// After how many more writes it dies; 0 if it does not.
    fuse: AtomicU64,
    /// How it dies then.
    power: AtomicBool,
    mood: Mutex<Mood>,
}

impl Life {
    /// A process called `name` begins.
    pub fn begin(world: &World, name: &str) -> Arc<Self> {
        Arc::new(Self {
            name: name.to_owned(),
            world: world.clone(),
            dead: watch::Sender::new(None),
            fuse: AtomicU64::new(0),
            power: AtomicBool::new(false),
            mood: Mutex::default(),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// It ends at once, in the middle of whatever it does.
    pub fn die(&self, how: Crash) {
        if self.is_alive() {
            self.world.note(&self.name, format_args!("dies: {how:?}"));
            self.dead.send_replace(Some(how));
            self.world.lock().net.change();
        }
    }

    /// It ends so in the middle of its `writes`th write from now.
    pub fn die_at(&self, writes: u64, how: Crash) {
        self.power.store(how == Crash::Power, Ordering::Relaxed);
        self.fuse.store(writes.max(1), Ordering::Relaxed);
    }

    /// It does not die by itself.
    pub fn disarm(&self) {
        self.fuse.store(0, Ordering::Relaxed);
    }

    pub fn is_alive(&self) -> bool {
        self.dead.borrow().is_none()
    }

    /// How it died.
    pub fn death(&self) -> Option<Crash> {
        *self.dead.borrow()
    }

    /// Returns once it is dead.
    pub async fn ended(&self) -> Crash {
        let mut dead = self.dead.subscribe();
        // Ignored because: the sender is held here.
        let _ = dead.wait_for(Option::is_some).await;
        self.death().unwrap_or(Crash::Kill)
    }

    /// Fails if it is dead.
    pub fn check(&self) -> io::Result<()> {
        if self.is_alive() { Ok(()) } else { Err(io::Error::other("the process is dead")) }
    }

    /// One write; it may be its last moment.
    pub fn step(&self) -> io::Result<()> {
        self.check()?;
        let left = self.fuse.load(Ordering::Relaxed);
        if left > 0 {
            self.fuse.store(left - 1, Ordering::Relaxed);
            if left == 1 {
                let power = self.power.load(Ordering::Relaxed);
                self.die(if power { Crash::Power } else { Crash::Kill });
            }
        }
        self.check()
    }

    pub fn mood(&self) -> Mood {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_mood(&self, mood: Mood) {
        *self.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }
}

/// What a process gets from outside.
#[derive(Debug)]
pub struct SimOutside(pub Arc<Life>);

impl SimOutside {
    /// The time that a piece of work takes, or that it waits.
    fn takes(&self) -> Duration {
        let slow = self.0.mood().slow;
        let millis = self.0.world.dice(|dice| {
            let usual = if dice.happens(50) { dice.between(3, 40) } else { dice.below(3) };
            usual + if slow > 0 { dice.below(slow) } else { 0 }
        });
        Duration::from_millis(millis)
    }
}

/// Lets time pass, or at least everybody else have a turn.
pub async fn pause(length: Duration) {
    if length.is_zero() {
        tokio::task::yield_now().await;
    } else {
        sleep(length).await;
    }
}

#[async_trait]
impl Outside for SimOutside {
    async fn run(&self, work: Work) -> Result<(), Unfinished> {
        pause(self.takes()).await;
        let done = if self.0.is_alive() {
            catch_unwind(AssertUnwindSafe(work)).map_err(|_| Unfinished("it panicked".to_owned()))
        } else {
            Err(Unfinished("the process is dead".to_owned()))
        };
        pause(self.takes()).await;
        done
    }

    fn random(&self) -> u64 {
        self.0.world.dice(Dice::next)
    }
}
