//! The secrets and configs of a task as the files that the engine puts into its container.

use bytes::Bytes;
use shoal_engine::request::InjectedFile;
use shoal_model::id::{ConfigId, SecretId};
use shoal_model::object::Task;
use shoal_model::payload::{Payload, Payloads};
use shoal_model::spec::payload::FileTarget;
use shoal_model::spec::task::ContainerSpec;

use super::failure::Failure;
use super::spec::{NodeFacts, fields};
use super::template::{Fields, expand_with};
use crate::agent::Agent;

/// A file that comes out of a template is at most this long: the bound of a config, so that a
/// template that repeats another file cannot fill the node's memory.
const EXPANDED_BYTES_MAX: usize = 1000 * 1024;

/// The files of `task`, once all that it refers to has come.
///
/// # Errors
/// As [`files`].
pub(crate) async fn all(agent: &Agent, task: &Task) -> Result<Vec<InjectedFile>, Failure> {
    let container = task.spec.container_spec.as_ref();
    let refers = |c: &ContainerSpec| {
        c.secrets.iter().flatten().count() + c.configs.iter().flatten().count() > 0
    };
    if !container.is_some_and(refers) {
        return Ok(Vec::new());
    }
    let facts = NodeFacts::of(agent).await;
    let mut assignment = agent.inner.assigned.follow();
    loop {
        let found = files(task, &assignment.borrow_and_update().payloads, &facts)?;
        if let Found::All(files) = found {
            return Ok(files);
        }
        if assignment.changed().await.is_err() {
            // The agent is stopping, and this task's owner with it.
            std::future::pending::<()>().await;
        }
    }
}

/// A task's files, as far as they are there.
#[derive(Debug)]
pub(crate) enum Found {
    /// All of them.
    All(Vec<InjectedFile>),
    /// Some are still on their way from the manager.
    Waiting,
}

/// Something that a task refers to.
struct Needed<'a> {
    kind: &'static str,
    name: &'a str,
    path: String,
    file: &'a FileTarget,
    /// `None`: not here yet. `Some(None)`: the cluster has it no more.
    payload: Option<&'a Option<Payload>>,
}

/// The files of `task`, out of what the manager sent.
///
/// # Errors
/// One of them is gone from the cluster, or its placeholders cannot be filled in.
pub(crate) fn files(task: &Task, payloads: &Payloads, node: &NodeFacts) -> Result<Found, Failure> {
    let Some(container) = &task.spec.container_spec else { return Ok(Found::All(Vec::new())) };
    let mut there = Vec::new();
    for needed in needed(container, payloads) {
        match needed.payload {
            None => return Ok(Found::Waiting),
            Some(None) => return Err(gone(&needed)),
            Some(Some(payload)) => there.push((needed, payload)),
        }
    }
    let sources = Sources { fields: fields(task, node), container, files: &there };
    let mut files = Vec::new();
    for (needed, payload) in &there {
        let data = if payload.template {
            Bytes::from(sources.fill(needed, payload)?)
        } else {
            Bytes::copy_from_slice(payload.data.bytes())
        };
        // Cannot fail: the manager has checked it.
        let (uid, gid) = needed.file.owner().unwrap_or_default();
        let (target, mode) = (needed.path.clone(), needed.file.mode);
        files.push(InjectedFile { target, data, uid, gid, mode });
    }
    Ok(Found::All(files))
}

fn needed<'a>(container: &'a ContainerSpec, payloads: &'a Payloads) -> Vec<Needed<'a>> {
    let secrets = container.secrets.iter().flatten().filter_map(|reference| {
        Some(Needed {
            kind: "secret",
            name: &reference.secret_name,
            path: reference.path()?,
            file: reference.file.as_ref()?,
            payload: payloads.secrets.get(&SecretId::new(reference.secret_id.as_str())),
        })
    });
    let configs = container.configs.iter().flatten().filter_map(|reference| {
        Some(Needed {
            kind: "config",
            name: &reference.config_name,
            path: reference.path()?,
            file: reference.file.as_ref()?,
            payload: payloads.configs.get(&ConfigId::new(reference.config_id.as_str())),
        })
    });
    secrets.chain(configs).collect()
}

/// What placeholders may name.
struct Sources<'a> {
    fields: Fields,
    container: &'a ContainerSpec,
    files: &'a [(Needed<'a>, &'a Payload)],
}

impl Sources<'_> {
    fn fill(&self, needed: &Needed<'_>, payload: &Payload) -> Result<String, Failure> {
        let failed = |why: String| Failure {
            step: "preparing",
            text: format!(
                "bad template: {} '{}': {why}; correct it and store it under a new name \
                 [SH-AGT-010]",
                needed.kind, needed.name
            ),
        };
        let text = std::str::from_utf8(payload.data.bytes());
        let text = text.map_err(|_| failed("it is no UTF-8 text".to_owned()))?;
        expand_with(text, EXPANDED_BYTES_MAX, |placeholder| self.value(placeholder))
            .map_err(|error| failed(error.to_string()))
    }

    /// A field, or one of Docker's functions with one text.
    fn value(&self, placeholder: &str) -> Option<String> {
        if let Some(value) = self.fields.0.get(placeholder) {
            return Some(value.clone());
        }
        // How Go templates write what would otherwise begin a placeholder.
        if let Some(text) = quoted(placeholder) {
            return Some(text.to_owned());
        }
        let (function, argument) = placeholder.split_once(char::is_whitespace)?;
        let argument = quoted(argument.trim())?;
        match function {
            "env" => Some(self.variable(argument)),
            "secret" | "config" => self.data(function, argument),
            _ => None,
        }
    }

    /// A variable of the service; empty if there is none, as in Docker.
    fn variable(&self, name: &str) -> String {
        let lines = self.container.env.iter().flatten();
        let mut pairs = lines.filter_map(|line| line.split_once('='));
        pairs.find(|(key, _)| *key == name).map(|(_, value)| value.to_owned()).unwrap_or_default()
    }

    /// Another file of the task, by the name of its target.
    fn data(&self, kind: &str, target: &str) -> Option<String> {
        let mut files = self.files.iter();
        let (_, payload) = files.find(|(w, _)| w.kind == kind && w.file.name == target)?;
        String::from_utf8(payload.data.bytes().to_vec()).ok()
    }
}

