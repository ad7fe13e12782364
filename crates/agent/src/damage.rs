//! State files that cannot be used: named, kept aside for evidence, and done without.

use std::path::Path;
use std::sync::Mutex;

use serde::de::DeserializeOwned;

use crate::agent::lock;

/// What an agent found damaged, each once.
#[derive(Debug, Default)]
pub(crate) struct Damage(Mutex<Vec<String>>);

impl Damage {
    /// Names something in the log and in `docker info`.
    pub(crate) fn note(&self, text: String) {
        let mut found = lock(&self.0);
        if !found.contains(&text) {
            tracing::error!(problem = text, "state of the agent is damaged");
            found.push(text);
        }
    }

    /// What was found.
    pub(crate) fn list(&self) -> Vec<String> {
        lock(&self.0).clone()
    }

    /// Reads a file; `None` if there is none that can be used. One that cannot is moved aside.
    pub(crate) fn read<T: DeserializeOwned>(
        &self,
        path: &Path,
        len_max: u64,
        check: impl FnOnce(&T) -> Result<(), String>,
    ) -> Option<T> {
        let read = shoal_durable::read_json::<T>(path, len_max).map_err(|error| error.to_string());
        let read = read.and_then(|value| match value {
            Some(value) => check(&value).map(|()| Some(value)),
            None => Ok(None),
        });
        match read {
            Ok(value) => value,
            Err(why) => {
                let mut aside = path.as_os_str().to_owned();
                aside.push(".damaged");
                let kept = match std::fs::rename(path, &aside) {
                    Ok(()) => format!("kept as '{}'", aside.to_string_lossy()),
                    Err(error) => format!("it stays where it is: {error}"),
                };
                self.note(format!("cannot use '{}': {why}; {kept}", path.display()));
                None
            }
        }
    }
}
