//! Whether the certificate with which a connection was opened is good still: connections live for
//! longer than some certificates, and than the roots that speak for them.

use std::sync::atomic::{AtomicBool, Ordering};

use rustls::pki_types::UnixTime;
use shoal_identity::peer::PeerIdentity;
use shoal_identity::tls::{ServerTls, Shown};
use shoal_model::time::Timestamp;
use tokio::sync::Notify;

/// The clock that handshakes look at.
pub(crate) fn wall() -> Timestamp {
    Timestamp::from_secs(i64::try_from(UnixTime::now().as_secs()).unwrap_or(i64::MAX))
}

/// What is known of the other end of a server's connection.
#[derive(Debug)]
pub(crate) struct Standing {
    /// As it was proven.
    peer: PeerIdentity,
    shown: Shown,
    /// It was good then: for more than asking for the next one.
    was_good: bool,
    /// Its root was replaced since.
    replaced: AtomicBool,
    has_session: AtomicBool,
    has_stream: AtomicBool,
    /// Says that the connection is to end.
    pub(crate) end: Notify,
}

impl Standing {
    pub(crate) fn new(peer: PeerIdentity, shown: Shown) -> Self {
        let end = Notify::new();
        let no = || AtomicBool::new(false);
        let was_good = !peer.former && wall() <= shown.not_after();
        Self { peer, shown, was_good, replaced: no(), has_session: no(), has_stream: no(), end }
    }

    /// Who it is, by today's roots.
    pub(crate) fn peer(&self) -> PeerIdentity {
        let former = self.peer.former || self.replaced.load(Ordering::Acquire);
        PeerIdentity { former, ..self.peer.clone() }
    }

    /// A session begins on it.
    pub(crate) fn carry_session(&self) {
        self.has_session.store(true, Ordering::Release);
    }

    /// A stream begins on it.
    pub(crate) fn carry_stream(&self) {
        self.has_stream.store(true, Ordering::Release);
    }

    /// Ends the connection if its certificate has expired since.
    pub(crate) fn see_time(&self, now: Timestamp) {
        if self.was_good && now > self.shown.not_after() {
            self.shut();
        }
    }

    /// Ends the connection if the roots of today do not speak for its certificate.
    pub(crate) fn see_roots(&self, tls: &ServerTls) {
        if self.was_good && !tls.knows(&self.shown) {
            self.replaced.store(true, Ordering::Release);
            self.shut();
        }
    }

    /// A connection that only carries a stream carries it to its end: what a client has begun is
    /// not cut off, and nothing else can be asked there any more.
    fn shut(&self) {
        let streams_only =
            self.has_stream.load(Ordering::Acquire) && !self.has_session.load(Ordering::Acquire);
        if !streams_only {
            self.end.notify_one();
        }
    }
}
