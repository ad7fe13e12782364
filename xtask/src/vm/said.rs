//! What the machine says on its second serial line.

/// One line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A claim was tried.
    Claim(Claim),
    /// So many changes are acknowledged.
    Acknowledged(u32),
    /// The stage came to its end.
    Done,
}

/// A claim, and why it did not hold if it did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What is claimed.
    pub name: String,
    /// Why it is not so.
    pub failure: Option<String>,
}

/// Reads one line. Nothing else is said there, but half a line may be when the power is cut.
pub fn read(line: &str) -> Option<Said> {
    let (word, rest) = line.trim().split_once(' ').unwrap_or((line.trim(), ""));
    match word {
        "VM-DONE" => Some(Said::Done),
        "VM-ACK" => rest.parse().ok().map(Said::Acknowledged),
        "VM-CLAIM" => {
            let claim = if let Some(name) = rest.strip_prefix("ok ") {
                Claim { name: name.to_owned(), failure: None }
            } else {
                let (name, why) = rest.strip_prefix("failed ")?.split_once(": ")?;
                Claim { name: name.to_owned(), failure: Some(why.replace("\\n", "\n")) }
            };
            Some(Said::Claim(claim))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_and_halves_are_not() {
        let claim = |name: &str, failure: Option<&str>| {
            let failure = failure.map(str::to_owned);
            Some(Said::Claim(Claim { name: name.to_owned(), failure }))
        };
        assert_eq!(read("VM-CLAIM ok a container runs\r\n"), claim("a container runs", None));
        assert_eq!(read("VM-CLAIM failed pause: a\\nb: c"), claim("pause", Some("a\nb: c")));
        assert_eq!(read("VM-ACK 17"), Some(Said::Acknowledged(17)));
        assert_eq!(read("VM-DONE"), Some(Said::Done));
        for half in ["VM-ACK", "VM-CLAIM fai", "VM-CLAIM failed pause", "VM-", ""] {
            assert_eq!(read(half), None, "{half}");
        }
    }
}