fn quoted(text: &str) -> Option<&str> {
    let between = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    between('"').or_else(|| between('`')).filter(|text| !text.contains(['"', '`', '\\']))
}

fn gone(needed: &Needed<'_>) -> Failure {
    let (kind, name) = (needed.kind, needed.name);
    Failure {
        step: "preparing",
        text: format!(
            "{kind} is gone: '{name}'; create it again and update the service to it [SH-AGT-009]"
        ),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::json;
    use shoal_model::assignment::Assignment;
    use shoal_model::spec::payload::PayloadData;

    use super::*;

    fn task(container: serde_json::Value) -> Task {
        let status = json!({"timestamp": "1970-01-01T00:00:01Z", "state": "preparing",
            "message": "", "err": "", "container": null, "ports": []});
        let meta = json!({"version": 1, "created_at": "1970-01-01T00:00:01Z",
            "updated_at": "1970-01-01T00:00:01Z"});
        serde_json::from_value(json!({
            "id": "t1", "meta": meta, "service_id": "s1", "service_name": "web", "slot": 3,
            "node_id": "n1", "spec": {"ContainerSpec": container}, "spec_version": 1,
            "endpoint_ports": [], "networks": [], "status": status, "desired_state": "running",
            "not_before": null,
        }))
        .unwrap()
    }

    fn both() -> Task {
        task(json!({
            "Image": "x", "Env": ["COLOUR=red"],
            "Secrets": [{"SecretID": "s", "SecretName": "key",
                "File": {"Name": "k", "UID": "7", "GID": "8", "Mode": 0o400}}],
            "Configs": [{"ConfigID": "c", "ConfigName": "zone",
                "File": {"Name": "etc/zone", "UID": "0", "GID": "0", "Mode": 0o444}}],
        }))
    }

    fn payload(text: &str, template: bool) -> Option<Payload> {
        Some(Payload { data: PayloadData::new(text.as_bytes()), template })
    }

    fn sent(secret: &str, config: &str, template: bool) -> Payloads {
        Payloads {
            secrets: [("s".into(), payload(secret, false))].into(),
            configs: [("c".into(), payload(config, template))].into(),
        }
    }

    fn all(task: &Task, payloads: &Payloads) -> Vec<InjectedFile> {
        match files(task, payloads, &NodeFacts::default()) {
            Ok(Found::All(files)) => files,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn files_have_their_places_owners_and_modes() {
        let files = all(&both(), &sent("hunter2", "{{.Task.Slot}}", false));
        let shown: Vec<_> =
            files.iter().map(|f| (f.target.as_str(), f.uid, f.gid, f.mode, &f.data[..])).collect();
        assert_eq!(shown[0], ("/run/secrets/k", 7, 8, 0o400, b"hunter2".as_slice()));
        assert_eq!(shown[1], ("/etc/zone", 0, 0, 0o444, b"{{.Task.Slot}}".as_slice()));
    }

    #[test]
    fn a_task_waits_for_what_is_on_its_way_and_fails_for_what_is_gone() {
        let mut payloads = sent("hunter2", "zone", false);
        payloads.configs.clear();
        let found = files(&both(), &payloads, &NodeFacts::default());
        assert!(matches!(found, Ok(Found::Waiting)), "{found:?}");
        payloads.configs.insert("c".into(), None);
        let failure = files(&both(), &payloads, &NodeFacts::default()).unwrap_err();
        assert!(failure.text.starts_with("config is gone: 'zone'"), "{failure:?}");
        let none = task(json!({"Image": "x"}));
        assert!(all(&none, &Assignment::default().payloads).is_empty());
    }

    #[test]
    fn templates_know_the_task_its_environment_and_its_other_files() {
        let text = "{{.Service.Name}}.{{ .Task.Slot }} {{ env \"COLOUR\" }}{{env \"NO\"}} \
                    {{ secret \"k\" }} {{ \"{{\" }}";
        let files = all(&both(), &sent("hunter2", text, true));
        assert_eq!(&files[1].data[..], b"web.3 red hunter2 {{");
    }

    #[test]
    fn bad_templates_name_what_is_wrong() {
        for (text, part) in [
            ("{{ if .X }}", "{{ if .X }}"),
            ("{{ secret \"other\" }}", "secret \"other\""),
            ("{{ .Task.Slot", ".Task.Slot"),
        ] {
            let sent = sent("hunter2", text, true);
            let failure = files(&both(), &sent, &NodeFacts::default()).unwrap_err();
            assert!(failure.text.starts_with("bad template: config 'zone': "), "{failure:?}");
            assert!(failure.text.contains(part), "{failure:?}");
        }
        let long = "{{ secret \"k\" }}".repeat(1000);
        let sent = sent(&"x".repeat(2000), &long, true);
        let failure = files(&both(), &sent, &NodeFacts::default()).unwrap_err();
        assert!(failure.text.contains("1024000 bytes"), "{failure:?}");
    }
}
