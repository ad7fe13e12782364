//! Counters and captured frames in a file that others map: watching costs the instance nothing but
//! some stores, and no system calls.
//!
//! ```text
//! offset 0               StatsPage
//! offset CAPTURE_OFFSET  CAPTURE_BYTES of captured frames, each a CaptureHeader and its bytes
//! ```
//!
//! Frames are copied only while a reader holds [`StatsPage::capture`] at 1. The ring of captured
//! frames has the rules of the ring of a network device (positions only grow, records are aligned
//! and never wrap); what does not fit is dropped and counted, never waited for. [`reader`] is the
//! other side.

pub mod reader;

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::Path;

use shoal_unikernel_abi::boot::Backend;
use shoal_unikernel_abi::manifest::{DEVICES_MAX, NAME_MAX};

use crate::error::TenderError;
use crate::sys;

/// First word of the file.
pub const MAGIC: u64 = u64::from_le_bytes(*b"SHOALST1");
/// Version of the layout. It changes when an old reader would misunderstand.
pub const VERSION: u32 = 1;
/// Where captured frames begin.
pub const CAPTURE_OFFSET: usize = 4096;
/// Bytes for captured frames; a power of two.
pub const CAPTURE_BYTES: usize = 1 << 20;
/// Bytes of the file. Pages of the capture that were never used take no memory.
pub const FILE_BYTES: usize = CAPTURE_OFFSET + CAPTURE_BYTES;
/// Captured records begin at multiples of this.
pub const CAPTURE_ALIGN: usize = 32;
/// Value of [`CaptureHeader::len`]: nothing more up to the end of the ring.
pub const CAPTURE_SKIP: u32 = u32::MAX;

/// The counters of a device. For a block device: received is read, sent is written, dropped is
/// refused or failed, and frames are requests.
#[derive(Debug)]
#[repr(C)]
pub struct DeviceStats {
    /// Its name, padded with zeros.
    pub name: [u8; NAME_MAX + 1],
    /// 0: none; else a device kind of the manifest.
    pub kind: AtomicU64,
    /// Frames to the guest.
    pub received_frames: AtomicU64,
    /// Their bytes.
    pub received_bytes: AtomicU64,
    /// Frames from the guest.
    pub sent_frames: AtomicU64,
    /// Their bytes.
    pub sent_bytes: AtomicU64,
    /// Frames from the guest that the host did not take.
    pub sent_dropped: AtomicU64,
    /// Frames to the guest that were too long for it.
    pub received_dropped: AtomicU64,
}

/// The head of the file.
#[derive(Debug)]
#[repr(C)]
pub struct StatsPage {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// A [`Backend`].
    pub backend: u32,
    /// Process id of the tender, as it sees itself.
    pub pid: u32,
    /// 1 while a reader wants frames. Written by the reader only.
    pub capture: AtomicU32,
    /// Nanoseconds of the monotonic clock when the guest was entered.
    pub entered_ns: u64,
    /// Nanoseconds from the start of the tender's program to there.
    pub start_ns: u64,
    /// Calls `WAIT`.
    pub waits: AtomicU64,
    /// Times that the tender slept.
    pub sleeps: AtomicU64,
    /// Bytes written to the log.
    pub log_bytes: AtomicU64,
    /// Bytes for the log that nobody took.
    pub log_dropped: AtomicU64,
    /// Calls that were refused.
    pub refused: AtomicU64,
    /// Bytes of captured records ever produced. Written by the tender only.
    pub capture_produced: AtomicU64,
    /// Bytes of captured records ever consumed. Written by the reader only.
    pub capture_consumed: AtomicU64,
    /// Frames that did not fit.
    pub capture_dropped: AtomicU64,
    /// The devices, in the manifest's order.
    pub devices: [DeviceStats; DEVICES_MAX],
}

const _: () = assert!(core::mem::size_of::<StatsPage>() <= CAPTURE_OFFSET);

/// Before each captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct CaptureHeader {
    /// Bytes of the frame, or [`CAPTURE_SKIP`].
    pub len: u32,
    /// Index of the device in the manifest.
    pub device: u16,
    /// 0: to the guest, 1: from the guest.
    pub from_guest: u16,
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub wall_ns: u64,
}

/// Size of [`CaptureHeader`].
pub const CAPTURE_HEADER_BYTES: usize = 16;
const _: () = assert!(core::mem::size_of::<CaptureHeader>() == CAPTURE_HEADER_BYTES);

/// Adds to a counter that only this thread writes: a load and a store, no locked instruction.
pub(crate) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
}

/// The tender's side.
#[derive(Clone, Copy, Debug)]
pub struct Stats {
    start: *mut u8,
    capture_produced: u64,
}

