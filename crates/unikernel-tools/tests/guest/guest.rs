//! A guest with nothing but the contract: it logs its arguments, waits if told
//! to, and ends with status 7.

#![cfg_attr(shoal_image, no_std, no_main)]

#[cfg(shoal_image)]
mod image {
    use core::fmt::Write;

    use shoal_unikernel_abi::boot::{BootInfo, Span};
    use shoal_unikernel_abi::manifest::{
        DEVICE_OPTIONAL, DEVICES_MAX, Device, DeviceKind, MAGIC, MANIFEST_BYTES, Manifest,
        NOTE_TYPE,
    };
    use shoal_unikernel_abi::{ABI_VERSION, call};

    const fn devices() -> [Device; DEVICES_MAX] {
        let mut devices = [Device::NONE; DEVICES_MAX];
        if cfg!(feature = "unused-device") {
            devices[0] = Device::new(DeviceKind::Block, "data", DEVICE_OPTIONAL);
        }
        devices
    }

    #[repr(C, packed(4))]
    struct Note {
        head: [u32; 3],
        owner: [u8; 8],
        manifest: Manifest,
    }

    #[used]
    #[unsafe(link_section = ".note.shoal")]
    static NOTE: Note = Note {
        head: [6, MANIFEST_BYTES as u32, NOTE_TYPE],
        owner: *b"Shoal\0\0\0",
        manifest: Manifest {
            magic: MAGIC,
            abi_version: ABI_VERSION,
            device_count: if cfg!(feature = "unused-device") { 1 } else { 0 },
            features_needed: 0,
            heap_bytes_min: 65536,
            stack_bytes: 65536,
            devices: devices(),
        },
    };

    /// A table of addresses: the tender must relocate it.
    static WORDS: [&str; 3] = ["hello", "from", "inside"];

    core::arch::global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {start}", "ud2",
        start = sym start);

    type Hypercall = extern "C" fn(u64, u64, u64, u64) -> i64;

    struct Log(Hypercall);

    impl Write for Log {
        fn write_str(&mut self, text: &str) -> core::fmt::Result {
            (self.0)(call::LOG, text.as_ptr() as u64, text.len() as u64, 1);
            Ok(())
        }
    }

    fn bytes(span: Span) -> &'static [u8] {
        unsafe { core::slice::from_raw_parts(span.start as *const u8, span.len as usize) }
    }

    extern "C" fn start(boot: &'static BootInfo) -> ! {
        let hypercall: Hypercall = unsafe { core::mem::transmute(boot.hypercall as *const ()) };
        let mut log = Log(hypercall);
        for word in WORDS {
            let _ = log.write_str(word);
            let _ = log.write_str(" ");
        }
        for text in bytes(boot.args).split(|byte| *byte == 0) {
            let _ = log.write_str(core::str::from_utf8(text).unwrap_or("?"));
            let _ = log.write_str(",");
            if text == b"wait" {
                while hypercall(call::WAIT, u64::MAX, 0, 0) & call::STOP as i64 == 0 {}
                let _ = log.write_str("stopped");
            }
        }
        let _ = log.write_str("\n");
        hypercall(call::EXIT, 7, 0, 0);
        unreachable!()
    }

    #[panic_handler]
    fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
        loop {
            core::hint::spin_loop();
        }
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, len: usize) -> *mut u8 {
        unsafe {
            core::arch::asm!("rep movsb", inout("rdi") to => _, inout("rsi") from => _,
                inout("rcx") len => _, options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, len: usize) -> *mut u8 {
        unsafe {
            core::arch::asm!("rep stosb", inout("rdi") to => _, in("al") byte as u8,
                inout("rcx") len => _, options(nostack, preserves_flags));
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        for at in 0..len {
            let (x, y) = unsafe { (a.add(at).read_volatile(), b.add(at).read_volatile()) };
            if x != y {
                return i32::from(x) - i32::from(y);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(a: *const u8, b: *const u8, len: usize) -> i32 {
        unsafe { memcmp(a, b, len) }
    }
}

#[cfg(not(shoal_image))]
fn main() {
    println!("hello from outside");
    std::process::exit(7);
}
