//! The hosted platform: an ordinary program that is its own monitor, for development and tests.
//!
//! It makes the same boot information and the same rings that a monitor would, and serves the same
//! calls, so that everything above runs unchanged. A network interface is one end of a pair of
//! sockets on which each message is a 12-byte `virtio_net_hdr_v1` and a frame; [`pair`] connects
//! two instances (each on its own thread), and an ordinary program gets user-mode networking.
//!
//! Configuration of an ordinary program comes from its arguments and its environment, see
//! [`run_program`].

mod block;
mod host;
mod network;
mod program;
mod region;

use std::future::Future;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use shoal_unikernel_abi::boot::NetInfo;
use shoal_unikernel_abi::ring;

use crate::main_::{Outcome, run_main};
pub use program::run_program;

/// What an instance gets.
#[derive(Debug, Default)]
pub struct Config {
    /// Arguments; the first is the program's name.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<(String, String)>,
    /// Host name.
    pub hostname: String,
    /// Network interfaces, in the order of the manifest.
    pub nets: Vec<Net>,
    /// Block devices, in the order of the manifest.
    pub blocks: Vec<Block>,
    /// Archives: where they appear, and an uncompressed tar file's content.
    pub mounts: Vec<(String, Vec<u8>)>,
    /// Room for what tasks allocate, from which limits of the network stack follow. In bytes.
    pub heap_bytes: u64,
    /// Whether frames may be larger than the MTU and lack their checksums (both ends must agree).
    pub offload: bool,
    /// Becomes readable when the instance shall stop.
    pub stop: Option<OwnedFd>,
}

/// A network interface.
#[derive(Debug)]
pub struct Net {
    /// Its name in the manifest.
    pub name: String,
    /// One end of a pair of `SOCK_SEQPACKET` sockets.
    pub socket: OwnedFd,
    /// Addresses.
    pub info: NetInfo,
    /// Bytes of each ring's data, a power of two.
    pub capacity: usize,
}

/// A block device.
#[derive(Debug)]
pub struct Block {
    /// Its name in the manifest.
    pub name: String,
    /// The file or device with its content.
    pub path: PathBuf,
    /// Whether writes are refused.
    pub read_only: bool,
}

/// Two interfaces connected with each other: 10.0.0.1 and 10.0.0.2 of 10.0.0.0/24, no gateway.
///
/// # Errors
/// Those of `socketpair(2)`.
pub fn pair() -> std::io::Result<(Net, Net)> {
    let (left, right) = network::socket_pair()?;
    let net = |socket, last| Net {
        name: "net".to_owned(),
        socket,
        info: NetInfo {
            mac: [2, 0, 0, 0, 0, last],
            mtu: 1500,
            ipv4: [10, 0, 0, last],
            prefix_len: 24,
            ..NetInfo::default()
        },
        capacity: ring::CAPACITY_DEFAULT,
    };
    Ok((net(left, 1), net(right, 2)))
}

/// Runs an instance on this thread until `main` ends; answers its exit status.
///
/// # Errors
/// A block device cannot be opened.
///
/// # Panics
/// If this thread runs an instance already.
pub fn run<F, M>(config: Config, main: M) -> std::io::Result<u8>
where
    F: Future<Output: Outcome> + 'static,
    M: FnOnce() -> F,
{
    host::start(config)?;
    // Also when a task panics: what the instance holds must go before its thread's statics do.
    let _ends = Ends;
    Ok(run_main(main()))
}

/// Ends this thread's instance when it is dropped.
struct Ends;

impl Drop for Ends {
    fn drop(&mut self) {
        host::end();
    }
}
