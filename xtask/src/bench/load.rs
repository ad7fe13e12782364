//! Load on servers, ours and the other, in turns.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::ground::{Ground, SERVER};
use super::process::Running;
use crate::steps::output;

/// How long one round of load lasts, in seconds.
const ROUND_SECONDS: u32 = 4;
/// Connections of the HTTP load, all kept alive.
const CONNECTIONS: u32 = 64;
/// Queries under way of the DNS load.
const QUERIES_OUTSTANDING: u32 = 100;
/// How long a server may take until it answers.
const PATIENCE: Duration = Duration::from_secs(10);

/// Requests a second with wrk, one thread, for a page at `host`.
///
/// # Errors
/// If wrk fails, or any answer was not as it should be.
pub fn http(ground: &Ground, host: &str) -> Result<f64> {
    let said = output(ground.in_client("wrk").args([
        "-t1",
        &format!("-c{CONNECTIONS}"),
        &format!("-d{ROUND_SECONDS}s"),
        &format!("http://{host}/index.html"),
    ]))?;
    if said.contains("Non-2xx") || said.contains("Socket errors") {
        bail!("answers were missing or wrong: {said}");
    }
    number_after(&said, "Requests/sec:")
}

/// Answers a second with dnsperf, for the names in `queries`.
///
/// # Errors
/// If dnsperf fails, or too many queries were lost.
pub fn dns(ground: &Ground, host: &str, queries: &Path) -> Result<f64> {
    let said = output(
        ground
            .in_client("dnsperf")
            .args(["-s", host, "-q", &QUERIES_OUTSTANDING.to_string()])
            .args(["-l", &ROUND_SECONDS.to_string(), "-d"])
            .arg(queries),
    )?;
    if !said.contains("NOERROR") || said.contains("NXDOMAIN") || said.contains("SERVFAIL") {
        bail!("answers were not as they should be: {said}");
    }
    number_after(&said, "Queries per second:")
}

/// Waits until a page comes from `host`.
///
/// # Errors
/// If none comes in time.
pub fn until_http(ground: &Ground, host: &str) -> Result<()> {
    let url = format!("http://{host}/index.html");
    until(|| ground.in_client("curl").args(["-sf", "-m", "1", "-o", "/dev/null", &url]).status())
        .with_context(|| format!("wait for {url}"))
}

/// Waits until `host` answers for the benchmark's zone.
///
/// # Errors
/// If it does not in time.
pub fn until_dns(ground: &Ground, host: &str) -> Result<()> {
    let at = format!("@{host}");
    until(|| {
        let line = "dig +short +time=1 +tries=1 \"$0\" h1.bench.test | grep -q '^198.51.0.1$'";
        ground.in_client("sh").args(["-c", line, &at]).status()
    })
    .with_context(|| format!("wait for the name server {host}"))
}

fn until(mut once: impl FnMut() -> std::io::Result<std::process::ExitStatus>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if once()?.success() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("nothing within {PATIENCE:?}")
}

fn number_after(text: &str, label: &str) -> Result<f64> {
    let rest = text.split_once(label).with_context(|| format!("'{label}' in: {text}"))?.1;
    let word = rest.split_whitespace().next().unwrap_or_default();
    word.parse().with_context(|| format!("understand '{word}'"))
}

/// nginx with `workers` processes, serving `root` in the server's namespace.
///
/// # Errors
/// If it does not begin to answer.
pub fn nginx(ground: &Ground, root: &Path, workers: u32) -> Result<Running> {
    let dir = ground.dir.join(format!("nginx{workers}"));
    std::fs::create_dir_all(&dir)?;
    let text = format!(
        "daemon off; worker_processes {workers}; user root; pid {dir}/pid; error_log {dir}/error;
events {{ worker_connections 1024; }}
http {{ access_log off; keepalive_requests 1000000000; sendfile on; tcp_nopush on;
  open_file_cache max=100; types {{ text/html html; }}
  client_body_temp_path {dir}/b; proxy_temp_path {dir}/p; fastcgi_temp_path {dir}/f;
  uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
  server {{ listen {SERVER}:80; root {root}; }} }}
",
        dir = dir.display(),
        root = root.display()
    );
    let file = dir.join("nginx.conf");
    std::fs::write(&file, text)?;
    // A group of its own would outlive a kill of the master: the workers end with its pipe.
    let running = Running::start(ground.in_server("/usr/sbin/nginx").arg("-c").arg(&file))?;
    until_http(ground, SERVER)?;
    Ok(running)
}

/// NSD with `servers` processes, serving the zone in the server's namespace.
///
/// # Errors
/// If it does not begin to answer.
pub fn nsd(ground: &Ground, zone: &Path, servers: u32) -> Result<Running> {
    let dir = ground.dir.join(format!("nsd{servers}"));
    std::fs::create_dir_all(&dir)?;
    let text = format!(
        "server:
  server-count: {servers}
  ip-address: {SERVER}
  username: \"\"
  chroot: \"\"
  zonesdir: \"{dir}\"
  database: \"\"
  pidfile: \"{dir}/pid\"
  zonelistfile: \"{dir}/list\"
  xfrdfile: \"{dir}/xfrd\"
  xfrdir: \"{dir}\"
  rrl-ratelimit: 0
remote-control:
  control-enable: no
zone:
  name: bench.test
  zonefile: {zone}
",
        dir = dir.display(),
        zone = zone.display()
    );
    let file = dir.join("nsd.conf");
    std::fs::write(&file, text)?;
    let running = Running::start(ground.in_server("/usr/sbin/nsd").arg("-d").arg("-c").arg(&file))?;
    until_dns(ground, SERVER)?;
    Ok(running)
}

/// Ends a server that has children: all of its processes.
pub fn end(server: Running) {
    // Ignored because: the processes may have ended meanwhile.
    let _ = Command::new("kill").arg("-TERM").arg(server.id().to_string()).status();
    let deadline = Instant::now() + PATIENCE;
    let mut server = server;
    while server.is_alive() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
}
