//! Asks external certificate authorities, one after the other.

use std::time::Duration;

use shoal_identity::error::IdentityError;
use shoal_identity::external::{HttpsPost, Wanted, issue};
use shoal_identity::node_identity::NodeIdentity;
use shoal_model::object::RootCa;
use shoal_model::time::Timestamp;
use tokio::time::timeout;

/// How long one may take to issue a certificate.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// A certificate by `root`, from the first of the authorities at `urls` that gives one: the leaf
/// alone, PEM. `heard` is told how each answered.
///
/// # Errors
/// Why the last one gave none; [`IdentityError::NoSigner`] if there is none to ask.
pub async fn ask<'a>(
    way: &dyn HttpsPost,
    urls: impl Iterator<Item = &'a str>,
    root: &RootCa,
    as_whom: &NodeIdentity,
    wanted: &Wanted,
    now: Timestamp,
    heard: impl Fn(Option<&IdentityError>),
) -> Result<String, IdentityError> {
    let mut last = IdentityError::NoSigner;
    for url in urls {
        let late = || IdentityError::External {
            url: url.to_owned(),
            problem: format!("no answer within {} s", ANSWER_WITHIN.as_secs()),
        };
        let asked = timeout(ANSWER_WITHIN, issue(way, url, root, as_whom, wanted, now)).await;
        match asked.unwrap_or_else(|_| Err(late())) {
            Ok(leaf) => {
                heard(None);
                return Ok(leaf);
            }
            Err(error) => {
                heard(Some(&error));
                last = error;
            }
        }
    }
    Err(last)
}
