//! Questions for outside: asked of the upstream servers one after the other, the next one already
//! while the first is still silent.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime};

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep_until, timeout_at};

/// A silent server gets company after this long.
const NEXT_AFTER: Duration = Duration::from_millis(300);
/// Clients themselves give up after five seconds as a rule.
const DEADLINE: Duration = Duration::from_millis(4500);
/// Most servers that are asked for one question.
const SERVERS_MAX: usize = 3;
/// Longest answer over UDP.
const ANSWER_LEN_MAX: usize = 4096;
const PORT: u16 = 53;
const HEADER_LEN: usize = 12;

/// The servers that the host itself asks, read again when the file changes.
#[derive(Debug, Default)]
pub(super) struct HostServers {
    known: Mutex<(Option<SystemTime>, Vec<IpAddr>)>,
}

impl HostServers {
    /// The servers in `file`, usually `/etc/resolv.conf`.
    pub(super) fn get(&self, file: &Path) -> Vec<IpAddr> {
        let changed = std::fs::metadata(file).and_then(|m| m.modified()).ok();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.0 != changed || changed.is_none() {
            // Ignored because: without the file there is nobody to ask, and clients are told so.
            let text = std::fs::read_to_string(file).unwrap_or_default();
            *known = (changed, parse(&text));
        }
        known.1.clone()
    }
}

fn parse(text: &str) -> Vec<IpAddr> {
    let server = |line: &str| {
        let mut words = line.split_whitespace();
        (words.next()? == "nameserver").then_some(())?;
        words.next()?.parse().ok()
    };
    text.lines().filter_map(server).collect()
}

/// Asks `servers` and returns the first usable answer as it came, with the question's own number.
/// Nothing if there was none in time.
pub(super) async fn ask(servers: &[IpAddr], question: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let addresses: Vec<SocketAddr> =
        servers.iter().take(SERVERS_MAX).map(|ip| SocketAddr::new(*ip, PORT)).collect();
    race(&addresses, question, tcp).await
}

#[expect(clippy::disallowed_methods, reason = "one question for each server, SERVERS_MAX at most")]
async fn race(servers: &[SocketAddr], question: &[u8], tcp: bool) -> Option<Vec<u8>> {
    let deadline = Instant::now() + DEADLINE;
    let mut waiting = servers.iter();
    let mut asked = FuturesUnordered::new();
    asked.push(exchange(*waiting.next()?, question, tcp, deadline));
    // The last resort: an answer that only says that the server could not help.
    let mut poor: Option<Vec<u8>> = None;
    let mut next_at = Instant::now() + NEXT_AFTER;
    loop {
        tokio::select! {
            biased;
            Some(answer) = asked.next() => match answer {
                Ok(answer) if is_useful(&answer) => return Some(answer),
                Ok(answer) => {
                    poor.get_or_insert(answer);
                    next_at = Instant::now();
                }
                // Ignored because: the next server is asked, and the client is told if none helps.
                Err(_) => next_at = Instant::now(),
            },
            () = sleep_until(next_at), if waiting.len() > 0 => {
                if let Some(server) = waiting.next() {
                    asked.push(exchange(*server, question, tcp, deadline));
                }
                next_at = Instant::now() + NEXT_AFTER;
            }
            else => return poor,
        }
    }
}

/// Whether a server's answer settles the matter: it is no failure of the server's own.
fn is_useful(answer: &[u8]) -> bool {
    const SERVFAIL: u8 = 2;
    const REFUSED: u8 = 5;
    answer.get(3).is_some_and(|flags| ![SERVFAIL, REFUSED].contains(&(flags & 0x0f)))
}

async fn exchange(
    server: SocketAddr,
    question: &[u8],
    tcp: bool,
    deadline: Instant,
) -> io::Result<Vec<u8>> {
    let work = async {
        // A number of our own, which others cannot guess from the client's.
        let id: [u8; 2] = rand::random();
        let mut asked = question.to_vec();
        let original = swap_id(&mut asked, id)?;
        let mut answer =
            if tcp { over_tcp(server, &asked).await? } else { over_udp(server, &asked).await? };
        swap_id(&mut answer, original)?;
        Ok(answer)
    };
    timeout_at(deadline, work).await?
}

fn swap_id(message: &mut [u8], id: [u8; 2]) -> io::Result<[u8; 2]> {
    let short = || io::Error::new(io::ErrorKind::InvalidData, "message too short");
    let place: &mut [u8; 2] =
        message.get_mut(..2).and_then(|p| p.try_into().ok()).ok_or_else(short)?;
    Ok(std::mem::replace(place, id))
}

async fn over_udp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut buf = vec![0; ANSWER_LEN_MAX];
    loop {
        let len = socket.recv(&mut buf).await?;
        if answers(&buf[..len], question) {
            buf.truncate(len);
            return Ok(buf);
        }
    }
}

async fn over_tcp(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    let len = u16::try_from(question.len()).map_err(io::Error::other)?;
    let mut framed = len.to_be_bytes().to_vec();
    framed.extend_from_slice(question);
    stream.write_all(&framed).await?;
    let len = stream.read_u16().await?;
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await?;
    if answers(&answer, question) {
        Ok(answer)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidData, "answer to another question"))
    }
}

/// Whether it is an answer with the question's number and, if it repeats a question, with ours.
fn answers(answer: &[u8], question: &[u8]) -> bool {
    let (Some(head), Some(asked)) = (answer.get(..HEADER_LEN), question.get(..HEADER_LEN)) else {
        return false;
    };
    let repeats = || {
        let end = question_end(question)?;
        Some(answer.get(HEADER_LEN..end)? == question.get(HEADER_LEN..end)?)
    };
    // A server that fails may leave the question out.
    let bare = head[4..6] == [0, 0];
    head[..2] == asked[..2] && head[2] & 0x80 != 0 && (bare || repeats() == Some(true))
}

/// Where the one question of a message ends.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_LEN;
    loop {
        let len = usize::from(*message.get(at)?);
        at += 1 + len;
        match len {
            0 => return Some(at + 4),
            64.. => return None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `a.` IN A, with the number 7.
    const QUESTION: [u8; 19] = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'a', 0, 0, 1, 0, 1];

    #[test]
    fn only_answers_to_the_question_count() {
        let mut answer = QUESTION.to_vec();
        assert!(!answers(&answer, &QUESTION), "a question is no answer");
        answer[2] |= 0x80;
        assert!(answers(&answer, &QUESTION));
        let mut other = answer.clone();
        other[13] = b'b';
        assert!(!answers(&other, &QUESTION));
        let mut other = answer.clone();
        other[1] = 8;
        assert!(!answers(&other, &QUESTION));
        assert!(!answers(&answer[..11], &QUESTION));
        assert!(!answers(&answer[..14], &QUESTION));
    }

    #[test]
    fn servers_are_read_from_the_hosts_file() {
        let text = "search a.b\nnameserver 198.51.100.1\n nameserver fd00::1 # x\n\
                    #nameserver 198.51.100.2\nnameserver x\n";
        let want: Vec<IpAddr> = vec![
            Ipv4Addr::new(198, 51, 100, 1).into(),
            Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1).into(),
        ];
        assert_eq!(parse(text), want);
    }
}
