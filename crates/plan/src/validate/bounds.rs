//! How large a spec may be. Whoever sends it pays nothing for its size; everybody else does, in the
//! store, in each of its tasks and in every node's assignment.

use shoal_model::spec::StringMap;
use shoal_model::spec::service::ServiceSpec;

use super::SpecError;

/// Largest spec of a service, as JSON. A service keeps its spec and the one before, a task one of
/// them, and both must fit a transaction of the store with room to spare.
pub const SERVICE_BYTES_MAX: usize = 1 << 20;
/// Largest spec of a node, a network or a cluster, and largest set of labels of a secret or config.
pub const SPEC_BYTES_MAX: usize = 64 << 10;
/// Ports that one service may publish: every node opens each of them.
pub const PORTS_MAX: usize = 256;
/// Networks that one service may be on, secrets and configs that it may refer to, and generic
/// resources that its tasks may reserve, each.
pub const REFERENCES_MAX: usize = 256;
/// Variables, mounts and entries of the hosts file of a task, each.
pub const ENTRIES_MAX: usize = 10_000;

/// Whether `spec`, the spec of a `what`, has at most `most` bytes as JSON.
pub(super) fn fits(what: &str, most: usize, spec: &impl serde::Serialize) -> Result<(), SpecError> {
    let bytes = shoal_model::size::json_len(spec)
        .map_err(|e| SpecError::invalid(format!("invalid {what} spec: {e}")))?;
    if bytes <= most {
        return Ok(());
    }
    Err(SpecError::invalid(format!(
        "invalid {what} spec: it has {bytes} bytes, at most {most} are allowed"
    )))
}

/// Labels have keys.
pub(super) fn labels(labels: &StringMap) -> Result<(), SpecError> {
    let bad = labels.keys().find(|key| key.is_empty() || key.contains('\0'));
    match bad {
        Some(key) => Err(SpecError::invalid(format!("invalid label name: {key:?}"))),
        None => Ok(()),
    }
}

/// The bounds of a service's spec.
pub(super) fn service(spec: &ServiceSpec) -> Result<(), SpecError> {
    fits("service", SERVICE_BYTES_MAX, spec)?;
    labels(&spec.labels)?;
    few("published ports", spec.ports(), PORTS_MAX)?;
    few("networks", spec.networks(), REFERENCES_MAX)?;
    let Some(container) = &spec.task_template.container_spec else { return Ok(()) };
    few("secrets", container.secrets.as_deref().unwrap_or(&[]), REFERENCES_MAX)?;
    few("configs", container.configs.as_deref().unwrap_or(&[]), REFERENCES_MAX)?;
    few("environment variables", container.env.as_deref().unwrap_or(&[]), ENTRIES_MAX)?;
    few("mounts", container.mounts.as_deref().unwrap_or(&[]), ENTRIES_MAX)?;
    few("host entries", container.hosts.as_deref().unwrap_or(&[]), ENTRIES_MAX)?;
    container.labels.as_ref().map_or(Ok(()), labels)
}

pub(super) fn few<T>(what: &str, list: &[T], most: usize) -> Result<(), SpecError> {
    if list.len() <= most {
        return Ok(());
    }
    let count = list.len();
    Err(SpecError::invalid(format!(
        "invalid service spec: {count} {what}, at most {most} are allowed"
    )))
}
