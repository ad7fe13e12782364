//! The container of a service's tasks.

use std::collections::BTreeSet;

use shoal_model::spec::container::{HealthConfig, Mount};
use shoal_model::spec::task::ContainerSpec;
use shoal_model::sysctl::{self, OwnNamespaces};
use shoal_model::time::Nanos;

use super::SpecError;
use super::payload::check_references;

/// Shortest span that a health check may say.
const HEALTH_SPAN_MIN: i64 = 1_000_000;

pub(super) fn check_container(
    container: &ContainerSpec,
    own: OwnNamespaces,
) -> Result<(), SpecError> {
    check_image(&container.image)?;
    let mut targets = BTreeSet::new();
    for mount in container.mounts.iter().flatten() {
        check_mount(mount)?;
        if !targets.insert(mount.target.as_str()) {
            return Err(SpecError::invalid(format!(
                "ContainerSpec: duplicate mount point: {}",
                mount.target
            )));
        }
    }
    check_references(container)?;
    if container.stop_grace_period.is_some_and(|p| p.0 < 0) {
        return Err(SpecError::invalid("ContainerSpec: stop-grace-period cannot be negative"));
    }
    if let Some(name) = container.hostname.as_deref() {
        check_hostname(name)?;
    }
    for variable in container.env.iter().flatten() {
        if variable.is_empty() || variable.starts_with('=') {
            return Err(SpecError::invalid(format!("invalid environment variable: {variable}")));
        }
    }
    for (name, value) in container.sysctls.iter().flatten() {
        sysctl::check(name, value, own)
            .map_err(|why| SpecError::invalid(format!("ContainerSpec: {why}")))?;
    }
    container.healthcheck.as_ref().map_or(Ok(()), check_health)
}

fn check_image(image: &str) -> Result<(), SpecError> {
    if image.is_empty() {
        return Err(SpecError::invalid("ContainerSpec: image reference must be provided"));
    }
    if is_reference(image) {
        return Ok(());
    }
    Err(SpecError::invalid(format!("ContainerSpec: \"{image}\" is not a valid repository/tag")))
}

/// `[host[:port]/]path[:tag][@digest]`, roughly: the image store parses it in full.
fn is_reference(image: &str) -> bool {
    let (rest, digest) = match image.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (image, None),
    };
    let digest_ok = digest.is_none_or(|d| {
        d.strip_prefix("sha256:")
            .is_some_and(|hex| hex.len() == 64 && hex.chars().all(|c| c.is_ascii_hexdigit()))
    });
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (rest, None),
    };
    let tag_ok = tag.is_none_or(|t| {
        (1..=128).contains(&t.len())
            && t.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
    });
    let mut parts = path.split('/').peekable();
    let host = parts.next().unwrap_or_default();
    let has_host =
        parts.peek().is_some() && (host.contains(['.', ':', '[']) || host == "localhost");
    let part_ok = |part: &str| {
        let edge =
            |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        edge(part.chars().next())
            && edge(part.chars().next_back())
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
    };
    digest_ok && tag_ok && (has_host || part_ok(host)) && parts.all(part_ok)
}

fn check_mount(mount: &Mount) -> Result<(), SpecError> {
    if !mount.target.starts_with('/') {
        return Err(SpecError::invalid(format!(
            "invalid mount target, must be an absolute path: {}",
            mount.target
        )));
    }
    let source = mount.source.as_deref().unwrap_or_default();
    match mount.kind.as_str() {
        "bind" if source.is_empty() => Err(SpecError::invalid(
            "invalid mount config for type \"bind\": field Source must not be empty",
        )),
        "bind" if !source.starts_with('/') => Err(SpecError::invalid(format!(
            "invalid bind mount source, must be an absolute path: {source}"
        ))),
        "tmpfs" if !source.is_empty() => {
            Err(SpecError::invalid(format!("invalid tmpfs source, source must be empty: {source}")))
        }
        "volume" if source.starts_with('/') => Err(SpecError::invalid(format!(
            "invalid volume mount source, must not be an absolute path: {source}"
        ))),
        "bind" | "tmpfs" | "volume" => Ok(()),
        "image" | "cluster" | "npipe" => {
            Err(SpecError::not_implemented(format!("mounts of type '{}'", mount.kind)))
        }
        other => Err(SpecError::invalid(format!("invalid mount type: \"{other}\""))),
    }
}

fn check_hostname(name: &str) -> Result<(), SpecError> {
    // Placeholders are filled in on the node.
    let fits = name.len() <= 63 || name.contains("{{");
    if fits {
        return Ok(());
    }
    Err(SpecError::invalid(format!("invalid hostname '{name}': longer than 63 characters")))
}

fn check_health(health: &HealthConfig) -> Result<(), SpecError> {
    let spans = [
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ];
    let too_short = |span: &Nanos| span.0 != 0 && span.0 < HEALTH_SPAN_MIN;
    for (name, span) in spans {
        if span.as_ref().is_some_and(too_short) {
            return Err(SpecError::invalid(format!(
                "ContainerSpec: {name} in HealthConfig cannot be less than 1ms"
            )));
        }
    }
    if health.retries.is_some_and(|r| r < 0) {
        return Err(SpecError::invalid(
            "ContainerSpec: Retries in HealthConfig cannot be negative",
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_reference;

    #[test]
    fn references_are_told_from_nonsense() {
        let digest = format!("a/b@sha256:{}", "0".repeat(64));
        for good in ["alpine", "alpine:3.3", "localhost:5000/a/b:t", "r.io/x", digest.as_str()] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["", "Alpine", "a b", "a:", "a@sha256:12", "-a", "a//b", "https://x/y z"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }
}
