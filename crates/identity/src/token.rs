//! Join tokens: `SWMTKN-1-<digest of the root certificate>-<secret>`.
//!
//! The digest lets a node know the right cluster at first contact; the secret lets the cluster know
//! that the node was invited. Both parts are base 36 and of fixed length, as Docker's are.

use std::fmt;

use ring::digest::{SHA256, digest};
use shoal_model::id::swarm_id_from_bytes;
use shoal_model::object::JoinTokens;
use shoal_model::spec::node::NodeRole;
use subtle::ConstantTimeEq;

use crate::error::IdentityError;

/// What every token begins with: the kind and the version of its format.
pub const TOKEN_PREFIX: &str = "SWMTKN-1-";
/// Base-36 digits of a SHA-256 digest: 36^50 is just above 2^256.
pub const DIGEST_LEN: usize = 50;
/// Base-36 digits of a 128-bit secret.
pub const SECRET_LEN: usize = 25;
/// Longest text that is looked at: three times a token, so that an error can tell the length.
const TEXT_LEN_MAX: usize = 3 * (TOKEN_PREFIX.len() + DIGEST_LEN + 1 + SECRET_LEN);

/// SHA-256 of a root certificate's DER, as a token writes it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CaDigest(String);

impl CaDigest {
    /// The digest of a root certificate.
    #[must_use]
    pub fn of_der(root_der: &[u8]) -> Self {
        Self(base36(digest(&SHA256, root_der).as_ref(), DIGEST_LEN))
    }

    /// The text, 50 base-36 digits.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CaDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A join token. `Debug` hides the secret, `Display` shows all of it.
#[derive(Clone)]
pub struct JoinToken {
    digest: CaDigest,
    secret: String,
}

impl JoinToken {
    /// A new token for the cluster whose root has `digest`.
    #[must_use]
    pub fn generate(digest: CaDigest) -> Self {
        Self { digest, secret: swarm_id_from_bytes(rand::random()) }
    }

    /// Reads a token.
    ///
    /// # Errors
    /// [`IdentityError::TokenMalformed`] says what is wrong, without the secret.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let malformed = |problem: String| IdentityError::TokenMalformed { problem };
        let text = text.trim();
        if text.is_empty() {
            return Err(malformed("nothing was given".into()));
        }
        if text.len() > TEXT_LEN_MAX {
            return Err(malformed(format!("it has {} characters, far too many", text.len())));
        }
        let Some(rest) = text.strip_prefix(TOKEN_PREFIX) else {
            return Err(malformed(match text.strip_prefix("SWMTKN-") {
                Some(_) => format!("its version is unknown, expected '{TOKEN_PREFIX}…'"),
                None => format!("not a join token, expected '{TOKEN_PREFIX}…'"),
            }));
        };
        let Some((digest, secret)) = rest.split_once('-') else {
            return Err(malformed("the secret is missing (the part after the third '-')".into()));
        };
        check_part("the digest of the root certificate", digest, DIGEST_LEN)?;
        check_part("the secret", secret, SECRET_LEN)?;
        Ok(Self { digest: CaDigest(digest.to_owned()), secret: secret.to_owned() })
    }

    /// The root certificate that it names.
    #[must_use]
    pub fn digest(&self) -> &CaDigest {
        &self.digest
    }

    /// The role that this token gives in a cluster with `tokens`; compared in constant time.
    ///
    /// # Errors
    /// [`IdentityError::TokenRefused`] if it is none of them.
    pub fn role_in(&self, tokens: &JoinTokens) -> Result<NodeRole, IdentityError> {
        let given = self.to_string();
        let worker = same(&given, &tokens.worker);
        let manager = same(&given, &tokens.manager);
        match (worker, manager) {
            (_, true) => Ok(NodeRole::Manager),
            (true, false) => Ok(NodeRole::Worker),
            (false, false) => Err(IdentityError::TokenRefused),
        }
    }
}

/// New tokens for both roles.
#[must_use]
pub fn generate_tokens(digest: &CaDigest) -> JoinTokens {
    JoinTokens {
        worker: JoinToken::generate(digest.clone()).to_string(),
        manager: JoinToken::generate(digest.clone()).to_string(),
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TOKEN_PREFIX}{}-{}", self.digest, self.secret)
    }
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinToken").field("digest", &self.digest).finish_non_exhaustive()
    }
}

