//! Which wishes for a container make sense for a unikernel. As everywhere: what is asked for is
//! done or refused by name, with the reason and what serves instead.

use shoal_model::spec::container::{ContainerCreate, Words};

use super::wishes::{self, NO_FILES};
use super::{probe, refuse, tender_plan};
use crate::error::EngineError;
use crate::mounts::{MountRecord, MountSource};

/// Checks what a client asks of a unikernel whose image has the entry point `entrypoint`.
///
/// # Errors
/// The first wish that cannot be fulfilled.
pub(crate) fn check(body: &ContainerCreate, entrypoint: Option<&Words>) -> Result<(), EngineError> {
    wishes::check(body, entrypoint)?;
    probe::check(body.config.labels.as_ref())?;
    tender_plan::check_labels(body.config.labels.as_ref())
}

/// Checks the mounts of a unikernel.
///
/// # Errors
/// One that it could write to, or a kind that it has no use for.
pub(crate) fn check_mounts(mounts: &[MountRecord]) -> Result<(), EngineError> {
    for mount in mounts {
        let block = tender_plan::block_name(&mount.target);
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
    use super::*;

    #[test]
    fn labels_that_nobody_can_follow_are_refused() {
        let body = |port: &str| {
            let labels = serde_json::json!({"shoal.health.tcp": port});
            serde_json::from_value(serde_json::json!({"Image": "x", "Labels": labels})).unwrap()
        };
        check(&body("80"), None).unwrap();
        let error = check(&body("http"), None).unwrap_err();
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
