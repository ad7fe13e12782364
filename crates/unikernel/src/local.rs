//! State of the whole instance.
//!
//! An image has one thread, so that a plain static will do. A hosted program may run several
//! instances, each on its own thread (tests do), so that there it is the thread's.

/// A static of the image.
#[cfg(shoal_image)]
#[derive(Debug)]
pub struct Local<T>(T);

// SAFETY: an image has exactly one thread and no interrupts; nothing is ever shared.
#[cfg(shoal_image)]
unsafe impl<T> Sync for Local<T> {}

#[cfg(shoal_image)]
impl<T> Local<T> {
    /// Holds `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// Calls `with` with the value, as the standard library's `LocalKey` does.
    pub fn with<R>(&'static self, with: impl FnOnce(&T) -> R) -> R {
        with(&self.0)
    }
}

/// Declares state of the instance: `local! { static NAME: Type = constant; }`.
macro_rules! local {
    ($(#[$doc:meta])* static $name:ident: $type:ty = $value:expr;) => {
        $(#[$doc])*
        #[cfg(shoal_image)]
        static $name: $crate::local::Local<$type> = $crate::local::Local::new($value);
        #[cfg(not(shoal_image))]
        std::thread_local! {
            $(#[$doc])*
            static $name: $type = const { $value };
        }
    };
}
