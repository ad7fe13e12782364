//! What a process that is being made and the shim say to each other: over a pair of sockets that
//! the program's start closes, which means success.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::protocol::Failure;

/// The longest note: a failure with long paths in its chain.
const NOTE_BYTES_MAX: usize = 32 << 10;

/// What the new process reports.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Note {
    /// The controlling side of its terminal comes along.
    Terminal,
    /// The process of an exec, by its id outside; a descriptor of it comes along, because it may
    /// have ended before this is read.
    Pid(u32),
    /// It cannot be made.
    Failed(Failure),
}

/// What the other side said.
#[derive(Debug)]
pub(crate) enum Heard {
    /// A report, and the descriptor that came along.
    Note(Note, Option<OwnedFd>),
    /// Nothing yet.
    Nothing,
    /// The program has been started, or the process has ended.
    End,
}

/// One end.
#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// Both ends.
pub(crate) fn pair() -> io::Result<(Channel, Channel)> {
    let (a, b) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    Ok((Channel(a), Channel(b)))
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Channel {
    /// Lets the other side go on.
    pub(crate) fn go(&self) -> io::Result<()> {
        rustix::net::send(&self.0, b"go", SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// Waits for [`Self::go`]; an error if the other side is gone.
    pub(crate) fn wait_go(&self) -> io::Result<()> {
        let mut buffer = [0_u8; 2];
        let (count, _) = rustix::net::recv(&self.0, &mut buffer, RecvFlags::empty())?;
        if count == buffer.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// Reports, with a descriptor if there is one.
    pub(crate) fn report(&self, note: &Note, fd: Option<&OwnedFd>) -> io::Result<()> {
        let mut text = serde_json::to_vec(note)?;
        text.truncate(NOTE_BYTES_MAX);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(AsFd::as_fd);
        if let Some(fd) = &fds {
            ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
        }
        sendmsg(&self.0, &[IoSlice::new(&text)], &mut ancillary, SendFlags::NOSIGNAL)?;
        Ok(())
    }

    /// What has been reported since, without waiting for more.
    pub(crate) fn next(&self) -> io::Result<Heard> {
        let mut text = vec![0_u8; NOTE_BYTES_MAX];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = match recvmsg(&self.0, &mut [IoSliceMut::new(&mut text)], &mut ancillary, flags) {
            Ok(got) if got.bytes == 0 => return Ok(Heard::End),
            Ok(got) => got,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Heard::Nothing),
            Err(error) => return Err(error.into()),
        };
        text.truncate(got.bytes);
        let note = serde_json::from_slice(&text)?;
        let fds = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        Ok(Heard::Note(note, fds.flatten().next()))
    }
}
