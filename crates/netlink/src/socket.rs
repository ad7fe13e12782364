//! A blocking netlink socket: one request at a time, with acknowledgement, answer or dump.

use std::cell::RefCell;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::attr::{HEADER_LEN, Writer, find, text, u16_at, u32_at};
use crate::error::Cause;
use crate::traffic;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
pub(crate) const F_REQUEST: u16 = 0x1;
pub(crate) const F_ACK: u16 = 0x4;
pub(crate) const F_DUMP: u16 = 0x300;
pub(crate) const F_REPLACE: u16 = 0x100;
pub(crate) const F_EXCL: u16 = 0x200;
pub(crate) const F_CREATE: u16 = 0x400;
pub(crate) const F_APPEND: u16 = 0x800;
const F_DUMP_INTR: u16 = 0x10;
const F_CAPPED: u16 = 0x100;
const F_ACK_TLVS: u16 = 0x200;

/// The kernel answers at once; this only keeps a lost answer from blocking a thread for ever.
const ANSWER_DEADLINE_S: i64 = 10;
/// Dumps come in pieces of at most 32 KiB.
const RECEIVE_LEN: usize = 128 * 1024;
/// A dump that the kernel calls inconsistent is made again this often.
const DUMP_TRIES: usize = 8;
/// Room for the acknowledgements of a large batch.
const RECEIVE_BUFFER: usize = 4 << 20;
/// Largest batch that is sent in one piece.
const SEND_BUFFER: usize = 64 << 20;

/// One message from the kernel, without its header.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

/// A failed message of a batch.
#[derive(Debug)]
pub(crate) struct BatchFailure {
    pub(crate) seq: u32,
    pub(crate) cause: Cause,
}

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    seq: u32,
}

