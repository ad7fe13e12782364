//! One running instance: its memory, devices and calls, the same for both backends.

use core::sync::atomic::Ordering;

use shoal_unikernel_abi::call::{
    self, CRASH_MESSAGE_MAX, CrashReport, FRAMES_MAX, LOG_BYTES_MAX, Refusal,
};
use shoal_unikernel_abi::manifest::DEVICES_MAX;

use crate::clock::Clock;
use crate::crash::{self, Context, Crash, Registers};
use crate::devices::{Device, Stopped};
use crate::memory::Space;
use crate::signals;
use crate::stats::{Stats, add};
use crate::sys;

/// The id of the end of an instance whose device is gone, see `docs/errors`.
const DEVICE_GONE: &str = "SH-TEN-012";
/// Most bytes of one `ENTROPY`.
const ENTROPY_BYTES_MAX: u64 = 256;

/// A running instance.
#[derive(Debug)]
pub struct Guest {
    /// Its memory.
    pub space: Space,
    /// Its clock page.
    pub clock: Clock,
    /// The devices that are attached.
    pub devices: Vec<Device>,
    /// The names of all devices in the manifest, by their index there.
    pub device_names: Vec<String>,
    /// Counters.
    pub stats: Stats,
    /// What its crash record says.
    pub crash: Context,
    /// For how long devices are polled before the tender sleeps, in nanoseconds.
    pub busy_poll_ns: u64,
    /// Whether the guest was told that it is asked to stop.
    pub stop_told: bool,
}

/// A call, as the guest made it.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    /// Which.
    pub number: u64,
    /// First argument.
    pub a: u64,
    /// Second argument.
    pub b: u64,
    /// Third argument.
    pub c: u64,
}

impl Guest {
    /// Does what the guest asks for. Does not return if that ends the instance.
    pub fn call(&mut self, call: Call) -> i64 {
        let answer = match call.number {
            call::WAIT => return self.wait(call.a),
            call::LOG => self.log(call.a, call.b, call.c),
            call::EXIT => match u8::try_from(call.a) {
                Ok(status) => sys::exit(status),
                Err(_) => Err(Refusal::BadArgument),
            },
            call::CRASH => self.report(call.a),
            call::ENTROPY => self.entropy(call.a, call.b),
            _ => Err(Refusal::UnknownCall),
        };
        match answer {
            Ok(answer) => answer,
            Err(refusal) => {
                add(&self.stats.page().refused, 1);
                refusal as i64
            }
        }
    }

    fn log(&self, address: u64, len: u64, stream: u64) -> Result<i64, Refusal> {
        let fd = match stream {
            1 => libc::STDOUT_FILENO,
            2 => libc::STDERR_FILENO,
            _ => return Err(Refusal::BadArgument),
        };
        let text = self.bytes(address, len, LOG_BYTES_MAX)?;
        let written = sys::write_all(fd, text) as u64;
        add(&self.stats.page().log_bytes, written);
        add(&self.stats.page().log_dropped, len - written);
        Ok(0)
    }

    fn entropy(&self, address: u64, len: u64) -> Result<i64, Refusal> {
        if len > ENTROPY_BYTES_MAX {
            return Err(Refusal::BadArgument);
        }
        let to = self.space.writable(address, len).ok_or(Refusal::BadArgument)?;
        // SAFETY: `len` bytes of the guest's memory, writable for the tender too; at most 256.
        let filled = unsafe { sys::random(to, len as usize) };
        if filled { Ok(0) } else { Err(Refusal::BadArgument) }
    }

    /// Bytes of the guest's memory, at most `max`.
    fn bytes(&self, address: u64, len: u64, max: u64) -> Result<&[u8], Refusal> {
        if len > max {
            return Err(Refusal::BadArgument);
        }
        let start = self.space.readable(address, len).ok_or(Refusal::BadArgument)?;
        // SAFETY: mapped readable for as long as the process runs. The guest, on the same thread or
        // the only virtual processor, is in this call and does not change it meanwhile.
        Ok(unsafe { core::slice::from_raw_parts(start, len as usize) })
    }

