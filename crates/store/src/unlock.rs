//! The key that unlocks a manager after a restart, written as Docker writes it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;

use crate::error::StoreError;
use crate::seal::KEY_LEN;

/// What every such key begins with: the kind and the version of its form.
const PREFIX: &str = "SWMKEY-1-";

/// `SWMKEY-1-` and 256 random bits. It wraps the keys that a manager's files are sealed with, and
/// is written on no manager's disk in clear. `Debug` hides it, `Display` shows all of it.
#[derive(Clone, PartialEq, Eq)]
pub struct UnlockKey([u8; KEY_LEN]);

impl UnlockKey {
    /// A new one.
    #[must_use]
    pub fn generate() -> Self {
        Self(rand::random())
    }

    /// Reads one as a user types it.
    ///
    /// # Errors
    /// [`StoreError::UnlockKey`] says what is wrong, without the key.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let malformed = |problem| StoreError::UnlockKey { problem };
        let rest = text.trim().strip_prefix(PREFIX);
        let rest = rest.ok_or_else(|| malformed("it does not begin with 'SWMKEY-1-'"))?;
        // Neither the bytes nor where they are wrong: it is a secret but for a slip.
        let bytes = STANDARD_NO_PAD.decode(rest);
        let bytes = bytes.map_err(|_| malformed("what follows 'SWMKEY-1-' is not base64"))?;
        let key = <[u8; KEY_LEN]>::try_from(bytes);
        key.map(Self).map_err(|_| malformed("it has more or fewer characters than such a key"))
    }

    pub(crate) fn bytes(&self) -> [u8; KEY_LEN] {
        self.0
    }
}

impl fmt::Display for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", STANDARD_NO_PAD.encode(self.0))
    }
}

impl fmt::Debug for UnlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("UnlockKey { .. }")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn keys_read_back_as_written_and_have_dockers_shape() {
        let key = UnlockKey::generate();
        let text = key.to_string();
        assert_eq!(text.len(), 9 + 43);
        assert_eq!(UnlockKey::parse(&format!(" {text}\n")).unwrap(), key);
        assert!(!format!("{key:?}").contains(&text[9..]));
        // One of Docker's own documentation.
        UnlockKey::parse("SWMKEY-1-7c37Cc8654o6p38HnroywCi19pllOnGtbdZEgtKxZu8").unwrap();
    }

    #[test]
    fn refusals_say_what_is_wrong_without_the_key() {
        let good = UnlockKey::generate().to_string();
        for (text, expected) in [
            (String::new(), "does not begin"),
            (good.replace("-1-", "-2-"), "does not begin"),
            (format!("{good}!"), "not base64"),
            (good[..good.len() - 3].to_owned(), "more or fewer"),
        ] {
            let error = UnlockKey::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
            assert!(text.len() < 10 || !error.contains(&text[9..]), "{error}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_text_makes_the_parser_panic(text in "(SWMKEY-[0-9]-)?[\\PC-]{0,60}") {
            if let Ok(key) = UnlockKey::parse(&text) {
                prop_assert_eq!(key.to_string(), text.trim());
            }
        }
    }
}
