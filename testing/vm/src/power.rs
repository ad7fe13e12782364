//! A machine whose power is cut amid changes: what was acknowledged is there after the next boot.
//!
//! Change number *n* is the same in both boots: the first makes them one after the other until the
//! machine is killed, the second reckons from the number of the last acknowledged one what must be
//! there. The one after it was under way: it may be done or not.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::{SERVICE, node_is_ready, running};
use crate::node::{answers, ask, equal, eventually, get, run, shell, start_daemon};
use crate::reboot::{quiet, runs};
use crate::report::{Claim, Report};

/// A node that starts.
pub const STARTS: &[Claim] = &[
    ("the daemon starts after a power cut", || start_daemon("cut")),
    ("the node is a ready leader again", || eventually("the node is ready", node_is_ready)),
];

/// A node that works on.
pub const AFTER: &[Claim] = &[
    ("restart=always runs", || runs("always")),
    ("the service has its three tasks", || eventually("three tasks run", || running("web", 3))),
    ("the service answers", || eventually("it answers", || answers(SERVICE[0], "a page"))),
    ("new containers run", || equal(&shell(&[], "echo hello")?, "hello")),
    ("the daemon logged no error", || quiet("cut")),
    ("doctor finds nothing damaged", nothing_damaged),
];

/// That neither the machine's checks nor the daemon, which alone knows its state, find anything.
fn nothing_damaged() -> Result<()> {
    run("shoal", &["doctor"])?;
    let found = get("/shoal/doctor")?;
    let checks = found["Checks"].as_array().context("a list was expected")?;
    let own = checks.iter().find(|check| check["id"] == "SH-DOC-210");
    let own = own.context("the daemon does not say what is damaged")?;
    ensure!(own["detail"] == "nothing is damaged", "{}", own["detail"]);
    Ok(())
}

/// More than this many changes are not made: the power is cut long before.
const CHANGES_MAX: u32 = 400;
/// How many kinds of changes there are, in the order of [`change`].
const KINDS: u32 = 12;

/// What changes make, as a request for a list calls it, and under which name it is there.
type Thing = (&'static str, String);

/// A change: a request, and what is there or gone once it is acknowledged.
#[derive(Debug)]
struct Change {
    method: &'static str,
    path: String,
    body: Option<Value>,
    thing: Thing,
    there: bool,
}

/// The change with a number.
fn change(number: u32) -> Change {
    let round = number / KINDS;
    let name = |kind: &str| format!("{kind}-{round}");
    let make = |path: &str, body: Value, list: &'static str, name: String| Change {
        method: "POST",
        path: path.to_owned(),
        body: Some(body),
        thing: (list, name),
        there: true,
    };
    let bare = |method: &'static str, path: String, list: &'static str, name: String, there| {
        Change { method, path, body: None, thing: (list, name), there }
    };
    let sleeper = json!({"Image": "busybox:vm", "Cmd": ["sleep", "100000"],
        "HostConfig": {"RestartPolicy": {"Name": "always"}}});
    match number % KINDS {
        0 => make("/volumes/create", json!({"Name": name("v")}), "volumes", name("v")),
        1 => make(
            &format!("/containers/create?name={}", name("c")),
            sleeper,
            "containers",
            name("c"),
        ),
        2 => make("/secrets/create", payload(&name("s")), "secrets", name("s")),
        3 => bare("POST", format!("/containers/{}/start", name("c")), "running", name("c"), true),
        4 => make("/configs/create", payload(&name("g")), "configs", name("g")),
        5 => make("/services/create", service(&name("w")), "services", name("w")),
        6 => {
            let path = format!("/images/busybox:vm/tag?repo={}&tag=1", name("i"));
            bare("POST", path, "images", name("i") + ":1", true)
        }
        7 => make("/networks/create", json!({"Name": name("n")}), "networks", name("n")),
        8 => {
            let path = format!("/containers/create?name={}", name("d"));
            make(&path, json!({"Image": "busybox:vm", "Cmd": ["true"]}), "containers", name("d"))
        }
        9 => bare("DELETE", format!("/containers/{}", name("d")), "containers", name("d"), false),
        10 => bare("DELETE", format!("/volumes/{}", name("v")), "volumes", name("v"), false),
        _ => bare("DELETE", format!("/networks/{}", name("n")), "networks", name("n"), false),
    }
}

