//! How one node is put together: settings, parts, and the order in which they start and stop.

mod abilities;
mod compose;
mod facts;
mod health;
mod https;
mod lock;
mod networks;
mod settings;
mod swarm;
mod visitors;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use tracing_subscriber::EnvFilter;

use crate::cli::DaemonArgs;
use settings::Settings;

/// How long the runtime waits for blocking work when everything has been told to stop.
const RUNTIME_PATIENCE: Duration = Duration::from_secs(2);

/// Most threads for blocking work. A thousand containers that end at once do not need one each, and
/// each keeps a stack; more than this wait their turn.
const BLOCKING_THREADS_MAX: usize = 128;

/// How often freed memory is given back: a small part of the 30 s in which the daemon should be
/// small again.
const GIVE_BACK_EVERY: Duration = Duration::from_secs(5);

/// In which of these rounds the program's own pages go too: mapping those in use again takes a
/// millisecond or two.
const FORGET_ROUNDS: u32 = 4;

/// Runs a node until it is told to stop.
pub fn run(args: &DaemonArgs) -> ExitCode {
    match serve(args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(args: &DaemonArgs) -> Result<()> {
    let settings = Settings::resolve(args)?;
    log_to_stderr(&settings);
    // Libraries that take the process's default provider get the one that identity chose.
    // Ignored because: it only fails if it is set already.
    let _ = shoal_identity::tls::provider().as_ref().clone().install_default();
    for flag in &settings.without_effect {
        tracing::info!(flag, "accepted for dockerd's sake, without effect");
    }
    let _claims = lock::claim(&settings)?;
    shoal_runtime::memory::share_heaps();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("start the runtime")?;
    let done = runtime.block_on(async {
        let housekeeping = tokio::spawn(give_back());
        let done = compose::run(&settings).await;
        housekeeping.abort();
        done
    });
    runtime.shutdown_timeout(RUNTIME_PATIENCE);
    done
}

/// Gives memory back as long as the daemon lives: what a thousand starts needed for a moment would
/// stay for ever.
async fn give_back() {
    for round in 1_u32.. {
        tokio::time::sleep(GIVE_BACK_EVERY).await;
        let give_back = move || {
            shoal_runtime::memory::give_back();
            if round.is_multiple_of(FORGET_ROUNDS) {
                shoal_runtime::memory::forget_program();
            }
        };
        // Ignored because: it has no result, and a runtime that ends needs no memory.
        let _ = tokio::task::spawn_blocking(give_back).await;
    }
}

fn log_to_stderr(settings: &Settings) {
    let filter = EnvFilter::new(format!(
        "warn,shoal={level},shoal_agent={level},shoal_api={level},shoal_engine={level},\
         shoal_image={level},shoal_manager={level},shoal_network={level},shoal_node={level},\
         shoal_runtime={level},shoal_store={level},shoal_wire={level}",
        level = settings.log_level
    ));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .init();
}
