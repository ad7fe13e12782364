//! The real engine, image store and manager behind the traits of [`crate::backend`].

pub mod control;
pub mod engine;
pub mod image;
