//! Block devices: sectors that can be read, written and made durable.
//!
//! Up to 32 requests are under way at once; the slot of a request is its buffer, so that a task
//! that needs one while all are in use waits. A request that is dropped goes on; its slot is
//! released when it ends.

use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::future::poll_fn;
use core::sync::atomic::Ordering;
use core::task::{Context, Poll, Waker};

use shoal_unikernel_abi::block::{
    BUFFER_BYTES, BlockHeader, COMPLETIONS_OFFSET, Completion, DATA_OFFSET, Operation,
    REGION_BYTES, REQUESTS_OFFSET, Request, SECTOR_BYTES, SLOTS, Status,
};
use shoal_unikernel_abi::boot::BlockInfo;
use shoal_unikernel_abi::manifest::DeviceKind;

use crate::boot;
use crate::executor::{self, Driver};

/// Bytes of a sector.
pub const SECTOR: usize = SECTOR_BYTES;

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No device of this name is attached.
    #[error("no such block device: declare it with `devices: [block(\"name\")]` and attach it")]
    NoDevice,
    /// A buffer is not a whole number of sectors.
    #[error("{bytes} bytes are not a whole number of sectors of {SECTOR} bytes")]
    Unaligned {
        /// Its size.
        bytes: usize,
    },
    /// Beyond the end, or a write to a read-only device.
    #[error("the device refused the request: beyond its end, or it is read-only")]
    Refused,
    /// The medium failed.
    #[error("the medium failed")]
    Failed,
}

/// Where a slot stands.
#[derive(Debug)]
enum Slot {
    Free,
    /// Requested; who waits for it.
    Busy(Option<Waker>),
    /// Its end has not been noticed yet.
    Done(u32),
    /// Nobody waits for its end.
    Abandoned,
}

/// What all handles of one device share.
#[derive(Debug)]
struct Shared {
    index: usize,
    region: *mut u8,
    info: BlockInfo,
    slots: [Slot; SLOTS],
    waiting: Vec<Waker>,
    requested: u64,
    consumed: u64,
}

local! {
    static DEVICES: RefCell<Vec<Rc<RefCell<Shared>>>> = RefCell::new(Vec::new());
}

/// An open device. Clones are the same device.
#[derive(Clone, Debug)]
pub struct Device(Rc<RefCell<Shared>>);

impl Device {
    /// Opens the device with this name in the manifest.
    ///
    /// # Errors
    /// [`Error::NoDevice`].
    pub fn open(name: &str) -> Result<Self, Error> {
        let found = boot::device(DeviceKind::Block, Some(name));
        let (index, device) = found.ok_or(Error::NoDevice)?;
        if (device.region.len as usize) < REGION_BYTES {
            return Err(Error::NoDevice);
        }
        DEVICES.with(|devices| {
            let mut devices = devices.borrow_mut();
            if let Some(open) = devices.iter().find(|open| open.borrow().index == index) {
                return Ok(Self(Rc::clone(open)));
            }
            if devices.is_empty() {
                executor::add_driver(Driver { receive, settle });
            }
            let shared = Rc::new(RefCell::new(Shared {
                index,
                region: device.region.start as *mut u8,
                info: device.block,
                slots: [const { Slot::Free }; SLOTS],
                waiting: Vec::new(),
                requested: 0,
                consumed: 0,
            }));
            devices.push(Rc::clone(&shared));
            Ok(Self(shared))
        })
    }

