//! A line between a client and a server that the test counts, narrows and stops.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

#[derive(Clone, Copy)]
struct Gate {
    /// Bytes of each client that pass; what is beyond them waits.
    bytes: usize,
    /// Connections before that one have stopped: they stay open, nothing moves.
    first: usize,
}

pub struct Proxy {
    pub addr: String,
    accepted: Arc<AtomicUsize>,
    gate: watch::Sender<Gate>,
    _task: JoinSet<()>,
}

impl Proxy {
    pub async fn to(target: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (gate, opened) = watch::channel(Gate { bytes: usize::MAX, first: 0 });
        let (target, count) = (target.to_owned(), Arc::clone(&accepted));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let number = count.fetch_add(1, Ordering::SeqCst);
                let (target, gate) = (target.clone(), opened.clone());
                connections.spawn(async move {
                    let Ok(far) = TcpStream::connect(target).await else { return };
                    let (near_in, near_out) = near.into_split();
                    let (far_in, far_out) = far.into_split();
                    let up = pass(near_in, far_out, gate.clone(), number, true);
                    let down = pass(far_in, near_out, gate, number, false);
                    tokio::join!(up, down);
                });
            }
        });
        Self { addr, accepted, gate, _task: task }
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// From now on this many bytes of each client pass.
    pub fn narrow(&self, bytes: usize) {
        self.gate.send_modify(|gate| gate.bytes = bytes);
    }

    /// Stops every connection that there is; later ones work.
    pub fn stop_these(&self) {
        let first = self.accepted();
        self.gate.send_modify(|gate| gate.first = first);
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut gate: watch::Receiver<Gate>,
    number: usize,
    counts: bool,
) {
    let mut passed = 0;
    let mut bytes = vec![0; 16 << 10];
    loop {
        let len = from.read(&mut bytes).await.unwrap_or(0);
        passed += len;
        let open = |gate: &Gate| number >= gate.first && (!counts || passed <= gate.bytes);
        if gate.wait_for(open).await.is_err() {
            return;
        }
        let sent = if len == 0 { to.shutdown().await } else { to.write_all(&bytes[..len]).await };
        if len == 0 || sent.is_err() {
            return;
        }
    }
}
