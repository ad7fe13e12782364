//! Devices through real calls of guests made by hand, on both backends.

#![allow(clippy::unwrap_used)]

mod common;

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::Child;
use std::time::{Duration, Instant};

use common::{ImageBuilder, Instance, backends};
use serde_json::json;
use shoal_tender::stats::reader::Reader;

/// Bytes of `virtio_net_hdr_v1`.
const VNET: usize = 12;
const DEADLINE: Duration = Duration::from_secs(60);

// Sends every frame back, until it is asked to stop; then ends with status 0. `r13` is what it
// consumed, `r14` what it produced; the capacity of both rings is 0x40000.
guest!(
    echo,
    "mov rbx, rdi",
    "mov rax, [rbx + {devices}]",
    "mov r12, [rax + 32]",
    "xor r13d, r13d",
    "xor r14d, r14d",
    "2: mov edi, 1",
    "mov rsi, -1",
    "call [rbx + {hypercall}]",
    "bt rax, 62",
    "jc 9f",
    "3: cmp r13, [r12 + 512]",
    "je 7f",
    "mov r8, r13",
    "and r8, 0x3ffff",
    "lea rsi, [r12 + r8 + 0x41000]",
    "mov ecx, [rsi]",
    "cmp ecx, -1",
    "jne 4f",
    "sub r13, r8",
    "add r13, 0x40000",
    "jmp 3b",
    "4: add ecx, 31",
    "and ecx, -16",
    "add r13, rcx",
    "mov r8, r14",
    "and r8, 0x3ffff",
    "lea rdi, [r12 + r8 + 0x1000]",
    "mov r9d, 0x40000",
    "sub r9, r8",
    "cmp r9, rcx",
    "jae 5f",
    "mov dword ptr [rdi], -1",
    "add r14, r9",
    "lea rdi, [r12 + 0x1000]",
    "5: add r14, rcx",
    "rep movsb",
    "jmp 3b",
    "7: mov [r12], r14",
    "mov [r12 + 512 + 64], r13",
    "jmp 2b",
    "9: mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);

// Breaks a rule of the sending ring: a position that is not a multiple of 16.
guest!(
    lie,
    "mov rbx, rdi",
    "mov rax, [rbx + {devices}]",
    "mov r12, [rax + 32]",
    "mov qword ptr [r12], 7",
    "mov edi, 1",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
    "mov edi, 3",
    "xor esi, esi",
    "call [rbx + {hypercall}]",
);

// Writes sector 1, flushes, reads it into another slot, and asks for a sector beyond the end. The
// status is 0 if statuses and content are as they must be. Slots 0 to 3 are at 0x1000 + 0x10000 n.
guest!(
    disk,
    "mov rbx, rdi",
    "mov rax, [rbx + {devices}]",
    "mov r12, [rax + 32]",
    "mov r15, [rax + 80]",
    "mov rax, 0x1122334455667788",
    "mov [r12 + 0x1000], rax",
    "mov [r12 + 0x1000 + 504], rax",
    "lea rdi, [r12 + 1024]",
    "mov dword ptr [rdi], 2",
    "mov qword ptr [rdi + 8], 1",
    "mov dword ptr [rdi + 16], 512",
    "mov dword ptr [rdi + 32], 3",
    "mov dword ptr [rdi + 36], 1",
    "mov dword ptr [rdi + 64], 1",
    "mov dword ptr [rdi + 68], 2",
    "mov qword ptr [rdi + 72], 1",
    "mov dword ptr [rdi + 80], 512",
    "mov dword ptr [rdi + 96], 1",
    "mov dword ptr [rdi + 100], 3",
    "mov [rdi + 104], r15",
    "mov dword ptr [rdi + 112], 512",
    "mov qword ptr [r12], 4",
    "mov edi, 1",
    "mov rsi, -1",
    "call [rbx + {hypercall}]",
    "mov esi, 1",
    "cmp rax, 1",
    "jne 9f",
    "mov esi, 2",
    "cmp qword ptr [r12 + 128], 4",
    "jne 9f",
    "mov esi, 3",
    "cmp dword ptr [r12 + 2560 + 4], 0",
    "jne 9f",
    "cmp dword ptr [r12 + 2560 + 12], 0",
    "jne 9f",
    "cmp dword ptr [r12 + 2560 + 20], 0",
    "jne 9f",
    "mov esi, 4",
    "cmp dword ptr [r12 + 2560 + 28], 1",
    "jne 9f",
    "mov esi, 5",
    "mov rax, [r12 + 0x1000]",
    "cmp rax, [r12 + 0x21000 + 504]",
    "jne 9f",
    "xor esi, esi",
    "9: mov edi, 3",
    "call [rbx + {hypercall}]",
);

/// Starts an instance whose device `net0` is `fd` in it.
fn start_with(instance: &Instance, fd: &OwnedFd) -> Child {
    let mut command = instance.command();
    let from = fd.as_raw_fd();
    // SAFETY: between fork and exec, only these two calls, which take no locks.
    unsafe {
        command.pre_exec(move || {
            if libc::dup2(from, 9) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

fn net_config(attach: serde_json::Value) -> serde_json::Value {
    json!({"net0": {"net": {"attach": attach, "mac": "02:00:00:00:00:02",
        "ipv4": "10.9.9.2/24"}}})
}

fn stop(child: &Child) {
    // SAFETY: the child was not waited for, so that the id is its own.
    unsafe { libc::kill(child.id() as i32, libc::SIGTERM) };
}

#[test]
fn frames_come_back_and_the_guest_stops_when_asked() {
    for backend in backends() {
        let mut instance = Instance::new(backend, &ImageBuilder::new(echo::code()).net("net0"));
        instance.config["devices"] = net_config(json!({"fd": {"number": 9}}));
        let (own, peer) = UnixDatagram::pair().unwrap();
        let child = start_with(&instance, &own.into());
        peer.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut buffer = [0; 2000];
        // Enough to go round the rings.
        for turn in 0..500_usize {
            let message: Vec<u8> =
                [0; VNET].into_iter().chain((0..1000).map(|at| (at + turn) as u8)).collect();
            peer.send(&message).unwrap();
            let count = peer.recv(&mut buffer).unwrap();
            assert_eq!(buffer[VNET..count], message[VNET..], "{backend}, turn {turn}");
        }
        let counters = Reader::open(&instance.path("stats")).unwrap().snapshot();
        assert_eq!(counters.devices[0].name, "net0");
        assert_eq!(counters.devices[0].received, [500, 500_000, 0]);
        assert!(counters.sleeps > 0);
        stop(&child);
        assert_eq!(instance.finish(child).status, Some(0), "{backend}");
    }
}

/// The next captured frame. The tender copies a frame after it has sent it, which the peer can see
/// first.
fn next_frame(reader: &mut Reader) -> shoal_tender::stats::reader::Frame {
    let until = Instant::now() + DEADLINE;
    while Instant::now() < until {
        if let Some(frame) = reader.next_frame().unwrap() {
            return frame;
        }
        std::thread::yield_now();
    }
    panic!("no frame was captured");
}

#[test]
fn captured_frames_are_those_of_the_wire() {
    let mut instance = Instance::new("process", &ImageBuilder::new(echo::code()).net("net0"));
    instance.config["devices"] = net_config(json!({"fd": {"number": 9}}));
    let (own, peer) = UnixDatagram::pair().unwrap();
    let child = start_with(&instance, &own.into());
    peer.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut buffer = [0; 2000];
    let mut exchange = |byte: u8| {
        peer.send(&[byte; VNET + 900]).unwrap();
        peer.recv(&mut buffer).unwrap();
    };
    exchange(0);
    let mut reader = Reader::open(&instance.path("stats")).unwrap();
    assert_eq!(reader.next_frame().unwrap(), None);
    reader.capture().unwrap();
    assert!(Reader::open(&instance.path("stats")).unwrap().capture().is_err(), "one at a time");
    // More than the ring of captured frames holds at once.
    for turn in 0..2000_usize {
        exchange(0);
        for from_guest in [false, true] {
            let mut frame = next_frame(&mut reader);
            if turn == 0 && !from_guest && frame.from_guest {
                // The frame before, which the tender counts after it has sent it.
                frame = next_frame(&mut reader);
            }
            assert_eq!((frame.from_guest, frame.bytes.len()), (from_guest, 900), "{turn}");
            assert!(frame.wall_ns > 1_600_000_000_000_000_000);
        }
        assert_eq!(reader.next_frame().unwrap(), None);
    }
    assert_eq!(reader.dropped(), 0);
    stop(&child);
    assert_eq!(instance.finish(child).status, Some(0));
}

#[test]
fn a_guest_that_breaks_a_ring_is_ended() {
    for backend in backends() {
        let mut instance = Instance::new(backend, &ImageBuilder::new(lie::code()).net("net0"));
        instance.config["devices"] = net_config(json!({"fd": {"number": 9}}));
        let (own, _peer) = UnixDatagram::pair().unwrap();
        let child = start_with(&instance, &own.into());
        let outcome = instance.finish(child);
        assert_eq!(outcome.status, Some(134), "{outcome:?}");
        assert_eq!(outcome.crash.unwrap()["kind"], "protocol");
    }
}

#[test]
fn sectors_are_written_flushed_and_read_within_the_disk() {
    for backend in backends() {
        let mut instance = Instance::new(backend, &ImageBuilder::new(disk::code()).block("disk"));
        let path = instance.path("disk");
        std::fs::write(&path, vec![0; 4096]).unwrap();
        instance.config["devices"] = json!({"disk": {"block": {"path": path}}});
        let outcome = instance.run();
        assert_eq!(outcome.status, Some(0), "{backend}: {outcome:?}");
        let content = std::fs::read(&path).unwrap();
        assert_eq!(content[512..520], 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(content.len(), 4096);
        // The same guest on a read-only disk: its first request is refused.
        instance.config["devices"]["disk"]["block"]["read_only"] = true.into();
        assert_eq!(instance.run().status, Some(3), "{backend}");
    }
}

/// A network namespace of this test's own thread.
fn own_namespace() -> bool {
    // SAFETY: no pointers; only this thread changes.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0 {
        return true;
    }
    eprintln!("skipped: a network namespace cannot be made: {}", std::io::Error::last_os_error());
    false
}

fn ip(args: &str) {
    let status = std::process::Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// A packet socket on the interface `t0`.
fn packet_socket() -> OwnedFd {
    use std::os::fd::FromRawFd;
    // SAFETY: the name is a C string, and the address outlives the call.
    unsafe {
        let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
        assert!(fd >= 0);
        let fd = OwnedFd::from_raw_fd(fd);
        let mut address: libc::sockaddr_ll = core::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = libc::if_nametoindex(c"t0".as_ptr()) as i32;
        let len = size_of_val(&address) as u32;
        assert_eq!(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len), 0);
        fd
    }
}

#[test]
fn frames_pass_through_a_tap() {
    for backend in backends() {
        // The namespace lives as long as the thread and what was started in it.
        std::thread::spawn(move || {
            if !own_namespace() {
                return;
            }
            ip("tuntap add t0 mode tap vnet_hdr");
            ip("link set t0 up");
            let mut instance = Instance::new(backend, &ImageBuilder::new(echo::code()).net("net0"));
            instance.config["devices"] = net_config(json!({"tap": {"name": "nowhere"}}));
            let outcome = instance.run();
            assert_eq!(outcome.status, Some(125), "{outcome:?}");
            assert!(outcome.stderr.starts_with("SH-TEN-005"), "{outcome:?}");

            instance.config["devices"] = net_config(json!({"tap": {"name": "t0"}}));
            let child = instance.command().spawn().unwrap();
            let socket = packet_socket();
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
            frame.extend([0x5a; 500]);
            round_trip(&socket, &frame);
            stop(&child);
            assert_eq!(instance.finish(child).status, Some(0), "{backend}");
        })
        .join()
        .unwrap();
    }
}

#[test]
fn a_deleted_tap_ends_the_instance_with_the_reason() {
    for backend in backends() {
        std::thread::spawn(move || {
            if !own_namespace() {
                return;
            }
            ip("tuntap add t0 mode tap vnet_hdr");
            ip("link set t0 up");
            let mut instance = Instance::new(backend, &ImageBuilder::new(echo::code()).net("net0"));
            instance.config["devices"] = net_config(json!({"tap": {"name": "t0"}}));
            let child = instance.command().spawn().unwrap();
            let socket = packet_socket();
            let mut frame = vec![0xff; 6];
            frame.extend([2, 0, 0, 0, 0, 1, 0x88, 0xb5]);
            frame.extend([0x5a; 500]);
            round_trip(&socket, &frame);
            // The guest sleeps now. An interface that is only down may come up again.
            ip("link set t0 down");
            ip("link set t0 up");
            round_trip(&socket, &frame);
            ip("link del t0");
            let outcome = instance.finish(child);
            assert_eq!(outcome.status, Some(134), "{backend}: {outcome:?}");
            let record = outcome.crash.unwrap();
            assert_eq!(record["kind"], "device", "{record:#}");
            let said = record["message"].as_str().unwrap();
            assert!(said.starts_with("network device 'net0' is gone: "), "{said}");
            assert!(said.contains("EBADFD") && said.contains("SH-TEN-012"), "{said}");
        })
        .join()
        .unwrap();
    }
}

/// Sends a frame until it comes back (the tender may not have attached yet).
fn round_trip(socket: &OwnedFd, frame: &[u8]) {
    let until = Instant::now() + DEADLINE;
    let fd = socket.as_raw_fd();
    let mut buffer = [0_u8; 2000];
    while Instant::now() < until {
        // SAFETY: both buffers outlive the calls, and their lengths are given.
        unsafe {
            let sent = libc::send(fd, frame.as_ptr().cast(), frame.len(), 0);
            let error = std::io::Error::last_os_error();
            let down = [ErrorKind::NetworkDown, ErrorKind::Other].contains(&error.kind());
            assert!(sent == frame.len() as isize || down, "{error}");
            let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
            while libc::poll(&raw mut poll, 1, 100) > 0 {
                let mut from: libc::sockaddr_ll = core::mem::zeroed();
                let mut len = size_of_val(&from) as u32;
                let at = (&raw mut from).cast();
                let to = buffer.as_mut_ptr().cast();
                let count = libc::recvfrom(fd, to, buffer.len(), 0, at, &raw mut len);
                let own = from.sll_pkttype == libc::PACKET_OUTGOING;
                if count == frame.len() as isize && !own && buffer[..frame.len()] == *frame {
                    return;
                }
            }
        }
    }
    panic!("the frame did not come back");
}
