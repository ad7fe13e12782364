//! Secrets and configs: new ones, changed ones, those that services refer to.

use std::collections::BTreeMap;

use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ConfigId, SecretId};
use shoal_model::object::{Config, Secret};
use shoal_model::spec::payload::{FileTarget, PayloadSpec, SECRETS_DIR};
use shoal_model::spec::service::ServiceSpec;
use shoal_model::spec::task::ContainerSpec;

use super::SpecError;
use super::bounds::{self, SPEC_BYTES_MAX};

/// A secret must be smaller than this, as in Docker.
pub const SECRET_BYTES_MAX: usize = 500 * 1024;
/// A config must be smaller than this, as in Docker.
pub const CONFIG_BYTES_MAX: usize = 1000 * 1024;
/// Longest name of a secret or config, as in Docker.
const NAME_LEN_MAX: usize = 64;
/// The one template driver that there is.
const TEMPLATE_DRIVER: &str = "golang";
/// Permission bits, with set-user-id, set-group-id and sticky.
const MODE_MAX: u32 = 0o7777;

/// Checks a new secret.
///
/// # Errors
/// [`SpecError`] in Docker's words.
pub fn new_secret(state: &ClusterState, spec: &PayloadSpec) -> Result<(), SpecError> {
    if let Some(driver) = &spec.driver {
        return Err(SpecError::not_implemented(format!("secret driver '{}'", driver.name)));
    }
    check_payload("secret", SECRET_BYTES_MAX, spec)?;
    unique("secret", state.secrets.values().map(|s| &s.spec), spec)
}

/// Checks a new config.
///
/// # Errors
/// [`SpecError`] in Docker's words.
pub fn new_config(state: &ClusterState, spec: &PayloadSpec) -> Result<(), SpecError> {
    check_payload("config", CONFIG_BYTES_MAX, spec)?;
    unique("config", state.configs.values().map(|c| &c.spec), spec)
}

/// Checks the new spec of a secret or config: all but its labels must be what it was. Data may be
/// left out, since nobody can read a secret's.
///
/// # Errors
/// [`SpecError`] in Docker's words.
pub fn changed_payload(known: &PayloadSpec, spec: &PayloadSpec) -> Result<(), SpecError> {
    let same_data = spec.data.is_empty() || spec.data == known.data;
    let same_template = spec.templating.is_none() || spec.templating == known.templating;
    check_labels(spec)?;
    if spec.name == known.name && same_data && same_template && spec.driver == known.driver {
        return Ok(());
    }
    Err(SpecError::invalid("only updates to Labels are allowed"))
}

/// Checks that no service refers to `secret`.
///
/// # Errors
/// [`SpecError::InUse`] names the services.
pub fn removable_secret(state: &ClusterState, secret: &Secret) -> Result<(), SpecError> {
    let uses =
        |c: &ContainerSpec| c.secrets.iter().flatten().any(|r| r.secret_id == secret.id.as_str());
    unused("secret", &secret.spec.name, users(state, uses))
}

/// Checks that no service refers to `config`.
///
/// # Errors
/// [`SpecError::InUse`] names the services.
pub fn removable_config(state: &ClusterState, config: &Config) -> Result<(), SpecError> {
    let uses =
        |c: &ContainerSpec| c.configs.iter().flatten().any(|r| r.config_id == config.id.as_str());
    unused("config", &config.spec.name, users(state, uses))
}

/// Checks that everything that `spec` refers to exists, under the name that it says.
///
/// # Errors
/// [`SpecError::Invalid`] names what does not.
pub fn check_existence(state: &ClusterState, spec: &ServiceSpec) -> Result<(), SpecError> {
    let Some(container) = &spec.task_template.container_spec else { return Ok(()) };
    let secret = |id: &str| state.secrets.get(&SecretId::new(id)).map(|s| s.spec.name.as_str());
    let secrets = container.secrets.iter().flatten();
    let lost = secrets.filter(|r| secret(&r.secret_id) != Some(r.secret_name.as_str()));
    all_found("secret", lost.map(|r| r.secret_name.as_str()))?;
    let config = |id: &str| state.configs.get(&ConfigId::new(id)).map(|c| c.spec.name.as_str());
    let configs = container.configs.iter().flatten();
    let lost = configs.filter(|r| config(&r.config_id) != Some(r.config_name.as_str()));
    all_found("config", lost.map(|r| r.config_name.as_str()))
}

/// Checks the references of a container by themselves: whole, and each file at a place of its own.
pub(super) fn check_references(container: &ContainerSpec) -> Result<(), SpecError> {
    let mut held = Held::new();
    for mount in container.mounts.iter().flatten() {
        held.insert(mount.target.clone(), ("mount", &mount.target));
    }
    for reference in container.secrets.iter().flatten() {
        let name = &reference.secret_name;
        if reference.secret_id.is_empty() || name.is_empty() {
            return Err(SpecError::invalid("malformed secret reference"));
        }
        let path = check_file(("secret", name), reference.file.as_ref(), SECRETS_DIR)?;
        take(&mut held, ("secret", name), path)?;
    }
    for reference in container.configs.iter().flatten() {
        let name = &reference.config_name;
        if reference.config_id.is_empty() || name.is_empty() {
            return Err(SpecError::invalid("malformed config reference"));
        }
        if reference.runtime.is_some() {
            let what = "configs that are no files (Runtime, credential specs)";
            return Err(SpecError::not_implemented(what));
        }
        let path = check_file(("config", name), reference.file.as_ref(), "/")?;
        take(&mut held, ("config", name), path)?;
    }
    Ok(())
}

