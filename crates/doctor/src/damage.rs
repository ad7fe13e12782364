//! What a running daemon itself knows to be damaged.

use shoal_model::check::{Check, CheckResult, Need, Verdict};

/// Who names the damages, one line each.
type Named = Box<dyn Fn() -> Vec<String> + Send + Sync>;

/// One check for all of a daemon's own damages: state that it could not read when it started, and
/// that it goes on without.
pub struct Damage {
    named: Named,
}

impl Damage {
    /// `named` is asked each time.
    pub fn new(named: impl Fn() -> Vec<String> + Send + Sync + 'static) -> Self {
        Self { named: Box::new(named) }
    }
}

impl Check for Damage {
    fn label(&self) -> String {
        "daemon's state".to_owned()
    }

    fn run(&self) -> CheckResult {
        let named = (self.named)();
        let bad = !named.is_empty();
        CheckResult {
            id: "SH-DOC-210".to_owned(),
            name: self.label(),
            verdict: if bad { Verdict::Warn } else { Verdict::Ok },
            detail: if bad { named.join("; ") } else { "nothing is damaged".to_owned() },
            remedy: if bad {
                "what is owed is tried again by itself; mend or remove what is damaged, then start the \
                 daemon again"
                    .to_owned()
            } else {
                String::new()
            },
            needed_for: Need::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_damage_is_said() {
        let sound = Damage::new(Vec::new).run();
        assert_eq!(sound.verdict, Verdict::Ok);
        let lines = || vec!["container 'a'".to_owned(), "volume 'b'".to_owned()];
        let damaged = Damage::new(lines).run();
        assert_eq!(damaged.verdict, Verdict::Warn);
        assert_eq!(damaged.detail, "container 'a'; volume 'b'");
    }
}
