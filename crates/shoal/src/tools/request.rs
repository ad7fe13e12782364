//! `shoal try get`: requests, one connection each, and what came of them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::ask;

/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

/// Options of `shoal try get`.
#[derive(Args, Debug)]
pub struct GetArgs {
    /// `http://HOST[:PORT][/PATH]`
    url: String,
    /// How many requests, one after the other.
    #[arg(short = 'n', long, default_value_t = 1)]
    count: u32,
    /// Give up on a request after so many milliseconds.
    #[arg(long, default_value_t = 3000)]
    timeout_ms: u64,
    /// Wait so many milliseconds between two requests.
    #[arg(long, default_value_t = 0)]
    pause_ms: u64,
    /// Print a summary in JSON instead of the answers.
    #[arg(long)]
    json: bool,
}

/// What came of the requests.
#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct Summary {
    /// How often each answer came.
    pub answers: BTreeMap<String, u32>,
    /// How often each failure happened.
    pub failures: BTreeMap<String, u32>,
    /// The longest time that a request took, in milliseconds.
    pub longest_ms: u64,
    /// From the first failure to the last, in milliseconds.
    pub failing_ms: u64,
}

impl Summary {
    fn count(&mut self, outcome: Result<String>, took: Duration) {
        self.longest_ms = self.longest_ms.max(u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
        match outcome {
            Ok(answer) => *self.answers.entry(answer.trim().to_owned()).or_default() += 1,
            Err(error) => *self.failures.entry(format!("{error:#}")).or_default() += 1,
        }
    }
}

/// Sends the requests; fails if any of them failed.
pub async fn get(args: GetArgs) -> Result<()> {
    let (host, port, path) = split_url(&args.url)?;
    let timeout = Duration::from_millis(args.timeout_ms);
    let mut summary = Summary::default();
    let mut first_failure: Option<Instant> = None;
    for _ in 0..args.count {
        let began = Instant::now();
        let outcome = match tokio::time::timeout(timeout, named(&host, port, &path)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(anyhow::anyhow!("no answer within {} ms", args.timeout_ms)),
        };
        if outcome.is_err() {
            let first = *first_failure.get_or_insert(began);
            summary.failing_ms = u64::try_from(first.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        summary.count(outcome, began.elapsed());
        tokio::time::sleep(Duration::from_millis(args.pause_ms)).await;
    }
    if args.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        for (answer, times) in &summary.answers {
            println!("{times:>5}  {answer}");
        }
        for (failure, times) in &summary.failures {
            println!("{times:>5}  failed: {failure}");
        }
    }
    let failed: u32 = summary.failures.values().sum();
    if failed > 0 {
        bail!("{failed} of {} requests to '{}' failed", args.count, args.url);
    }
    Ok(())
}

async fn named(host: &str, port: u16, path: &str) -> Result<String> {
    let address = match host.parse::<IpAddr>() {
        Ok(address) => address,
        Err(_) => ask::lookup(host)
            .await?
            .into_iter()
            .next()
            .with_context(|| format!("name '{host}' has no address"))?,
    };
    fetch(SocketAddr::new(address, port), host, path).await
}

/// One `GET` over a connection of its own; gives the body of the answer.
pub async fn fetch(address: SocketAddr, host: &str, path: &str) -> Result<String> {
    let stream =
        TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    exchange(stream, host, path).await
}

/// One `GET` over `stream`; gives the body of the answer.
pub async fn exchange(mut stream: TcpStream, host: &str, path: &str) -> Result<String> {
    let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await.context("send the request")?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await.context("read the answer")?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is not HTTP")?;
    let status = head.split_whitespace().nth(1).unwrap_or_default();
    if status != "200" {
        bail!("status {status}");
    }
    Ok(body.to_owned())
}

fn split_url(url: &str) -> Result<(String, u16, String)> {
    let rest = url.strip_prefix("http://").unwrap_or(url);
    let (authority, path) = rest.split_once('/').map_or((rest, ""), |(a, p)| (a, p));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) => (host, port.parse().with_context(|| format!("port in '{url}'"))?),
        None => (authority, 80),
    };
    if host.is_empty() {
        bail!("no host in '{url}'");
    }
    Ok((host.to_owned(), port, format!("/{path}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn urls_are_taken_apart() {
        assert_eq!(split_url("http://a:81/x/y").unwrap(), ("a".into(), 81, "/x/y".into()));
        assert_eq!(split_url("a").unwrap(), ("a".into(), 80, "/".into()));
        assert!(split_url("http://:80/").is_err());
        assert!(split_url("http://a:x/").is_err());
    }
}