/// What is at a path: its kind and its name.
type Held<'a> = BTreeMap<String, (&'static str, &'a str)>;

/// Gives the absolute path.
fn check_file(
    (kind, name): (&str, &str),
    file: Option<&FileTarget>,
    dir: &str,
) -> Result<String, SpecError> {
    let Some(file) = file else {
        let text = format!("malformed {kind} reference, no target provided");
        return Err(SpecError::invalid(text));
    };
    let odd = |part: &str| matches!(part, "" | "." | "..");
    let path = file.name.strip_prefix('/').unwrap_or(&file.name);
    if path.split('/').any(odd) || path.contains('\0') {
        return Err(SpecError::invalid(format!(
            "malformed file {kind} reference, invalid target file name provided: '{}'",
            file.name
        )));
    }
    if file.owner().is_none() {
        return Err(SpecError::invalid(format!(
            "{kind} reference '{name}': UID '{}' and GID '{}' must be numbers",
            file.uid, file.gid
        )));
    }
    if file.mode > MODE_MAX {
        return Err(SpecError::invalid(format!(
            "{kind} reference '{name}': mode {:#o} is more than {MODE_MAX:#o}",
            file.mode
        )));
    }
    Ok(file.path(dir))
}

fn take<'a>(
    held: &mut Held<'a>,
    (kind, name): (&'static str, &'a str),
    path: String,
) -> Result<(), SpecError> {
    let Some((other_kind, other)) = held.get(&path) else {
        held.insert(path, (kind, name));
        return Ok(());
    };
    let both = if *other_kind == kind {
        format!("{kind} references '{other}' and '{name}'")
    } else {
        format!("{other_kind} '{other}' and {kind} '{name}'")
    };
    Err(SpecError::invalid(format!("{both} have a conflicting target: '{path}'")))
}

fn check_payload(kind: &str, bytes_max: usize, spec: &PayloadSpec) -> Result<(), SpecError> {
    check_payload_name(&spec.name)?;
    if let Some(driver) = spec.templating.as_ref().filter(|d| d.name != TEMPLATE_DRIVER) {
        return Err(SpecError::not_implemented(format!("template driver '{}'", driver.name)));
    }
    if spec.data.is_empty() || spec.data.len() >= bytes_max {
        return Err(SpecError::invalid(format!(
            "{kind} data must be larger than 0 and less than {bytes_max} bytes"
        )));
    }
    check_labels(spec)
}

fn check_labels(spec: &PayloadSpec) -> Result<(), SpecError> {
    bounds::fits("labels of the", SPEC_BYTES_MAX, &spec.labels)?;
    bounds::labels(&spec.labels)
}

fn check_payload_name(name: &str) -> Result<(), SpecError> {
    if name.is_empty() {
        return Err(SpecError::invalid("name must be provided"));
    }
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    let inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let fits = name.len() <= NAME_LEN_MAX
        && edge(name.chars().next())
        && edge(name.chars().next_back())
        && name.chars().all(inner);
    if fits {
        return Ok(());
    }
    Err(SpecError::invalid(format!(
        "invalid name '{name}', only 64 [a-zA-Z0-9-_.] characters allowed, and the start and end \
         character must be [a-zA-Z0-9]"
    )))
}

fn unique<'a>(
    kind: &str,
    mut others: impl Iterator<Item = &'a PayloadSpec>,
    spec: &PayloadSpec,
) -> Result<(), SpecError> {
    if others.any(|other| other.name == spec.name) {
        return Err(SpecError::conflict(format!("{kind} {} already exists", spec.name)));
    }
    Ok(())
}

/// The services whose tasks use something, by name.
fn users(state: &ClusterState, uses: impl Fn(&ContainerSpec) -> bool) -> Vec<&str> {
    let services = state.services.values();
    let using = services
        .filter(|s| s.spec.task_template.container_spec.as_ref().is_some_and(&uses))
        .map(|s| s.spec.name.as_str());
    let mut names: Vec<&str> = using.collect();
    names.sort_unstable();
    names
}

fn unused(kind: &'static str, name: &str, services: Vec<&str>) -> Result<(), SpecError> {
    let word = match services.len() {
        0 => return Ok(()),
        1 => "service",
        _ => "services",
    };
    let services = services.join(", ");
    let message = format!("{kind} '{name}' is in use by the following {word}: {services}");
    Err(SpecError::InUse { kind, message })
}

fn all_found<'a>(kind: &str, lost: impl Iterator<Item = &'a str>) -> Result<(), SpecError> {
    let names: Vec<&str> = lost.collect();
    match names.len() {
        0 => Ok(()),
        1 => Err(SpecError::invalid(format!("{kind} not found: {}", names.join(", ")))),
        _ => Err(SpecError::invalid(format!("{kind}s not found: {}", names.join(", ")))),
    }
}
