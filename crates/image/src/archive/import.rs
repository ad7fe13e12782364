//! `docker import`: a flat archive becomes an image of one layer.

use shoal_model::spec::container::ContainerConfig;
use shoal_model::time::Timestamp;
use tokio::io::AsyncRead;
use tokio_util::io::SyncIoBridge;

use super::changes;
use crate::config::{HistoryEntry, ImageConfig, Platform, RootFs};
use crate::digest::{DiffId, ImageId};
use crate::error::ImageError;
use crate::ingest::Ingest;
use crate::progress::{Progress, ProgressMessage};
use crate::reference::Reference;
use crate::store::{ImageStore, ImportRequest};

impl ImageStore {
    /// Makes an image of one layer from a flat archive, plain or compressed. Tells its id as
    /// progress, as Docker does.
    ///
    /// # Errors
    /// As [`Self::load`]; [`ImageError::InvalidChange`].
    pub async fn import<R>(
        &self,
        request: ImportRequest,
        reader: R,
        progress: Progress,
    ) -> Result<ImageId, ImageError>
    where
        R: AsyncRead + Send + Unpin + 'static,
    {
        let mut config = ContainerConfig::default();
        changes::apply(&mut config, &request.changes)?;
        let names = match request.reference.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => vec![Reference::parse(name)?.or_latest()],
            None => Vec::new(),
        };
        if names.iter().any(|name| name.digest().is_some()) {
            return Err(ImageError::InvalidReference {
                reason: "cannot import digest reference".into(),
            });
        }
        let platform = request.platform.unwrap_or_else(Platform::host);
        let reader = SyncIoBridge::new(reader);
        self.blocking(move |inner| {
            let ingest = Ingest::begin(inner)?;
            let spooled = ingest.spool(reader).map_err(|e| e.or(ImageError::ReadArchive))?;
            if spooled.size == 0 {
                return Err(ImageError::InvalidArchive { reason: "it is empty".into() });
            }
            ingest.add_blob(&spooled)?;
            let layer = ingest.add_layer(&[], None, &spooled.digest, |_| ())?;
            let now = (inner.options.clock)();
            let text = config_json(&platform, config, &request.message, layer.diff, now)?;
            let id = ingest.add_image(&text, &names)?;
            progress.tell_blocking(ProgressMessage::status(id.to_string()));
            Ok(id)
        })
        .await
    }
}

fn config_json(
    platform: &Platform,
    config: ContainerConfig,
    comment: &str,
    diff: DiffId,
    now: Timestamp,
) -> Result<Vec<u8>, ImageError> {
    let comment = if comment.is_empty() { "Imported from -" } else { comment };
    let config = ImageConfig {
        created: Some(now.to_string()),
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        config,
        rootfs: RootFs { diff_ids: vec![diff], ..RootFs::default() },
        history: vec![HistoryEntry {
            created: Some(now.to_string()),
            comment: Some(comment.into()),
            ..HistoryEntry::default()
        }],
        ..ImageConfig::default()
    };
    encode(&config)
}

/// A configuration as the blob that its id is the digest of.
pub(crate) fn encode(config: &ImageConfig) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(config).map_err(|error| ImageError::InvalidDocument {
        what: "the new configuration".into(),
        reason: error.to_string(),
    })
}
