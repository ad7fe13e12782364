//! Images that break a rule are refused, whatever bytes they are made of.

#![allow(clippy::unwrap_used)]

mod common;

use common::image::{DATA, TEXT};
use common::{ImageBuilder, Instance};
use proptest::prelude::*;
use shoal_tender::elf::{self, Access, ElfError, Image};
use shoal_tender::manifest::{Declared, ManifestError, STACK_BYTES_MAX, STACK_BYTES_MIN};
use shoal_unikernel_abi::manifest::{Device, DeviceKind};

const CODE: &[u8] = &[0x0f, 0x0b];
const RELATIVE: u64 = 8;
/// Where the program headers begin, and their size.
const HEADERS: usize = 64;
const HEADER: usize = 56;

fn builder() -> ImageBuilder {
    ImageBuilder::new(CODE)
}

#[test]
fn a_good_image_is_understood() {
    let mut image = builder().net("net0").block("disk");
    image.relocations = vec![(DATA, RELATIVE, 0x10), (DATA + 24, RELATIVE, TEXT)];
    image.relro = Some((DATA, DATA + 0x800));
    let file = image.build();
    let parsed = Image::parse(&file).unwrap();
    assert_eq!(parsed.segments.len(), 3);
    assert_eq!(parsed.segments[1].access, Access::Execute);
    assert_eq!(parsed.entry, TEXT);
    assert_eq!(parsed.sealed, None, "less than a page is not sealed");
    assert_eq!(parsed.relocations(&file).count(), 2);
    let declared = Declared::check(&parsed.manifest).unwrap();
    assert_eq!(declared.devices[1].name, "disk");
    assert_eq!(declared.devices[0].kind, DeviceKind::Net);
}

/// Changes a good file and tells what is said of it.
fn changed(change: impl FnOnce(&mut Vec<u8>)) -> ElfError {
    let mut file = builder().build();
    change(&mut file);
    Image::parse(&file).unwrap_err()
}

/// Writes a 64-bit word of a program header (0 kind and flags, 1 offset, 2 address, 4 length in the
/// file, 5 length in memory, 6 alignment).
fn set(file: &mut [u8], header: usize, word: usize, value: u64) {
    let at = HEADERS + header * HEADER + word * 8;
    file[at..at + 8].copy_from_slice(&value.to_le_bytes());
}

#[test]
fn a_file_has_a_bound() {
    // Never touched, and so never in memory: its length alone is looked at.
    let file = vec![0_u8; elf::FILE_BYTES_MAX + 1];
    let error = Image::parse(&file).unwrap_err();
    assert_eq!(error, ElfError::TooLarge { bytes: file.len() });
}

#[test]
fn headers_that_lie_are_refused() {
    let header = |at: usize, byte: u8| changed(|file| file[at] = byte);
    for error in [
        changed(|file| file.truncate(63)),
        header(0, 0),
        header(4, 1),
        header(5, 2),
        header(16, 2),
        header(18, 183),
        header(54, 55),
        header(56, 0),
        header(56, 33),
        header(38, 0xff),
    ] {
        assert!(matches!(error, ElfError::Header { .. }), "{error:?}");
    }
    let entry = changed(|file| file[24..32].copy_from_slice(&DATA.to_le_bytes()));
    assert_eq!(entry, ElfError::Entry { address: DATA });
}

#[test]
fn segments_that_lie_are_refused() {
    let segment = |header, word, value| changed(|file| set(file, header, word, value));
    for error in [
        // Longer in the file than in memory, beyond the file, too high, wrapping round.
        segment(1, 4, 0x1000),
        segment(2, 4, 0x10_0000),
        segment(2, 5, 1 << 40),
        segment(2, 2, u64::MAX - 0xfff),
        segment(2, 1, u64::MAX),
        // Alignment, place within the page, order, memory without content.
        segment(2, 6, 0x800),
        segment(2, 6, 0x3000),
        segment(2, 2, DATA + 8),
        segment(2, 2, 0),
        segment(0, 5, 0x1001),
        segment(0, 0, 1),
        segment(1, 0, 1 | 1 << 32),
    ] {
        assert!(matches!(error, ElfError::Segment { .. }), "{error:?}");
    }
    assert_eq!(segment(1, 0, 1 | 7 << 32), ElfError::WriteExecute { index: 1 });
    let with = |extra| {
        let mut image = builder();
        image.extra = Some(extra);
        Image::parse(&image.build()).unwrap_err()
    };
    assert_eq!(with((3, 0x10, 8)), ElfError::Interpreter);
    assert_eq!(with((7, DATA, 8)), ElfError::ThreadLocal);
    let stack = changed(|file| {
        set(file, 4, 0, 0x6474_e551 | 7 << 32);
    });
    assert!(matches!(stack, ElfError::Segment { index: 4, .. }), "{stack:?}");
}

