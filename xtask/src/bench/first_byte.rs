//! How long from the start of a command to the first byte of an answer.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::ground::Ground;
use super::process::Running;
use crate::steps::output;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for one connection; a guest that has just begun may not have heard the first try.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(2);

/// Milliseconds from starting the tender with `config` to the first byte from `to`.
///
/// # Errors
/// If none comes.
pub fn measure(ground: &Ground, config: &Path, to: &str) -> Result<f64> {
    let own = std::env::current_exe().context("find this program")?;
    let mut command = ground.in_client(own);
    command.args(["bench-inside", "first-byte", to]).arg(&ground.tender).arg(config);
    let said = output(&mut command)?;
    said.trim().parse().with_context(|| format!("understand '{said}'"))
}

/// In the client's namespace: starts the command that is given, asks, prints milliseconds.
///
/// # Errors
/// If no answer comes.
pub fn inside(args: &[String]) -> Result<()> {
    let [to, program, rest @ ..] = args else { anyhow::bail!("ADDRESS:PORT PROGRAM ARGUMENTS") };
    let to: SocketAddr = to.parse().context("understand the address")?;
    let began = Instant::now();
    let _server = Running::start(Command::new(program).args(rest))?;
    loop {
        ensure!(began.elapsed() < PATIENCE, "no answer from {to} within {PATIENCE:?}");
        let Ok(mut stream) = TcpStream::connect_timeout(&to, CONNECT_TIMEOUT) else { continue };
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")?;
        let mut byte = [0];
        if stream.read(&mut byte)? == 1 {
            println!("{:.3}", began.elapsed().as_secs_f64() * 1000.0);
            return Ok(());
        }
    }
}