    fn report(&self, address: u64) -> Result<i64, Refusal> {
        let size = size_of::<CrashReport>() as u64;
        let from = self.space.readable(address, size).ok_or(Refusal::BadArgument)?;
        // SAFETY: that many bytes are mapped readable; every bit pattern is a valid report.
        let report = unsafe { from.cast::<CrashReport>().read_unaligned() };
        let message = self.bytes(report.message.start, report.message.len, CRASH_MESSAGE_MAX);
        let message = message.map(|bytes| core::str::from_utf8(bytes).unwrap_or("not UTF-8"));
        let message = message.unwrap_or("the guest reported a message outside of its memory");
        let count = (report.frame_count as usize).min(FRAMES_MAX);
        self.crash.end(&Crash {
            kind: "panic",
            message: format_args!("{message}"),
            registers: None,
            fault_address: None,
            frames: report.frames.get(..count).unwrap_or_default(),
        })
    }

    /// Ends the instance because of what it did, with its registers if they are known.
    pub fn end(
        &self,
        kind: &'static str,
        message: core::fmt::Arguments<'_>,
        registers: Option<&Registers>,
        fault_address: Option<u64>,
    ) -> ! {
        let mut frames = [0; FRAMES_MAX];
        let count = registers.map_or(0, |registers| {
            crash::walk(registers, &mut frames, |address| {
                let from = self.space.writable(address, 8)?;
                // SAFETY: eight bytes of the guest's writable memory, mapped.
                Some(unsafe { from.cast::<u64>().read_unaligned() })
            })
        });
        let frames = frames.get(..count).unwrap_or_default();
        self.crash.end(&Crash { kind, message, registers, fault_address, frames })
    }

    fn stopped(&self, device: usize, stopped: Stopped) -> ! {
        match stopped {
            Stopped::Broken(rule) => self.end("protocol", format_args!("{rule}"), None, None),
            Stopped::Gone(error) => {
                let name = self.device_names.get(device).map_or("", String::as_str);
                let message = format_args!(
                    "network device '{name}' is gone: its interface was deleted on the host \
                     ({error}); start the instance again [{DEVICE_GONE}]"
                );
                self.end("device", message, None, None)
            }
        }
    }

    /// Serves all devices; bits of those that have something for the guest.
    fn serve(&mut self) -> u64 {
        let mut ready = 0;
        let mut stopped = None;
        for device in &mut self.devices {
            match device.serve(&mut self.stats) {
                Ok(true) => ready |= 1 << device.index(),
                Ok(false) => {}
                Err(reason) => stopped = Some((device.index(), reason)),
            }
        }
        match stopped {
            Some((device, reason)) => self.stopped(device, reason),
            None => ready,
        }
    }

    fn wait(&mut self, until_ns: u64) -> i64 {
        add(&self.stats.page().waits, 1);
        let mut polled_until = None;
        loop {
            let ready = self.serve();
            let stop = signals::stop_requested();
            let now = self.clock.now_ns();
            if ready != 0 || until_ns <= now || (stop && !self.stop_told) {
                self.stop_told |= stop;
                self.clock.refresh(now);
                let stop = if stop { call::STOP } else { 0 };
                return i64::try_from(ready | stop).unwrap_or_default();
            }
            if self.busy_poll_ns > 0
                && now < *polled_until.get_or_insert(now.saturating_add(self.busy_poll_ns))
            {
                core::hint::spin_loop();
                continue;
            }
            self.sleep((until_ns != u64::MAX).then(|| until_ns - now));
        }
    }

    fn sleep(&mut self, ns: Option<u64>) {
        let mut files = [libc::pollfd { fd: -1, events: 0, revents: 0 }; DEVICES_MAX];
        let mut count = 0;
        for (file, device) in files.iter_mut().zip(&self.devices) {
            if let Some((fd, events)) = device.interest() {
                *file = libc::pollfd { fd: if events == 0 { -1 } else { fd }, events, revents: 0 };
            }
            count += 1;
        }
        add(&self.stats.page().sleeps, 1);
        let files = files.get_mut(..count).unwrap_or_default();
        signals::sleep(files, ns, self.stop_told);
        core::sync::atomic::compiler_fence(Ordering::SeqCst);
    }
}
