//! `shoal backup` and `shoal restore`: the state of a swarm as one file, and a swarm from it.

mod passphrase;

use std::io::{IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use shoal_model::fault::{Fault, report};
use shoal_store::{Backup, BackupHead};

use crate::unikernel::find::HostArgs;
use passphrase::PassphraseArgs;

/// Largest backup, in memory while it is read: as large as the largest snapshot of managers.
const BACKUP_BYTES_MAX: u64 = 1 << 30;
/// A backup holds every secret.
const MODE: u32 = 0o600;

/// Options of both.
#[derive(Args, Debug)]
struct CommonArgs {
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    passphrase: PassphraseArgs,
    #[command(flatten)]
    host: HostArgs,
}

/// Options of `shoal backup`.
#[derive(Args, Debug)]
#[command(
    after_help = "The file holds every secret and the swarm's root key, so it is sealed with \
    a passphrase.\n\n\
    Examples:\n  \
    shoal backup /backup/swarm                                asks for a passphrase\n  \
    shoal backup --passphrase-file /etc/key /backup/swarm     for a timer\n  \
    shoal backup --passphrase-file /etc/key - | ssh keep 'cat > swarm'\n  \
    shoal backup --plain /backup/swarm                        in clear: guard it yourself"
)]
pub struct BackupArgs {
    /// Where to write it; `-` is the standard output, if that is no terminal.
    file: PathBuf,
    /// Leave it in clear. Whoever reads the file then owns the swarm.
    #[arg(long, conflicts_with = "passphrase_file")]
    plain: bool,
    /// Replace the file if it is there.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// Options of `shoal restore`.
#[derive(Args, Debug)]
#[command(after_help = "This machine's daemon must run and be in no swarm. It becomes the only \
    manager; other managers join anew.\nWorkers come back by themselves if this machine has the \
    address of a manager that they know.\n\n\
    Examples:\n  \
    shoal restore --show /backup/swarm                        what it is; needs no passphrase\n  \
    shoal restore --advertise-addr 192.0.2.1 /backup/swarm\n  \
    shoal restore --passphrase-file /etc/key --json /backup/swarm")]
pub struct RestoreArgs {
    /// The backup.
    file: PathBuf,
    /// Only say what the backup is of.
    #[arg(long)]
    show: bool,
    /// What other nodes are told: ADDRESS, ADDRESS:PORT or INTERFACE.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    advertise_addr: String,
    /// Where the manager listens.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    listen_addr: String,
    /// Where VXLAN frames come from and go to.
    #[arg(long, value_name = "ADDRESS", default_value = "")]
    data_path_addr: String,
    #[command(flatten)]
    common: CommonArgs,
}

/// `shoal backup`.
#[must_use]
pub fn backup(args: &BackupArgs) -> ExitCode {
    done(run(take(args)))
}

/// `shoal restore`.
#[must_use]
pub fn restore(args: &RestoreArgs) -> ExitCode {
    done(run(put_back(args)))
}

fn run<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(work)
}

fn done(result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// With id and remedy.
fn whole<T, F: Fault>(result: Result<T, F>) -> Result<T> {
    result.map_err(|fault| anyhow!(report(&fault)))
}

async fn take(args: &BackupArgs) -> Result<()> {
    let to_stdout = args.file == Path::new("-");
    if to_stdout && std::io::stdout().is_terminal() {
        bail!("write the backup: a terminal is no place for it; name a file");
    }
    if !to_stdout && !args.replace && args.file.exists() {
        let file = args.file.display();
        bail!("write the backup: '{file}' is there already; name another file, or add --replace");
    }
    let passphrase = if args.plain { None } else { Some(args.common.passphrase.new_one()?) };
    let answer = args.common.host.api()?.download("/shoal/backup", BACKUP_BYTES_MAX).await?;
    let backup = whole(Backup::decode(&answer, None))?;
    let file = match &passphrase {
        None => answer.to_vec(),
        Some(passphrase) => whole(backup.encode(Some(passphrase)))?,
    };
    if to_stdout {
        let mut out = std::io::stdout().lock();
        out.write_all(&file).and_then(|()| out.flush()).context("write the backup")?;
        return Ok(());
    }
    let write = shoal_durable::replace(&args.file, &file, MODE);
    write.with_context(|| format!("write '{}'", args.file.display()))?;
    say(args.common.json, &described(&backup.head, passphrase.is_some(), &args.file, file.len()));
    Ok(())
}

async fn put_back(args: &RestoreArgs) -> Result<()> {
    let name = args.file.display();
    let read = shoal_durable::read(&args.file, BACKUP_BYTES_MAX);
    let file = read.with_context(|| format!("read '{name}'"))?;
    let file = file.with_context(|| format!("read '{name}': there is no such file"))?;
    let (head, sealed) = whole(Backup::look(&file))?;
    let about = described(&head, sealed, &args.file, file.len());
    if args.show {
        say(args.common.json, &about);
        return Ok(());
    }
    let passphrase = if sealed { args.common.passphrase.known_one()? } else { None };
    let backup = whole(Backup::decode(&file, passphrase.as_deref()))?;
    drop(file);
    let plain = Bytes::from(whole(backup.encode(None))?);
    let word = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let path = format!(
        "/shoal/restore?listenAddr={}&advertiseAddr={}&dataPathAddr={}",
        word(&args.listen_addr),
        word(&args.advertise_addr),
        word(&args.data_path_addr),
    );
    let answer = args.common.host.api()?.post_bytes(&path, plain).await?;
    let mut about = about;
    about["NodeID"] = answer["NodeID"].clone();
    say(args.common.json, &about);
    if !args.common.json {
        println!(
            "This node is its only manager now. Let other managers join: docker swarm \
                  join-token manager"
        );
    }
    Ok(())
}

fn described(head: &BackupHead, sealed: bool, file: &Path, bytes: usize) -> Value {
    json!({
        "Cluster": head.cluster,
        "Revision": head.revision,
        "Taken": head.taken.to_string(),
        "Sealed": sealed,
        "File": file,
        "Bytes": bytes,
    })
}

fn say(as_json: bool, about: &Value) {
    if as_json {
        println!("{about}");
        return;
    }
    let text = |key: &str| match &about[key] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let kind = if about["Sealed"] == true { "sealed" } else { "in clear" };
    println!(
        "{}: swarm {} at revision {}, taken {}, {kind}, {} bytes",
        text("File"),
        text("Cluster"),
        text("Revision"),
        text("Taken"),
        text("Bytes"),
    );
    if let Value::String(node) = &about["NodeID"] {
        println!("Restored, as node {node}.");
    }
}
