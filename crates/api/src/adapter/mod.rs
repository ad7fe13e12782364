//! The real engine, image store and manager behind the traits of [`crate::backend`].

pub mod control;
pub mod engine;
pub mod image;

use crate::http::filters::Filters;

/// The engine reads filters in its own type.
fn engine_filters(filters: &Filters) -> shoal_engine::filter::Filters {
    let pairs = filters.as_map().iter();
    let pairs = pairs.flat_map(|(key, values)| values.iter().map(move |value| (key, value)));
    pairs.fold(shoal_engine::filter::Filters::default(), |all, (key, value)| all.with(key, value))
}
