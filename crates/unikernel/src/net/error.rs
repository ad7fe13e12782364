//! What can go wrong on the network.

/// Why a network operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no attached network interface with an address.
    #[error("no network interface: declare one with `devices: [net(\"net\")]` and attach it")]
    NoInterface,
    /// Another socket is bound to the port.
    #[error("port {port} is in use")]
    PortInUse {
        /// The port.
        port: u16,
    },
    /// All ports for outgoing connections are in use.
    #[error("no local port is free")]
    NoFreePort,
    /// The peer refused the connection.
    #[error("connection refused")]
    Refused,
    /// The peer ended the connection without finishing it.
    #[error("connection reset by the peer")]
    Reset,
    /// The peer did not answer in time.
    #[error("the peer did not answer in time")]
    TimedOut,
    /// Nobody on the local network answers for the address.
    #[error("no route to the address: nobody answers for it on the local network")]
    Unreachable,
    /// This side has shut down sending.
    #[error("sending was shut down")]
    ShutDown,
    /// A datagram does not fit into one packet.
    #[error("a datagram of {bytes} bytes does not fit into one packet")]
    TooLong {
        /// Its size.
        bytes: usize,
    },
    /// The peer ended the connection before all the bytes that were asked for.
    #[error("the peer finished early")]
    UnexpectedEnd,
    /// No name server was given at start.
    #[error("no name server: none was given at start")]
    NoNameServer,
    /// The name exists nowhere or has no address.
    #[error("the name has no IPv4 address")]
    NameNotFound,
    /// The name is not one that DNS allows.
    #[error("the name is not a valid host name")]
    BadName,
    /// The name servers failed to answer.
    #[error("no name server gave an answer")]
    NameServerFailed,
}
