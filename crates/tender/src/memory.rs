//! The guest's memory, mapped into the tender.
//!
//! For a process the guest's addresses are the tender's; for a virtual machine the host's kernel
//! chooses where the tender has it, all in one piece, so that it is one slot of guest-physical
//! memory. Text and read-only data are private mappings of the image file: instances of one image
//! share the page cache's pages. All other memory is touched lazily.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::elf::{Access, Image, PAGE, Segment};
use crate::error::TenderError;
use crate::layout::{Arena, Layout, Purpose, Region};

/// A region and where the tender has it.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    /// The region.
    pub region: Region,
    /// The tender's address of its first byte.
    pub host: *mut u8,
}

/// The guest's memory. It stays mapped until the process ends.
#[derive(Debug)]
pub struct Space {
    /// All regions, as in the layout.
    pub windows: Vec<Window>,
    arenas: [(Arena, *mut u8); 2],
    /// Bytes in front of the first range that belong to the one piece, for page tables.
    front: u64,
    identity: bool,
}

/// Who chooses the tender's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// They are the guest's.
    Identity,
    /// The kernel, with so many bytes in front (whole large pages).
    Anywhere {
        /// Bytes.
        front: u64,
    },
}

fn failed(action: &'static str) -> TenderError {
    TenderError::Memory { action, source: io::Error::last_os_error() }
}

/// `mmap` with an error.
fn map(
    at: *mut u8,
    len: u64,
    prot: i32,
    flags: i32,
    file: Option<(&File, u64)>,
    action: &'static str,
) -> Result<*mut u8, TenderError> {
    let too_large = |_| TenderError::Memory { action, source: io::ErrorKind::OutOfMemory.into() };
    let len = usize::try_from(len).map_err(too_large)?;
    let (fd, offset) = file.map_or((-1, 0), |(file, offset)| (file.as_raw_fd(), offset));
    let offset = libc::off_t::try_from(offset).map_err(too_large)?;
    // SAFETY: callers name either no address, a free one (`MAP_FIXED_NOREPLACE`), or one within a
    // range that was reserved here and that nothing else uses.
    let answer = unsafe { libc::mmap(at.cast(), len, prot, flags, fd, offset) };
    if answer == libc::MAP_FAILED { Err(failed(action)) } else { Ok(answer.cast()) }
}

const RESERVE: i32 = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;

impl Space {
    /// Reserves all ranges of a layout.
    ///
    /// # Errors
    /// [`TenderError::Memory`]; for [`Placement::Identity`] also if an address is taken, after
    /// which another layout may succeed.
    pub fn reserve(layout: &Layout, placement: Placement) -> Result<Self, TenderError> {
        let image = Arena { start: layout.image.start - PAGE, len: layout.image.len + 2 * PAGE };
        let data = layout.data;
        let (front, hosts) = match placement {
            Placement::Identity => {
                let flags = RESERVE | libc::MAP_FIXED_NOREPLACE;
                let mut hosts = [core::ptr::null_mut(); 2];
                for (host, arena) in hosts.iter_mut().zip([image, data]) {
                    let at = arena.start as *mut u8;
                    let action = "reserving addresses";
                    *host = map(at, arena.len, libc::PROT_NONE, flags, None, action)?;
                }
                (0, hosts)
            }
            Placement::Anywhere { front } => {
                let image_room = image.len.next_multiple_of(crate::layout::LARGE_PAGE);
                let len = front + data.len + image_room;
                let start = map(
                    core::ptr::null_mut(),
                    len,
                    libc::PROT_NONE,
                    RESERVE,
                    None,
                    "reserving addresses",
                )?;
                let at = |offset: u64| start.wrapping_add(offset as usize);
                (front, [at(front + data.len), at(front)])
            }
        };
        let identity = placement == Placement::Identity;
        let arenas = [(image, hosts[0]), (data, hosts[1])];
        let mut space = Self { windows: Vec::new(), arenas, front, identity };
        for region in &layout.regions {
            let Some(host) = space.host(region.start) else { continue };
            space.windows.push(Window { region: *region, host });
        }
        Ok(space)
    }

