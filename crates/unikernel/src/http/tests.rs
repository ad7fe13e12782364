//! The server on pipes in memory, with a clock that jumps to whatever is due next.

#![allow(clippy::unwrap_used)]

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::string::{String, ToString};
use std::task::{Context, Poll, Waker};

use super::*;

/// What a client does.
#[derive(Clone)]
enum Act {
    Send(Vec<u8>),
    Wait(u64),
    /// Says that nothing more comes.
    Finish,
}

struct World {
    now_ns: Cell<u64>,
    timers: RefCell<Vec<u64>>,
    acts: RefCell<VecDeque<Act>>,
    /// What came and was not read.
    arrived: RefCell<VecDeque<u8>>,
    finished: Cell<bool>,
    written: RefCell<Vec<u8>>,
    shut: Cell<bool>,
    /// Bytes that the client takes in each second; nothing: all.
    rate: Cell<Option<u64>>,
    taken_at_ns: Cell<u64>,
    writes: Cell<usize>,
}

struct Pipe(Rc<World>);

struct Sleep(Rc<World>, u64);

impl Future for Sleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<()> {
        if self.0.now_ns.get() >= self.1 {
            return Poll::Ready(());
        }
        self.0.timers.borrow_mut().push(self.1);
        Poll::Pending
    }
}

impl Stream for Pipe {
    type Sleep = Sleep;

    fn poll_read(&self, _: &mut Context<'_>, to: &mut [u8]) -> Poll<Result<usize, Broken>> {
        let mut arrived = self.0.arrived.borrow_mut();
        if arrived.is_empty() {
            return if self.0.finished.get() { Poll::Ready(Ok(0)) } else { Poll::Pending };
        }
        let count = arrived.len().min(to.len());
        for (to, byte) in to.iter_mut().zip(arrived.drain(..count)) {
            *to = byte;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_write(&self, _: &mut Context<'_>, data: &[u8]) -> Poll<Result<usize, Broken>> {
        let mut count = data.len();
        if let Some(rate) = self.0.rate.get() {
            let next_ns = self.0.taken_at_ns.get() + SECOND_NS;
            if self.0.now_ns.get() < next_ns {
                self.0.timers.borrow_mut().push(next_ns);
                return Poll::Pending;
            }
            self.0.taken_at_ns.set(self.0.now_ns.get());
            count = count.min(usize::try_from(rate).unwrap());
        }
        self.0.written.borrow_mut().extend_from_slice(&data[..count]);
        self.0.writes.set(self.0.writes.get() + 1);
        Poll::Ready(Ok(count))
    }

    async fn shutdown(&self) -> Result<(), Broken> {
        self.0.shut.set(true);
        Ok(())
    }

    fn now_ns(&self) -> u64 {
        self.0.now_ns.get()
    }

    fn wall_seconds(&self) -> u64 {
        784_111_777
    }

    fn sleep_until(&self, moment_ns: u64) -> Sleep {
        Sleep(Rc::clone(&self.0), moment_ns)
    }

    fn peer(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 40_000)
    }

    fn local(&self) -> SocketAddrV4 {
        SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 2), 80)
    }
}

/// Answers in different ways, by the path.
struct Sample;

