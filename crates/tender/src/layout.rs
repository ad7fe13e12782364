//! Where everything lies in the guest's address space.
//!
//! Two ranges are drawn at random, far from each other: one for the image, one for the rest, so
//! that an address of the stack says nothing of where the text is. Both are reserved without any
//! permission, and what is mapped in them has at least one page of the reservation on each side:
//! its guard pages. Nothing lies below [`LOWEST`]: page 0 and the addresses that ordinary Linux
//! executables are linked for stay free.

use crate::elf::{Access, Image, PAGE};

/// Lowest address that is drawn.
pub const LOWEST: u64 = 0x1000_0000_0000;
/// No range reaches higher: above are the host's own mappings.
pub const HIGHEST: u64 = 0x5000_0000_0000;
/// The heap begins at a multiple of this, so that a virtual machine can map it by large pages.
pub const LARGE_PAGE: u64 = 2 << 20;
/// Bound of the random number of pages between two regions beside the guard page.
const GAP_PAGES: u64 = 64;

/// What a region is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A part of the image.
    Image,
    /// The boot information and everything that it points to, except what has its own region.
    Info,
    /// Clock and control page.
    Time,
    /// The code of the hypercall entry. A virtual machine only.
    Hypercall,
    /// The stack.
    Stack,
    /// Memory that guest and tender share for the device with this index in the manifest.
    Device(usize),
    /// The archive of the mount with this index.
    Mount(usize),
    /// The heap.
    Heap,
}

/// Whole pages of the guest's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// What it is for.
    pub purpose: Purpose,
    /// First byte in the guest.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// What the guest may do with it, once it runs.
    pub access: Access,
}

/// A range that is reserved as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arena {
    /// First byte in the guest.
    pub start: u64,
    /// Bytes.
    pub len: u64,
}

/// How large what is not in the image must be, in bytes.
#[derive(Clone, Debug, Default)]
pub struct Sizes {
    /// Boot information and what it points to.
    pub info: u64,
    /// Page of the hypercall entry; 0 if there is none.
    pub hypercall: u64,
    /// Stack.
    pub stack: u64,
    /// Heap.
    pub heap: u64,
    /// Each device that is attached: its index in the manifest and the size of its region.
    pub devices: Vec<(usize, u64)>,
    /// Each mount's archive.
    pub mounts: Vec<u64>,
}

/// Where everything lies.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The range of the image. It begins at the image's base.
    pub image: Arena,
    /// The range of the rest.
    pub data: Arena,
    /// Everything that is mapped, ascending in each range.
    pub regions: Vec<Region>,
}

impl Layout {
    /// Draws a layout; `random` gives random words.
    pub fn draw(image: &Image, sizes: &Sizes, random: &mut dyn FnMut() -> u64) -> Self {
        let mut regions = Vec::new();
        // A page in front, so that the first segment has a guard page too: it begins at 0.
        let image_len = image.span + 2 * PAGE;
        let start = draw(image_len, PAGE, random);
        let base = start + PAGE;
        for segment in &image.segments {
            let (from, to) = (segment.page_start(), segment.page_end());
            let mut part = |from: u64, to: u64, access| {
                if to > from {
                    let (start, len) = (base + from, to - from);
                    regions.push(Region { purpose: Purpose::Image, start, len, access });
                }
            };
            match image.sealed.filter(|sealed| sealed.0 == from) {
                Some((_, end)) => {
                    part(from, end, Access::Read);
                    part(end, to, Access::Write);
                }
                None => part(from, to, segment.access),
            }
        }
        let image = Arena { start: base, len: image.span };

        let mut data = Vec::new();
        let len = place(sizes, &mut data, random);
        let mut data_start = draw(len, LARGE_PAGE, random);
        // Two ranges that meet are as good as impossible; then the lower end is as good a place.
        if data_start < start + image_len && start < data_start + len {
            data_start = if start > HIGHEST / 2 { LOWEST } else { HIGHEST - len };
            data_start &= !(LARGE_PAGE - 1);
        }
        let moved = |region: Region| Region { start: region.start + data_start, ..region };
        regions.extend(data.into_iter().map(moved));
        Self { image, data: Arena { start: data_start, len }, regions }
    }

