//! Which wishes for a container make sense for a unikernel. As everywhere: what is asked for is
//! done or refused by name, with the reason and what serves instead.

use shoal_model::spec::container::{ContainerCreate, Words};

use super::probe;
use super::{plan, refuse};
use crate::admission::is_unset;
use crate::error::EngineError;
use crate::mounts::{MountRecord, MountSource};

/// A wish, why it makes no sense, and what serves instead.
type Refusal = (&'static str, &'static str, &'static str);

const NO_PROCESSES: &str = "it is one sealed program without processes";
const NO_TERMINAL: &str = "it has no terminal and no standard input";
const NO_FILES: &str = "it has no root file system";
const NO_RIGHTS: &str =
    "it has no rights on the host at all: no user, no capability, no system call";

/// Checks what a client asks of a unikernel whose image has the entry point `entrypoint`.
///
/// # Errors
/// The first wish that cannot be fulfilled.
pub(crate) fn check(body: &ContainerCreate, entrypoint: Option<&Words>) -> Result<(), EngineError> {
    if let Some((what, why, instead)) = wishes(body, entrypoint) {
        return Err(refuse(what, why, instead));
    }
    for (what, set) in not_yet(body) {
        if set {
            return Err(EngineError::missing(format!("{what} for unikernels")));
        }
    }
    probe::check(body.config.labels.as_ref())?;
    plan::check_labels(body.config.labels.as_ref())
}

fn wishes(body: &ContainerCreate, entrypoint: Option<&Words>) -> Option<Refusal> {
    let (config, host) = (&body.config, &body.host_config);
    let on = |flag: Option<bool>| flag.unwrap_or(false);
    let some = |text: &Option<String>| text.as_deref().is_some_and(|t| !t.is_empty());
    let full = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let word = |name: &str| host.extra.get(name).and_then(|v| v.as_str()).unwrap_or_default();
    let mode = host.network_mode.as_deref().unwrap_or_default();
    let own_entry = config.entrypoint.as_ref().map(Words::list).filter(|list| !list.is_empty());
    let other_entry = own_entry.is_some_and(|list| Some(list) != entrypoint.map(Words::list));
    let checks = config.healthcheck.as_ref().and_then(|health| health.test.as_deref());
    let runs = matches!(checks, Some([kind, ..]) if kind != "NONE");
    let signal = config.stop_signal.as_deref().filter(|s| !s.is_empty());
    let other_signal = signal.is_some_and(|s| !["SIGTERM", "TERM", "15"].contains(&s));
    let table: [(bool, Refusal); 17] = [
        (
            on(config.tty) || on(config.open_stdin),
            (
                "give a terminal or standard input to",
                NO_TERMINAL,
                "'docker logs -f' to see its output",
            ),
        ),
        (other_entry, ("replace the program of", NO_PROCESSES, "give it arguments only")),
        (
            some(&config.user) || full(&host.group_add),
            ("choose the user of", NO_RIGHTS, "the user that its tender has"),
        ),
        (
            some(&config.working_dir),
            ("choose the working directory of", NO_FILES, "absolute paths"),
        ),
        (
            runs,
            (
                "run a health command in",
                NO_PROCESSES,
                "the label shoal.health.tcp=PORT or shoal.health.http=PATH with --health-interval",
            ),
        ),
        (
            other_signal,
            (
                "choose the stop signal of",
                "its tender knows SIGTERM alone, and tells it to stop",
                "SIGTERM",
            ),
        ),
        (on(host.privileged), ("give privileges to", NO_RIGHTS, "a container")),
        (full(&host.cap_add), ("give capabilities to", NO_RIGHTS, "a container")),
        (on(host.init), ("run an init process in", NO_PROCESSES, "no init")),
        (
            host.ulimits.as_ref().is_some_and(|list| !list.is_empty()),
            ("set process limits of", NO_PROCESSES, "--memory, --cpus and --pids-limit"),
        ),
        (
            host.sysctls.as_ref().is_some_and(|list| !list.is_empty()),
            (
                "set kernel settings of",
                "it brings its own network stack",
                "its arguments or environment",
            ),
        ),
        (
            host.shm_size.unwrap_or(0) != 0,
            ("set the shared memory of", NO_PROCESSES, "its own memory"),
        ),
        (
            host.tmpfs.as_ref().is_some_and(|list| !list.is_empty()),
            ("mount a tmpfs in", NO_FILES, "its own memory"),
        ),
        (
            word("PidMode") == "host" || word("IpcMode") == "host",
            ("share the host's processes with", NO_PROCESSES, "a container"),
        ),
        (
            mode == "host",
            (
                "give the host's network to",
                "it has one interface of its own",
                "--publish, or a network",
            ),
        ),
        (
            mode.starts_with("container:"),
            (
                "share a container's network with",
                "it has one interface of its own",
                "a network that both are on",
            ),
        ),
        (
            some(&config.domainname),
            ("set the domain name of", "it has a host name alone", "--hostname"),
        ),
    ];
    table.into_iter().find(|(set, _)| *set).map(|(_, refusal)| refusal)
}

/// What would make sense and is not there.
fn not_yet(body: &ContainerCreate) -> [(&'static str, bool); 4] {
    let host = &body.host_config;
    let full = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|l| !l.is_empty());
    let devices = host.extra.get("Devices").is_some_and(|value| !is_unset(value));
    [
        ("extra host names", full(&host.extra_hosts)),
        ("search domains", full(&host.dns_search)),
        ("resolver options", full(&host.dns_options)),
        ("devices", devices),
    ]
}

/// Checks the mounts of a unikernel.
///
/// # Errors
/// One that it could write to, or a kind that it has no use for.
pub(crate) fn check_mounts(mounts: &[MountRecord]) -> Result<(), EngineError> {
    for mount in mounts {
        let block = plan::block_name(&mount.target);
        match &mount.source {
            MountSource::Volume { .. } if block.is_some() => {}
            MountSource::Volume { .. } | MountSource::Bind { .. } if mount.read_only => {}
            MountSource::Tmpfs { .. } => {
                return Err(refuse("mount a tmpfs in", NO_FILES, "its own memory"));
            }
            MountSource::Volume { name, .. } => {
                return Err(refuse(
                    &format!("mount the volume '{name}' writable in"),
                    "it sees a copy of files, made at its start",
                    "a block device, target /dev/NAME, or readonly",
                ));
            }
            MountSource::Bind { path, .. } => {
                return Err(refuse(
                    &format!("mount '{path}' writable in"),
                    "it sees a copy of files, made at its start",
                    "readonly (':ro'), or a volume as block device, target /dev/NAME",
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn verdict(body: Value) -> Result<(), EngineError> {
        let entry = Words::List(vec!["/unikernel".to_owned()]);
        check(&serde_json::from_value(body).unwrap(), Some(&entry))
    }

    #[test]
    fn what_makes_sense_is_accepted() {
        verdict(json!({"Image": "x", "Cmd": ["--listen", "80"], "Env": ["A=b"],
            "Entrypoint": ["/unikernel"], "Hostname": "h", "StopSignal": "SIGTERM",
            "Healthcheck": {"Interval": 1_000_000_000},
            "Labels": {"shoal.health.tcp": "80"},
            "HostConfig": {"Memory": 64 << 20, "NanoCpus": 500_000_000, "NetworkMode": "mynet",
                "Dns": ["192.0.2.1"], "CapDrop": ["ALL"], "ReadonlyRootfs": true}}))
        .unwrap();
    }

    #[test]
    fn what_cannot_be_is_refused_with_the_reason_and_what_serves_instead() {
        let cases = [
            json!({"Tty": true}),
            json!({"OpenStdin": true}),
            json!({"Entrypoint": ["/bin/sh"]}),
            json!({"User": "1000"}),
            json!({"WorkingDir": "/srv"}),
            json!({"Healthcheck": {"Test": ["CMD", "true"]}}),
            json!({"StopSignal": "SIGQUIT"}),
            json!({"HostConfig": {"Privileged": true}}),
            json!({"HostConfig": {"CapAdd": ["NET_ADMIN"]}}),
            json!({"HostConfig": {"Init": true}}),
            json!({"HostConfig": {"Ulimits": [{"Name": "nofile", "Soft": 1, "Hard": 1}]}}),
            json!({"HostConfig": {"Sysctls": {"net.core.somaxconn": "1"}}}),
            json!({"HostConfig": {"Tmpfs": {"/tmp": ""}}}),
            json!({"HostConfig": {"NetworkMode": "host"}}),
            json!({"HostConfig": {"NetworkMode": "container:x"}}),
            json!({"HostConfig": {"PidMode": "host"}}),
        ];
        for case in cases {
            let error = verdict(case.clone()).unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, EngineError::Unikernel { .. }), "{case}: {text}");
            assert!(text.contains("; use "), "{text}");
        }
        let error = verdict(json!({"HostConfig": {"ExtraHosts": ["a:1.2.3.4"]}})).unwrap_err();
        assert!(matches!(error, EngineError::NotImplemented { .. }));
        let error = verdict(json!({"Labels": {"shoal.health.tcp": "http"}})).unwrap_err();
        assert!(matches!(error, EngineError::Invalid { .. }));
    }

    #[test]
    fn mounts_are_read_only_or_block_devices() {
        let bind = |read_only| MountRecord {
            target: "/www".into(),
            read_only,
            mode: String::new(),
            source: MountSource::Bind {
                path: "/srv".into(),
                recursive: true,
                propagation: Default::default(),
                create: false,
            },
        };
        check_mounts(&[bind(true)]).unwrap();
        assert!(check_mounts(&[bind(false)]).unwrap_err().to_string().contains("readonly"));
        let volume = |target: &str| MountRecord {
            target: target.into(),
            read_only: false,
            mode: String::new(),
            source: MountSource::Volume {
                name: "data".into(),
                copy_up: true,
                anonymous: false,
                labels: Default::default(),
            },
        };
        check_mounts(&[volume("/dev/data")]).unwrap();
        assert!(check_mounts(&[volume("/data")]).is_err());
    }
}
