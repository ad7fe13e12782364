//! Sockets around the server.

use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::future::{Future, poll_fn};
use core::net::IpAddr;
use core::pin::pin;
use core::task::Poll;

use dns_server::database::Database;
use dns_server::message::{TCP_BYTES_MAX, UDP_BYTES_MAX};
use dns_server::parser::{ParseError, parse};
use dns_server::respond::{Outcome, Server, Transport};
use dns_server::settings::{SettingError, Settings};
use dns_server::zone::ZoneSet;
use unikernel::net::{Error, TcpListener, TcpStream, UdpSocket};
use unikernel::time::{Duration, sleep, timeout};

/// Longest request over UDP that is read; a question with options has less than half of it.
const REQUEST_BYTES_MAX: usize = 1232;
/// Connections at once; more wait.
const CONNECTIONS_MAX: usize = 256;
/// Connections that wait to be accepted.
const BACKLOG: usize = 64;
/// How long a connection may be idle, and a client may take for a message (RFC 7766, section 6.2.3:
/// a few seconds).
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether there is room for a connection.
const LOOK: Duration = Duration::from_millis(10);
/// Requests that are answered before other tasks have their turn.
const TURN_REQUESTS: usize = 64;

/// Why the server does not start, the cause first: lists of tasks show the beginning only.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An argument or variable is wrong.
    #[error("{0}")]
    Settings(SettingError),
    /// A zone file is wrong.
    #[error("zone {error} (in '{path}')")]
    Zone {
        /// Where it is.
        path: String,
        /// What is wrong, with its line.
        error: ParseError,
    },
    /// Nothing to serve.
    #[error(
        "no zone file in '{0}': mount a folder with zone files there (-v FOLDER:{0}:ro), name \
         another with --zones or DNS_ZONES, or set DNS_ZONE to the text of a zone"
    )]
    NoZones(String),
    /// A port cannot be had.
    #[error("cannot listen on port {port}: {error}")]
    Listen {
        /// Which.
        port: u16,
        /// Why.
        error: Error,
    },
}

/// Serves until the instance is asked to stop.
pub async fn serve() -> Result<(), StartError> {
    let arguments = unikernel::env::args().skip(1);
    let settings = Settings::read(arguments, unikernel::env::var).map_err(StartError::Settings)?;
    let set = load(&settings)?;
    let database = Database::new(set);
    for zone in database.zones() {
        for warning in &zone.warnings {
            unikernel::eprintln!("warning: {warning}");
        }
        let count = zone.records.len();
        unikernel::println!("zone {} serial {}: {count} records", zone.apex, zone.serial());
    }
    let server = Rc::new(Server { database, transfer_to: settings.transfer_to });
    let port = settings.port;
    let listen = |error| StartError::Listen { port, error };
    let socket = UdpSocket::bind(port).map_err(listen)?;
    let listener = TcpListener::bind(port, BACKLOG).map_err(listen)?;
    unikernel::println!("serving on port {port}");
    unikernel::spawn(accept(listener, Rc::clone(&server)));
    let mut datagrams = pin!(datagrams(socket, &server));
    let mut stop = pin!(unikernel::stop_requested());
    poll_fn(|context| {
        if stop.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        datagrams.as_mut().poll(context)
    })
    .await;
    Ok(())
}

/// Reads all zone files.
fn load(settings: &Settings) -> Result<ZoneSet, StartError> {
    let mut set = ZoneSet::default();
    if let Some(text) = &settings.zone {
        let wrong = |error| StartError::Zone { path: "DNS_ZONE".into(), error };
        parse(text.as_bytes(), None, &mut set).map_err(wrong)?;
    }
    // In the order of their names, so that a message about one is the same every time.
    let folder = unikernel::fs::list(&settings.zones).unwrap_or_default();
    let below = folder.into_iter().filter_map(|entry| {
        // A file that is hidden is an editor's, or the orchestrator's.
        let file = entry.file.filter(|_| !entry.name.starts_with('.'))?;
        Some(([settings.zones.as_str(), "/", entry.name.as_str()].concat(), file))
    });
    let alone = unikernel::fs::open(&settings.zones);
    for (path, file) in alone.map(|file| (settings.zones.clone(), file)).into_iter().chain(below) {
        parse(file.data, None, &mut set).map_err(|error| StartError::Zone { path, error })?;
    }
    if set.zones.is_empty() {
        return Err(StartError::NoZones(settings.zones.clone()));
    }
    Ok(set)
}

