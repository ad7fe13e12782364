//! Two hosted instances, each on its own thread, connected with each other.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::rc::Rc;
use std::time::Duration;

use unikernel::hosted::{Config, pair, run};
use unikernel::net::{Error, TcpListener, TcpStream, UdpSocket};
use unikernel::time::{sleep, timeout};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
/// Longer than anything here takes, on a busy machine too.
const PATIENCE: Duration = Duration::from_secs(60);

fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(SERVER, port)
}

/// Runs a server and a client; the server is told to stop when the client has ended.
fn check<S, C>(offload: bool, server: fn() -> S, client: fn() -> C)
where
    S: Future<Output = Result<(), Error>> + 'static,
    C: Future<Output = Result<(), Error>> + 'static,
{
    let (left, right) = pair().unwrap();
    let config =
        move |net| Config { nets: vec![net], heap_bytes: 256 << 20, offload, ..Config::default() };
    let (stop, stopper) = std::io::pipe().unwrap();
    let serving = std::thread::spawn(move || {
        let config = Config { stop: Some(stop.into()), ..config(left) };
        run(config, move || async move {
            unikernel::spawn(async move { server().await.unwrap() });
            unikernel::stop_requested().await;
        })
        .unwrap()
    });
    let status = run(config(right), move || async move {
        timeout(PATIENCE, client()).await.expect("the client is done in time")
    });
    drop(stopper);
    assert_eq!(status.unwrap(), 0);
    assert_eq!(serving.join().unwrap(), 0);
}

async fn echo(stream: TcpStream) -> Result<(), Error> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}

async fn echo_server() -> Result<(), Error> {
    let listener = TcpListener::bind(7, 1024)?;
    loop {
        let stream = listener.accept().await;
        unikernel::spawn(async move {
            // What the client does not like, it says itself.
            let _ = echo(stream).await;
        });
    }
}

async fn echo_once(bytes: usize) -> Result<(), Error> {
    let stream = Rc::new(TcpStream::connect(at(7)).await?);
    let sent: Rc<Vec<u8>> = Rc::new((0..bytes).map(|at| (at % 251) as u8).collect());
    let (writer, data) = (Rc::clone(&stream), Rc::clone(&sent));
    unikernel::spawn(async move {
        writer.write_all(&data).await.unwrap();
        writer.shutdown().await.unwrap();
    });
    let mut received = vec![0; bytes];
    stream.read_exact(&mut received).await?;
    assert!(*sent == received, "the echo differs");
    assert_eq!(stream.read(&mut [0; 1]).await?, 0);
    Ok(())
}

#[test]
fn an_echo_comes_back() {
    check(false, echo_server, || echo_once(1));
    check(true, echo_server, || echo_once(1));
}

#[test]
fn megabytes_come_back() {
    check(false, echo_server, || echo_once(5_000_000));
    check(true, echo_server, || echo_once(50_000_000));
}

#[test]
fn thousands_of_connections_at_once() {
    check(true, echo_server, || async {
        let done = Rc::new(std::cell::Cell::new(0));
        let count = 3000;
        for _ in 0..count {
            let done = Rc::clone(&done);
            unikernel::spawn(async move {
                let stream = TcpStream::connect(at(7)).await.unwrap();
                for round in 0..3_u8 {
                    stream.write_all(&[round; 100]).await.unwrap();
                    let mut answer = [9; 100];
                    stream.read_exact(&mut answer).await.unwrap();
                    assert_eq!(answer, [round; 100]);
                }
                done.set(done.get() + 1);
                // Held until all are there.
                while done.get() < count {
                    sleep(Duration::from_millis(10)).await;
                }
                stream.shutdown().await.unwrap();
                done.set(done.get() + 1);
            });
        }
        while done.get() < 2 * count {
            sleep(Duration::from_millis(10)).await;
        }
        Ok(())
    });
}

#[test]
fn a_closed_port_refuses() {
    check(false, echo_server, || async {
        assert_eq!(TcpStream::connect(at(8)).await.unwrap_err(), Error::Refused);
        Ok(())
    });
}

#[test]
fn nobody_there_is_unreachable() {
    check(false, echo_server, || async {
        let nobody = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 77), 1);
        assert_eq!(TcpStream::connect(nobody).await.unwrap_err(), Error::Unreachable);
        let no_way = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 1);
        assert_eq!(TcpStream::connect(no_way).await.unwrap_err(), Error::Unreachable);
        Ok(())
    });
}

#[test]
fn a_slow_reader_stops_the_writer_and_gets_everything() {
    async fn server() -> Result<(), Error> {
        let listener = TcpListener::bind(7, 1)?;
        let stream = listener.accept().await;
        let mut total = 0_usize;
        let mut buffer = vec![0; 100_000];
        loop {
            sleep(Duration::from_millis(1)).await;
            let count = stream.read(&mut buffer).await?;
            assert!(
                buffer[..count].iter().enumerate().all(|(i, b)| *b == ((total + i) % 251) as u8)
            );
            total += count;
            if count == 0 {
                stream.write_all(&(total as u32).to_le_bytes()).await?;
                return stream.shutdown().await;
            }
        }
    }
    check(true, server, || async {
        let stream = TcpStream::connect(at(7)).await?;
        let data: Vec<u8> = (0..3_000_000_usize).map(|at| (at % 251) as u8).collect();
        stream.write_all(&data).await?;
        stream.shutdown().await?;
        let mut answer = [0; 4];
        stream.read_exact(&mut answer).await?;
        assert_eq!(u32::from_le_bytes(answer), 3_000_000);
        Ok(())
    });
}

#[test]
fn datagrams_are_echoed() {
    async fn server() -> Result<(), Error> {
        let socket = UdpSocket::bind(7)?;
        let mut buffer = [0; 1500];
        loop {
            let (count, from) = socket.recv_from(&mut buffer).await?;
            socket.send_to(&buffer[..count], from).await?;
        }
    }
    check(true, server, || async {
        let socket = UdpSocket::bind(0)?;
        for bytes in [0, 1, 100, 1472] {
            let mut answer = [0; 1500];
            socket.send_to(&vec![7; bytes], at(7)).await?;
            let (count, from) = socket.recv_from(&mut answer).await?;
            assert_eq!((count, from), (bytes, at(7)));
            assert!(answer[..count].iter().all(|byte| *byte == 7));
        }
        let long = socket.send_to(&[0; 1473], at(7)).await;
        assert_eq!(long.unwrap_err(), Error::TooLong { bytes: 1473 });
        Ok(())
    });
}
