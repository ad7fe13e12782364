//! A unikernel for the lab: says over HTTP who it is and whom it sees, as `shoal try whoami` does
//! for containers, and does on request what tests want to see of a guest.
//!
//! | path | what it does |
//! | --- | --- |
//! | `/` | `HOSTNAME at ADDRESS sees CLIENT` |
//! | `/env/NAME` | the variable's value |
//! | `/args` | its arguments |
//! | `/lookup/NAME` | the name's addresses |
//! | `/call/NAME:PORT` | asks another server for `/` and passes its answer on |
//! | `/file/PATH` | a file that the cluster gave it |
//! | `/sector` | the text at the beginning of its block device |
//! | `/sector/TEXT` | writes one there, durably |
//! | `/crash` | panics |
//! | `/spin` | computes for ever |
//! | `/fill` | takes memory until there is none |
//!
//! On the same port it answers datagrams with `HOSTNAME sees CLIENT`.

#![cfg_attr(shoal_image, no_std, no_main)]

extern crate alloc;

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::net::SocketAddrV4;
use core::time::Duration;

use unikernel::net::{Error, TcpListener, TcpStream, UdpSocket, lookup};
use unikernel::{block, env, fs, println, spawn, stop_requested, time};

unikernel::main! {
    main: serve,
    devices: [net("net"), block("data", optional)],
}

/// Connections that wait to be served.
const BACKLOG: usize = 256;
/// Longest request that is read.
const REQUEST_BYTES_MAX: usize = 4096;
/// How long a client may take for its request.
const REQUEST_DEADLINE: Duration = Duration::from_secs(10);
/// How long it still serves when it is to stop: what is under way ends within that.
const LEAVE: Duration = Duration::from_millis(200);

async fn serve() -> Result<(), Error> {
    let port = env::var("PORT").and_then(|text| text.parse().ok()).unwrap_or(80);
    let listener = TcpListener::bind(port, BACKLOG)?;
    let socket = UdpSocket::bind(port)?;
    spawn(async move {
        let mut asked = [0; 512];
        // Ends only with the network.
        while let Ok((_, peer)) = socket.recv_from(&mut asked).await {
            let said = format!("{} sees {}\n", env::hostname(), peer.ip());
            // Ignored because: an answer may be lost on the way as well.
            let _ = socket.send_to(said.as_bytes(), peer).await;
        }
    });
    println!("{} answers on port {port}", env::hostname());
    spawn(async move {
        loop {
            let stream = listener.accept().await;
            spawn(async move {
                // Ignored because: a client that went away wants no answer.
                let _ = time::timeout(REQUEST_DEADLINE, answer(stream)).await;
            });
        }
    });
    stop_requested().await;
    println!("asked to stop");
    time::sleep(LEAVE).await;
    println!("stops");
    Ok(())
}

async fn answer(stream: TcpStream) -> Result<(), Error> {
    let request = read_request(&stream).await?;
    let path = request.split(' ').nth(1).unwrap_or("/");
    if path != "/" {
        println!("asked for {path}");
    }
    let (status, body) = body(path, &stream).await;
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {}\r\nContent-Type: text/plain\r\n\
         Connection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

async fn read_request(stream: &TcpStream) -> Result<String, Error> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while !request.windows(4).any(|four| four == b"\r\n\r\n") && request.len() < REQUEST_BYTES_MAX {
        match stream.read(&mut part).await? {
            0 => break,
            len => request.extend_from_slice(part.get(..len).unwrap_or_default()),
        }
    }
    Ok(String::from_utf8_lossy(&request).into_owned())
}

async fn body(path: &str, stream: &TcpStream) -> (&'static str, String) {
    const FINE: &str = "200 OK";
    if let Some(name) = path.strip_prefix("/env/") {
        return (FINE, env::var(name).unwrap_or_default().to_string() + "\n");
    }
    if let Some(file) = path.strip_prefix("/file") {
        return match fs::read(file) {
            Some(data) => (FINE, String::from_utf8_lossy(data).into_owned()),
            None => ("404 Not Found", format!("no file '{file}'\n")),
        };
    }
    let asked = if let Some(name) = path.strip_prefix("/lookup/") {
        Some(addresses(name).await)
    } else if let Some(to) = path.strip_prefix("/call/") {
        Some(call(to).await)
    } else if let Some(text) = path.strip_prefix("/sector") {
        Some(sector(text.trim_start_matches('/')).await.map_err(|error| error.to_string()))
    } else {
        None
    };
    match asked {
        Some(Ok(said)) => return (FINE, said),
        Some(Err(error)) => return ("502 Bad Gateway", format!("{error}\n")),
        None => {}
    }
    match path {
        "/" => {
            let (local, peer) = (stream.local().ip().to_string(), stream.peer().ip().to_string());
            (FINE, format!("{} at {local} sees {peer}\n", env::hostname()))
        }
        "/args" => (FINE, env::args().collect::<Vec<_>>().join(" ") + "\n"),
        "/crash" => panic!("crashed as asked"),
        "/spin" => loop {
            core::hint::spin_loop();
        },
        "/fill" => fill(),
        _ => ("404 Not Found", String::from("no such page\n")),
    }
}

/// Takes memory, and touches it, until the allocator ends the instance.
fn fill() -> ! {
    let mut all: Vec<Vec<u8>> = Vec::new();
    loop {
        all.push(core::hint::black_box(alloc::vec![1; 64 * 1024]));
    }
}

async fn addresses(name: &str) -> Result<String, String> {
    let found = lookup(name).await.map_err(|error| error.to_string())?;
    let found: Vec<String> = found.iter().map(ToString::to_string).collect();
    Ok(found.join(" ") + "\n")
}

/// Reads the first sector, or writes `text` there.
async fn sector(text: &str) -> Result<String, block::Error> {
    const BYTES: usize = 512;
    let device = block::Device::open("data")?;
    let mut data = [0; BYTES];
    if text.is_empty() {
        device.read(0, &mut data).await?;
        let end = data.iter().position(|byte| *byte == 0).unwrap_or(BYTES);
        return Ok(String::from_utf8_lossy(&data[..end]).into_owned() + "\n");
    }
    for (to, from) in data.iter_mut().zip(text.bytes()) {
        *to = from;
    }
    device.write(0, &data).await?;
    device.flush().await?;
    Ok(format!("{} sectors\n", device.sectors()))
}

/// Asks another server; gives the body of its answer.
async fn call(to: &str) -> Result<String, String> {
    let wrong = || format!("'{to}' is no NAME:PORT");
    let (name, port) = to.split_once(':').ok_or_else(wrong)?;
    let port = port.parse().map_err(|_| wrong())?;
    let failed = |error: Error| error.to_string();
    let address = lookup(name).await.map_err(failed)?.first().copied().ok_or_else(wrong)?;
    let stream = TcpStream::connect(SocketAddrV4::new(address, port)).await.map_err(failed)?;
    let request = format!("GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.map_err(failed)?;
    let mut answer = Vec::new();
    let mut part = [0; 1024];
    loop {
        match stream.read(&mut part).await.map_err(failed)? {
            0 => break,
            len => answer.extend_from_slice(part.get(..len).unwrap_or_default()),
        }
    }
    let text = String::from_utf8_lossy(&answer).into_owned();
    Ok(text.split_once("\r\n\r\n").map_or(text.clone(), |(_, body)| String::from(body)))
}