impl Stats {
    /// Makes the file, or memory that nobody else sees.
    ///
    /// # Errors
    /// [`TenderError::MakeFile`].
    pub fn create(path: Option<&Path>, backend: Backend) -> Result<Self, TenderError> {
        let name = path.unwrap_or(Path::new("memory"));
        let make = |source| TenderError::MakeFile { path: name.to_owned(), source };
        let last = |()| make(std::io::Error::last_os_error());
        let file = match path {
            Some(path) => {
                let mut options = File::options();
                let file = options.read(true).write(true).create(true).truncate(true).open(path);
                let file = file.map_err(make)?;
                file.set_len(FILE_BYTES as u64).map_err(make)?;
                Some(file)
            }
            None => None,
        };
        let (flags, fd) = match &file {
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, -1),
        };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe { libc::mmap(core::ptr::null_mut(), FILE_BYTES, prot, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(last(()));
        }
        let page = start.cast::<StatsPage>();
        // SAFETY: the page is mapped, writable and zeroed; the fields that are not atomic are
        // written here and in `entered`, before the guest runs.
        unsafe {
            (*page).version = VERSION;
            (*page).backend = backend as u32;
            (*page).pid = std::process::id();
            (*page).magic = MAGIC;
        }
        Ok(Self { start: start.cast(), capture_produced: 0 })
    }

    /// The counters.
    #[must_use]
    pub fn page(&self) -> &StatsPage {
        // SAFETY: mapped for as long as the process runs. Its plain fields do not change while the
        // guest runs; a reader writes the atomic ones only.
        unsafe { &*self.start.cast::<StatsPage>() }
    }

    /// The counters of the device with this index.
    #[must_use]
    pub fn device(&self, index: usize) -> Option<&DeviceStats> {
        self.page().devices.get(index)
    }

    /// Says what the device with this index is.
    pub fn name_device(&mut self, index: usize, name: &str, kind: u64) {
        if index >= DEVICES_MAX {
            return;
        }
        let page = self.start.cast::<StatsPage>();
        let len = name.len().min(NAME_MAX);
        // SAFETY: the index is within the array; no reference to the page is held, and the guest
        // does not run yet.
        unsafe {
            let device = &raw mut (*page).devices[index];
            let to = (&raw mut (*device).name).cast::<u8>();
            to.copy_from_nonoverlapping(name.as_ptr(), len);
            (*device).kind.store(kind, Ordering::Release);
        }
    }

    /// Notes that the guest is entered now.
    pub fn entered(&mut self, start_ns: u64) {
        let page = self.start.cast::<StatsPage>();
        let now = sys::clock_ns(libc::CLOCK_MONOTONIC);
        // SAFETY: no reference to the page is held, and the guest does not run yet.
        unsafe {
            (*page).entered_ns = now;
            (*page).start_ns = now.saturating_sub(start_ns);
        }
    }

    /// Whether a reader wants frames.
    #[must_use]
    pub fn captures(&self) -> bool {
        self.page().capture.load(Ordering::Relaxed) == 1
    }

    /// Copies a frame for the reader, if there is room.
    ///
    /// # Safety
    /// `frame` is valid for reads of `len` bytes.
    pub unsafe fn capture(
        &mut self,
        device: usize,
        from_guest: bool,
        frame: *const u8,
        len: usize,
    ) {
        let Some((place, skipped)) = self.capture_room(len) else {
            add(&self.page().capture_dropped, 1);
            return;
        };
        let header = CaptureHeader {
            len: u32::try_from(len).unwrap_or(0),
            device: u16::try_from(device).unwrap_or(u16::MAX),
            from_guest: u16::from(from_guest),
            wall_ns: sys::clock_ns(libc::CLOCK_REALTIME),
        };
        let data = self.start.wrapping_add(CAPTURE_OFFSET);
        // SAFETY: `capture_room` answers a place with room for header and frame within the ring,
        // aligned for the header; where it skips, the rest of the ring has room for a header.
        unsafe {
            if skipped > 0 {
                let end = data.add(CAPTURE_BYTES - skipped);
                end.cast::<u32>().write(CAPTURE_SKIP);
            }
            data.add(place).cast::<CaptureHeader>().write(header);
            data.add(place + CAPTURE_HEADER_BYTES).copy_from_nonoverlapping(frame, len);
        }
        self.capture_produced += (skipped + capture_record_bytes(len)) as u64;
        self.page().capture_produced.store(self.capture_produced, Ordering::Release);
    }

    /// Where a frame of `len` bytes has room, and how many bytes before the end are skipped for it.
    fn capture_room(&self, len: usize) -> Option<(usize, usize)> {
        let need = capture_record_bytes(len);
        // A reader that writes nonsense makes frames be dropped, nothing else.
        let consumed = self.page().capture_consumed.load(Ordering::Acquire);
        let used = usize::try_from(self.capture_produced.checked_sub(consumed)?).ok()?;
        let free = CAPTURE_BYTES.checked_sub(used)?;
        let place = (self.capture_produced as usize) & (CAPTURE_BYTES - 1);
        let rest = CAPTURE_BYTES - place;
        match rest >= need {
            true if free >= need => Some((place, 0)),
            false if free >= rest + need => Some((0, rest)),
            _ => None,
        }
    }
}

/// Room that a captured frame of `len` bytes takes.
#[must_use]
pub const fn capture_record_bytes(len: usize) -> usize {
    (CAPTURE_HEADER_BYTES + len).next_multiple_of(CAPTURE_ALIGN)
}