impl Handler<Pipe> for Sample {
    async fn handle(
        &self,
        request: &Request<'_>,
        body: &mut Body<'_, Pipe>,
        reply: &mut Reply<'_, Pipe>,
    ) -> Result<(), Broken> {
        match request.path() {
            "/echo" => match body.read_all().await {
                Ok(all) => reply.start(Status::OK).send(body, &all).await,
                Err(BodyError::TooLong) => {
                    reply.text(body, Status::CONTENT_TOO_LARGE, b"long").await
                }
                Err(BodyError::Malformed) => reply.text(body, Status::BAD_REQUEST, b"bad").await,
                Err(BodyError::Broken(broken)) => Err(broken),
            },
            "/chunks" => {
                let mut chunks = reply.start(Status::OK).chunks();
                chunks.write(body, b"one").await?;
                chunks.write(body, b"").await?;
                chunks.write(body, &[b'x'; 17]).await?;
                chunks.finish(body).await
            }
            "/big" => reply.start(Status::OK).send(body, &[b'b'; 100_000]).await,
            "/empty" => reply.start(Status::NO_CONTENT).send(body, b"not sent").await,
            "/split" => {
                let head = reply.start(Status::OK).field("X", b"a\r\nSet-Cookie: b");
                head.field("Y", b"c").send(body, b"").await
            }
            "/nothing" => Ok(()),
            "/fields" => {
                let mut text = String::new();
                for (name, value) in request.fields() {
                    text.push_str(&std::format!(
                        "{}={};",
                        String::from_utf8_lossy(name),
                        String::from_utf8_lossy(value)
                    ));
                }
                reply.start(Status::OK).send(body, text.as_bytes()).await
            }
            _ => reply.start(Status::OK).send(body, request.target.as_bytes()).await,
        }
    }
}

struct Ended {
    text: String,
    seconds: u64,
    shut: bool,
    writes: usize,
}

/// Lets a client act, and the connection run to its end.
fn run_limited(acts: Vec<Act>, rate: Option<u64>, limits: &Limits) -> Ended {
    let world = Rc::new(World {
        now_ns: Cell::new(SECOND_NS),
        timers: RefCell::default(),
        acts: RefCell::new(acts.into()),
        arrived: RefCell::default(),
        finished: Cell::new(false),
        written: RefCell::default(),
        shut: Cell::new(false),
        rate: Cell::new(rate),
        taken_at_ns: Cell::new(0),
        writes: Cell::new(0),
    });
    let shared = Shared::default();
    let connection = Connection::new(Pipe(Rc::clone(&world)), &shared, limits);
    {
        let mut running = pin!(connection.run(&Sample));
        let mut context = Context::from_waker(Waker::noop());
        let mut client_at_ns = world.now_ns.get();
        loop {
            world.timers.borrow_mut().clear();
            if running.as_mut().poll(&mut context).is_ready() {
                break;
            }
            if client_at_ns <= world.now_ns.get() {
                let act = world.acts.borrow_mut().pop_front();
                match act {
                    Some(Act::Send(bytes)) => world.arrived.borrow_mut().extend(bytes),
                    Some(Act::Wait(ns)) => client_at_ns = world.now_ns.get() + ns,
                    Some(Act::Finish) => world.finished.set(true),
                    None => client_at_ns = u64::MAX,
                }
                continue;
            }
            let next_ns = world.timers.borrow().iter().copied().min().unwrap_or(u64::MAX);
            let next_ns = next_ns.min(client_at_ns);
            assert!(next_ns < u64::MAX, "the connection waits for nothing");
            world.now_ns.set(next_ns.max(world.now_ns.get() + 1));
        }
    }
    assert_eq!(shared.busy.get(), 0);
    let text = String::from_utf8(world.written.take()).unwrap();
    let seconds = (world.now_ns.get() - SECOND_NS) / SECOND_NS;
    Ended { text, seconds, shut: world.shut.get(), writes: world.writes.get() }
}

fn run(acts: Vec<Act>) -> Ended {
    run_limited(acts, None, &Limits::default())
}

fn send(text: &str) -> Act {
    Act::Send(text.as_bytes().to_vec())
}

