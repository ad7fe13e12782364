//! Everything one does with this repository, as `cargo xtask <command>`.

#![forbid(unsafe_code)]

mod bench;
mod packages;
mod stall;
mod steps;
mod tests;
mod vm;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask <command>

  ci      everything that must pass before a change lands: format, lints, unit and
          integration tests, simulation, lab, two minutes of torture, the program on a
          stock kernel, docs, tidy. Needs root (namespaces) and installs the Debian
          packages that the tests use
  deps    only install those packages
  fmt     check the format
  lint    clippy, warnings denied
  test    unit, simulation and integration tests
  lab     the lab: real daemons in network namespaces, driven by the real docker CLI
          (`cargo xtask lab NAME` runs the tests whose name contains NAME)
  stall   the tests beside busy loops, on a machine that stands still at random: what waits for
          time fails here (`cargo xtask stall [--seed N] [--busy N] [--longest MS]`, then
          arguments of `cargo test`). Needs root
  torture random users, kill -9 of everything, full disks; then what is recorded and what is
          there are compared (`cargo xtask torture [--seed N] [--minutes M]`). Needs root
  sim     the simulation: groups of managers on a clock that jumps, over a network and disks that
          fail as the seed says (`cargo xtask sim [--seed N] [--seeds A..B] [--minutes M]
          [--trace] [--twice]`; --twice compares two runs of each seed)
  vm      the program on a stock kernel of Debian, booted under software emulation: demo,
          limits, devices, memory that runs out, a reboot, a power cut
          (`cargo xtask vm 6.1` takes that kernel; --list tells them; --brief is the half of it)
  docs    build the API documentation, warnings denied
  bench   measurements, side by side with the other thing: `cargo xtask bench unikernel`
          re-runs every row and writes docs/benchmarks.md; `cargo xtask bench node
          [--kind bridge|none|service] [--count N] [--json]` starts many containers on one
          daemon and removes them; `cargo xtask bench failover [--managers N] [--kills N]` ends the
          leader of three managers again and again. Need root
  demo    build and run `shoal demo` (further arguments are passed on)
";

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let done = match command.as_str() {
        "ci" => steps::ci(),
        "deps" => packages::install(),
        "fmt" => steps::fmt(),
        "lint" => steps::lint(),
        "test" => steps::test(),
        "lab" => steps::lab(&rest),
        "stall" => stall::run(&rest),
        "torture" => steps::torture(&rest),
        "sim" => steps::sim(&rest),
        "vm" => vm::run(&rest),
        "docs" => steps::docs(),
        "demo" => steps::demo(&rest),
        "bench" => bench::run(&rest),
        "bench-inside" => bench::inside(&rest),
        "" | "help" | "--help" | "-h" => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        other => {
            eprintln!("xtask: unknown command '{other}'\n\n{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask {command}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