    /// The first region for `purpose`.
    #[must_use]
    pub fn find(&self, purpose: Purpose) -> Option<&Region> {
        self.regions.iter().find(|region| region.purpose == purpose)
    }
}

/// A random start for `len` bytes.
fn draw(len: u64, align: u64, random: &mut dyn FnMut() -> u64) -> u64 {
    let places = (HIGHEST - LOWEST - len) / align;
    LOWEST + random() % places.max(1) * align
}

/// Puts the regions one behind the other, from 0. Answers the whole length.
fn place(sizes: &Sizes, regions: &mut Vec<Region>, random: &mut dyn FnMut() -> u64) -> u64 {
    let mut at = 0;
    let mut put = |purpose, len: u64, access, align: u64| {
        at += PAGE * (1 + random() % GAP_PAGES);
        at = at.next_multiple_of(align);
        let len = len.next_multiple_of(PAGE);
        if len > 0 {
            regions.push(Region { purpose, start: at, len, access });
            at += len;
        }
    };
    put(Purpose::Info, sizes.info, Access::Read, PAGE);
    put(Purpose::Time, PAGE, Access::Read, PAGE);
    put(Purpose::Hypercall, sizes.hypercall, Access::Execute, PAGE);
    put(Purpose::Stack, sizes.stack, Access::Write, PAGE);
    for (index, len) in &sizes.devices {
        put(Purpose::Device(*index), *len, Access::Write, PAGE);
    }
    for (index, len) in sizes.mounts.iter().enumerate() {
        put(Purpose::Mount(index), *len, Access::Read, PAGE);
    }
    put(Purpose::Heap, sizes.heap, Access::Write, LARGE_PAGE);
    (at + PAGE).next_multiple_of(LARGE_PAGE)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::elf::Segment;
    use shoal_unikernel_abi::manifest::{DEVICES_MAX, Device, MAGIC, Manifest};

    fn image() -> Image {
        let segment = |address, len, access| Segment {
            address,
            len,
            file_offset: address,
            file_len: len,
            access,
        };
        Image::for_layout(vec![
            segment(0, 0x800, Access::Read),
            segment(0x1000, 0x1800, Access::Execute),
            segment(0x3000, 0x2100, Access::Write),
        ])
    }

    impl Image {
        fn for_layout(segments: Vec<Segment>) -> Self {
            let manifest = Manifest {
                magic: MAGIC,
                abi_version: 1,
                device_count: 0,
                features_needed: 0,
                heap_bytes_min: 0,
                stack_bytes: 0,
                devices: [Device::NONE; DEVICES_MAX],
            };
            let span = segments.last().unwrap().page_end();
            Self::without_relocations(segments, 0x1000, span, Some((0x3000, 0x4000)), manifest)
        }
    }

    proptest::proptest! {
        #[test]
        fn regions_are_in_their_ranges_with_a_guard_page_between(
            words: [u64; 32],
            heap in 1_u64..1 << 40,
            device in 1_u64..1 << 22,
        ) {
            let mut at = 0;
            let mut random = || { at += 1; words[at % 32] };
            let sizes = Sizes {
                info: 5000, hypercall: PAGE, stack: 65536, heap,
                devices: vec![(0, device), (3, device)],
                mounts: vec![0, 10_000],
            };
            let layout = Layout::draw(&image(), &sizes, &mut random);
            let data = layout.data;
            let mut regions = layout.regions.clone();
            regions.sort_by_key(|r| r.start);
            for pair in regions.windows(2) {
                let gap = pair[1].start - (pair[0].start + pair[0].len);
                let both_image = pair.iter().all(|r| r.purpose == Purpose::Image);
                assert!(both_image || gap >= PAGE, "{pair:?}");
            }
            for region in &regions {
                assert_eq!(region.start % PAGE, 0);
                assert!(region.start >= LOWEST && region.start + region.len <= HIGHEST);
                if region.purpose != Purpose::Image {
                    assert!(region.start >= data.start + PAGE);
                    assert!(region.start + region.len + PAGE <= data.start + data.len);
                }
            }
            assert_eq!(layout.find(Purpose::Heap).unwrap().start % LARGE_PAGE, 0);
            let sealed = regions.iter().find(|r| r.start == layout.image.start + 0x3000).unwrap();
            assert_eq!((sealed.len, sealed.access), (0x1000, Access::Read));
        }
    }
}