/// What comes for `input` and then the client's end, without the date's line.
fn answer(input: &str) -> String {
    let ended = run(vec![send(input), Act::Finish]);
    ended.text.replace("Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "")
}

/// The codes of the answers to `input`.
fn codes(input: &str) -> Vec<String> {
    let text = answer(input);
    let lines = text.split("HTTP/1.1 ").skip(1);
    lines.map(|line| line.chars().take(3).collect()).collect()
}

const GET: &str = "GET /a HTTP/1.1\r\nHost: h\r\n\r\n";

#[test]
fn an_answer_is_complete() {
    let text = run(vec![send(GET), Act::Finish]).text;
    assert_eq!(
        text,
        "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Length: 2\r\n\r\n/a"
    );
}

#[test]
fn requests_that_come_together_are_answered_in_order_and_together() {
    let text: String =
        (0..20).map(|n| std::format!("GET /{n} HTTP/1.1\r\nHost: h\r\n\r\n")).collect();
    let ended = run(vec![send(&text), Act::Finish]);
    let bodies: Vec<_> = ended.text.split("\r\n\r\n").skip(1).collect();
    assert_eq!(bodies.len(), 20);
    assert!(bodies.iter().enumerate().all(|(n, body)| body.starts_with(&std::format!("/{n}"))));
    assert_eq!(ended.writes, 1, "one write for all");
}

#[test]
fn an_answer_does_not_wait_for_the_next_request_s_body() {
    // Found by the fuzzer: the client may wait for the answer before it sends the body.
    let post = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\na";
    let ended = run(vec![send(&(GET.to_string() + post)), Act::Finish]);
    assert!(ended.text.ends_with("\r\n\r\n/a"), "{}", ended.text);
}

#[test]
fn a_head_may_come_byte_by_byte() {
    let acts = GET.bytes().map(|byte| Act::Send(vec![byte])).chain([Act::Finish]).collect();
    assert!(run(acts).text.ends_with("\r\n\r\n/a"));
}

#[test]
fn connections_are_kept_and_closed() {
    let two = |first: &str| codes(&(first.to_string() + GET)).len();
    assert_eq!(two("GET / HTTP/1.1\r\nHost: h\r\n\r\n"), 2);
    assert_eq!(two("GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"), 1);
    assert_eq!(two("GET / HTTP/1.1\r\nHost: h\r\nConnection: x, Close\r\n\r\n"), 1);
    assert_eq!(two("GET / HTTP/1.0\r\n\r\n"), 1);
    assert_eq!(two("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"), 2);
    assert_eq!(two("\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n\r\n"), 2);
    let text = answer("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n");
    assert!(text.contains("Connection: keep-alive\r\n"), "{text}");
    assert!(answer("GET / HTTP/1.0\r\n\r\n").contains("Connection: close\r\n"));
    assert!(run(vec![send("GET / HTTP/1.0\r\n\r\n"), Act::Finish]).shut);
}

#[test]
fn what_could_be_read_in_two_ways_is_refused() {
    let cases = [
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\nHost: h\n\n", "400"),
        ("GET / HTTP/1.1\r\nHost: h\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: h\r\n\n", "400"),
        ("GET / HTTP/1.1\r\nHost: h\rx\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost : h\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n Host: h\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: h\r\nno colon\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: h\r\nA: \0\r\n\r\n", "400"),
        ("GET  / HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET / HTTP/1.1 \r\nHost: h\r\n\r\n", "400"),
        ("GET /\t HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET a HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET * HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET http:// HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("G@T / HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET / http/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET / HTTP/1.10\r\nHost: h\r\n\r\n", "400"),
        ("GET /\r\n\r\n", "400"),
        ("\r\n\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n", "400"),
        ("GET / HTTP/2.0\r\nHost: h\r\n\r\n", "505"),
        ("CONNECT a:1 HTTP/1.1\r\nHost: h\r\n\r\n", "501"),
        (
            "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx",
            "400",
        ),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 1\r\n\r\nx", "400"),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\nx", "400"),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\r\nx", "400"),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 0x1\r\n\r\nx", "400"),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999\r\n\r\n", "413"),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\n\r\n", "413"),
        (
            "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\
             \r\n0\r\n\r\n",
            "400",
        ),
        ("POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "400"),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip\r\n\r\n", "501"),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, chunked\r\n\r\n", "501"),
        (
            "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\
             Transfer-Encoding: chunked\r\n\r\n",
            "400",
        ),
        ("POST /echo HTTP/1.1\r\nHost: h\r\nExpect: cake\r\n\r\n", "417"),
    ];
    for (input, code) in cases {
        // Whatever follows must never be taken for a request.
        assert_eq!(codes(&(input.to_string() + GET)), [code], "{input:?}");
    }
}

