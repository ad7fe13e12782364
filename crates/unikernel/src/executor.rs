//! The executor: tasks take turns; when none can go on, the instance sleeps in one call.
//!
//! A waker is a number (place and generation of a task), so that cloning and waking cost nothing
//! and nothing is counted. A waker that outlives its task wakes nobody.
//!
//! One round: expire timers, poll the tasks that were woken, let drivers take what arrived. If that
//! made a task ready, again; else drivers send what is to be sent (so that everything that one
//! round produced leaves together), and the instance waits.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::pin::Pin;
use core::task::{Context, Poll, RawWaker, RawWakerVTable, Waker};

use shoal_unikernel_abi::call::STOP;

use crate::wheel::{Timer, Wheel};
use crate::{call, clock};

/// Rounds without a call to the monitor while tasks are ready: frames must move in the end.
const ROUNDS_MAX: u32 = 16;

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// A place for a task.
struct Slot {
    generation: u32,
    queued: bool,
    task: Option<Task>,
}

/// A part of the library that moves data at the two ends of a round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Driver {
    /// Takes what arrived, expires its own timers, wakes tasks.
    pub(crate) receive: fn(now_ns: u64),
    /// Sends what is to be sent; answers when it has to be called next (`u64::MAX`: never).
    pub(crate) settle: fn(now_ns: u64) -> u64,
}

/// All tasks of the instance.
struct Executor {
    slots: Vec<Slot>,
    free: Vec<u32>,
    ready: VecDeque<u32>,
    timers: Wheel,
    drivers: Vec<Driver>,
    stop_wakers: Vec<Waker>,
}

local! {
    static EXECUTOR: RefCell<Executor> = RefCell::new(Executor {
        slots: Vec::new(),
        free: Vec::new(),
        ready: VecDeque::new(),
        timers: Wheel::new(),
        drivers: Vec::new(),
        stop_wakers: Vec::new(),
    });
}

local! {
    /// Time of this round: reading the clock once for each is enough.
    static NOW_NS: Cell<u64> = Cell::new(0);
}

local! {
    static STOPPING: Cell<bool> = Cell::new(false);
}

fn with<R>(call: impl FnOnce(&mut Executor) -> R) -> R {
    EXECUTOR.with(|executor| call(&mut executor.borrow_mut()))
}

/// Time of this round.
pub(crate) fn now_ns() -> u64 {
    NOW_NS.with(Cell::get)
}

fn refresh_now() -> u64 {
    let now = clock::monotonic_ns();
    NOW_NS.with(|cell| cell.set(now));
    now
}

/// Adds a driver to the rounds.
pub(crate) fn add_driver(driver: Driver) {
    with(|executor| executor.drivers.push(driver));
}

const fn name_of(index: u32, generation: u32) -> u64 {
    ((generation as u64) << 32) | index as u64
}

fn make_ready(slots: &mut [Slot], ready: &mut VecDeque<u32>, task: u64) {
    let index = task as u32;
    let Some(slot) = slots.get_mut(index as usize) else { return };
    if slot.generation == (task >> 32) as u32 && !slot.queued {
        slot.queued = true;
        ready.push_back(index);
    }
}

impl Executor {
    /// Makes the task with this name ready, if it still runs.
    fn wake(&mut self, task: u64) {
        make_ready(&mut self.slots, &mut self.ready, task);
    }

    /// Wakes the tasks whose timers are due.
    fn expire(&mut self, now_ns: u64) {
        let Self { timers, slots, ready, .. } = self;
        timers.expire(now_ns, |task| make_ready(slots, ready, task));
    }
}

/// Makes the task with this name ready.
pub(crate) fn wake(task: u64) {
    with(|executor| executor.wake(task));
}

const VTABLE: RawWakerVTable = RawWakerVTable::new(
    |data| RawWaker::new(data, &VTABLE),
    |data| wake(data.addr() as u64),
    |data| wake(data.addr() as u64),
    |_| (),
);

fn waker(task: u64) -> Waker {
    let data = core::ptr::without_provenance::<()>(task as usize);
    // SAFETY: the data is a number that is never followed; all functions accept any number.
    unsafe { Waker::from_raw(RawWaker::new(data, &VTABLE)) }
}

/// The name of the task that a waker wakes.
pub(crate) fn task_of(waker: &Waker) -> u64 {
    waker.data().addr() as u64
}

/// Wakes `task` when the time has come.
pub(crate) fn insert_timer(deadline_ns: u64, task: u64) -> Timer {
    with(|executor| executor.timers.insert(deadline_ns, task))
}

