//! A small web server. `cargo run` runs it as an ordinary program, `shoal unikernel run .` as a
//! virtual machine or a locked process: the same source.

#![cfg_attr(shoal_image, no_std, no_main)]

use unikernel::net::{Error, TcpListener, TcpStream};

unikernel::main! {
    main: serve,
    devices: [net("net")],
}

/// Where it listens.
const PORT: u16 = 80;
/// Connections that may wait to be accepted.
const BACKLOG: usize = 64;

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nhello\n";

async fn serve() -> Result<(), Error> {
    unikernel::spawn(stop());
    let listener = TcpListener::bind(PORT, BACKLOG)?;
    unikernel::println!("{name} listens on port {PORT}");
    loop {
        let stream = listener.accept().await;
        unikernel::spawn(answer(stream));
    }
}

/// Ends the program when it is asked to: nothing here needs to be finished first.
async fn stop() {
    unikernel::stop_requested().await;
    unikernel::exit(0);
}

async fn answer(stream: TcpStream) {
    let mut request = [0; 1024];
    if stream.read(&mut request).await.is_ok() && stream.write_all(ANSWER).await.is_ok() {
        // Nothing is to be done if the client is gone already.
        let _ = stream.shutdown().await;
    }
}
