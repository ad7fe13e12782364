//! A new volume gets what the image has at its place.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::mounts::MountSource;
use crate::tree;

/// Copies the image's content into every volume of a new container that is still empty.
pub(crate) async fn copy_up(
    engine: &Engine,
    container: &Arc<Container>,
) -> Result<(), EngineError> {
    if container.is_unikernel() {
        return Ok(());
    }
    let volumes = &engine.inner.volumes;
    let mut wanted: Vec<(PathBuf, PathBuf)> = Vec::new();
    for mount in container.read(|record| record.mounts.clone()) {
        if let MountSource::Volume { name, copy_up: true, .. } = &mount.source
            && volumes.is_empty(name)?
        {
            wanted.push((PathBuf::from(&mount.target), volumes.path(name)));
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let layers = engine.layers(container)?;
    // Without a mount: what one of the layers has at the place is enough to know whether to look.
    let any = wanted.iter().any(|(inside, _)| {
        let below = inside.strip_prefix("/").unwrap_or(inside);
        layers.iter().any(|layer| layer.join(below).symlink_metadata().is_ok())
    });
    if !any {
        return Ok(());
    }
    let work = move |root: &crate::root::Root| {
        for (inside, volume) in wanted {
            let from: OwnedFd = match root.open_dir(&inside) {
                Ok(dir) => dir,
                // Nothing there, or something else than a directory: the volume stays empty.
                Err(error) if is_absent(&error) => continue,
                Err(error) => return Err(EngineError::io("read", inside)(error)),
            };
            let to: OwnedFd = File::open(&volume).map_err(EngineError::io("open", &volume))?.into();
            tree::copy(&from, &to, 0).map_err(EngineError::io("fill the volume", volume))?;
        }
        Ok(())
    };
    engine.with_image_root(container, work).await
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}