    /// Start and length of the one piece of [`Placement::Anywhere`].
    #[must_use]
    pub fn piece(&self) -> (*mut u8, u64) {
        let [(image, _), (data, host)] = self.arenas;
        let start = host.wrapping_sub(self.front as usize);
        let room = image.len.next_multiple_of(crate::layout::LARGE_PAGE);
        (start, self.front + data.len + room)
    }

    /// Bytes in front of the guest's memory.
    #[must_use]
    pub const fn front(&self) -> u64 {
        self.front
    }

    /// Maps the bytes in front of the guest's memory, zeroed.
    ///
    /// # Errors
    /// [`TenderError::Memory`].
    pub fn map_front(&self) -> Result<(), TenderError> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = RESERVE | libc::MAP_FIXED;
        map(self.piece().0, self.front, prot, flags, None, "mapping page tables").map(|_| ())
    }

    /// Where the tender has an address of a reserved range.
    fn host(&self, address: u64) -> Option<*mut u8> {
        self.arenas.iter().find_map(|(arena, host)| {
            let offset = address.checked_sub(arena.start).filter(|offset| *offset < arena.len)?;
            Some(host.wrapping_add(offset as usize))
        })
    }

    /// Protection of the tender's mapping: it executes guest memory only if it is the guest.
    const fn protection(&self, access: Access) -> i32 {
        match access {
            Access::Read => libc::PROT_READ,
            Access::Execute if self.identity => libc::PROT_READ | libc::PROT_EXEC,
            Access::Execute => libc::PROT_READ,
            Access::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }

    /// Maps the segments of the image and applies its relocations. Nothing is sealed yet.
    ///
    /// # Errors
    /// [`TenderError::Memory`].
    pub fn map_image(
        &mut self,
        image: &Image,
        file: &File,
        bytes: &[u8],
        base: u64,
    ) -> Result<(), TenderError> {
        for segment in &image.segments {
            self.map_segment(segment, file, base)?;
        }
        for relocation in image.relocations(bytes) {
            let Some(place) = self.host(base + relocation.place) else { continue };
            // SAFETY: the image's check put the place into a writable segment, which was mapped
            // above; it need not be aligned.
            unsafe { place.cast::<u64>().write_unaligned(base + relocation.addend) };
        }
        Ok(())
    }

    fn map_segment(&self, segment: &Segment, file: &File, base: u64) -> Result<(), TenderError> {
        let action = "mapping the image";
        let start = segment.page_start();
        let Some(host) = self.host(base + start) else { return Ok(()) };
        let prot = self.protection(segment.access);
        let lead = segment.address - start;
        let mut mapped = 0;
        if segment.file_len > 0 {
            mapped = (lead + segment.file_len).next_multiple_of(PAGE);
            let flags = libc::MAP_PRIVATE | libc::MAP_FIXED;
            let from = Some((file, segment.file_offset - lead));
            map(host, mapped, prot, flags, from, action)?;
        }
        if segment.access != Access::Write {
            return Ok(());
        }
        let tail = mapped - (lead + segment.file_len).min(mapped);
        if tail > 0 {
            // SAFETY: the last `tail` bytes of the writable pages that were mapped just now.
            unsafe { host.wrapping_add((mapped - tail) as usize).write_bytes(0, tail as usize) };
        }
        let rest = segment.page_end() - start - mapped;
        if rest > 0 {
            let flags = RESERVE | libc::MAP_FIXED;
            map(host.wrapping_add(mapped as usize), rest, prot, flags, None, action)?;
        }
        Ok(())
    }

    /// Maps zeros, writable for the tender until [`Self::seal`].
    ///
    /// # Errors
    /// [`TenderError::Memory`].
    pub fn map_zeros(&self, window: &Window) -> Result<(), TenderError> {
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let flags = RESERVE | libc::MAP_FIXED;
        map(window.host, window.region.len, prot, flags, None, "mapping memory").map(|_| ())
    }

    /// Maps a file: shared, if the guest is to see what others write to it later.
    ///
    /// # Errors
    /// [`TenderError::Memory`].
    pub fn map_file(&self, window: &Window, file: &File, shared: bool) -> Result<(), TenderError> {
        let kind = if shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
        let prot = self.protection(window.region.access);
        let flags = kind | libc::MAP_FIXED;
        map(window.host, window.region.len, prot, flags, Some((file, 0)), "mapping a file")
            .map(|_| ())
    }

    /// Takes the permission to write from everything that the guest may not write.
    ///
    /// # Errors
    /// [`TenderError::Memory`].
    pub fn seal(&self) -> Result<(), TenderError> {
        let sealed =
            |w: &&Window| w.region.access != Access::Write && w.region.purpose != Purpose::Time;
        for window in self.windows.iter().filter(sealed) {
            let prot = self.protection(window.region.access);
            let len = window.region.len as usize;
            // SAFETY: whole pages of a window that was mapped here; nothing of Rust lies in them.
            if unsafe { libc::mprotect(window.host.cast(), len, prot) } != 0 {
                return Err(failed("sealing memory"));
            }
        }
        Ok(())
    }

    /// The window for `purpose`.
    #[must_use]
    pub fn find(&self, purpose: Purpose) -> Option<&Window> {
        self.windows.iter().find(|window| window.region.purpose == purpose)
    }

    /// The tender's address of `len` bytes that the guest can read.
    #[must_use]
    pub fn readable(&self, address: u64, len: u64) -> Option<*const u8> {
        self.inside(address, len, false).map(<*mut u8>::cast_const)
    }

    /// The tender's address of `len` bytes that the guest can write.
    #[must_use]
    pub fn writable(&self, address: u64, len: u64) -> Option<*mut u8> {
        self.inside(address, len, true)
    }

    fn inside(&self, address: u64, len: u64, write: bool) -> Option<*mut u8> {
        self.windows.iter().find_map(|window| {
            let region = &window.region;
            let offset = address.checked_sub(region.start)?;
            let fits = offset <= region.len && len <= region.len - offset;
            let allowed = !write || region.access == Access::Write;
            (fits && allowed).then(|| window.host.wrapping_add(offset as usize))
        })
    }
}

