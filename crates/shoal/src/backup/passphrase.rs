//! Where a passphrase comes from: a file, the environment, or whoever sits in front of it.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

/// Shortest passphrase that seals: a shorter one is guessed, whatever each guess costs.
const LEN_MIN: usize = 8;
/// Longest file that is read for one.
const FILE_BYTES_MAX: u64 = 4096;

/// Where the passphrase comes from.
#[derive(Args, Debug)]
pub struct PassphraseArgs {
    /// Read the passphrase from the first line of this file.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The passphrase; better in a file, which others cannot list.
    #[arg(long, env = "SHOAL_BACKUP_PASSPHRASE", hide = true, hide_env_values = true)]
    passphrase: Option<String>,
}

impl PassphraseArgs {
    /// One to seal with.
    pub fn new_one(&self) -> Result<String> {
        let given = match self.given()? {
            Some(given) => given,
            None => {
                let first = ask("Passphrase for the backup: ")?.context(
                    "seal the backup: no passphrase was given; use --passphrase-file, or --plain \
                     to leave every secret in clear",
                )?;
                if ask("Once more: ")?.as_deref() != Some(&first) {
                    bail!("seal the backup: the two passphrases differ");
                }
                first
            }
        };
        if given.chars().count() < LEN_MIN {
            bail!("seal the backup: the passphrase is shorter than {LEN_MIN} characters");
        }
        Ok(given)
    }

    /// The one that it was sealed with, if somebody says it.
    pub fn known_one(&self) -> Result<Option<String>> {
        match self.given()? {
            Some(given) => Ok(Some(given)),
            None => ask("Passphrase of the backup: "),
        }
    }

    fn given(&self) -> Result<Option<String>> {
        let Some(path) = &self.passphrase_file else {
            return Ok(self.passphrase.clone().filter(|text| !text.is_empty()));
        };
        let action = || format!("read the passphrase from '{}'", path.display());
        let text = shoal_durable::read(path, FILE_BYTES_MAX).with_context(action)?;
        let text = text.context("there is no such file").with_context(action)?;
        let text = String::from_utf8(text).context("it is no text").with_context(action)?;
        let line = text.lines().next().unwrap_or_default();
        if line.is_empty() {
            return Err(anyhow::anyhow!("its first line is empty")).with_context(action);
        }
        Ok(Some(line.to_owned()))
    }
}

/// Asks on the terminal without showing what is typed; `None` where nobody sits.
fn ask(question: &str) -> Result<Option<String>> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(None);
    }
    eprint!("{question}");
    std::io::stderr().flush().context("ask for a passphrase")?;
    let before = tcgetattr(&stdin).context("look at the terminal")?;
    let mut quiet = before.clone();
    quiet.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Flush, &quiet).context("hide what is typed")?;
    let mut line = String::new();
    let read = stdin.lock().read_line(&mut line);
    tcsetattr(&stdin, OptionalActions::Flush, &before).context("show again what is typed")?;
    eprintln!();
    read.context("read the passphrase")?;
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}
