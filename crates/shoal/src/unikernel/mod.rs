//! `shoal unikernel`: the developer's tools, and looking into unikernels that run on this node,
//! from outside: nothing in them is rebuilt, and watching costs them nothing but some stores into a
//! page of memory.

pub mod find;
mod pcap;
mod top;

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Subcommand;
use shoal_unikernel_tools::cli;

/// Unikernels.
#[derive(Clone, Debug, Subcommand)]
pub enum UnikernelCommand {
    #[command(flatten)]
    Tools(cli::Command),
    /// Show what unikernels of this node do: frames, bytes, waiting, memory.
    Top(top::TopArgs),
    /// Write the frames of a running unikernel as a capture file.
    Pcap(pcap::PcapArgs),
}

/// Carries the command out.
pub fn run(command: UnikernelCommand) -> ExitCode {
    let done = match command {
        UnikernelCommand::Tools(command) => return cli::run(command),
        UnikernelCommand::Top(args) => watch(top::run(args)),
        UnikernelCommand::Pcap(args) => watch(pcap::run(args)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoal unikernel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn watch(work: impl Future<Output = Result<()>>) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("start the runtime")?.block_on(work)
}