fn check_part(what: &str, part: &str, len: usize) -> Result<(), IdentityError> {
    let found = part.chars().count();
    let problem = if found != len {
        format!("{what} must have {len} characters, this one has {found}")
    } else if let Some(bad) = part.chars().find(|c| !(c.is_ascii_digit() || c.is_ascii_lowercase()))
    {
        format!("{what} has the character {bad:?}; only a-z and 0-9 are allowed")
    } else {
        return Ok(());
    };
    Err(IdentityError::TokenMalformed { problem })
}

/// Compares without telling by its duration where the texts differ. Lengths are no secret.
fn same(a: &str, b: &str) -> bool {
    a.as_bytes().ct_eq(b.as_bytes()).into()
}

/// `bytes` as one big number in base 36, most significant digit first, `len` digits.
fn base36(bytes: &[u8], len: usize) -> String {
    let mut number = bytes.to_vec();
    let mut digits = vec!['0'; len];
    for slot in digits.iter_mut().rev() {
        let mut remainder = 0u32;
        for byte in &mut number {
            let value = remainder * 256 + u32::from(*byte);
            // Cannot overflow: value is below 36 * 256, so the quotient is below 256.
            *byte = (value / 36) as u8;
            remainder = value % 36;
        }
        *slot = char::from_digit(remainder, 36).unwrap_or('0');
    }
    digits.into_iter().collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use proptest::prelude::*;

    use super::*;

    fn problem(text: &str) -> String {
        JoinToken::parse(text).expect_err("must be refused").to_string()
    }

    #[test]
    fn tokens_read_back_as_written_and_have_dockers_shape() {
        let token = JoinToken::generate(CaDigest::of_der(b"root"));
        let text = token.to_string();
        assert_eq!(text.len(), 9 + 50 + 1 + 25);
        let back = JoinToken::parse(&format!(" {text}\n")).unwrap();
        assert_eq!(back.to_string(), text);
        assert_eq!(back.digest(), &CaDigest::of_der(b"root"));
        assert!(!format!("{back:?}").contains(text.rsplit('-').next().unwrap()));
    }

    #[test]
    fn the_digest_is_the_whole_number() {
        assert_eq!(base36(&[255; 32], 50), "6dp5qcb22im238nr3wvp0ic7q99w035jmy2iw7i6n43d37jtof");
        assert_eq!(base36(&[0, 0, 36], 4), "0010");
    }

    #[test]
    fn refusals_say_what_is_wrong() {
        let good = JoinToken::generate(CaDigest::of_der(b"root")).to_string();
        for (text, expected) in [
            (String::new(), "nothing was given"),
            ("hello".into(), "not a join token"),
            (good.replace("-1-", "-2-"), "version is unknown"),
            (good[..good.len() - 26].into(), "the secret is missing"),
            (good[..good.len() - 1].into(), "the secret must have 25 characters, this one has 24"),
            (format!("{good}0"), "the secret must have 25 characters, this one has 26"),
            (good.replacen("-1-", "-1-0", 1), "must have 50 characters, this one has 51"),
            (format!("{}Z", &good[..good.len() - 1]), "has the character 'Z'"),
            ("x".repeat(10_000), "far too many"),
        ] {
            let problem = problem(&text);
            assert!(problem.contains(expected), "{text}: {problem}");
        }
    }

    #[test]
    fn the_role_comes_from_the_matching_token() {
        let digest = CaDigest::of_der(b"root");
        let tokens = generate_tokens(&digest);
        let role = |text: &str| JoinToken::parse(text).unwrap().role_in(&tokens);
        assert_eq!(role(&tokens.worker).unwrap(), NodeRole::Worker);
        assert_eq!(role(&tokens.manager).unwrap(), NodeRole::Manager);
        let other = JoinToken::generate(digest).to_string();
        assert!(matches!(role(&other), Err(IdentityError::TokenRefused)));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn no_text_makes_the_parser_panic(text in "(SWMTKN-[0-9]-)?[\\PC-]{0,120}") {
            if let Ok(token) = JoinToken::parse(&text) {
                prop_assert_eq!(token.to_string(), text.trim());
            }
        }

        #[test]
        fn a_changed_character_is_refused_or_another_token(at in 0usize..85, c in "[a-z0-9]") {
            let tokens = generate_tokens(&CaDigest::of_der(b"root"));
            let mut text = tokens.worker.clone();
            text.replace_range(at..=at, &c);
            let role = JoinToken::parse(&text).and_then(|t| t.role_in(&tokens));
            prop_assert_eq!(role.is_ok(), text == tokens.worker);
        }
    }
}
