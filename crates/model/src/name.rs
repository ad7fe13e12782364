//! Which names are allowed, and how a user's word finds an object.

/// Longest name of a service or network: it must fit one DNS label.
pub const NAME_LEN_MAX: usize = 63;

/// Why a name was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("name must not be empty")]
    Empty,
    /// Over [`NAME_LEN_MAX`].
    #[error("name must be 63 characters or fewer, this one has {len}")]
    TooLong {
        /// How long it was, in characters.
        len: usize,
    },
    /// Letters, digits, inner `-` `_` `.` only.
    #[error("name must be valid as a DNS name component: '{name}'")]
    NotDns {
        /// What was given.
        name: String,
    },
}

/// Whether `name` can name a service or a network: `[a-zA-Z0-9]` at both ends, and `-`, `_`, `.`
/// between.
///
/// # Errors
/// [`NameError`] says which rule it breaks.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    let len = name.chars().count();
    if len > NAME_LEN_MAX {
        return Err(NameError::TooLong { len });
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if edge(name.chars().next()) && edge(name.chars().next_back()) && name.chars().all(inner) {
        Ok(())
    } else {
        Err(NameError::NotDns { name: name.to_owned() })
    }
}

/// How a user's word resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup<T> {
    /// Exactly one object.
    Found(T),
    /// None.
    Missing,
    /// Several ids begin with the word.
    Ambiguous {
        /// How many.
        matches: usize,
    },
}

/// Resolves `word` in Docker's order: full id, then exact name, then unique prefix of an id.
pub fn resolve<'a, T, I>(word: &str, items: I) -> Lookup<T>
where
    T: Clone,
    I: Iterator<Item = (&'a str, &'a str, T)> + Clone,
{
    let by = |test: &dyn Fn(&str, &str) -> bool| {
        let mut hits = items.clone().filter(|(id, name, _)| test(id, name));
        let first = hits.next().map(|(_, _, item)| item);
        (first, hits.count())
    };
    if let (Some(item), _) = by(&|id, _| id == word) {
        return Lookup::Found(item);
    }
    for (hit, more) in
        [by(&|_, name| name == word), by(&|id, _| !word.is_empty() && id.starts_with(word))]
    {
        match (hit, more) {
            (Some(item), 0) => return Lookup::Found(item),
            (Some(_), more) => return Lookup::Ambiguous { matches: more + 1 },
            (None, _) => {}
        }
    }
    Lookup::Missing
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_dns() {
        for good in ["a", "web-1", "a_b.c", "A9"] {
            assert_eq!(check_name(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "a b", "ä", &"x".repeat(64)] {
            assert!(check_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn ids_win_over_names_and_names_over_prefixes() {
        let items = [("abc", "x", 1), ("x", "y", 2), ("abd", "ab", 3)];
        let find = |word| resolve(word, items.iter().map(|(i, n, v)| (*i, *n, *v)));
        assert_eq!(find("x"), Lookup::Found(2));
        assert_eq!(find("ab"), Lookup::Found(3));
        assert_eq!(find("a"), Lookup::Ambiguous { matches: 2 });
        assert_eq!(find("zz"), Lookup::Missing);
        assert_eq!(find(""), Lookup::Missing);
    }
}
