//! `shoal try …`: small servers and clients, so that a network can be tried from inside a container
//! that has nothing but this program.

mod ask;
pub mod request;
mod whoami;

use std::process::ExitCode;

use clap::Subcommand;

/// Servers and clients for trying a network out.
#[derive(Debug, Subcommand)]
pub enum TryCommand {
    /// Answer HTTP and UDP with: who answers, and from which address the request came.
    Whoami(whoami::WhoamiArgs),
    /// Send HTTP requests, one connection each, and count the answers.
    Get(request::GetArgs),
    /// Look a name up, as programs in this container would.
    Resolve(ask::ResolveArgs),
    /// Do nothing until told to stop.
    Pause,
}

/// Carries the command out.
#[must_use]
pub fn run(command: TryCommand) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("start the runtime")),
    };
    let done = runtime.block_on(async {
        match command {
            TryCommand::Whoami(args) => whoami::serve(args).await,
            TryCommand::Get(args) => request::get(args).await,
            TryCommand::Resolve(args) => ask::resolve(args).await,
            TryCommand::Pause => Ok(stop_signal().await?),
        }
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("shoal: {error:#}");
    ExitCode::FAILURE
}

/// Returns when the process is asked to stop. PID 1 of a container gets no default action for
/// SIGTERM, so it must ask for it.
pub async fn stop_signal() -> std::io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
