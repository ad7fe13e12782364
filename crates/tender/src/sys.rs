//! System calls without the C library: no thread-local `errno`, nothing allocated, so that they can
//! be made on behalf of a guest whose registers (FS base included) are its own.
//!
//! Answers are the kernel's: negative numbers are error numbers.

use core::arch::asm;

/// A system call with up to six arguments.
///
/// # Safety
/// As the system call: pointers must be valid for what the kernel does with them.
#[inline]
pub(crate) unsafe fn call(number: libc::c_long, args: [usize; 6]) -> isize {
    let answer: isize;
    // SAFETY: the kernel keeps all registers but rax, rcx and r11; the caller vouches for the rest.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number as isize => answer,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            in("r9") args[5],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    answer
}

/// Reads into one buffer.
///
/// # Safety
/// `to` is valid for writes of `len` bytes.
pub(crate) unsafe fn read(fd: i32, to: *mut u8, len: usize) -> isize {
    let vector = libc::iovec { iov_base: to.cast(), iov_len: len };
    let at = (&raw const vector) as usize;
    // SAFETY: the vector outlives the call; the caller vouches for the buffer.
    unsafe { call(libc::SYS_readv, [fd as usize, at, 1, 0, 0, 0]) }
}

/// Writes one buffer.
///
/// # Safety
/// `from` is valid for reads of `len` bytes.
pub(crate) unsafe fn write(fd: i32, from: *const u8, len: usize) -> isize {
    let vector = libc::iovec { iov_base: from.cast_mut().cast(), iov_len: len };
    let at = (&raw const vector) as usize;
    // SAFETY: the vector outlives the call; the caller vouches for the buffer.
    unsafe { call(libc::SYS_writev, [fd as usize, at, 1, 0, 0, 0]) }
}

/// Writes all of `bytes`, waiting where the file does not take them at once. Answers how many were
/// written; less than all if the reader is gone.
pub(crate) fn write_all(fd: i32, bytes: &[u8]) -> usize {
    let mut done = 0;
    while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
        // SAFETY: `rest` is valid for reads of its length.
        let answer = unsafe { write(fd, rest.as_ptr(), rest.len()) };
        match usize::try_from(answer) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(_) if answer == -(libc::EINTR as isize) => {}
            Err(_) if answer == -(libc::EAGAIN as isize) => {
                let mut poll = [libc::pollfd { fd, events: libc::POLLOUT, revents: 0 }];
                wait_for(&mut poll);
            }
            Err(_) => break,
        }
    }
    done
}

/// Waits for files without end.
pub(crate) fn wait_for(files: &mut [libc::pollfd]) -> isize {
    let files_at = files.as_mut_ptr() as usize;
    // SAFETY: the pointer is valid for the call; no timeout and no signal mask is given.
    unsafe { call(libc::SYS_ppoll, [files_at, files.len(), 0, 0, 0, 0]) }
}

/// A clock of the kernel in nanoseconds.
pub(crate) fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let at = (&raw mut time) as usize;
    // SAFETY: `time` is valid for writes. It cannot fail: both clocks that are asked for exist.
    unsafe { call(libc::SYS_clock_gettime, [clock as usize, at, 0, 0, 0, 0]) };
    (time.tv_sec as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec as u64)
}

/// Fills memory with random bytes.
///
/// # Safety
/// `to` is valid for writes of `len` bytes, at most 256: so many the kernel always gives at once.
pub(crate) unsafe fn random(to: *mut u8, len: usize) -> bool {
    // SAFETY: the caller vouches for the buffer.
    let answer = unsafe { call(libc::SYS_getrandom, [to as usize, len, 0, 0, 0, 0]) };
    usize::try_from(answer) == Ok(len)
}

/// Random bytes.
pub(crate) fn random_bytes<const N: usize>() -> Option<[u8; N]> {
    const { assert!(N <= 256) };
    let mut bytes = [0; N];
    // SAFETY: `bytes` is valid for writes of its length, which is at most 256.
    unsafe { random(bytes.as_mut_ptr(), N) }.then_some(bytes)
}

/// Reads from a place of a file.
///
/// # Safety
/// `to` is valid for writes of `len` bytes.
pub(crate) unsafe fn pread(fd: i32, to: *mut u8, len: usize, offset: u64) -> isize {
    // SAFETY: the caller vouches for the buffer.
    unsafe { call(libc::SYS_pread64, [fd as usize, to as usize, len, offset as usize, 0, 0]) }
}

/// Writes to a place of a file.
///
/// # Safety
/// `from` is valid for reads of `len` bytes.
pub(crate) unsafe fn pwrite(fd: i32, from: *const u8, len: usize, offset: u64) -> isize {
    // SAFETY: the caller vouches for the buffer.
    unsafe { call(libc::SYS_pwrite64, [fd as usize, from as usize, len, offset as usize, 0, 0]) }
}

/// Makes what was written to a file durable.
pub(crate) fn fdatasync(fd: i32) -> isize {
    // SAFETY: no pointers.
    unsafe { call(libc::SYS_fdatasync, [fd as usize, 0, 0, 0, 0, 0]) }
}

/// Ends the process.
pub(crate) fn exit(status: u8) -> ! {
    loop {
        // SAFETY: no pointers; it does not return.
        unsafe { call(libc::SYS_exit_group, [usize::from(status), 0, 0, 0, 0, 0]) };
    }
}

/// The processor's time stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and Linux leaves it to user programs.
    unsafe { core::arch::x86_64::_rdtsc() }
}
