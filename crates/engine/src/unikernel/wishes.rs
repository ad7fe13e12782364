//! The table of options that mean something else for a unikernel than for a container: those that
//! are refused, with the reason and what serves instead, and those that work in their own way.
//! `docs/unikernels.md` shows it; a test holds both together.

use shoal_model::spec::container::{ContainerConfig, ContainerCreate, HostConfig, Words};

use super::refuse;
use crate::admission::is_unset;
use crate::error::EngineError;

const NO_PROCESSES: &str = "it is one sealed program without processes";
const NO_TERMINAL: &str = "it has no terminal and no standard input";
pub(super) const NO_FILES: &str = "it has no root file system";
const NO_RIGHTS: &str =
    "it has no rights on the host at all: no user, no capability, no system call";
const OWN_STACK: &str = "it brings its own network stack";
const OWN_INTERFACE: &str = "it has one interface of its own";
const NO_HOSTS: &str = "it asks the network's resolver and reads no hosts file";
const FULL_NAMES: &str = "its resolver asks for each name as it is";
const NO_DEVICES: &str = "it reaches the devices in its manifest alone";
const MEMORY: &str = "its own memory (--memory)";

/// What a client asks for.
pub(super) struct Asked<'a> {
    config: &'a ContainerConfig,
    host: &'a HostConfig,
    /// The image's entry point.
    entrypoint: Option<&'a Words>,
}

