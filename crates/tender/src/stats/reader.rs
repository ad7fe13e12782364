//! The other side of the file of counters: for tools that watch a running instance.

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use super::{
    CAPTURE_BYTES, CAPTURE_HEADER_BYTES, CAPTURE_OFFSET, CAPTURE_SKIP, CaptureHeader, FILE_BYTES,
    MAGIC, StatsPage, VERSION, capture_record_bytes,
};

/// Why the counters of an instance cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadStatsError {
    /// The file cannot be opened or mapped.
    #[error("cannot map the counters")]
    Map {
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not one of a tender, or of a version that this program does not know.
    #[error("the file holds no counters of version {VERSION}")]
    Format,
    /// Another reader captures frames.
    #[error("another program captures the frames of this instance")]
    Busy,
}

/// Counters of one instance, as they are at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// 1: virtual machine, 2: process.
    pub backend: u32,
    /// Process id of the tender, as it sees itself.
    pub pid: u32,
    /// Nanoseconds from the start of the tender's program to the guest's first instruction.
    pub start_ns: u64,
    /// Nanoseconds of the monotonic clock when the guest was entered.
    pub entered_ns: u64,
    /// Calls `WAIT`.
    pub waits: u64,
    /// Times that the tender slept.
    pub sleeps: u64,
    /// Bytes written to the log.
    pub log_bytes: u64,
    /// Bytes for the log that nobody took.
    pub log_dropped: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// The devices that the image declares, in its order.
    pub devices: Vec<DeviceSnapshot>,
}

/// Counters of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSnapshot {
    /// Its name.
    pub name: String,
    /// A device kind of the manifest.
    pub kind: u64,
    /// Frames (or requests to read) and bytes to the guest, and what was dropped of them.
    pub received: [u64; 3],
    /// Frames (or requests to write) and bytes from the guest, and what was dropped of them.
    pub sent: [u64; 3],
}

/// A captured frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Index of the device in the manifest.
    pub device: u16,
    /// Whether the guest sent it.
    pub from_guest: bool,
    /// Nanoseconds since 1970-01-01T00:00:00Z.
    pub wall_ns: u64,
    /// The Ethernet frame.
    pub bytes: Vec<u8>,
}

/// A mapped file of counters.
#[derive(Debug)]
pub struct Reader {
    start: *mut u8,
    file: File,
    consumed: Option<u64>,
}

impl Reader {
    /// Maps the file of an instance.
    ///
    /// # Errors
    /// If it cannot be mapped or is something else.
    pub fn open(path: &Path) -> Result<Self, ReadStatsError> {
        let map = |source| ReadStatsError::Map { source };
        let file = File::options().read(true).write(true).open(path).map_err(map)?;
        if file.metadata().map_err(map)?.len() != FILE_BYTES as u64 {
            return Err(ReadStatsError::Format);
        }
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start =
            unsafe { libc::mmap(core::ptr::null_mut(), FILE_BYTES, prot, libc::MAP_SHARED, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(map(io::Error::last_os_error()));
        }
        let reader = Self { start: start.cast(), file, consumed: None };
        let page = reader.page();
        if page.magic != MAGIC || page.version != VERSION {
            return Err(ReadStatsError::Format);
        }
        Ok(reader)
    }

    fn page(&self) -> &StatsPage {
        // SAFETY: mapped until `self` is dropped; what changes in it is atomic.
        unsafe { &*self.start.cast::<StatsPage>() }
    }

    /// The counters as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let page = self.page();
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let devices = page.devices.iter().take_while(|d| get(&d.kind) != 0).map(|device| {
            let name = device.name.split(|byte| *byte == 0).next().unwrap_or_default();
            DeviceSnapshot {
                name: String::from_utf8_lossy(name).into_owned(),
                kind: get(&device.kind),
                received: [
                    get(&device.received_frames),
                    get(&device.received_bytes),
                    get(&device.received_dropped),
                ],
                sent: [
                    get(&device.sent_frames),
                    get(&device.sent_bytes),
                    get(&device.sent_dropped),
                ],
            }
        });
        Snapshot {
            backend: page.backend,
            pid: page.pid,
            start_ns: page.start_ns,
            entered_ns: page.entered_ns,
            waits: get(&page.waits),
            sleeps: get(&page.sleeps),
            log_bytes: get(&page.log_bytes),
            log_dropped: get(&page.log_dropped),
            refused: get(&page.refused),
            devices: devices.collect(),
        }
    }

    /// Asks the tender for copies of all frames from now on, until the reader is dropped.
    ///
    /// # Errors
    /// [`ReadStatsError::Busy`] if another program does so already.
    pub fn capture(&mut self) -> Result<(), ReadStatsError> {
        // SAFETY: a descriptor that this reader owns.
        let locked = unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) };
        if locked != 0 {
            return Err(ReadStatsError::Busy);
        }
        let page = self.page();
        let now = page.capture_produced.load(Ordering::Acquire);
        page.capture_consumed.store(now, Ordering::Release);
        page.capture.store(1, Ordering::Release);
        self.consumed = Some(now);
        Ok(())
    }

    /// Frames that did not fit since the instance started, because no reader took them in time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.page().capture_dropped.load(Ordering::Relaxed)
    }

    /// The next captured frame, if there is one.
    ///
    /// # Errors
    /// [`ReadStatsError::Format`] if the ring holds nonsense.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, ReadStatsError> {
        let Some(mut consumed) = self.consumed else { return Ok(None) };
        let produced = self.page().capture_produced.load(Ordering::Acquire);
        let data = self.start.wrapping_add(CAPTURE_OFFSET);
        while consumed != produced {
            let place = (consumed as usize) & (CAPTURE_BYTES - 1);
            let pending = produced.checked_sub(consumed).ok_or(ReadStatsError::Format)?;
            let rest = CAPTURE_BYTES - place;
            // SAFETY: records begin at multiples of 32 within the ring, so that there is room for
            // a header, aligned.
            let header = unsafe { data.add(place).cast::<CaptureHeader>().read_volatile() };
            if header.len == CAPTURE_SKIP {
                consumed += rest as u64;
                continue;
            }
            let len = usize::try_from(header.len).unwrap_or(usize::MAX);
            if len > CAPTURE_BYTES || capture_record_bytes(len) > rest.min(pending as usize) {
                return Err(ReadStatsError::Format);
            }
            let mut bytes = vec![0; len];
            // SAFETY: the record lies within the ring, as was just checked.
            unsafe {
                let from = data.add(place + CAPTURE_HEADER_BYTES);
                bytes.as_mut_ptr().copy_from_nonoverlapping(from, len);
            }
            self.advance(consumed + capture_record_bytes(len) as u64);
            return Ok(Some(Frame {
                device: header.device,
                from_guest: header.from_guest != 0,
                wall_ns: header.wall_ns,
                bytes,
            }));
        }
        self.advance(consumed);
        Ok(None)
    }

    fn advance(&mut self, consumed: u64) {
        self.consumed = Some(consumed);
        self.page().capture_consumed.store(consumed, Ordering::Release);
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if self.consumed.is_some() {
            let capture: &AtomicU32 = &self.page().capture;
            capture.store(0, Ordering::Release);
        }
        // SAFETY: mapped by `open`, and no reference to it is left.
        unsafe { libc::munmap(self.start.cast(), FILE_BYTES) };
    }
}
