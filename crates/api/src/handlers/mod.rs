//! The handlers, one file for each group of routes.

pub mod containers;
pub mod distribution;
pub mod exec;
pub mod images;
pub mod missing;
pub mod networks;
pub mod nodes;
pub mod payloads;
pub mod ping;
pub mod service_logs;
pub mod services;
pub mod shoal;
pub mod streams;
pub mod swarm;
pub mod system;
pub mod tasks;
pub mod volumes;

use shoal_model::log::LogSelection;
use shoal_model::name::{Lookup, resolve};
use shoal_model::time::Timestamp;

use crate::error::{ApiError, ApiResult};
use crate::http::query::Query;

/// Finds the object that a user's word means: full id, then exact name, then unique prefix.
///
/// # Errors
/// 404 `kind x not found`, 400 `kind x is ambiguous (n matches found)`.
pub(crate) fn find<'a, T, I>(kind: &str, word: &str, items: I) -> ApiResult<T>
where
    T: Clone,
    I: Iterator<Item = (&'a str, &'a str, T)> + Clone,
{
    match resolve(word, items) {
        Lookup::Found(item) => Ok(item),
        Lookup::Missing => Err(ApiError::not_found(format!("{kind} {word} not found"))),
        Lookup::Ambiguous { matches } => {
            Err(ApiError::invalid(format!("{kind} {word} is ambiguous ({matches} matches found)")))
        }
    }
}

/// Reads Docker's times in queries: seconds with an optional fraction, or RFC 3339. Zero is none.
///
/// # Errors
/// 400 naming the parameter.
pub(crate) fn query_time(name: &str, text: Option<&str>) -> ApiResult<Option<Timestamp>> {
    let Some(text) = text.filter(|text| !text.is_empty() && *text != "0") else {
        return Ok(None);
    };
    let bad = || ApiError::invalid(format!("parameter '{name}': '{text}' is not a time"));
    let at = Timestamp::parse_docker(text).ok_or_else(bad)?;
    Ok((at != Timestamp::ZERO).then_some(at))
}

/// Reads `tail`: `all` or empty is everything.
fn query_tail(text: Option<&str>) -> Option<u64> {
    text.and_then(|text| text.parse().ok())
}

/// Which lines of logs a query asks for.
///
/// # Errors
/// 400 in Docker's words if it wants neither stream; a time that is none.
pub(crate) fn log_selection(query: &Query) -> ApiResult<LogSelection> {
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    if !stdout && !stderr {
        return Err(ApiError::invalid("Bad parameters: you must choose at least one stream"));
    }
    Ok(LogSelection {
        stdout,
        stderr,
        follow: query.flag("follow"),
        tail: query_tail(query.get("tail")),
        since: query_time("since", query.get("since"))?,
        until: query_time("until", query.get("until"))?,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn times_are_read_in_both_forms() {
        let read = |text| query_time("since", Some(text));
        assert_eq!(read("1.5").unwrap(), Some(Timestamp(1_500_000_000)));
        assert_eq!(read("0").unwrap(), None);
        assert_eq!(read("1970-01-01T00:00:02Z").unwrap(), Some(Timestamp::from_secs(2)));
        assert!(read("yesterday").is_err());
        assert!(read("1.x").is_err());
    }

    #[test]
    fn ambiguity_is_said_in_dockers_words() {
        let items = [("abc", "x", 1), ("abd", "y", 2)];
        let find = |word| find("service", word, items.iter().map(|(i, n, v)| (*i, *n, *v)));
        assert_eq!(find("ab").unwrap_err().message, "service ab is ambiguous (2 matches found)");
        assert_eq!(find("q").unwrap_err().message, "service q not found");
        assert_eq!(find("y").unwrap(), 2);
    }
}