/// A wish that cannot be fulfilled.
struct Wish {
    /// The options of the CLI that ask for it.
    option: &'static str,
    /// A verb, said before "a unikernel".
    what: &'static str,
    why: &'static str,
    instead: &'static str,
    /// Whether it is asked for.
    asked: fn(&Asked<'_>) -> bool,
}

/// One line for each wish, so that the table reads as one.
const fn wish(
    option: &'static str,
    what: &'static str,
    why: &'static str,
    instead: &'static str,
    asked: fn(&Asked<'_>) -> bool,
) -> Wish {
    Wish { option, what, why, instead, asked }
}

/// Wishes that are refused.
const REFUSED: &[Wish] = &[
    wish(
        "-t, -i",
        "give a terminal or standard input to",
        NO_TERMINAL,
        "'docker logs -f' to see its output",
        |a| on(a.config.tty) || on(a.config.open_stdin),
    ),
    wish("--entrypoint", "replace the program of", NO_PROCESSES, "arguments only", |a| {
        let own = a.config.entrypoint.as_ref().map(Words::list).filter(|list| !list.is_empty());
        own.is_some_and(|list| Some(list) != a.entrypoint.map(Words::list))
    }),
    wish(
        "--user, --group-add",
        "choose the user of",
        NO_RIGHTS,
        "the user that its tender has",
        |a| some(a.config.user.as_ref()) || full(a.host.group_add.as_ref()),
    ),
    wish("--workdir", "choose the working directory of", NO_FILES, "absolute paths", |a| {
        some(a.config.working_dir.as_ref())
    }),
    wish(
        "--health-cmd",
        "run a health command in",
        NO_PROCESSES,
        "the label shoal.health.tcp=PORT or shoal.health.http=PATH with --health-interval",
        |a| {
            let test = a.config.healthcheck.as_ref().and_then(|health| health.test.as_deref());
            matches!(test, Some([kind, ..]) if kind != "NONE")
        },
    ),
    wish(
        "--stop-signal",
        "choose the stop signal of",
        "its tender knows SIGTERM alone, and tells it to stop",
        "SIGTERM",
        |a| {
            let signal = a.config.stop_signal.as_deref().filter(|s| !s.is_empty());
            signal.is_some_and(|s| !["SIGTERM", "TERM", "15"].contains(&s))
        },
    ),
    wish("--privileged", "give privileges to", NO_RIGHTS, "a container", |a| on(a.host.privileged)),
    wish("--cap-add", "give capabilities to", NO_RIGHTS, "a container", |a| {
        full(a.host.cap_add.as_ref())
    }),
    wish(
        "--security-opt seccomp=unconfined",
        "leave the system call filter out of",
        NO_RIGHTS,
        "a container",
        |a| {
            let options = a.host.security_opt.iter().flatten();
            options
                .into_iter()
                .any(|o| ["seccomp=unconfined", "seccomp:unconfined"].contains(&&**o))
        },
    ),
    wish(
        "--device, --device-cgroup-rule, --gpus",
        "give the host's devices to",
        NO_DEVICES,
        "a volume as block device, target /dev/NAME",
        |a| ["Devices", "DeviceCgroupRules", "DeviceRequests"].iter().any(|name| extra(a, name)),
    ),
    wish("--init", "run an init process in", NO_PROCESSES, "its program alone", |a| {
        on(a.host.init)
    }),
    wish("--pid, --ipc, --uts", "choose the namespaces of", NO_PROCESSES, "a container", |a| {
        let names = ["PidMode", "IpcMode", "UTSMode"];
        names.iter().any(|name| extra(a, name) && !is_private(a, name))
    }),
    wish(
        "--ulimit",
        "set process limits of",
        NO_PROCESSES,
        "--memory, --cpus and --pids-limit",
        |a| a.host.ulimits.as_ref().is_some_and(|list| !list.is_empty()),
    ),
    wish("--sysctl", "set kernel settings of", OWN_STACK, "its arguments or environment", |a| {
        a.host.sysctls.as_ref().is_some_and(|list| !list.is_empty())
    }),
    wish("--shm-size", "set the shared memory of", NO_PROCESSES, MEMORY, |a| {
        a.host.shm_size.unwrap_or(0) != 0
    }),
    wish("--tmpfs", "mount a tmpfs in", NO_FILES, MEMORY, |a| {
        a.host.tmpfs.as_ref().is_some_and(|list| !list.is_empty())
    }),
    wish(
        "--network host",
        "give the host's network to",
        OWN_INTERFACE,
        "--publish, or a network",
        |a| a.host.network_mode.as_deref() == Some("host"),
    ),
    wish(
        "--network container:NAME",
        "share a container's network with",
        OWN_INTERFACE,
        "a network that both are on",
        |a| a.host.network_mode.as_deref().is_some_and(|mode| mode.starts_with("container:")),
    ),
    wish("--domainname", "set the domain name of", "it has a host name alone", "--hostname", |a| {
        some(a.config.domainname.as_ref())
    }),
    wish(
        "--add-host",
        "write host names for",
        NO_HOSTS,
        "--network-alias on what shall have the name, or --dns with a server that knows it",
        |a| full(a.host.extra_hosts.as_ref()),
    ),
    wish("--dns-search", "set search domains of", FULL_NAMES, "full names", |a| {
        full(a.host.dns_search.as_ref())
    }),
    wish(
        "--dns-option",
        "set resolver options of",
        FULL_NAMES,
        "full names, and --dns for a server",
        |a| full(a.host.dns_options.as_ref()),
    ),
];

/// Options that work, each in a way that is worth knowing. The lab tries them.
#[cfg(test)]
const WORKS: &[(&str, &str)] = &[
    ("--hostname", "what it is told as its host name"),
    ("--dns", "asked by the network's resolver for what no network knows"),
    ("--memory", "a limit of the whole tender; what it needs itself is taken off the heap"),
    ("--cpus, --cpu-shares, --cpuset-cpus", "bound the tender, and with it the guest"),
    ("--cap-drop, --read-only", "are always so"),
    ("--security-opt no-new-privileges", "is always so"),
    ("docker pause", "freezes the tender; connections wait"),
];

fn on(flag: Option<bool>) -> bool {
    flag.unwrap_or(false)
}

fn some(text: Option<&String>) -> bool {
    text.is_some_and(|text| !text.is_empty())
}

fn full(list: Option<&Vec<String>>) -> bool {
    list.is_some_and(|list| !list.is_empty())
}

/// Whether a further member of the host's part is set.
fn extra(asked: &Asked<'_>, name: &str) -> bool {
    asked.host.extra.get(name).is_some_and(|value| !is_unset(value))
}

/// Whether a namespace is the workload's own, in words: what absence means anyway.
fn is_private(asked: &Asked<'_>, name: &str) -> bool {
    let word = asked.host.extra.get(name).and_then(|value| value.as_str());
    word.is_some_and(|word| ["private", "shareable"].contains(&word))
}

/// Refuses the first wish of the table that `body` has; `entrypoint` is the image's.
///
/// # Errors
/// That wish, with the reason and what serves instead.
pub(super) fn check(body: &ContainerCreate, entrypoint: Option<&Words>) -> Result<(), EngineError> {
    let asked = Asked { config: &body.config, host: &body.host_config, entrypoint };
    match REFUSED.iter().find(|wish| (wish.asked)(&asked)) {
        Some(Wish { option, what, why, instead, .. }) => {
            Err(refuse(what, why, &format!("{instead} instead of {option}")))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use serde_json::{Value, json};

    use super::*;

    fn verdict(body: &Value) -> Result<(), EngineError> {
        let entry = Words::List(vec!["/unikernel".to_owned()]);
        check(&serde_json::from_value(body.clone()).unwrap(), Some(&entry))
    }

    /// A request for each row of the table, in its order.
    fn requests() -> Vec<Value> {
        let host = |name: &str, value: Value| json!({"HostConfig": {name: value}});
        vec![
            json!({"Tty": true}),
            json!({"Entrypoint": ["/bin/sh"]}),
            json!({"User": "1000"}),
            json!({"WorkingDir": "/srv"}),
            json!({"Healthcheck": {"Test": ["CMD", "true"]}}),
            json!({"StopSignal": "SIGQUIT"}),
            host("Privileged", json!(true)),
            host("CapAdd", json!(["NET_ADMIN"])),
            host("SecurityOpt", json!(["seccomp=unconfined"])),
            host("Devices", json!([{"PathOnHost": "/dev/kvm"}])),
            host("Init", json!(true)),
            host("PidMode", json!("host")),
            host("Ulimits", json!([{"Name": "nofile", "Soft": 1, "Hard": 1}])),
            host("Sysctls", json!({"net.core.somaxconn": "1"})),
            host("ShmSize", json!(1 << 20)),
            host("Tmpfs", json!({"/tmp": ""})),
            host("NetworkMode", json!("host")),
            host("NetworkMode", json!("container:x")),
            json!({"Domainname": "example.org"}),
            host("ExtraHosts", json!(["a:192.0.2.1"])),
            host("DnsSearch", json!(["example.org"])),
            host("DnsOptions", json!(["ndots:2"])),
        ]
    }

    #[test]
    fn each_wish_of_the_table_is_refused_in_its_own_words() {
        let requests = requests();
        assert_eq!(requests.len(), REFUSED.len());
        for (request, wish) in requests.iter().zip(REFUSED) {
            let error = verdict(request).unwrap_err();
            assert!(matches!(error, EngineError::Unikernel { .. }), "{request}: {error}");
            let said = error.to_string();
            for words in [wish.what, wish.why, wish.instead, wish.option] {
                assert!(said.contains(words), "{}: {said}", wish.option);
            }
        }
    }

    #[test]
    fn other_ways_to_ask_for_the_same_are_seen() {
        for request in [
            json!({"OpenStdin": true}),
            json!({"HostConfig": {"GroupAdd": ["1"]}}),
            json!({"HostConfig": {"IpcMode": "host"}}),
            json!({"HostConfig": {"PidMode": "container:x"}}),
            json!({"HostConfig": {"UTSMode": "host"}}),
            json!({"HostConfig": {"SecurityOpt": ["seccomp:unconfined"]}}),
            json!({"HostConfig": {"DeviceRequests": [{"Count": -1}]}}),
        ] {
            assert!(verdict(&request).is_err(), "{request}");
        }
    }

    #[test]
    fn what_makes_sense_is_accepted() {
        verdict(&json!({"Image": "x", "Cmd": ["--listen", "80"], "Env": ["A=b"],
            "Entrypoint": ["/unikernel"], "Hostname": "h", "StopSignal": "SIGTERM",
            "Healthcheck": {"Interval": 1_000_000_000},
            "HostConfig": {"Memory": 64 << 20, "NanoCpus": 500_000_000, "NetworkMode": "mynet",
                "Dns": ["192.0.2.1"], "CapDrop": ["ALL"], "ReadonlyRootfs": true,
                "IpcMode": "private", "PidMode": "", "Devices": [],
                "SecurityOpt": ["no-new-privileges"]}}))
        .unwrap();
    }

    /// The table as the documentation shows it.
    fn markdown() -> String {
        let quoted = |options: &str| {
            let each: Vec<String> = options.split(", ").map(|o| format!("`{o}`")).collect();
            each.join(", ")
        };
        let mut text = String::from("| option | what comes of it |\n| --- | --- |\n");
        for Wish { option, why, instead, .. } in REFUSED {
            text += &format!("| {} | refused: {why}; use {instead} |\n", quoted(option));
        }
        for (option, how) in WORKS {
            text += &format!("| {} | works: {how} |\n", quoted(option));
        }
        text
    }

    #[test]
    fn the_documentation_shows_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/unikernels.md");
        let document = std::fs::read_to_string(path).unwrap();
        let table = markdown();
        assert!(document.contains(&table), "put this into docs/unikernels.md:\n{table}");
        let options: BTreeSet<&str> = REFUSED.iter().flat_map(|w| w.option.split(", ")).collect();
        let count: usize = REFUSED.iter().map(|w| w.option.split(", ").count()).sum();
        assert_eq!(options.len(), count, "an option is there twice");
    }
}