thread_local! {
    /// What the kernel's answers are read into. Not one for each socket: there are hundreds.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What one received message means for the request under way.
enum Meaning {
    Data(Message),
    Ended { interrupted: bool },
    Acked,
    Failed(Cause),
    Foreign,
}

struct Received {
    seq: u32,
    interrupted: bool,
    step: Meaning,
}

impl Socket {
    /// Opens a socket in the calling thread's namespace.
    pub(crate) fn open(protocol: SockProtocol) -> Result<Self, Cause> {
        let failed = |e: Errno| Cause::system("open a netlink socket", e);
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(failed)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
        let deadline = TimeVal::seconds(ANSWER_DEADLINE_S);
        setsockopt(&fd, sockopt::ReceiveTimeout, &deadline).map_err(failed)?;
        setsockopt(&fd, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(failed)?;
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            set_netlink_option(&fd, option).map_err(failed)?;
        }
        Ok(Self { fd, seq: 0 })
    }

    fn next_seq(&mut self) -> u32 {
        self.seq = self.seq.wrapping_add(1).max(1);
        self.seq
    }

    /// Sends a request and waits for its acknowledgement.
    pub(crate) fn request(&mut self, mut msg: Writer) -> Result<(), Cause> {
        msg.add_flags(F_REQUEST | F_ACK);
        self.exchange(msg).map(drop)
    }

    /// Sends a request that is answered by messages and an acknowledgement.
    pub(crate) fn get(&mut self, mut msg: Writer) -> Result<Vec<Message>, Cause> {
        msg.add_flags(F_REQUEST | F_ACK);
        self.exchange(msg)
    }

    fn exchange(&mut self, mut msg: Writer) -> Result<Vec<Message>, Cause> {
        let seq = self.next_seq();
        self.send(msg.finish(seq).ok_or(Cause::Malformed("the request is too long"))?)?;
        let mut answers = Vec::new();
        loop {
            for received in self.receive(MsgFlags::empty())? {
                if received.seq != seq {
                    continue;
                }
                match received.step {
                    Meaning::Data(message) => answers.push(message),
                    Meaning::Acked | Meaning::Ended { .. } => return Ok(answers),
                    Meaning::Failed(cause) => return Err(cause),
                    Meaning::Foreign => {}
                }
            }
        }
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump(&mut self, mut msg: Writer) -> Result<Vec<Message>, Cause> {
        msg.add_flags(F_REQUEST | F_DUMP);
        for _ in 0..DUMP_TRIES {
            if let Some(all) = self.dump_once(msg.clone())? {
                return Ok(all);
            }
        }
        Err(Cause::Malformed("the list changed each time while it was being read"))
    }

    fn dump_once(&mut self, mut msg: Writer) -> Result<Option<Vec<Message>>, Cause> {
        let seq = self.next_seq();
        self.send(msg.finish(seq).ok_or(Cause::Malformed("the request is too long"))?)?;
        let mut all = Vec::new();
        let mut interrupted = false;
        loop {
            for received in self.receive(MsgFlags::empty())? {
                if received.seq != seq {
                    continue;
                }
                interrupted |= received.interrupted;
                match received.step {
                    Meaning::Data(message) => all.push(message),
                    Meaning::Failed(cause) => return Err(cause),
                    Meaning::Ended { interrupted: late } => {
                        return Ok((!(interrupted || late)).then_some(all));
                    }
                    // A refused dump that asked for nothing: the list is empty.
                    Meaning::Acked => return Ok(Some(all)),
                    Meaning::Foreign => {}
                }
            }
        }
    }

    /// Sends messages as one transaction in one piece; `numbered` gives each its number. Returns
    /// the failures; the transaction took place only if there are none.
    ///
    /// The kernel handles the whole piece inside `send` and queues its answers before it returns,
    /// so that an empty queue means: no more answers.
    pub(crate) fn batch(&mut self, piece: &[u8], last: u32) -> Result<Vec<BatchFailure>, Cause> {
        if piece.len() > SEND_BUFFER {
            return Err(Cause::Malformed("the transaction is too large"));
        }
        setsockopt(&self.fd, sockopt::SndBufForce, &(piece.len() + 4096))
            .map_err(|e| Cause::system("enlarge the send buffer", e))?;
        self.send(piece)?;
        let mut failures = Vec::new();
        let mut acked = false;
        loop {
            let batch = match self.receive(MsgFlags::MSG_DONTWAIT) {
                Err(Cause::System { source, .. })
                    if source.kind() == std::io::ErrorKind::WouldBlock =>
                {
                    break;
                }
                other => other?,
            };
            for received in batch {
                match received.step {
                    Meaning::Failed(cause) => {
                        failures.push(BatchFailure { seq: received.seq, cause });
                    }
                    Meaning::Acked if received.seq == last => acked = true,
                    _ => {}
                }
            }
        }
        if failures.is_empty() && !acked {
            return Err(Cause::Malformed("the kernel did not acknowledge the transaction"));
        }
        Ok(failures)
    }

    /// Reserves `count` consecutive sequence numbers and returns the first.
    pub(crate) fn reserve(&mut self, count: u32) -> u32 {
        if self.seq.checked_add(count).is_none() {
            self.seq = 0;
        }
        let first = self.seq + 1;
        self.seq += count;
        first
    }

    fn send(&mut self, bytes: &[u8]) -> Result<(), Cause> {
        traffic::count_sent();
        // Answers to an earlier request that failed half-way would only be skipped later.
        send(self.fd.as_raw_fd(), bytes, MsgFlags::empty())
            .map(drop)
            .map_err(|e| Cause::system("send a netlink request", e))
    }

    fn receive(&mut self, flags: MsgFlags) -> Result<Vec<Received>, Cause> {
        BUFFER.with_borrow_mut(|buf| {
            buf.resize(RECEIVE_LEN, 0);
            let len = loop {
                match recv(self.fd.as_raw_fd(), buf, flags | MsgFlags::MSG_TRUNC) {
                    Ok(len) => break len,
                    Err(Errno::EINTR) => {}
                    Err(e) => return Err(Cause::system("receive the kernel's answer", e)),
                }
            };
            traffic::count_received(len);
            let bytes = buf.get(..len).ok_or(Cause::Malformed("the answer is too long"))?;
            Ok(split(bytes))
        })
    }
}

fn set_netlink_option(fd: &OwnedFd, option: libc::c_int) -> Result<(), Errno> {
    let on: libc::c_int = 1;
    // SAFETY: the descriptor is open, the value points at a live int, and its length is an int's.
    let answer = unsafe {
        libc::setsockopt(
            fd.as_fd().as_raw_fd(),
            libc::SOL_NETLINK,
            option,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    Errno::result(answer).map(drop)
}

fn split(bytes: &[u8]) -> Vec<Received> {
    let mut out = Vec::new();
    let mut rest = bytes;
    while let (Some(len), Some(kind), Some(flags), Some(seq)) =
        (u32_at(rest, 0), u16_at(rest, 4), u16_at(rest, 6), u32_at(rest, 8))
    {
        let len = len as usize;
        let Some(payload) = rest.get(HEADER_LEN..len) else { break };
        let interrupted = flags & F_DUMP_INTR != 0;
        out.push(Received { seq, interrupted, step: step(kind, flags, payload) });
        rest = rest.get(len.next_multiple_of(4)..).unwrap_or_default();
    }
    out
}

fn step(kind: u16, flags: u16, payload: &[u8]) -> Meaning {
    match kind {
        NLMSG_ERROR => match u32_at(payload, 0).map(|e| e as i32) {
            Some(0) => Meaning::Acked,
            Some(negative) => Meaning::Failed(Cause::Kernel {
                errno: -negative,
                detail: extended(flags, payload).unwrap_or_default(),
            }),
            None => Meaning::Foreign,
        },
        NLMSG_DONE => match u32_at(payload, 0).map(|e| e as i32) {
            Some(negative) if negative < 0 => Meaning::Failed(Cause::errno(-negative)),
            _ => Meaning::Ended { interrupted: flags & F_DUMP_INTR != 0 },
        },
        0..NLMSG_ERROR => Meaning::Foreign,
        _ => Meaning::Data(Message { kind, payload: payload.to_vec() }),
    }
}

/// The kernel's own words: an attribute behind the header of the request that failed, which is
/// followed by the request itself unless the answer is capped.
fn extended(flags: u16, payload: &[u8]) -> Option<String> {
    const MESSAGE: u16 = 1;
    if flags & F_ACK_TLVS == 0 {
        return None;
    }
    let inner = if flags & F_CAPPED != 0 {
        HEADER_LEN
    } else {
        u32_at(payload, 4)?.next_multiple_of(4) as usize
    };
    find(payload.get(4 + inner..)?, MESSAGE).map(text)
}