    /// Size in sectors.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.0.borrow().info.sectors
    }

    /// Whether writes are refused.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.0.borrow().info.read_only == 1
    }

    /// Reads sectors from `sector` on.
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::Refused`], [`Error::Failed`].
    pub async fn read(&self, sector: u64, to: &mut [u8]) -> Result<(), Error> {
        aligned(to.len())?;
        for (at, piece) in to.chunks_mut(BUFFER_BYTES).enumerate() {
            let sector = sector + (at * BUFFER_BYTES / SECTOR) as u64;
            let slot = self.slot().await;
            self.request(&slot, Operation::Read, sector, piece.len());
            self.end(&slot).await?;
            piece.copy_from_slice(&self.0.borrow().buffer(slot.number)[..piece.len()]);
        }
        Ok(())
    }

    /// Writes sectors from `sector` on. They are durable after the next [`Device::flush`].
    ///
    /// # Errors
    /// [`Error::Unaligned`], [`Error::Refused`], [`Error::Failed`].
    pub async fn write(&self, sector: u64, data: &[u8]) -> Result<(), Error> {
        aligned(data.len())?;
        for (at, piece) in data.chunks(BUFFER_BYTES).enumerate() {
            let sector = sector + (at * BUFFER_BYTES / SECTOR) as u64;
            let slot = self.slot().await;
            self.0.borrow_mut().buffer_mut(slot.number)[..piece.len()].copy_from_slice(piece);
            self.request(&slot, Operation::Write, sector, piece.len());
            self.end(&slot).await?;
        }
        Ok(())
    }

    /// Waits until everything that was written before is durable.
    ///
    /// # Errors
    /// [`Error::Failed`].
    pub async fn flush(&self) -> Result<(), Error> {
        let slot = self.slot().await;
        self.request(&slot, Operation::Flush, 0, 0);
        self.end(&slot).await
    }

    /// A free slot, waiting for one.
    async fn slot(&self) -> Taken<'_> {
        let number = poll_fn(|context| self.0.borrow_mut().poll_slot(context)).await;
        Taken { device: self, number }
    }

    fn request(&self, slot: &Taken<'_>, operation: Operation, sector: u64, len: usize) {
        let request = Request {
            operation: operation as u32,
            slot: slot.number as u32,
            sector,
            len: len as u32,
            reserved: [0; 3],
        };
        self.0.borrow_mut().request(request);
    }

    async fn end(&self, slot: &Taken<'_>) -> Result<(), Error> {
        let status = poll_fn(|context| {
            let mut shared = self.0.borrow_mut();
            match &mut shared.slots[slot.number] {
                Slot::Done(status) => Poll::Ready(*status),
                Slot::Busy(waker) => {
                    *waker = Some(context.waker().clone());
                    Poll::Pending
                }
                // Cannot happen: the slot is held.
                Slot::Free | Slot::Abandoned => Poll::Ready(Status::Failed as u32),
            }
        });
        match status.await {
            status if status == Status::Done as u32 => Ok(()),
            status if status == Status::Refused as u32 => Err(Error::Refused),
            _ => Err(Error::Failed),
        }
    }
}

fn aligned(bytes: usize) -> Result<(), Error> {
    if bytes.is_multiple_of(SECTOR) { Ok(()) } else { Err(Error::Unaligned { bytes }) }
}

/// A slot that is held; released when this is dropped.
struct Taken<'a> {
    device: &'a Device,
    number: usize,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        let mut shared = self.device.0.borrow_mut();
        let slot = &mut shared.slots[self.number];
        if let Slot::Busy(Some(_)) | Slot::Busy(None) = slot {
            *slot = Slot::Abandoned;
        } else {
            shared.free(self.number);
        }
    }
}

impl Shared {
    fn header(&self) -> &BlockHeader {
        // SAFETY: the monitor made the region, aligned and large enough, and keeps it.
        unsafe { &*self.region.cast::<BlockHeader>() }
    }

    fn buffer(&self, slot: usize) -> &[u8] {
        assert!(slot < SLOTS);
        // SAFETY: the slot lies in the region, and the monitor writes to its buffer only between
        // request and completion, when nobody asks for it.
        unsafe {
            let first = self.region.add(DATA_OFFSET + slot * BUFFER_BYTES);
            core::slice::from_raw_parts(first, BUFFER_BYTES)
        }
    }

    fn buffer_mut(&mut self, slot: usize) -> &mut [u8] {
        assert!(slot < SLOTS);
        // SAFETY: as above; and this is the only reference, because `self` is.
        unsafe {
            let first = self.region.add(DATA_OFFSET + slot * BUFFER_BYTES);
            core::slice::from_raw_parts_mut(first, BUFFER_BYTES)
        }
    }

    fn poll_slot(&mut self, context: &Context<'_>) -> Poll<usize> {
        let free = self.slots.iter().position(|slot| matches!(slot, Slot::Free));
        match free {
            Some(number) => {
                // Not busy yet, but nobody else's.
                self.slots[number] = Slot::Done(0);
                Poll::Ready(number)
            }
            None => {
                self.waiting.push(context.waker().clone());
                Poll::Pending
            }
        }
    }

    fn free(&mut self, slot: usize) {
        self.slots[slot] = Slot::Free;
        self.waiting.drain(..).for_each(Waker::wake);
    }

    fn request(&mut self, request: Request) {
        self.slots[request.slot as usize] = Slot::Busy(None);
        let place = (self.requested % SLOTS as u64) as usize;
        // SAFETY: the place lies in the region; it is free, because there are no more requests than
        // slots.
        unsafe {
            let requests = self.region.add(REQUESTS_OFFSET).cast::<Request>();
            requests.add(place).write_volatile(request);
        }
        self.requested += 1;
        self.header().requested.store(self.requested, Ordering::Release);
    }

    /// Takes the completions.
    fn receive(&mut self) {
        let completed = self.header().completed.load(Ordering::Acquire);
        while self.consumed != completed {
            let place = (self.consumed % SLOTS as u64) as usize;
            // SAFETY: the place lies in the region, and the monitor has written it.
            let completion = unsafe {
                let completions = self.region.add(COMPLETIONS_OFFSET).cast::<Completion>();
                completions.add(place).read_volatile()
            };
            self.consumed += 1;
            let number = completion.slot as usize % SLOTS;
            match core::mem::replace(&mut self.slots[number], Slot::Done(completion.status)) {
                Slot::Busy(Some(waker)) => waker.wake(),
                Slot::Abandoned => self.free(number),
                Slot::Busy(None) | Slot::Free | Slot::Done(_) => {}
            }
        }
        self.header().consumed.store(self.consumed, Ordering::Release);
    }
}

fn for_devices(mut each: impl FnMut(&mut Shared)) {
    DEVICES.with(|devices| {
        for device in devices.borrow().iter() {
            each(&mut device.borrow_mut());
        }
    });
}

fn receive(_now_ns: u64) {
    for_devices(Shared::receive);
}

fn settle(_now_ns: u64) -> u64 {
    let mut next_ns = u64::MAX;
    for_devices(|device| {
        // The call itself serves requests; only completions that came since forbid to sleep.
        if device.header().completed.load(Ordering::Acquire) != device.consumed {
            next_ns = 0;
        }
    });
    next_ns
}

#[cfg(not(shoal_image))]
pub(crate) fn clear() {
    DEVICES.with(|devices| devices.borrow_mut().clear());
}
