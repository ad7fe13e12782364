//! `cargo xtask bench`: measurements that anyone can take again. `unikernel` compares with the
//! other things in the same run, because machines are noisy, and writes `docs/benchmarks.md`;
//! `node` and `failover` print tables.

mod density;
mod engine_api;
mod failover;
mod first_byte;
mod ground;
mod load;
mod node;
mod process;
mod protection;
mod service;
mod table;
mod unikernel;

use anyhow::{Result, bail};

/// Runs the benchmark that the first word names.
///
/// # Errors
/// If there is no such benchmark, or something could not be measured.
pub fn run(args: &[String]) -> Result<()> {
    match args.split_first() {
        Some((name, rest)) if name == "node" => node::run(rest),
        Some((name, rest)) if name == "failover" => failover::run(rest),
        Some((name, rest)) if name == "unikernel" => unikernel::run(rest),
        Some((name, _)) => bail!("no benchmark '{name}'; there are: failover, node, unikernel"),
        None => bail!("which benchmark? there are: failover, node, unikernel"),
    }
}

/// What this program does when a benchmark starts it again inside a network namespace.
///
/// # Errors
/// If what it should measure does not come.
pub fn inside(args: &[String]) -> Result<()> {
    match args.split_first() {
        Some((name, rest)) if name == "failover" => failover::inside(rest),
        Some((name, rest)) if name == "first-byte" => first_byte::inside(rest),
        Some((name, rest)) if name == "node" => node::inside(rest),
        Some((name, rest)) if name == "service" => service::inside(rest),
        _ => bail!("not a helper of a benchmark: {args:?}"),
    }
}
