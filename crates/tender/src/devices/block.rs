//! A block device: a file of the host.

use core::sync::atomic::Ordering;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use shoal_unikernel_abi::block::{
    BUFFER_BYTES, BlockHeader, COMPLETIONS_OFFSET, Completion, DATA_OFFSET, Operation,
    REQUESTS_OFFSET, Request, SECTOR_BYTES, SLOTS, Status,
};

use super::Stopped;
use super::Stopped::Broken;
use crate::config::BlockConfig;
use crate::error::TenderError;
use crate::stats::{Stats, add};
use crate::sys;

/// An opened file.
#[derive(Debug)]
pub struct Opened {
    /// It.
    pub file: File,
    /// Whole sectors.
    pub sectors: u64,
}

/// Opens the file for `device`.
///
/// # Errors
/// [`TenderError::AttachBlock`].
pub fn open(device: &str, config: &BlockConfig) -> Result<Opened, TenderError> {
    use std::io::Seek;
    let failed = |source| TenderError::AttachBlock {
        device: device.to_owned(),
        path: config.path.clone(),
        source,
    };
    let mut options = File::options();
    let mut file =
        options.read(true).write(!config.read_only).open(&config.path).map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if !kind.is_file() && !std::os::unix::fs::FileTypeExt::is_block_device(&kind) {
        return Err(failed(io::Error::other("neither a file nor a block device")));
    }
    // The end of a block device is found only by seeking to it.
    let bytes = file.seek(io::SeekFrom::End(0)).map_err(failed)?;
    Ok(Opened { file, sectors: bytes / SECTOR_BYTES as u64 })
}

/// A block device.
#[derive(Debug)]
pub struct Block {
    /// Index in the manifest.
    pub index: usize,
    fd: i32,
    sectors: u64,
    read_only: bool,
    region: *mut u8,
    taken: u64,
    completed: u64,
}

impl Block {
    /// Serves the requests in `region` from `fd`.
    ///
    /// # Safety
    /// `region` is `REGION_BYTES` zeroed bytes at a page boundary that stay mapped.
    #[must_use]
    pub unsafe fn new(index: usize, opened: &Opened, read_only: bool, region: *mut u8) -> Self {
        let (fd, sectors) = (opened.file.as_raw_fd(), opened.sectors);
        Self { index, fd, sectors, read_only, region, taken: 0, completed: 0 }
    }

    const fn header(&self) -> &BlockHeader {
        // SAFETY: mapped for as long as the device is served; all its fields are atomic.
        unsafe { &*self.region.cast::<BlockHeader>() }
    }

    /// Does all requests.
    ///
    /// # Errors
    /// [`Stopped`].
    pub fn serve(&mut self, stats: &mut Stats) -> Result<bool, Stopped> {
        let requested = self.header().requested.load(Ordering::Acquire);
        let pending = requested.wrapping_sub(self.taken);
        if pending > SLOTS as u64 {
            return Err(Broken("more block requests were made than there are slots"));
        }
        let consumed = self.header().consumed.load(Ordering::Acquire);
        let open = self.completed.wrapping_sub(consumed);
        if open > SLOTS as u64 {
            return Err(Broken("more block completions were consumed than made"));
        }
        // Completions that are not consumed yet keep their places.
        let room = SLOTS as u64 - open;
        for _ in 0..pending.min(room) {
            let at = self.taken as usize % SLOTS;
            let requests = self.region.wrapping_add(REQUESTS_OFFSET).cast::<Request>();
            // SAFETY: `at` is below SLOTS, for which the region has room; read once.
            let request = unsafe { requests.wrapping_add(at).read_volatile() };
            self.taken += 1;
            self.header().taken.store(self.taken, Ordering::Release);
            let status = self.request(&request)?;
            self.complete(request.slot, status);
            self.count(stats, &request, status);
        }
        Ok(self.header().consumed.load(Ordering::Acquire) != self.completed)
    }

    fn complete(&mut self, slot: u32, status: Status) {
        let at = self.completed as usize % SLOTS;
        let completions = self.region.wrapping_add(COMPLETIONS_OFFSET).cast::<Completion>();
        let completion = Completion { slot, status: status as u32 };
        // SAFETY: `at` is below SLOTS, for which the region has room.
        unsafe { completions.wrapping_add(at).write_volatile(completion) };
        self.completed += 1;
        self.header().completed.store(self.completed, Ordering::Release);
    }

    fn count(&self, stats: &Stats, request: &Request, status: Status) {
        let Some(counters) = stats.device(self.index) else { return };
        let read = request.operation == Operation::Read as u32;
        let (frames, bytes, dropped) = if read {
            (&counters.received_frames, &counters.received_bytes, &counters.received_dropped)
        } else {
            (&counters.sent_frames, &counters.sent_bytes, &counters.sent_dropped)
        };
        if status == Status::Done {
            add(frames, 1);
            add(bytes, u64::from(request.len));
        } else {
            add(dropped, 1);
        }
    }

    /// Does one request.
    fn request(&self, request: &Request) -> Result<Status, Stopped> {
        let slot = request.slot as usize;
        if slot >= SLOTS {
            return Err(Broken("a block request names a slot that does not exist"));
        }
        if request.reserved != [0; 3] {
            return Ok(Status::Refused);
        }
        if request.operation == Operation::Flush as u32 {
            let flushed = request.len == 0 && sys::fdatasync(self.fd) == 0;
            return Ok(if flushed { Status::Done } else { Status::Failed });
        }
        let len = request.len as usize;
        let sectors = (len / SECTOR_BYTES) as u64;
        let whole = len > 0 && len <= BUFFER_BYTES && len.is_multiple_of(SECTOR_BYTES);
        let inside = request.sector <= self.sectors && sectors <= self.sectors - request.sector;
        if !whole || !inside {
            return Ok(Status::Refused);
        }
        let buffer = self.region.wrapping_add(DATA_OFFSET + slot * BUFFER_BYTES);
        let offset = request.sector * SECTOR_BYTES as u64;
        if request.operation == Operation::Read as u32 {
            // SAFETY: the slot's buffer lies in the region and has room for `len` bytes.
            return Ok(transfer(len, |done| unsafe {
                sys::pread(self.fd, buffer.add(done), len - done, offset + done as u64)
            }));
        }
        if request.operation == Operation::Write as u32 && !self.read_only {
            // SAFETY: as above.
            return Ok(transfer(len, |done| unsafe {
                sys::pwrite(self.fd, buffer.add(done), len - done, offset + done as u64)
            }));
        }
        Ok(Status::Refused)
    }
}

/// Repeats a partial system call until all of `len` bytes are done. Files and block devices are not
/// interrupted by signals, so that an error is one of the medium.
fn transfer(len: usize, mut step: impl FnMut(usize) -> isize) -> Status {
    let mut done = 0;
    while done < len {
        match usize::try_from(step(done)) {
            Ok(count) if count > 0 => done += count,
            _ => return Status::Failed,
        }
    }
    Status::Done
}
