//! Sleeps: each has a reason here. A test that waits for time alone is wrong on a slow machine and
//! slow on a fast one; product code that does so polls, and polling wants a reason.

use super::{none, sources};

/// Files that sleep, and why none of them waits for time alone.
const MAY_SLEEP: &[(&str, &str)] = &[
    // Product: pauses between attempts, and paces.
    ("crates/agent/src/agent.rs", "the deadline of a hand-over, beside what it waits for"),
    ("crates/agent/src/session.rs", "pause before the next manager is tried, growing to a bound"),
    (
        "crates/agent/src/opened.rs",
        "pause before a session is opened anew that was opened just now",
    ),
    ("crates/agent/src/assigned.rs", "looks again for a condition, with a deadline"),
    ("crates/agent/src/tasks/steps.rs", "pause of a restart; half a second for packets under way"),
    ("crates/agent/src/tasks/listening.rs", "the kernel tells nobody that a port is listened on"),
    ("crates/api/src/http/body.rs", "the deadline of a client that sends nothing"),
    ("crates/api/src/server/mod.rs", "pause after accept(2) failed for want of descriptors"),
    ("crates/engine/src/events.rs", "the end that the client wished for its stream"),
    ("crates/engine/src/exit.rs", "pause of a restart policy"),
    ("crates/engine/src/health.rs", "the interval of a health check"),
    ("crates/engine/src/logs/mod.rs", "pause before a log is looked at again: it is a file"),
    ("crates/engine/src/owner.rs", "the moment that the machine named; pause before owed work"),
    ("crates/engine/src/recover.rs", "pause before a start is tried again"),
    ("crates/engine/src/stats.rs", "the period of statistics"),
    ("crates/manager/src/assigner.rs", "collects changes of some milliseconds into one message"),
    ("crates/manager/src/attach.rs", "pause before owed work is tried again"),
    ("crates/manager/src/dispatcher.rs", "the deadline of a silent node"),
    ("crates/manager/src/forward.rs", "pause before the leader is asked again, with a deadline"),
    ("crates/manager/src/gather.rs", "the moment of the next check"),
    ("crates/manager/src/membership.rs", "the deadline of a node that leaves"),
    ("crates/manager/src/members.rs", "pause before the group of managers is looked at again"),
    ("crates/manager/src/planner.rs", "the moment that the plan named; collects changes"),
    ("crates/manager/src/statuses.rs", "pause before a write is tried again"),
    ("crates/node/src/keep.rs", "pause before files that could not be sealed are tried again"),
    ("crates/node/src/owner.rs", "pause before owed work is tried again"),
    ("crates/node/src/seat.rs", "pause before a step of a role is tried again"),
    ("crates/node/src/renewal.rs", "the moment when a certificate is due; pause between attempts"),
    ("crates/network/src/hostport/tcp.rs", "pause after accept(2) failed for want of descriptors"),
    ("crates/network/src/resolver/forward.rs", "the deadline of a server that is asked"),
    (
        "crates/network/src/resolver/helper.rs",
        "a helper is nobody's child: it cannot be waited for; pause after a failed accept; that \
         its directory was removed by hand is looked for",
    ),
    (
        "crates/network/src/resolver/keeper.rs",
        "the helper is nobody's child: it cannot be waited for",
    ),
    ("crates/network/src/resolver/server.rs", "pause after a socket failed"),
    ("crates/runtime/src/cgroup/mod.rs", "version 1 tells nobody when a control group is empty"),
    ("crates/runtime/src/client.rs", "a shim is nobody's child: its death cannot be waited for"),
    ("crates/wire/src/server.rs", "pause after accept(2) failed for want of descriptors"),
    ("crates/wire/src/transport.rs", "the deadline of a peer's first byte"),
    ("crates/shoal/src/daemon/abilities.rs", "pause before a check is tried again"),
    ("crates/shoal/src/daemon/mod.rs", "the pace of giving memory back"),
    ("crates/shoal/src/doctor.rs", "pause before a check is tried again"),
    ("crates/store/src/log_store.rs", "the quiet after which the commit index is written alone"),
    ("crates/store/src/lead.rs", "the next look at who was heard"),
    ("crates/store/src/pulse.rs", "pause before a connection is tried again"),
    ("crates/store/src/network.rs", "pause before a member is asked again"),
    ("crates/store/src/read.rs", "pause before a majority is asked again"),
    ("crates/store/src/store.rs", "the end of the wait for a leader, beside its change"),
    (
        "crates/store/tests/support/board.rs",
        "a slow way; looks again for a condition, with a deadline",
    ),
    ("crates/store/src/life.rs", "pause before the disk is tried again, growing to a bound"),
    ("crates/shoal/src/demo/load.rs", "the pace of the demonstration's clients"),
    ("crates/shoal/src/demo/machine.rs", "looks again for what the demonstration claims"),
    ("crates/shoal/src/demo/mod.rs", "the deadline of the whole demonstration"),
    ("crates/shoal/src/demo/steps.rs", "looks again for what the demonstration claims"),
    ("crates/shoal/src/demo/topology.rs", "looks again whether a daemon answers"),
    ("crates/shoal/src/tools/request.rs", "the pace that its user asked for"),
    ("crates/shoal/src/tools/whoami.rs", "the delay that its user asked for"),
    ("crates/shoal/src/unikernel/pcap.rs", "a ring in shared memory wakes nobody outside"),
    ("crates/shoal/src/unikernel/top.rs", "the interval of the display"),
    ("testing/stopwatch/src/lib.rs", "its sleeps are the clock"),
    ("xtask/src/stall.rs", "a standstill lasts"),
    ("testing/guest/src/main.rs", "a guest that leaves slowly is what the lab wants"),
    ("unikernels/dns/src/serve.rs", "looks again for a free connection"),
    ("xtask/src/vm/boot.rs", "looks again whether the emulator has ended, with a deadline"),
    // Measurements look for the end of what they measure.
    ("xtask/src/bench/failover.rs", "looks again for what it measures, with a deadline; a calm"),
    ("xtask/src/bench/load.rs", "looks again whether a server listens, with a deadline"),
    ("xtask/src/bench/node.rs", "looks again for what it measures, with a deadline"),
    ("xtask/src/bench/service.rs", "looks again how many tasks run, with a deadline"),
    // Tests: conditions with a deadline, and guests that wait for one another.
    ("crates/doctor/src/run.rs", "a check that misses its deadline is the test"),
    ("crates/node/tests/lock.rs", "looks at files again, with a deadline"),
    ("crates/store/tests/full_disk.rs", "looks again for a condition, with a deadline"),
    ("testing/vm/src/node.rs", "looks again for a condition, with a deadline"),
    (
        "crates/store/tests/support/mod.rs",
        "when to kill: any moment will do, so none is waited for",
    ),
    ("crates/engine/tests/common/mod.rs", "looks again for a condition, with a deadline"),
    ("crates/manager/tests/cluster.rs", "looks again for a condition, with a deadline"),
    ("crates/manager/tests/support/mod.rs", "looks again for a condition, with a deadline"),
    (
        "testing/lab/tests/ca.rs",
        "looks again for a file that another process writes, at a deadline",
    ),
    ("testing/lab/tests/roles.rs", "a daemon is killed at different moments of a change"),
    ("crates/node/tests/renewal.rs", "looks again for a condition, with a deadline"),
    ("crates/network/tests/backends.rs", "clients begin before, during and after a removal"),
    ("crates/network/tests/common/mod.rs", "looks again for a condition, with a deadline"),
    ("crates/runtime/tests/common/mod.rs", "looks again for a condition, with a deadline"),
    ("crates/unikernel-tools/tests/library_os.rs", "the library's own sleep is under test"),
    ("crates/unikernel/tests/hosted_net.rs", "the library's own sleep is under test"),
    ("crates/wire/tests/sessions.rs", "not to read for longer than three heartbeats is the test"),
    ("crates/api/tests/changes.rs", "looks again for a condition, with a deadline"),
    ("testing/lab/src/daemon.rs", "looks again whether a daemon answers, with a deadline"),
    ("testing/lab/src/http.rs", "when to hang up: any moment will do, so none is waited for"),
    ("testing/lab/src/wait.rs", "looks again for a condition, with a deadline"),
    ("testing/sim/src/clients.rs", "the pace of clients, on the simulation's clock"),
    ("testing/sim/src/host.rs", "pause before a start, on the simulation's clock"),
    ("testing/sim/src/many.rs", "looks again whether a run has ended, with a deadline"),
    ("testing/sim/src/net.rs", "what a message takes, on the simulation's clock"),
    ("testing/sim/src/run.rs", "the pace of faults, on the simulation's clock"),
    ("testing/sim/src/world.rs", "what work takes, on the simulation's clock"),
    ("testing/torture/src/torture.rs", "the moments of kills; looks again for what must hold"),
    (
        "testing/torture/src/user.rs",
        "a user that may do nothing; asks again while nobody can answer",
    ),
];

