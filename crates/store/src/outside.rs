//! What comes from outside and is passed in, so that a simulation decides it: where work is done
//! that may block (what is read from the file, and written to it), and chance.

use std::fmt;

use async_trait::async_trait;
use tokio::sync::oneshot;

/// Something that may block.
pub type Work = Box<dyn FnOnce() + Send>;

/// What the machine gives.
#[async_trait]
pub trait Outside: Send + Sync + 'static {
    /// Does `work` and returns when it is done. Once begun it is done to its end, whoever waits.
    ///
    /// # Errors
    /// [`Unfinished`] if it broke off, or was not begun because the runtime stops.
    async fn run(&self, work: Work) -> Result<(), Unfinished>;

    /// A number by chance. Not for keys.
    fn random(&self) -> u64;
}

/// Why work did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished(pub String);

impl fmt::Display for Unfinished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unfinished {}

/// The machine itself: the threads that the runtime has for what blocks, and true chance.
#[derive(Clone, Copy, Debug, Default)]
pub struct Machine;

#[async_trait]
impl Outside for Machine {
    async fn run(&self, work: Work) -> Result<(), Unfinished> {
        tokio::task::spawn_blocking(work).await.map_err(|error| Unfinished(error.to_string()))
    }

    fn random(&self) -> u64 {
        rand::random()
    }
}

/// Has `outside` do `work` and returns what it returned.
///
/// # Errors
/// As [`Outside::run`].
pub async fn offloaded<T: Send + 'static>(
    outside: &dyn Outside,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Unfinished> {
    let (done, outcome) = oneshot::channel();
    // Ignored because: who has gone does not want it.
    outside.run(Box::new(move || drop(done.send(work())))).await?;
    outcome.await.map_err(|_| Unfinished("it was given up".to_owned()))
}
