//! Time: instants, sleeping, deadlines.

use core::future::Future;
use core::ops::{Add, Sub};
use core::pin::Pin;
use core::task::{Context, Poll};
pub use core::time::Duration;

use crate::wheel::Timer;
use crate::{clock, executor};

/// A moment of the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(u64);

impl Instant {
    /// Now.
    #[must_use]
    pub fn now() -> Self {
        Self(clock::monotonic_ns())
    }

    /// How long ago it was; zero if it is still to come.
    #[must_use]
    pub fn elapsed(self) -> Duration {
        Self::now() - self
    }

    /// The moment so many nanoseconds after the clock's start.
    pub(crate) const fn at(nanoseconds: u64) -> Self {
        Self(nanoseconds)
    }

    /// Nanoseconds since the clock's start.
    #[must_use]
    pub const fn nanoseconds(self) -> u64 {
        self.0
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(duration.as_nanos().min(u128::from(u64::MAX)) as u64))
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

/// Time since 1970-01-01T00:00:00Z by the host's clock.
#[must_use]
pub fn wall_clock() -> Duration {
    Duration::from_nanos(clock::wall_ns())
}

/// Waits until `duration` has passed; up to 131 µs more.
pub fn sleep(duration: Duration) -> Sleep {
    sleep_until(Instant::now() + duration)
}

/// Waits until `deadline`.
pub fn sleep_until(deadline: Instant) -> Sleep {
    Sleep { deadline, timer: None }
}

/// The future of [`sleep`].
#[derive(Debug)]
pub struct Sleep {
    deadline: Instant,
    timer: Option<(Timer, u64)>,
}

impl Sleep {
    fn cancel(&mut self) {
        if let Some((timer, _)) = self.timer.take() {
            executor::remove_timer(timer);
        }
    }
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if executor::now_ns() >= self.deadline.0 {
            self.cancel();
            return Poll::Ready(());
        }
        let task = executor::task_of(context.waker());
        if self.timer.is_none_or(|(_, set_for)| set_for != task) {
            self.cancel();
            self.timer = Some((executor::insert_timer(self.deadline.0, task), task));
        }
        Poll::Pending
    }
}

impl Drop for Sleep {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The time was over before the future was ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the time is over")]
pub struct Elapsed;

/// Waits for `future`, but not longer than `duration`.
///
/// # Errors
/// [`Elapsed`]; the future is dropped then.
pub async fn timeout<F: Future>(duration: Duration, future: F) -> Result<F::Output, Elapsed> {
    let mut future = core::pin::pin!(future);
    let mut sleep = core::pin::pin!(sleep(duration));
    core::future::poll_fn(|context| {
        if let Poll::Ready(value) = future.as_mut().poll(context) {
            return Poll::Ready(Ok(value));
        }
        sleep.as_mut().poll(context).map(|()| Err(Elapsed))
    })
    .await
}