/// Forgets a timer.
pub(crate) fn remove_timer(timer: Timer) {
    with(|executor| executor.timers.remove(timer));
}

/// Starts a task. It runs until it ends or the instance does.
pub fn spawn(future: impl Future<Output = ()> + 'static) {
    let task: Task = Box::pin(future);
    with(|executor| {
        let index = executor.free.pop().unwrap_or_else(|| {
            executor.slots.push(Slot { generation: 0, queued: false, task: None });
            (executor.slots.len() - 1) as u32
        });
        let slot = &mut executor.slots[index as usize];
        slot.task = Some(task);
        slot.queued = true;
        executor.ready.push_back(index);
    });
}

/// Polls the tasks that are ready now; those that become ready meanwhile have their turn later.
fn run_ready() {
    let count = with(|executor| executor.ready.len());
    for _ in 0..count {
        let next = with(|executor| {
            let index = executor.ready.pop_front()?;
            let slot = &mut executor.slots[index as usize];
            slot.queued = false;
            Some((index, slot.generation, slot.task.take()))
        });
        let Some((index, generation, Some(mut task))) = next else { continue };
        let waker = waker(name_of(index, generation));
        let kept = match task.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Pending => Some(task),
            Poll::Ready(()) => {
                // Outside of the borrow: what the task owned may wake others.
                drop(task);
                None
            }
        };
        with(|executor| {
            let slot = &mut executor.slots[index as usize];
            if kept.is_none() {
                // Wakers of the old task fit no longer.
                slot.generation = slot.generation.wrapping_add(1);
                executor.free.push(index);
            }
            slot.task = kept;
        });
    }
}

fn has_ready() -> bool {
    with(|executor| !executor.ready.is_empty())
}

fn driver(at: usize) -> Option<Driver> {
    with(|executor| executor.drivers.get(at).copied())
}

/// Calls `each` for every driver, without holding the executor.
fn for_drivers(mut each: impl FnMut(Driver)) {
    let mut at = 0;
    while let Some(driver) = driver(at) {
        each(driver);
        at += 1;
    }
}

/// Waits for something to happen, at most until `deadline_ns`.
fn wait(deadline_ns: u64) {
    let answer = call::wait(deadline_ns);
    if answer & STOP != 0 && !STOPPING.with(|cell| cell.replace(true)) {
        let wakers = with(|executor| core::mem::take(&mut executor.stop_wakers));
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Runs until `done` answers something.
pub(crate) fn run_until<T>(mut done: impl FnMut() -> Option<T>) -> T {
    let mut rounds = 0;
    loop {
        let now = refresh_now();
        with(|executor| executor.expire(now));
        run_ready();
        for_drivers(|driver| (driver.receive)(now));
        if let Some(value) = done() {
            for_drivers(|driver| {
                (driver.settle)(now);
            });
            call::wait(0);
            return value;
        }
        rounds += 1;
        if has_ready() && rounds < ROUNDS_MAX {
            continue;
        }
        rounds = 0;
        let mut deadline = with(|executor| executor.timers.next_ns());
        for_drivers(|driver| deadline = deadline.min((driver.settle)(now)));
        wait(if has_ready() { 0 } else { deadline });
    }
}

/// Forgets all tasks and drivers: a hosted thread may run another instance afterwards.
#[cfg(not(shoal_image))]
pub(crate) fn clear() {
    STOPPING.with(|cell| cell.set(false));
    let slots = with(|executor| {
        executor.ready.clear();
        executor.free.clear();
        executor.drivers.clear();
        executor.stop_wakers.clear();
        core::mem::take(&mut executor.slots)
    });
    drop(slots);
    with(|executor| executor.timers = Wheel::new());
}

/// Lets other tasks have their turn.
pub async fn yield_now() {
    let mut yielded = false;
    core::future::poll_fn(|context| {
        if core::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits until the task is asked to stop (`docker stop`, a rolling update). The instance is ended
/// after its grace period, whether it has finished or not.
pub async fn stop_requested() {
    core::future::poll_fn(|context| {
        if STOPPING.with(Cell::get) {
            return Poll::Ready(());
        }
        with(|executor| {
            let waker = context.waker();
            if !executor.stop_wakers.iter().any(|known| known.will_wake(waker)) {
                executor.stop_wakers.push(waker.clone());
            }
        });
        Poll::Pending
    })
    .await;
}

/// Ends the instance at once with this exit status. What is still to be sent may be lost: shut
/// connections down first.
pub fn exit(status: u8) -> ! {
    call::exit(status)
}