#[test]
fn chunks_are_read_and_malformed_ones_refused() {
    let post = "POST /echo HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let good = [
        ("0\r\n\r\n", ""),
        ("3\r\nabc\r\n0\r\n\r\n", "abc"),
        ("3;x=y\r\nabc\r\nA\r\n0123456789\r\n00\r\nTrailer: x\r\n\r\n", "abc0123456789"),
        ("3 ; x\r\nabc\r\n0\r\n\r\n", "abc"),
    ];
    for (body, expected) in good {
        let text = answer(&(post.to_string() + body + GET));
        assert!(text.contains(&std::format!("\r\n\r\n{expected}HTTP/1.1 200")), "{body:?}: {text}");
    }
    for body in [
        "\r\n",
        "x\r\n",
        "3\nabc\r\n",
        "3\r\nabcd\r\n",
        "-1\r\n",
        "3\r\nabc\n0\r\n\r\n",
        "0x3\r\nabc\r\n",
        "1000000000000000\r\n",
        " 3\r\nabc\r\n",
        "3\r;\r\nabc\r\n",
    ] {
        assert_eq!(codes(&(post.to_string() + body + GET)), ["400"], "{body:?}");
    }
    assert_eq!(codes(&(post.to_string() + "100001\r\n" + GET)), ["413"]);
    let long = "x".repeat(300);
    assert_eq!(codes(&(post.to_string() + "3;" + &long + "\r\nabc\r\n")), ["400"]);
    let trailers: String = (0..200).map(|n| std::format!("T{n}: {}\r\n", "x".repeat(50))).collect();
    assert_eq!(codes(&(post.to_string() + "0\r\n" + &trailers)), ["413"]);
}

#[test]
fn bodies_that_nobody_wants_are_passed_over() {
    let post = |length: usize| {
        let body = "x".repeat(length);
        std::format!("POST / HTTP/1.1\r\nHost: h\r\nContent-Length: {length}\r\n\r\n{body}{GET}")
    };
    assert_eq!(codes(&post(10)), ["200", "200"]);
    assert_eq!(codes(&post(60_000)), ["200", "200"]);
    // Too much to be worth it.
    assert_eq!(codes(&post(500_000)), ["200"]);
}

#[test]
fn a_client_that_asks_is_told_to_go_on_only_if_the_body_is_wanted() {
    let post = "HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n";
    let wanted =
        run(vec![send(&std::format!("POST /echo {post}")), Act::Wait(1), send("abc"), Act::Finish]);
    assert!(
        wanted.text.starts_with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200"),
        "{}",
        wanted.text
    );
    assert!(wanted.text.ends_with("\r\n\r\nabc"));
    let unwanted = run(vec![send(&std::format!("POST / {post}")), Act::Wait(1), Act::Finish]);
    assert!(unwanted.text.starts_with("HTTP/1.1 200"), "{}", unwanted.text);
    assert!(unwanted.text.contains("Connection: close"), "{}", unwanted.text);
    // The body is there already: nothing to be told.
    let there = answer(&std::format!("POST /echo {post}abc"));
    assert!(there.starts_with("HTTP/1.1 200"), "{there}");
}

#[test]
fn heads_are_bounded() {
    let long = "x".repeat(9000);
    assert_eq!(codes(&std::format!("GET /{long} HTTP/1.1\r\nHost: h\r\n\r\n")), ["414"]);
    assert_eq!(codes(&std::format!("GET /{long}")), ["414"]);
    assert_eq!(codes(&std::format!("GET / HTTP/1.1\r\nHost: h\r\nA: {long}\r\n\r\n")), ["431"]);
    let many: String = (0..100).map(|n| std::format!("A{n}: x\r\n")).collect();
    assert_eq!(codes(&std::format!("GET / HTTP/1.1\r\nHost: h\r\n{many}\r\n")), ["431"]);
}

