//! `shoal demo`: the founding scenario on three nodes of this machine, through the public API only,
//! with what each step really answered.

mod load;
mod machine;
mod report;
mod scenario;
mod steps;
mod topology;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use topology::Topology;

/// Longest that the whole scenario may take before it is broken off.
const DEADLINE: Duration = Duration::from_secs(180);

/// Options of `shoal demo`.
#[derive(Args, Clone, Debug)]
pub struct DemoArgs {
    /// Leave the cluster running, and say how to point docker at each node.
    #[arg(long)]
    pub keep: bool,
    /// Remove what an earlier `shoal demo --keep` left running.
    #[arg(long, conflicts_with = "keep")]
    pub clean: bool,
    /// Print one JSON object for each step instead of text.
    #[arg(long)]
    pub json: bool,
    /// Let everything that is claimed to be done in time take this many times as long: for machines
    /// whose processors are emulated.
    #[arg(long, value_name = "TIMES", hide = true, default_value_t = 1,
          value_parser = clap::value_parser!(u32).range(1..=20))]
    pub slower: u32,
    /// Where the nodes keep their things.
    #[arg(long, value_name = "DIR", hide = true)]
    pub dir: Option<PathBuf>,
}

/// Runs the demonstration.
pub fn run(args: &DemoArgs) -> ExitCode {
    let done = if args.clean { topology::clean_kept() } else { demonstrate(args) };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demonstrate(args: &DemoArgs) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("root is needed, for network namespaces; try: sudo shoal demo");
    }
    let runtime = tokio::runtime::Runtime::new().context("start the runtime")?;
    let mut topology = Topology::build(args.dir.clone())?;
    let deadline = DEADLINE * args.slower;
    let outcome = runtime.block_on(async {
        tokio::select! {
            outcome = scenario::run(&topology, args) => outcome,
            stopped = crate::tools::stop_signal() => {
                stopped.context("watch for signals")?;
                bail!("interrupted")
            }
            () = tokio::time::sleep(deadline) => {
                bail!("the scenario did not end within {} s", deadline.as_secs())
            }
        }
    });
    // Work that is still blocked on a socket of the demonstration must not keep it alive.
    runtime.shutdown_timeout(Duration::from_secs(1));
    match outcome {
        Ok(()) if args.keep => {
            topology.keep();
            println!("{}", topology.how_to_use());
            Ok(())
        }
        Ok(()) => topology.remove(),
        Err(error) => {
            let logs = topology.save_logs();
            let removed = topology.remove();
            if let Some(logs) = logs {
                eprintln!("the nodes' logs are in {}", logs.display());
            }
            removed.and(Err(error))
        }
    }
}
