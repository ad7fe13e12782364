//! A block device from the monitor's side: a file.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use shoal_unikernel_abi::block::{
    BUFFER_BYTES, BlockHeader, COMPLETIONS_OFFSET, Completion, DATA_OFFSET, Operation,
    REGION_BYTES, REQUESTS_OFFSET, Request, SECTOR_BYTES, SLOTS, Status,
};
use shoal_unikernel_abi::boot::{BlockInfo, Span};

use super::region;

/// See the module.
#[derive(Debug)]
pub(super) struct BlockDevice {
    file: File,
    read_only: bool,
    bytes: u64,
    memory: *mut u8,
}

impl BlockDevice {
    /// Opens the file and makes the shared region.
    pub(super) fn open(path: &Path, read_only: bool) -> std::io::Result<(Self, Span, BlockInfo)> {
        let file = File::options().read(true).write(!read_only).open(path)?;
        let sectors = file.metadata()?.len() / SECTOR_BYTES as u64;
        let memory = region::leak_zeroed(REGION_BYTES);
        let span = Span { start: memory as u64, len: REGION_BYTES as u64 };
        let info = BlockInfo { sectors, read_only: u32::from(read_only), reserved: 0 };
        let bytes = sectors * SECTOR_BYTES as u64;
        Ok((Self { file, read_only, bytes, memory }, span, info))
    }

    /// Carries out all requests; whether the guest has completions to take.
    pub(super) fn serve(&mut self) -> bool {
        // SAFETY: the region begins with the header, was zeroed, and is never freed.
        let header = unsafe { &*self.memory.cast::<BlockHeader>() };
        let requested = header.requested.load(Ordering::Acquire);
        let mut taken = header.taken.load(Ordering::Relaxed);
        let mut completed = header.completed.load(Ordering::Relaxed);
        while taken != requested {
            let place = (taken % SLOTS as u64) as usize;
            // SAFETY: the place is below SLOTS, so that it lies inside of the region.
            let request = unsafe {
                self.memory.add(REQUESTS_OFFSET).cast::<Request>().add(place).read_volatile()
            };
            taken += 1;
            let status = self.carry_out(request) as u32;
            let completion = Completion { slot: request.slot, status };
            let place = (completed % SLOTS as u64) as usize;
            // SAFETY: as above. There are at most SLOTS requests, so that the place is free.
            unsafe {
                let completions = self.memory.add(COMPLETIONS_OFFSET).cast::<Completion>();
                completions.add(place).write_volatile(completion);
            }
            completed += 1;
        }
        header.taken.store(taken, Ordering::Release);
        header.completed.store(completed, Ordering::Release);
        completed != header.consumed.load(Ordering::Acquire)
    }

    fn carry_out(&self, request: Request) -> Status {
        let slot = request.slot as usize;
        let len = request.len as usize;
        let at = request.sector.checked_mul(SECTOR_BYTES as u64);
        let fits =
            at.and_then(|at| at.checked_add(len as u64)).is_some_and(|end| end <= self.bytes);
        if slot >= SLOTS || len > BUFFER_BYTES || !len.is_multiple_of(SECTOR_BYTES) || !fits {
            return Status::Refused;
        }
        let at = at.unwrap_or(0);
        // SAFETY: the slot and the length were checked; the guest leaves the buffer alone until the
        // completion.
        let buffer = unsafe {
            let first = self.memory.add(DATA_OFFSET + slot * BUFFER_BYTES);
            core::slice::from_raw_parts_mut(first, len)
        };
        let done = match request.operation {
            operation if operation == Operation::Read as u32 => self.file.read_exact_at(buffer, at),
            operation if operation == Operation::Write as u32 && !self.read_only => {
                self.file.write_all_at(buffer, at)
            }
            operation if operation == Operation::Flush as u32 => self.file.sync_data(),
            _ => return Status::Refused,
        };
        if done.is_ok() { Status::Done } else { Status::Failed }
    }
}
