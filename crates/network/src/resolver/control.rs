//! What daemon and helper say to each other: frames of four bytes length and JSON.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::snapshot::{Change, Snapshot};
use crate::desired::SandboxId;

/// Name of the helper's socket in its directory.
pub(super) const SOCKET: &str = "control.sock";
/// Name of the file with the last snapshot.
pub(super) const SNAPSHOT: &str = "snapshot.json";
/// Name of the file that the one helper of a directory holds a lock on.
pub(super) const LOCK: &str = "lock";
/// Name of the file that takes what the helper complains about.
pub(super) const LOG: &str = "log";
/// Largest frame: a snapshot of a hundred thousand names has about 10 MiB.
pub(super) const FRAME_LEN_MAX: u32 = 64 << 20;
/// Which program a helper was started from. Another one is replaced.
pub(super) const PROGRAM: &str = env!("CARGO_PKG_VERSION");

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Request {
    /// Answer from this from now on.
    Publish {
        /// Its number.
        serial: u64,
        /// Everything.
        snapshot: Box<Snapshot>,
    },
    /// The same with what has changed.
    Change(Box<Change>),
    /// Look again whether every namespace is served, and say so.
    Check,
    /// End.
    Stop,
}

/// From the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Reply {
    /// Format of its snapshots.
    pub(super) format: u32,
    /// [`PROGRAM`] of the helper.
    pub(super) program: String,
    /// Namespaces that it cannot serve, and why.
    pub(super) failed: BTreeMap<SandboxId, String>,
    /// What went wrong with the request itself.
    pub(super) error: Option<String>,
}

/// A value as a frame.
pub(super) fn frame(value: &impl Serialize) -> io::Result<Vec<u8>> {
    let json = serde_json::to_vec(value)?;
    let len = u32::try_from(json.len()).ok().filter(|len| *len <= FRAME_LEN_MAX);
    let len = len.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "frame too long"))?;
    let mut out = len.to_be_bytes().to_vec();
    out.extend(json);
    Ok(out)
}

/// Reads the length of a frame.
pub(super) fn checked_len(len: u32) -> io::Result<usize> {
    if len > FRAME_LEN_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "frame too long"));
    }
    Ok(len as usize)
}

/// Sends a request and reads the reply, blocking.
pub(super) fn exchange<T: DeserializeOwned>(
    stream: &mut (impl Read + Write),
    request: &Request,
) -> io::Result<T> {
    stream.write_all(&frame(request)?)?;
    let mut len = [0; 4];
    stream.read_exact(&mut len)?;
    let mut json = vec![0; checked_len(u32::from_be_bytes(len))?];
    stream.read_exact(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}