#[test]
fn relocations_that_are_not_relative_within_the_image_are_refused() {
    for relocation in [
        (DATA, 1, 0),
        (DATA, RELATIVE | 1 << 32, 0),
        (TEXT, RELATIVE, 0),
        (0x10, RELATIVE, 0),
        (u64::MAX - 3, RELATIVE, 0),
        (DATA, RELATIVE, u64::MAX),
        (DATA, RELATIVE, 0x10_0000),
    ] {
        let mut image = builder();
        image.relocations = vec![(DATA, RELATIVE, 0), relocation];
        let error = Image::parse(&image.build()).unwrap_err();
        assert!(matches!(error, ElfError::Relocation { index: 1, .. }), "{relocation:x?}");
    }
}

#[test]
fn manifests_that_do_not_fit_are_refused() {
    let mut image = builder();
    image.note = false;
    assert_eq!(Image::parse(&image.build()).unwrap_err(), ElfError::NoManifest);
    let check = |image: &ImageBuilder| {
        let parsed = Image::parse(&image.build()).unwrap();
        Declared::check(&parsed.manifest).unwrap_err()
    };
    let mut image = builder();
    image.abi_version = 2;
    assert_eq!(check(&image), ManifestError::Abi { stated: 2 });
    for bytes in [STACK_BYTES_MIN - 1, STACK_BYTES_MAX + 1] {
        let mut image = builder();
        image.stack_bytes = bytes;
        assert!(matches!(check(&image), ManifestError::Malformed { .. }), "{bytes}");
    }
    let twice = builder().net("a").block("a");
    assert!(matches!(check(&twice), ManifestError::Malformed { .. }));
    let mut image = builder().net("a");
    image.devices[0].flags = 1 << 31;
    assert!(matches!(check(&image), ManifestError::Malformed { .. }));
    image.devices[0] = Device { kind: 9, ..Device::new(DeviceKind::Net, "a", 0) };
    assert!(matches!(check(&image), ManifestError::UnknownKind { kind: 9, .. }));
    image.devices[0] = Device::new(DeviceKind::Net, "a/b", 0);
    assert!(matches!(check(&image), ManifestError::Malformed { .. }));
}

/// Runs an instance that must be refused with this id.
fn refused(instance: &Instance, id: &str) {
    let outcome = instance.run();
    assert_eq!(outcome.status, Some(125), "{outcome:?}");
    assert!(outcome.stderr.starts_with(id), "{outcome:?}");
    assert_eq!(outcome.stderr.lines().count(), 1, "one line: {outcome:?}");
}

#[test]
fn refusals_have_a_status_and_an_id() {
    let mut image = builder();
    image.flags[1] = 7;
    refused(&Instance::new("process", &image), "SH-TEN-002");
    let mut image = builder();
    image.abi_version = 77;
    refused(&Instance::new("process", &image), "SH-TEN-003");
    let mut image = builder();
    image.features_needed = 1 << 63;
    refused(&Instance::new("process", &image), "SH-TEN-003");
    let mut image = builder();
    image.heap_bytes_min = 1 << 30;
    refused(&Instance::new("process", &image), "SH-TEN-003");
    // Declared, and nothing attached.
    refused(&Instance::new("process", &builder().block("disk")), "SH-TEN-004");
    // Attached, and not declared; declared as another kind.
    for image in [builder(), builder().net("disk")] {
        let mut instance = Instance::new("process", &image);
        instance.config["devices"]["disk"]["block"]["path"] = "/dev/null".into();
        refused(&instance, "SH-TEN-004");
    }
    let mut instance = Instance::new("process", &builder());
    instance.config["format"] = 9.into();
    refused(&instance, "SH-TEN-001");
    let mut instance = Instance::new("process", &builder());
    instance.config["mounts"] = serde_json::json!([{"path": "/m", "source": "/nowhere"}]);
    refused(&instance, "SH-TEN-007");
    let mut instance = Instance::new("process", &builder());
    instance.config["stats_file"] = "/nowhere/stats".into();
    refused(&instance, "SH-TEN-011");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn any_bytes_are_refused_or_within_bounds(
        bytes in prop::collection::vec(any::<u8>(), 0..2048),
    ) {
        elf::fuzz(&bytes);
    }

    #[test]
    fn a_few_changed_words_are_refused_or_within_bounds(
        changes in prop::collection::vec((0_usize..0x2000, any::<u64>(), 0_u32..64), 1..6),
        cut in prop::option::of(0_usize..0x2100),
    ) {
        let mut image = builder().net("n");
        image.relocations = vec![(DATA, RELATIVE, 0x10)];
        image.relro = Some((DATA, DATA + 64));
        image.symbols = Some(b"1000 x\n".to_vec());
        let mut file = image.build();
        for (at, word, shift) in changes {
            // Most of a page is empty: three of four changes go to headers and notes.
            let at = if at % 4 == 0 { at } else { at % 0x240 };
            let at = at.min(file.len() - 8);
            file[at..at + 8].copy_from_slice(&(word >> shift).to_le_bytes());
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        elf::fuzz(&file);
    }
}
