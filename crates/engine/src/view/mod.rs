//! What clients see, in the exact JSON shape of the Engine API; `api` only serialises these.

pub mod container;
pub mod exec;
pub mod stats;
pub mod summary;
pub mod volume;
