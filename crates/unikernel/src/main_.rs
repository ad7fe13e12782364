//! From the monitor's entry to the application's `main` and back.

use alloc::rc::Rc;
use core::cell::Cell;
use core::fmt::Display;
use core::future::Future;

use crate::executor;

/// What a main function may answer.
pub trait Outcome {
    /// The exit status; says on standard error why it is not 0.
    fn status(self) -> u8;
}

impl Outcome for () {
    fn status(self) -> u8 {
        0
    }
}

impl<E: Display> Outcome for Result<(), E> {
    fn status(self) -> u8 {
        match self {
            Ok(()) => 0,
            Err(error) => {
                crate::eprintln!("error: {error}");
                1
            }
        }
    }
}

/// Runs `main` and everything that it spawns until it ends; answers the exit status.
pub fn run_main<F>(main: F) -> u8
where
    F: Future<Output: Outcome> + 'static,
{
    let status = Rc::new(Cell::new(None));
    let set = Rc::clone(&status);
    executor::spawn(async move { set.set(Some(main.await.status())) });
    executor::run_until(|| status.get())
}
