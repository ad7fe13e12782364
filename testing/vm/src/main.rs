//! What runs inside the test machine of `cargo xtask vm`: one stage for each boot, a list of
//! claims that are tried one after the other and told on the second serial line.
//!
//! `vm-guest STAGE ACKNOWLEDGED`: the stages are those of [`run`]; the number is how many
//! changes the boot before had acknowledged when its power was cut. `testing/vm/init` is the first
//! process and calls this one; `xtask/src/vm` is the other end.

#![forbid(unsafe_code)]

mod basics;
mod cluster;
mod containers;
mod devices;
mod node;
mod oom;
mod power;
mod reboot;
mod report;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};

use report::{Claim, Report};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let stage = args.next().unwrap_or_default();
    let acknowledged = args.next().unwrap_or_default();
    match run(&stage, &acknowledged) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // On the kernel's console, which is kept: the claims' line may be what failed.
            eprintln!("vm-guest: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(stage: &str, acknowledged: &str) -> Result<()> {
    let mut report = Report::open()?;
    match stage {
        "diskless" => {
            report.try_all(basics::MACHINE)?;
            report.try_all(basics::STARTS)?;
            report.try_all(basics::PORTS)?;
        }
        "brief" => {
            for claims in brief() {
                report.try_all(claims)?;
            }
            power::change_until_the_power_is_cut(&mut report)?;
        }
        "first" => {
            for claims in first() {
                report.try_all(claims)?;
            }
        }
        "reboot" => {
            report.try_all(reboot::AFTER)?;
            power::change_until_the_power_is_cut(&mut report)?;
        }
        "cut" => {
            let acknowledged = acknowledged.parse().context("read how many were acknowledged")?;
            report.try_all(power::STARTS)?;
            power::check(&mut report, acknowledged)?;
            report.try_all(power::AFTER)?;
        }
        other => bail!("unknown stage '{other}'"),
    }
    report.done()
}

/// What is claimed of a machine that boots once before its power is cut. Its
/// ports and what its kernel can do are claimed where there is no disk.
fn brief() -> [&'static [Claim]; 5] {
    [basics::STARTS, containers::CLAIMS, oom::CLAIMS, cluster::FORMS, reboot::BEFORE]
}

/// What is claimed of a machine that boots for the first time.
fn first() -> [&'static [Claim]; 10] {
    [
        basics::MACHINE,
        basics::STARTS,
        basics::PORTS,
        containers::CLAIMS,
        devices::CLAIMS,
        oom::CLAIMS,
        cluster::FORMS,
        cluster::CLAIMS,
        basics::DEMO,
        reboot::BEFORE,
    ]
}