async fn datagrams(socket: UdpSocket, server: &Server) {
    let mut request = [0; REQUEST_BYTES_MAX];
    let mut reply = [0; UDP_BYTES_MAX];
    let mut turn = 0;
    // Ends only with the network.
    while let Ok((len, peer)) = socket.recv_from(&mut request).await {
        let client = IpAddr::V4(*peer.ip());
        let outcome = server.respond(&request[..len], Transport::Udp, client, &mut reply);
        if let Outcome::Reply(len) = outcome {
            // Ignored because: an answer may be lost on the way as well.
            let _ = socket.send_to(&reply[..len], peer).await;
        }
        turn += 1;
        if turn == TURN_REQUESTS {
            turn = 0;
            unikernel::yield_now().await;
        }
    }
}

async fn accept(listener: TcpListener, server: Rc<Server>) {
    let active = Rc::new(Cell::new(0));
    // For all connections: nothing waits while it is in use.
    let scratch = Rc::new(RefCell::new(alloc::vec![0; TCP_BYTES_MAX]));
    loop {
        while active.get() >= CONNECTIONS_MAX {
            sleep(LOOK).await;
        }
        let stream = listener.accept().await;
        let (server, active, scratch) =
            (Rc::clone(&server), Rc::clone(&active), Rc::clone(&scratch));
        active.set(active.get() + 1);
        unikernel::spawn(async move {
            // Ignored because: a connection that broke has nobody to be told.
            let _ = connection(&stream, &server, &scratch).await;
            active.set(active.get() - 1);
        });
    }
}

/// Answers the requests of a connection in their order (RFC 7766).
async fn connection(
    stream: &TcpStream,
    server: &Server,
    scratch: &RefCell<Vec<u8>>,
) -> Result<(), Error> {
    let client = IpAddr::V4(*stream.peer().ip());
    let mut request = Vec::new();
    let mut message = Vec::new();
    loop {
        let mut len = [0; 2];
        match timeout(PATIENCE, stream.read_exact(&mut len)).await {
            Ok(Ok(())) => {}
            // Closed or idle: both end it in order.
            Ok(Err(_)) | Err(_) => return Ok(()),
        }
        request.resize(usize::from(u16::from_be_bytes(len)), 0);
        let read = timeout(PATIENCE, stream.read_exact(&mut request)).await;
        read.map_err(|_| Error::TimedOut)??;
        message.clear();
        let transfer = {
            let mut scratch = scratch.borrow_mut();
            match server.respond(&request, Transport::Tcp, client, &mut scratch) {
                Outcome::Silence => None,
                Outcome::Reply(len) => {
                    message.extend_from_slice(&scratch[..len]);
                    None
                }
                Outcome::Transfer(transfer) => Some(transfer),
            }
        };
        if let Some(mut transfer) = transfer {
            while transfer.next_message(&mut message) {
                send(stream, &message).await?;
            }
            continue;
        }
        if !message.is_empty() {
            send(stream, &message).await?;
        }
    }
}

/// Sends a message with its length before it, in one piece if there is room.
async fn send(stream: &TcpStream, message: &[u8]) -> Result<(), Error> {
    // Cannot fail: messages are shorter than 64 KiB.
    let len = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let framed = [&len.to_be_bytes(), message].concat();
    timeout(PATIENCE, stream.write_all(&framed)).await.map_err(|_| Error::TimedOut)?
}