#[test]
fn answers_without_a_body() {
    let head = answer("HEAD /abc HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(head, "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n");
    let head = answer("HEAD /chunks HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(head, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n");
    let empty = answer("GET /empty HTTP/1.1\r\nHost: h\r\n\r\n");
    assert_eq!(empty, "HTTP/1.1 204 No Content\r\n\r\n");
    assert_eq!(codes("GET /nothing HTTP/1.1\r\nHost: h\r\n\r\n"), ["500"]);
}

#[test]
fn answers_in_pieces() {
    let text = answer("GET /chunks HTTP/1.1\r\nHost: h\r\n\r\n");
    let body = text.split("\r\n\r\n").skip(1).collect::<Vec<_>>().join("\r\n\r\n");
    assert_eq!(body, "3\r\none\r\n11\r\nxxxxxxxxxxxxxxxxx\r\n0\r\n\r\n");
    let old = answer("GET /chunks HTTP/1.0\r\n\r\n");
    assert!(old.ends_with("Connection: close\r\n\r\nonexxxxxxxxxxxxxxxxx"), "{old}");
}

#[test]
fn a_value_cannot_begin_another_field() {
    let text = answer("GET /split HTTP/1.1\r\nHost: h\r\n\r\n");
    assert!(!text.contains("Set-Cookie") && text.contains("Y: c"), "{text}");
}

#[test]
fn targets_and_fields_are_read() {
    let body = |input: &str| answer(input).split("\r\n\r\n").nth(1).unwrap().to_string();
    assert_eq!(body("GET http://h/p?q HTTP/1.1\r\nHost: h\r\n\r\n"), "/p?q");
    assert_eq!(body("GET HTTP://h HTTP/1.1\r\nHost: h\r\n\r\n"), "/");
    assert_eq!(body("OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n"), "*");
    assert_eq!(
        body("GET /fields HTTP/1.1\r\nHost:h\r\nA:\t b c \r\nA:\r\n\r\n"),
        "Host=h;A=b c;A=;"
    );
}

#[test]
fn slow_clients_lose_their_connection() {
    // Nothing at all.
    assert_eq!(run(vec![]).seconds, 60);
    // A head that never ends, a byte a second.
    let dribble: Vec<Act> = (0..100).flat_map(|_| [send("x"), Act::Wait(SECOND_NS)]).collect();
    let ended = run(dribble);
    assert!(ended.text.starts_with("HTTP/1.1 408"), "{}", ended.text);
    assert!(ended.seconds <= 12, "{}", ended.seconds);
    // A body below the least rate.
    let head = "POST /echo HTTP/1.1\r\nHost: h\r\nContent-Length: 10000\r\n\r\n";
    let dribble = (0..100).flat_map(|_| [send("x"), Act::Wait(SECOND_NS)]);
    let ended = run([send(head)].into_iter().chain(dribble).collect());
    assert!(ended.seconds <= 12 && ended.text.is_empty(), "{} {}", ended.seconds, ended.text);
    // A body at more than the least rate, but for long.
    let part = "x".repeat(1000);
    let steady = (0..10).flat_map(|_| [send(&part), Act::Wait(SECOND_NS)]);
    let ended = run([send(head)].into_iter().chain(steady).chain([Act::Finish]).collect());
    assert!(ended.text.starts_with("HTTP/1.1 200"), "{}", ended.text);
    // An answer that is not taken: head and body each have their grace.
    let limits = Limits::default();
    let get = "GET /big HTTP/1.1\r\nHost: h\r\n\r\n";
    let ended = run_limited(vec![send(get), Act::Finish], Some(10), &limits);
    assert!(ended.seconds <= 22 && ended.text.len() < 1000, "{}", ended.seconds);
    let ended = run_limited(vec![send(get), Act::Finish], Some(2000), &limits);
    assert!(ended.text.len() > 100_000, "{} bytes after {}", ended.text.len(), ended.seconds);
}
