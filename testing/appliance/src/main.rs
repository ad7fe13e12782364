//! An appliance that does what it is told by its first argument: the guest of the library OS's own
//! tests, and of measurements of its network stack.

#![cfg_attr(shoal_image, no_std, no_main)]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec;

use unikernel::net::{Error, TcpListener, TcpStream, UdpSocket, lookup};
use unikernel::{block, env, fs, println, spawn, stop_requested};

unikernel::main! {
    main: run,
    devices: [net("net", optional), block("data", optional)],
    heap_bytes_min: 8 << 20,
}

async fn run() -> Result<(), String> {
    let mut args = env::args().skip(1);
    let text = |error: Error| error.to_string();
    match args.next().unwrap_or("") {
        "echo" => echo().await.map_err(text),
        "answer" => answer().await.map_err(text),
        "lookup" => look_up(args.next().unwrap_or("")).await.map_err(text),
        "block" => write_and_read().await.map_err(|error| error.to_string()),
        "file" => {
            let data = fs::read(args.next().unwrap_or("")).ok_or("there is no such file")?;
            println!("{}", String::from_utf8_lossy(data));
            Ok(())
        }
        "panic" => index(&[1, 2, 3], env::args().count()),
        "stop" => {
            println!("waiting");
            stop_requested().await;
            println!("told to stop");
            unikernel::exit(3)
        }
        other => Err(format!("there is no test '{other}'")),
    }
}

#[inline(never)]
fn index(values: &[u32], at: usize) -> Result<(), String> {
    println!("{}", values[at + values.len()]);
    Ok(())
}

/// Echoes on port 7, TCP and UDP, until it is told to stop.
async fn echo() -> Result<(), Error> {
    let listener = TcpListener::bind(7, 4096)?;
    let socket = UdpSocket::bind(7)?;
    spawn(async move {
        loop {
            let stream = listener.accept().await;
            spawn(async move {
                // What the peer does not like, it says itself.
                let _ = echo_one(stream).await;
            });
        }
    });
    spawn(async move {
        let mut buffer = [0; 1500];
        while let Ok((count, from)) = socket.recv_from(&mut buffer).await {
            // A datagram may be lost.
            let _ = socket.send_to(&buffer[..count], from).await;
        }
    });
    println!("ready");
    stop_requested().await;
    Ok(())
}

async fn echo_one(stream: TcpStream) -> Result<(), Error> {
    let mut buffer = vec![0; 2048];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return stream.shutdown().await,
            count => stream.write_all(&buffer[..count]).await?,
        }
    }
}

/// Answers every request for HTTP on port 80 with the same 612 bytes: what the stack can do.
async fn answer() -> Result<(), Error> {
    let listener = TcpListener::bind(80, 1024)?;
    let body = "x".repeat(612);
    let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let answer: alloc::rc::Rc<str> = answer.into();
    spawn(async move {
        loop {
            let stream = listener.accept().await;
            let answer = alloc::rc::Rc::clone(&answer);
            spawn(async move {
                let mut buffer = vec![0; 2048];
                while let Ok(1..) = stream.read(&mut buffer).await {
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    println!("ready");
    stop_requested().await;
    Ok(())
}

async fn look_up(host: &str) -> Result<(), Error> {
    for address in lookup(host).await? {
        println!("{address}");
    }
    Ok(())
}

/// Writes a pattern to the device, makes it durable, and reads it back.
async fn write_and_read() -> Result<(), block::Error> {
    let device = block::Device::open("data")?;
    let bytes = device.sectors() as usize * block::SECTOR;
    let pattern: alloc::vec::Vec<u8> = (0..bytes).map(|at| (at / 7 % 251) as u8).collect();
    device.write(0, &pattern).await?;
    device.flush().await?;
    let mut back = vec![0; bytes];
    device.read(0, &mut back).await?;
    assert!(back == pattern, "what was read is not what was written");
    let beyond = device.read(device.sectors(), &mut [0; block::SECTOR]).await;
    assert_eq!(beyond, Err(block::Error::Refused));
    println!("{bytes} bytes");
    Ok(())
}
