//! Words of a later version: kept as they are, so that who does not know them passes them on.

use std::fmt;
use std::sync::{PoisonError, RwLock};

/// Different words that are kept. Later versions have a few; who sends more means no good.
const WORDS_MAX: usize = 255;
/// Longest word that is kept, bytes.
const WORD_LEN_MAX: usize = 32;

/// Every word so far. They are never dropped: there are few, and each is kept once.
static WORDS: RwLock<Vec<&'static str>> = RwLock::new(Vec::new());

/// A word that this version does not know. As small as what it stands beside, because there are
/// millions of those.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Word(u8);

impl Word {
    /// Keeps `text`; `None` if it is no word, or too many are kept already.
    #[must_use]
    pub fn keep(text: &str) -> Option<Self> {
        Self::keep_in(&WORDS, text)
    }

    fn keep_in(all: &RwLock<Vec<&'static str>>, text: &str) -> Option<Self> {
        let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
        if text.is_empty() || text.len() > WORD_LEN_MAX || !text.bytes().all(is_letter) {
            return None;
        }
        let find = |words: &[&str]| {
            words.iter().position(|known| *known == text).and_then(|at| u8::try_from(at).ok())
        };
        if let Some(at) = find(&all.read().unwrap_or_else(PoisonError::into_inner)) {
            return Some(Self(at));
        }
        let mut words = all.write().unwrap_or_else(PoisonError::into_inner);
        // Somebody else may have been faster.
        if let Some(at) = find(&words) {
            return Some(Self(at));
        }
        if words.len() >= WORDS_MAX {
            return None;
        }
        let number = u8::try_from(words.len()).ok()?;
        words.push(Box::leak(text.to_owned().into_boxed_str()));
        Some(Self(number))
    }

    /// The word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        let words = WORDS.read().unwrap_or_else(PoisonError::into_inner);
        words.get(usize::from(self.0)).copied().unwrap_or_default()
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Gives an enum with a variant `Other(Word)` its words, by which it is written and read.
macro_rules! words {
    ($name:ident { $($(#[$meta:meta])* $variant:ident => $word:literal),* $(,)? }) => {
        impl $name {
            /// The name in the API.
            #[must_use]
            pub fn as_str(self) -> &'static str {
                match self {
                    $($(#[$meta])* Self::$variant => $word,)*
                    Self::Other(word) => word.as_str(),
                }
            }

            /// Whether this version knows it.
            #[must_use]
            pub const fn is_known(self) -> bool {
                !matches!(self, Self::Other(_))
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                struct Reader;

                impl serde::de::Visitor<'_> for Reader {
                    type Value = $name;

                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        f.write_str("a word")
                    }

                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        match text {
                            $($(#[$meta])* $word => Ok($name::$variant),)*
                            other => $crate::word::Word::keep(other)
                                .map($name::Other)
                                .ok_or_else(|| {
                                    let given = serde::de::Unexpected::Str(other);
                                    E::invalid_value(given, &"a word that is known")
                                }),
                        }
                    }
                }

                from.deserialize_str(Reader)
            }
        }
    };
}

pub(crate) use words;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::level;
    use crate::object::{NodeState, UpdateState};
    use crate::spec::node::Availability;
    use crate::task_state::TaskState;

    fn again<T: serde::Serialize + serde::de::DeserializeOwned>(text: &str) -> T {
        let json = format!("\"{text}\"");
        let read: T = serde_json::from_str(&json).unwrap();
        assert_eq!(serde_json::to_string(&read).unwrap(), json);
        read
    }

    #[test]
    fn words_of_later_versions_are_kept_and_passed_on() {
        let state: TaskState = again("hibernating");
        assert!(matches!(state, TaskState::Other(_)) && !state.is_known());
        assert_eq!(state.as_str(), "hibernating");
        assert_eq!(state.needs(), level::UNKNOWN);
        // Nothing is ended for it.
        assert!(!state.is_terminal() && state < TaskState::New);
        assert_eq!(state, again::<TaskState>("hibernating"));
        assert_ne!(state, again::<TaskState>("hiding"));
        assert!(matches!(again::<NodeState>("resting"), NodeState::Other(_)));
        assert!(matches!(again::<Availability>("half"), Availability::Other(_)));
        assert!(matches!(again::<UpdateState>("dreaming"), UpdateState::Other(_)));
    }

    #[test]
    fn known_words_are_what_they_were() {
        for state in TaskState::ALL {
            assert_eq!(again::<TaskState>(state.as_str()), *state);
        }
        assert_eq!(again::<NodeState>("disconnected"), NodeState::Disconnected);
        assert_eq!(again::<Availability>("drain"), Availability::Drain);
        assert_eq!(again::<UpdateState>("rollback_paused"), UpdateState::RollbackPaused);
        assert_eq!(std::mem::size_of::<TaskState>(), 2);
    }

    #[test]
    fn words_have_a_bound() {
        let all = RwLock::new(Vec::new());
        let keep = |number: usize| Word::keep_in(&all, &format!("word{number}"));
        let kept: Vec<Word> = (0..WORDS_MAX).map(|number| keep(number).unwrap()).collect();
        assert_eq!(keep(WORDS_MAX), None);
        assert_eq!(keep(7), Some(kept[7]));
    }

    #[test]
    fn what_is_no_word_is_refused() {
        for text in ["\"\"", "\"two words\"", "7", "null", &format!("\"{}\"", "x".repeat(33))] {
            assert!(serde_json::from_str::<TaskState>(text).is_err(), "{text}");
        }
    }
}
