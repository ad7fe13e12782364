//! The daemon of this machine, and how it is asked.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

/// Where the daemon listens.
const SOCKET: &str = "/run/shoal.sock";
/// Where the logs of the daemons of all boots are.
const LOGS: &str = "/var/log";
/// Longest that anything awaited may take. Emulated processors are slow, and so is a machine that
/// emulates beside other work.
pub const PATIENCE: Duration = Duration::from_secs(180);
/// Time between two looks.
const BETWEEN: Duration = Duration::from_millis(250);

/// Starts the daemon, with a log of its own, and waits until it answers.
pub fn start_daemon(name: &str) -> Result<()> {
    let log = File::create(format!("{LOGS}/{name}.log")).context("make the daemon's log")?;
    let mut daemon = Command::new("shoal")
        .args(["daemon", "-H", &format!("unix://{SOCKET}")])
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share the daemon's log")?)
        .stderr(log)
        .spawn()
        .context("start the daemon")?;
    eventually("the daemon answers", || {
        if let Some(status) = daemon.try_wait().context("look at the daemon")? {
            bail!("it ended with {status}");
        }
        let (status, _) = ask("GET", "/_ping", None)?;
        ensure!(status == 200, "it answers {status}");
        Ok(())
    })
}

/// Waits until `look` succeeds; fails with what it said last.
pub fn eventually(what: &str, mut look: impl FnMut() -> Result<()>) -> Result<()> {
    let began = Instant::now();
    loop {
        match look() {
            Ok(()) => return Ok(()),
            Err(error) if began.elapsed() > PATIENCE => {
                return Err(error.context(format!("not within {PATIENCE:?}: {what}")));
            }
            Err(_) => std::thread::sleep(BETWEEN),
        }
    }
}

/// Runs a program to its end; gives what it printed, or fails with all that it said.
pub fn run(program: &str, args: &[&str]) -> Result<String> {
    run_within(PATIENCE, program, args)
}

/// The same for a program that may take long.
pub fn run_within(longest: Duration, program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new("timeout")
        .args(["-s", "KILL", &longest.as_secs().to_string(), program])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("start {program}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{program} {} ended with {}: {said} {}",
        args.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(said.trim().to_owned())
}

/// The docker CLI.
pub fn docker(args: &[&str]) -> Result<String> {
    run("docker", args)
}

/// `docker run --rm` of the busybox image with options, and a command for its shell.
pub fn shell(options: &[&str], script: &str) -> Result<String> {
    docker(&[&["run", "--rm"], options, &["busybox:vm", "sh", "-c", script]].concat())
}

/// `docker run -d` with options, `NAME`, the busybox image and a command.
pub fn detached(name: &str, options: &[&str], command: &[&str]) -> Result<()> {
    let begin = ["run", "-d", "--name", name];
    docker(&[&begin, options, &["busybox:vm"], command].concat()).map(drop)
}

/// What `docker inspect` says of one field.
pub fn inspect(container: &str, field: &str) -> Result<String> {
    docker(&["inspect", "--format", &format!("{{{{{field}}}}}"), container])
}

/// Removes a container by force.
pub fn remove(container: &str) -> Result<()> {
    docker(&["rm", "-f", container]).map(drop)
}

/// That two texts are equal.
pub fn equal(found: &str, wanted: &str) -> Result<()> {
    ensure!(found == wanted, "'{found}' instead of '{wanted}'");
    Ok(())
}

/// That a page is answered at `ADDRESS:PORT`, whose text holds `wanted`.
pub fn answers(at: &str, wanted: &str) -> Result<()> {
    let address = at.parse().with_context(|| format!("read the address '{at}'"))?;
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)
        .with_context(|| format!("connect to {at}"))?;
    stream.set_read_timeout(Some(PATIENCE)).context("bound the wait for an answer")?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").context("send a request")?;
    let mut page = String::new();
    stream.read_to_string(&mut page).with_context(|| format!("read what {at} answers"))?;
    ensure!(page.contains(wanted), "{at} answers '{page}'");
    Ok(())
}

/// A request to the daemon: status and body.
pub fn ask(method: &str, path: &str, body: Option<&Value>) -> Result<(u16, Value)> {
    let body = body.map(Value::to_string).unwrap_or_default();
    let mut stream = UnixStream::connect(SOCKET).context("connect to the daemon")?;
    stream.set_read_timeout(Some(PATIENCE)).context("bound the wait for an answer")?;
    // HTTP/1.0: the answer comes whole, and its end is the connection's.
    let head = format!(
        "{method} {path} HTTP/1.0\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).context("send a request")?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).context("read an answer")?;
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer without a head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = serde_json::from_str(body).unwrap_or(Value::String(body.to_owned()));
    Ok((status.context("an answer without a status")?, body))
}

/// What the daemon answers to a GET that must succeed.
pub fn get(path: &str) -> Result<Value> {
    let (status, body) = ask("GET", path, None)?;
    ensure!(status == 200, "GET {path} answers {status}: {body}");
    Ok(body)
}

/// The ends of the daemons' logs.
pub fn log_tail(bytes: usize) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(LOGS).into_iter().flatten().flatten() {
        let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let from = log.len().saturating_sub(bytes);
        let from = (from..log.len()).find(|at| log.is_char_boundary(*at)).unwrap_or(0);
        let tail = log.get(from..).unwrap_or_default();
        text.push_str(&format!("=== {}\n{tail}\n", entry.path().display()));
    }
    text
}

/// What the daemon of a boot logged as an error.
pub fn logged_errors(name: &str) -> Result<Vec<String>> {
    let log = Path::new(LOGS).join(format!("{name}.log"));
    let log = std::fs::read_to_string(log).context("read the daemon's log")?;
    Ok(log.lines().filter(|line| line.contains("ERROR")).map(str::to_owned).collect())
}

/// A file of the kernel, without its last line break.
pub fn kernel_says(file: &str) -> Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| format!("read {file}"))?;
    Ok(text.trim_end().to_owned())
}
