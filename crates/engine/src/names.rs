//! Names and ids of containers.

use rand::Rng;
use shoal_model::id::ContainerId;

use crate::error::EngineError;

const ADJECTIVES: &[&str] = &[
    "able", "amber", "apt", "blue", "bold", "brave", "brief", "bright", "brisk", "broad", "calm",
    "clean", "clear", "clever", "cool", "crisp", "deep", "eager", "early", "even", "fair", "fast",
    "fine", "firm", "fond", "frank", "free", "fresh", "gentle", "glad", "good", "grand", "green",
    "happy", "honest", "keen", "kind", "light", "lively", "loyal", "lucid", "merry", "mild",
    "neat", "nimble", "open", "patient", "plain", "proud", "quick", "quiet", "ready", "rich",
    "robust", "round", "sharp", "silent", "smooth", "sober", "solid", "sound", "steady", "still",
    "strong", "swift", "tidy", "true", "vivid", "warm", "wise",
];

const NOUNS: &[&str] = &[
    "anchor", "anchovy", "bass", "bay", "beacon", "bream", "buoy", "canal", "carp", "char",
    "cliff", "coast", "cod", "compass", "coral", "cove", "current", "dace", "delta", "dolphin",
    "dory", "eddy", "eel", "ferry", "fjord", "flounder", "gull", "haddock", "hake", "harbor",
    "heron", "herring", "island", "keel", "kelp", "ketch", "lagoon", "lamprey", "ling", "mackerel",
    "marlin", "minnow", "mullet", "oyster", "perch", "pier", "pike", "pilot", "plaice", "pollock",
    "quay", "rapids", "ray", "reef", "roach", "rudder", "salmon", "sardine", "seal", "shad",
    "skate", "smelt", "sole", "sprat", "strait", "sturgeon", "tarpon", "tench", "tide", "trout",
    "tuna", "turbot", "wave", "wharf", "whiting", "wrasse",
];

/// Checks a name that a client gave; a leading slash is dropped.
pub(crate) fn check(name: &str) -> Result<String, EngineError> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut bytes = bare.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let mut rest = 0_usize;
    let fine = bytes.all(|b| {
        rest += 1;
        b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-')
    });
    if first && fine && rest > 0 {
        Ok(bare.to_owned())
    } else {
        Err(EngineError::BadName { name: name.to_owned() })
    }
}

/// A random `adjective_noun`; later attempts get a number, so that a free one is soon found.
#[must_use]
pub fn random(attempt: u32) -> String {
    let mut rng = rand::rng();
    let mut pick = |list: &'static [&'static str]| {
        // Cannot fail: the lists are not empty.
        list.get(rng.random_range(0..list.len())).copied().unwrap_or("plain")
    };
    let (adjective, noun) = (pick(ADJECTIVES), pick(NOUNS));
    if attempt < 4 {
        return format!("{adjective}_{noun}");
    }
    format!("{adjective}_{noun}{}", rng.random_range(0..1_000_000))
}

/// 64 random hex digits.
pub(crate) fn random_hex() -> String {
    hex::encode(rand::random::<[u8; 32]>())
}

/// A new container id. Its first 12 digits are a host name by default, so they may not all be
/// decimal: some resolvers would take that for an address.
pub(crate) fn container_id() -> ContainerId {
    loop {
        let id = random_hex();
        if id.bytes().take(12).any(|b| !b.is_ascii_digit()) {
            return ContainerId::new(id);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_follow_dockers_rule() {
        for good in ["ab", "/web", "a.b-c_d", "0x"] {
            assert!(check(good).is_ok(), "{good}");
        }
        for bad in ["", "a", "/", "_a", "-a", "a b", "a/b", "ä1"] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert_eq!(check("/web").unwrap(), "web");
    }

    #[test]
    fn random_names_are_valid() {
        for attempt in 0..8 {
            assert!(check(&random(attempt)).is_ok());
        }
        assert_eq!(container_id().as_str().len(), 64);
    }
}
