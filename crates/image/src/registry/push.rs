//! Push: layers as they are stored, configuration, manifest.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use futures::TryStreamExt;
use http::Method;
use http::header::LOCATION;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio_util::io::ReaderStream;

use super::auth::RegistryAuth;
use super::challenge::encode;
use super::client::{Call, Client, MakeBody, bytes_body, no_body};
use crate::archive::manifest::{Manifest, OCI_CONFIG, OCI_MANIFEST};
use crate::archive::save::{descriptor, to_json};
use crate::digest::Digest;
use crate::error::ImageError;
use crate::index::LayerRecord;
use crate::ingest::{Ingest, read_document};
use crate::progress::{Progress, ProgressMessage};
use crate::reference::Reference;
use crate::store::ImageStore;

impl ImageStore {
    /// Puts a named image into its registry. Gives the digest of its manifest there.
    ///
    /// # Errors
    /// As [`Self::pull`].
    pub async fn push(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
        progress: Progress,
    ) -> Result<Digest, ImageError> {
        let reference = Reference::parse(reference)?.or_latest();
        let Some(tag) = reference.tag().map(str::to_owned) else {
            return Err(ImageError::InvalidReference {
                reason: "cannot push a digest reference".into(),
            });
        };
        let id = self.resolve(&reference.to_string())?;
        let chains = self.inner.state().index.images.get(&id).map(|image| image.chains.clone());
        let (ingest, config, layers) = self
            .blocking(move |inner| {
                let ingest = Ingest::begin(inner)?;
                ingest.pin(&id);
                let config = read_document(&inner.files.blob(&id))?;
                let mut layers = Vec::new();
                for chain in chains.unwrap_or_default() {
                    layers.push(ingest.whole_layer(&id, &chain)?);
                }
                Ok((Arc::new(ingest), config, layers))
            })
            .await?;
        let client = Client::new(&reference, auth, &self.inner.options.insecure_registries);
        let job = Push { store: self, client, progress, reference };
        let pushed = job.run(&tag, &config, &layers).await;
        // Ignored because: cleaning up does not change the outcome of the push.
        let _ = tokio::task::spawn_blocking(move || drop(ingest)).await;
        pushed
    }
}

/// One push.
struct Push<'a> {
    store: &'a ImageStore,
    client: Client,
    progress: Progress,
    reference: Reference,
}

impl Push<'_> {
    async fn run(
        &self,
        tag: &str,
        config: &[u8],
        layers: &[LayerRecord],
    ) -> Result<Digest, ImageError> {
        let text = format!("The push refers to repository [{}]", self.reference.repository());
        self.progress.tell(ProgressMessage::status(text)).await;
        for layer in layers {
            self.layer(layer).await?;
        }
        let config_digest = Digest::of(config);
        let bytes = bytes::Bytes::copy_from_slice(config);
        self.blob(config_digest, &|| bytes_body(bytes.clone())).await?;
        let described =
            |layer: &LayerRecord| descriptor(&layer.media_type, layer.blob, layer.blob_size);
        let manifest = Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.into()),
            config: descriptor(OCI_CONFIG, config_digest, config.len() as u64),
            layers: layers.iter().map(described).collect(),
        };
        let json = bytes::Bytes::from(to_json(&manifest)?);
        let digest = Digest::of(&json);
        let call = Call {
            method: Method::PUT,
            target: format!("manifests/{tag}"),
            accept: String::new(),
            content_type: Some(OCI_MANIFEST.into()),
            action: "put the manifest".into(),
        };
        self.client.send(&call, &|| bytes_body(json.clone())).await?;
        let text = format!("{tag}: digest: {digest} size: {}", json.len());
        self.progress.tell(ProgressMessage::status(text)).await;
        let aux = serde_json::json!({"Tag": tag, "Digest": digest, "Size": json.len()});
        let aux = ProgressMessage { aux: Some(aux), ..ProgressMessage::default() };
        self.progress.tell(aux).await;
        let name = self.reference.with_digest(digest);
        let id = config_digest;
        let named = move |inner: &Arc<crate::store::Inner>| {
            inner.change(|index| {
                if index.visible(&id) {
                    index.names.insert(name, id);
                }
                Ok(())
            })
        };
        self.store.blocking(named).await?;
        Ok(digest)
    }

    async fn layer(&self, layer: &LayerRecord) -> Result<(), ImageError> {
        let id = layer.blob.short();
        self.progress.tell(ProgressMessage::of(&id, "Preparing")).await;
        let path: PathBuf = self.store.inner.files.blob(&layer.blob);
        let size = layer.blob_size;
        let body = || {
            let file = tokio::fs::File::from_std(std::fs::File::open(&path)?);
            let frames = ReaderStream::new(file).map_ok(Frame::data);
            Ok((size, StreamBody::new(frames).boxed_unsync()))
        };
        let sent = self.blob(layer.blob, &body).await?;
        let status = if sent { "Pushed" } else { "Layer already exists" };
        self.progress.tell(ProgressMessage::of(&id, status)).await;
        Ok(())
    }

    /// Sends a blob, unless the registry has it. Says whether it was sent.
    async fn blob(&self, digest: Digest, body: MakeBody<'_>) -> Result<bool, ImageError> {
        let call = |method: Method, target: String, action: &str| Call {
            method,
            target,
            accept: String::new(),
            content_type: None,
            action: format!("{action} {}", digest.short()),
        };
        let head = call(Method::HEAD, format!("blobs/{digest}"), "look for the blob");
        match self.client.send(&head, &no_body).await {
            Ok(_) => return Ok(false),
            Err(ImageError::RegistryAnswer { status: 404, .. }) => {}
            Err(error) => return Err(error),
        }
        let begin = call(Method::POST, "blobs/uploads/".into(), "begin to send the blob");
        let answer = self.client.send(&begin, &no_body).await?;
        let location = answer.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        let location = location.ok_or_else(|| {
            self.client.broken(&begin.action, io::Error::other("the answer has no location"))
        })?;
        let mark = if location.contains('?') { '&' } else { '?' };
        let target = format!("{location}{mark}digest={}", encode(&digest.to_string()));
        let mut put = call(Method::PUT, target, "send the blob");
        put.content_type = Some("application/octet-stream".into());
        self.client.send(&put, body).await?;
        Ok(true)
    }
}
