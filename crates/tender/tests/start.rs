//! Guests that start, speak, and end.

#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use common::{ImageBuilder, Instance, backends};
use shoal_tender::stats::reader::Reader;

guest!(
    hello,
    "mov rbx, rdi",
    "lea rsi, [rip + 2f]",
    "mov edx, 6",
    "mov ecx, 1",
    "mov edi, 2",
    "call [rbx + {hypercall}]",
    "mov edi, 3",
    "mov esi, 7",
    "call [rbx + {hypercall}]",
    "ud2",
    "2: .ascii \"hello\\n\"",
);

#[test]
fn a_guest_speaks_and_ends() {
    for backend in backends() {
        let instance = Instance::new(backend, &ImageBuilder::new(hello::code()));
        let outcome = instance.run();
        assert_eq!(outcome.stdout, "hello\n", "{outcome:?}");
        assert_eq!(outcome.status, Some(7), "{outcome:?}");
        let counters = Reader::open(&instance.path("stats")).unwrap().snapshot();
        assert_eq!(counters.log_bytes, 6);
        assert_eq!(counters.backend, if backend == "kvm" { 1 } else { 2 });
        assert!(counters.start_ns > 0 && counters.start_ns < 10_000_000_000);
        eprintln!("{backend}: {} us from the start to the guest", counters.start_ns / 1000);
    }
}

/// What is at `/dev/kvm` here is no KVM: the guest must not quietly run in the weaker backend.
#[test]
fn a_kvm_that_fails_is_an_error_and_a_missing_one_is_not() {
    // SAFETY: no pointers.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: devices cannot be hidden, because this user is not root");
        return;
    }
    let run = |make: &str| {
        let instance = Instance::new("auto", &ImageBuilder::new(hello::code()));
        let tender = instance.command();
        let mut command = Command::new("unshare");
        let script = format!("mount -t tmpfs none /dev && {make} && exec \"$@\"");
        command.args(["-m", "sh", "-c", &script, "sh"]).arg(tender.get_program());
        command.args(tender.get_args());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        instance.finish(command.spawn().unwrap())
    };
    let broken = run("mknod /dev/kvm c 1 3");
    assert_eq!(broken.status, Some(125), "{broken:?}");
    assert!(broken.stderr.contains("SH-TEN-009"), "{broken:?}");
    let missing = run("true");
    assert_eq!(missing.status, Some(7), "{missing:?}");
}

/// A user that is nobody.
const NOBODY: u32 = 65_534;

/// From now on, in the child, no namespaces can be made, as on kernels that let only root do it.
fn without_namespaces(command: &mut Command) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
    let rules = std::collections::BTreeMap::from([(libc::SYS_unshare, Vec::new())]);
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, TargetArch::x86_64);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    // SAFETY: the closure makes two system calls and allocates nothing unless one fails.
    unsafe {
        command
            .pre_exec(move || seccompiler::apply_filter(&program).map_err(std::io::Error::other));
    }
}

#[test]
fn what_the_jail_of_an_ordinary_user_lacks_is_said_in_one_line() {
    // SAFETY: no pointers.
    if unsafe { libc::geteuid() } != 0 {
        eprintln!("skipped: another user cannot be taken, because this one is not root");
        return;
    }
    for whole in [true, false] {
        let mut instance = Instance::new("process", &ImageBuilder::new(hello::code()));
        for member in ["crash_file", "stats_file"] {
            instance.config.as_object_mut().unwrap().remove(member);
        }
        // Where everybody may read: the checkout may be root's alone. Copied by another process: a
        // child that the other test starts would have this one's open file, which then is busy.
        let own = instance.path("tender");
        let copy = Command::new("cp").arg(instance.command().get_program()).arg(&own).status();
        assert!(copy.unwrap().success());
        std::fs::set_permissions(instance.dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new(own);
        command.arg(instance.path("config.json")).stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.uid(NOBODY).gid(NOBODY);
        if !whole {
            without_namespaces(&mut command);
        }
        let outcome = instance.finish(command.spawn().unwrap());
        assert_eq!(outcome.status, Some(7), "{outcome:?}");
        let said: Vec<&str> = outcome.stderr.lines().collect();
        if whole && said.is_empty() {
            continue; // This kernel lets everybody make namespaces.
        }
        let [line] = said[..] else { panic!("not one line: {said:?}") };
        assert!(line.starts_with("warning: the tender keeps its root folder, "), "{line}");
        assert!(line.contains("SH-TEN-010") && line.contains("not permitted"), "{line}");
    }
}