/// A page that the tender writes and the guest only reads: a file without a name.
///
/// # Errors
/// [`TenderError::Memory`].
pub fn shared_page() -> Result<(File, *mut u8), TenderError> {
    let file = memory_file(c"shoal-time", PAGE)?;
    let prot = libc::PROT_READ | libc::PROT_WRITE;
    let from = Some((&file, 0));
    let action = "mapping the clock page";
    let host = map(core::ptr::null_mut(), PAGE, prot, libc::MAP_SHARED, from, action)?;
    Ok((file, host))
}

/// A file in memory without a name.
///
/// # Errors
/// [`TenderError::Memory`].
pub fn memory_file(name: &core::ffi::CStr, len: u64) -> Result<File, TenderError> {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a C string.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(failed("making a file in memory"));
    }
    // SAFETY: the descriptor was made just now and has no other owner.
    let file = unsafe { File::from_raw_fd(fd) };
    let source = |source| TenderError::Memory { action: "making a file in memory", source };
    file.set_len(len).map_err(source)?;
    Ok(file)
}

/// A whole file, read-only, for as long as the process runs.
///
/// # Errors
/// [`TenderError::Memory`].
pub fn file_bytes(file: &File, len: u64) -> Result<&'static [u8], TenderError> {
    if len == 0 {
        return Ok(&[]);
    }
    let flags = libc::MAP_PRIVATE;
    let from = Some((file, 0));
    let start = map(core::ptr::null_mut(), len, libc::PROT_READ, flags, from, "mapping a file")?;
    // SAFETY: mapped for as long as the process runs. The file of an image does not change while
    // instances run (`Config::image`).
    Ok(unsafe { core::slice::from_raw_parts(start, len as usize) })
}
