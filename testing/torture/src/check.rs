//! Whether what users were told is so.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::model::{Kind, Known, Slot};
use crate::user::{Ground, User};
use shoal_lab::http::get;

/// What the daemon says it has: by kind and name, with id and state.
pub struct Said {
    things: BTreeMap<(Kind, String), (String, String)>,
}

impl Said {
    /// Asks for every list; `None` if one is not answered.
    pub fn ask(socket: &Path) -> Option<Self> {
        let mut things = BTreeMap::new();
        let mut add = |kind, list: &Value, read: &dyn Fn(&Value) -> (String, String, String)| {
            for one in list.as_array().into_iter().flatten() {
                let (name, id, state) = read(one);
                things.insert((kind, name), (id, state));
            }
        };
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let list = get(socket, "/containers/json?all=1")?;
        add(Kind::Container, &list, &|one| {
            let name = text(&one["Names"][0]).trim_start_matches('/').to_owned();
            (name, text(&one["Id"]), text(&one["State"]))
        });
        let list = get(socket, "/volumes")?;
        add(Kind::Volume, &list["Volumes"], &|one| {
            (text(&one["Name"]), String::new(), String::new())
        });
        let list = get(socket, "/networks")?;
        add(Kind::Network, &list, &|one| (text(&one["Name"]), text(&one["Id"]), String::new()));
        let list = get(socket, "/images/json")?;
        add(Kind::Image, &list, &|one| {
            let tag = text(&one["RepoTags"][0]).trim_end_matches(":latest").to_owned();
            (tag, text(&one["Id"]), String::new())
        });
        for (kind, path) in [(Kind::Service, "/services"), (Kind::Secret, "/secrets")] {
            let list = get(socket, path)?;
            add(kind, &list, &|one| (text(&one["Spec"]["Name"]), text(&one["ID"]), String::new()));
        }
        Some(Self { things })
    }

    /// Names of containers that are paused.
    pub fn paused(&self) -> impl Iterator<Item = &str> {
        let frozen = |(key, (_, state)): &(&(Kind, String), &(String, String))| {
            key.0 == Kind::Container && state == "paused"
        };
        self.things.iter().filter(frozen).map(|((_, name), _)| name.as_str())
    }

    fn of(&self, slot: &Slot) -> Option<&(String, String)> {
        self.things.get(&(slot.kind, slot.name.clone()))
    }
}

/// How many tasks of a service a finding describes.
const TASKS_SAID_MAX: usize = 12;

/// A task: what it is, what it should be, and why.
fn task_line(task: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (id, status) = (text(&task["ID"]), &task["Status"]);
    let why = [text(&status["Message"]), text(&status["Err"])].join("; ");
    format!(
        "{id} {} of {} since {}: {why}",
        status["State"], task["DesiredState"], status["Timestamp"]
    )
}

/// What a user was told and is not so.
pub fn broken_promises(user: &User, said: &Said, ground: &Ground) -> Vec<String> {
    let mut wrong = Vec::new();
    for slot in &user.slots {
        let found = said.of(slot);
        match (slot.there, found) {
            (Known::Yes, None) => {
                wrong.push(format!("[promise] lost: {:?} {}", slot.kind, slot.name))
            }
            (Known::No, Some(_)) => {
                wrong.push(format!("[promise] there again: {:?} {}", slot.kind, slot.name));
            }
            _ => {}
        }
        let Some((id, state)) = found else { continue };
        if slot.kind != Kind::Container {
            continue;
        }
        if !slot.id.is_empty() && slot.there == Known::Yes && *id != slot.id {
            wrong.push(format!("[promise] another container is called {}", slot.name));
        }
        let runs = matches!(state.as_str(), "running" | "paused");
        // Docker's policies: `always` starts again what a user stopped when the daemon starts;
        // `unless-stopped` does not. Both start again what something else ended.
        let comes_back = matches!(slot.policy, "always" | "unless-stopped");
        let disturbed = ground.is_disturbed(id) && !comes_back;
        let stays_down = matches!(slot.policy, "no" | "unless-stopped");
        if slot.there == Known::Yes && !disturbed {
            match slot.runs {
                Known::Yes if !runs => {
                    wrong.push(format!(
                        "[promise] was started (restart={}), but is {state}: {} {id}",
                        slot.policy, slot.name
                    ));
                }
                Known::No if runs && stays_down => {
                    wrong.push(format!("[promise] was stopped, but runs: {} {id}", slot.name));
                }
                _ => {}
            }
        }
        if state == "paused" {
            wrong.push(format!("[promise] stays paused: {} {id}", slot.name));
        }
    }
    wrong
}

/// The user takes what is said for what is.
pub fn believe(user: &mut User, said: &Said) {
    for slot in &mut user.slots {
        slot.rests = false;
        match said.of(slot) {
            None => slot.gone(),
            Some((id, state)) => {
                if slot.there == Known::Unsure {
                    slot.policy = "";
                }
                slot.there = Known::Yes;
                slot.id.clone_from(id);
                slot.runs = match state.as_str() {
                    "running" | "paused" => Known::Yes,
                    "restarting" => Known::Unsure,
                    // A daemon that has just started may be about to start it.
                    _ if slot.policy == "always" => Known::Unsure,
                    _ => Known::No,
                };
            }
        }
    }
}

/// Services whose running tasks are not as many as were asked for.
pub fn unmet_services(users: &[User], socket: &Path) -> Vec<String> {
    let mut wrong = Vec::new();
    let Some(tasks) = get(socket, "/tasks") else {
        return vec!["[manager] the list of tasks is not answered".to_owned()];
    };
    let Some(services) = get(socket, "/services") else {
        return vec!["[manager] the list of services is not answered".to_owned()];
    };
    let known = users.iter().flat_map(|user| &user.slots).filter(|slot| slot.kind == Kind::Service);
    for slot in known.filter(|slot| slot.there == Known::Yes) {
        let service = services.as_array().into_iter().flatten();
        let Some(service) = service.into_iter().find(|one| one["Spec"]["Name"] == *slot.name)
        else {
            continue;
        };
        let wanted = service["Spec"]["Mode"]["Replicated"]["Replicas"].as_u64().unwrap_or(0);
        let runs = |task: &&Value| {
            task["ServiceID"] == service["ID"]
                && task["DesiredState"] == "running"
                && task["Status"]["State"] == "running"
        };
        let count = tasks.as_array().into_iter().flatten().filter(runs).count() as u64;
        if count != wanted {
            let states = tasks.as_array().into_iter().flatten();
            let states = states.filter(|task| task["ServiceID"] == service["ID"]).map(task_line);
            let states: Vec<String> = states.take(TASKS_SAID_MAX).collect();
            let name = &slot.name;
            wrong.push(format!("[manager] {name} has {count} of {wanted} tasks: {states:?}"));
        }
        if slot.sure_replicas && wanted != slot.replicas {
            wrong.push(format!(
                "[promise] {} was scaled to {}, but says {wanted}",
                slot.name, slot.replicas
            ));
        }
    }
    wrong
}