fn payload(name: &str) -> Value {
    json!({"Name": name, "Data": "c29tZXRoaW5n"})
}

fn service(name: &str) -> Value {
    json!({"Name": name, "Mode": {"Replicated": {"Replicas": 0}},
        "TaskTemplate": {"ContainerSpec": {"Image": "busybox:vm"}}})
}

/// Makes changes and tells of each once it is acknowledged. Returns only if the power is not cut.
pub fn change_until_the_power_is_cut(report: &mut Report) -> Result<()> {
    eventually("the node is ready", node_is_ready)?;
    for number in 0..CHANGES_MAX {
        let change = change(number);
        let (status, body) = ask(change.method, &change.path, change.body.as_ref())?;
        let made = (200..300).contains(&status);
        let held = if made { Ok(()) } else { Err(anyhow::anyhow!("{status}: {body}")) };
        if !made {
            report.claim(&format!("{} {}", change.method, change.path), &held)?;
        }
        report.acknowledged(number + 1)?;
    }
    report.claim("the power is cut", &Err(anyhow::anyhow!("{CHANGES_MAX} changes were made")))
}

/// What must be there or gone after so many acknowledged changes; the one under way is in neither.
fn wanted(acknowledged: u32) -> BTreeMap<Thing, bool> {
    let mut wanted = BTreeMap::new();
    for number in 0..acknowledged {
        let change = change(number);
        wanted.insert(change.thing, change.there);
    }
    wanted.remove(&change(acknowledged).thing);
    wanted
}

/// Claims of every kind of thing that what was acknowledged is there, and what was removed is gone.
pub fn check(report: &mut Report, acknowledged: u32) -> Result<()> {
    let mut kinds: BTreeMap<&'static str, BTreeMap<String, bool>> = BTreeMap::new();
    for ((kind, name), there) in wanted(acknowledged) {
        kinds.entry(kind).or_default().insert(name, there);
    }
    for (kind, wanted) in kinds {
        let held = eventually("all is as it was acknowledged", || as_wanted(kind, &wanted));
        report.claim(&format!("after {acknowledged} changes: {kind} ({})", wanted.len()), &held)?;
    }
    Ok(())
}

fn as_wanted(kind: &str, wanted: &BTreeMap<String, bool>) -> Result<()> {
    let names = names(kind)?;
    for (name, there) in wanted {
        let found = names.iter().any(|found| found == name);
        ensure!(found == *there, "'{name}' is {}", if *there { "lost" } else { "there again" });
    }
    Ok(())
}

/// The names of what is there.
fn names(kind: &str) -> Result<Vec<String>> {
    let path = match kind {
        "containers" => "/containers/json?all=1",
        "running" => "/containers/json",
        "images" => "/images/json",
        "volumes" => "/volumes",
        "secrets" => "/secrets",
        "configs" => "/configs",
        "services" => "/services",
        _ => "/networks",
    };
    let list = get(path)?;
    let list = if kind == "volumes" { list["Volumes"].clone() } else { list };
    let list = list.as_array().context("a list was expected")?;
    let mut names = Vec::new();
    for thing in list {
        let plain = [&thing["Name"], &thing["Spec"]["Name"]];
        let several = [&thing["Names"], &thing["RepoTags"]];
        let several = several.into_iter().filter_map(Value::as_array).flatten();
        let all = plain.into_iter().chain(several).filter_map(Value::as_str);
        names.extend(all.map(|name| name.trim_start_matches('/').to_owned()));
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_again_must_be_gone_and_what_is_under_way_may_be_either() {
        let all = wanted(KINDS);
        assert_eq!(all.get(&("containers", "d-0".to_owned())), Some(&false));
        assert_eq!(all.get(&("containers", "c-0".to_owned())), Some(&true));
        // Change 9 removes 'd-0': it was under way when the power was cut.
        assert_eq!(wanted(9).get(&("containers", "d-0".to_owned())), None);
        assert_eq!(wanted(8).get(&("containers", "d-0".to_owned())), None);
        assert_eq!(wanted(10).get(&("containers", "d-0".to_owned())), Some(&false));
    }
}