/// Functions that do nothing but let time pass.
const SLEEPS: &[&str] =
    &["sleep", "sleep_until", "sleep_ms", "park_timeout", "nanosleep", "usleep"];
/// The modules that they are in; without one, the name was imported.
const MODULES: &[&str] = &["time", "thread", "libc", "tokio", "std"];

/// Whether a line of code calls a function that sleeps.
fn sleeps(line: &str) -> bool {
    let code = line.split("//").next().unwrap_or("");
    let mut strings_out = String::new();
    for (at, piece) in code.split('"').enumerate() {
        if at % 2 == 0 {
            strings_out.push_str(piece);
        }
    }
    let code = strings_out.as_str();
    code.match_indices('(').any(|(end, _)| {
        let before = &code[..end];
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let name = before.rsplit(|c| !is_word(c)).next().unwrap_or("");
        let before = before[..before.len() - name.len()].trim_end();
        let called = match before.strip_suffix("::") {
            Some(path) => MODULES.contains(&path.rsplit(|c| !is_word(c)).next().unwrap_or("")),
            // A method or a declaration of that name is another thing.
            None => !before.ends_with('.') && !before.ends_with("fn"),
        };
        SLEEPS.contains(&name) && called
    })
}

#[test]
fn calls_that_sleep_are_recognized() {
    for line in [
        "tokio::time::sleep(Duration::from_millis(5)).await;",
        "    std::thread::sleep(PAUSE);",
        "thread::sleep(PAUSE)",
        "() = sleep_until(next) => {}",
        "Err(_) => sleep(PAUSE).await,",
        "() = tokio::time::sleep(x) => {} // why",
    ] {
        assert!(sleeps(line), "{line}");
    }
    for line in [
        "// sleep(PAUSE)",
        "let script = \"sleep(1)\";",
        "self.sleep(ns);",
        "pub fn sleep(ns: u64) {",
        "signals::sleep(files, ns)",
        "Command::new(\"sleep\")",
        "add(&page().sleeps, 1)",
        "receiving.set_sleeps(true);",
    ] {
        assert!(!sleeps(line), "{line}");
    }
}

#[test]
fn whoever_sleeps_has_a_reason() {
    let mut wrong = Vec::new();
    let mut seen = std::collections::BTreeSet::new();
    let folders = ["crates", "testing", "unikernels", "xtask"];
    for source in folders.iter().flat_map(|folder| sources(folder)) {
        if source.path.ends_with("tidy/sleeps.rs")
            || source.path.starts_with("crates/unikernel/src")
        {
            continue;
        }
        for (at, line) in source.text.lines().enumerate() {
            if !sleeps(line) {
                continue;
            }
            seen.insert(source.path.clone());
            if !MAY_SLEEP.iter().any(|(path, _)| *path == source.path) {
                wrong.push(format!("{}:{}: {}", source.path, at + 1, line.trim()));
            }
        }
    }
    let stale = MAY_SLEEP.iter().filter(|(path, _)| !seen.contains(*path));
    wrong.extend(stale.map(|(path, _)| format!("{path}: is in the table and does not sleep")));
    none(&wrong, "sleeps: wait for a condition with a deadline, or add a reason to the table");
}
