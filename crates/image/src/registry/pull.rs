//! Pull: manifest, configuration, layers in parallel, then unpacking from the bottom.

use std::io::Read;
use std::sync::Arc;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio_util::io::{StreamReader, SyncIoBridge};
use tokio_util::sync::CancellationToken;

use super::client::{Call, Client, no_body};
use super::manifests::name_of;
use crate::archive::manifest::Manifest;
use crate::config::{ImageConfig, Platform};
use crate::digest::{ChainId, Digest, ImageId};
use crate::error::ImageError;
use crate::ingest::{Ingest, Spooled};
use crate::progress::{Progress, ProgressMessage};
use crate::reference::Reference;
use crate::store::{ImageStore, Inner, PullRequest, Pulled};
use crate::view::Descriptor;

/// Layers downloaded at once, as Docker does by default.
const PARALLEL: usize = 3;
/// Attempts at one layer whose transfer breaks off.
const ATTEMPTS: usize = 3;
/// Bytes between two bars of one layer.
const BAR_STEP: u64 = 256 * 1024;

/// An ingest used from async code. Cleaning up blocks, so it happens on another thread, also when
/// the pull is cancelled.
struct Held {
    ingest: Option<Arc<Ingest>>,
    /// Ends transfers whose threads still hold the ingest.
    cancel: CancellationToken,
}

impl Held {
    async fn begin(store: &ImageStore) -> Result<Self, ImageError> {
        let ingest = store.blocking(Ingest::begin).await?;
        Ok(Self { ingest: Some(Arc::new(ingest)), cancel: CancellationToken::new() })
    }

    /// Runs `work` on a thread that may block.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Ingest) -> Result<T, ImageError> + Send + 'static,
    ) -> Result<T, ImageError> {
        let ingest = self.ingest.clone().ok_or(ImageError::Stopped)?;
        let done = tokio::task::spawn_blocking(move || work(&ingest)).await;
        done.map_err(|_| ImageError::Stopped)?
    }

    /// Ends it and waits until nothing is left of it.
    async fn end(mut self) {
        if let Some(ingest) = self.ingest.take() {
            // Ignored because: cleaning up does not change the outcome of the pull.
            let _ = tokio::task::spawn_blocking(move || drop(ingest)).await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.cancel.cancel();
        if let Some(ingest) = self.ingest.take() {
            tokio::task::spawn_blocking(move || drop(ingest));
        }
    }
}

impl ImageStore {
    /// Gets an image from its registry.
    ///
    /// # Errors
    /// Names, registries, digests, files: most variants. Nothing is left behind.
    pub async fn pull(
        &self,
        request: PullRequest,
        progress: Progress,
    ) -> Result<Pulled, ImageError> {
        let reference = Reference::parse(&request.reference)?.or_latest();
        let platform = request.platform.clone().unwrap_or_else(Platform::host);
        let turn = self.inner.turn(format!("{reference} {platform}"));
        let _turn = turn.lock().await;
        let held = Held::begin(self).await?;
        let job = Job {
            client: Client::new(&reference, request.auth, &self.inner.options.insecure_registries),
            store: Arc::clone(&self.inner),
            held,
            progress,
            reference,
        };
        let pulled = job.run(&platform).await;
        job.held.end().await;
        pulled
    }
}

impl Inner {
    /// The lock of one image that is being pulled.
    fn turn(&self, key: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut pulls = self.pulls.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Locks that only the table holds belong to pulls that are over.
        pulls.retain(|_, lock| Arc::strong_count(lock) > 1);
        Arc::clone(pulls.entry(key).or_default())
    }
}

/// One pull.
struct Job {
    client: Client,
    store: Arc<Inner>,
    held: Held,
    progress: Progress,
    reference: Reference,
}

impl Job {
    async fn run(&self, platform: &Platform) -> Result<Pulled, ImageError> {
        let name = name_of(&self.reference);
        let fetched = self.client.manifest(&name, self.reference.digest()).await?;
        let from = format!("Pulling from {}", self.reference.path());
        self.progress
            .tell(ProgressMessage { id: Some(name), ..ProgressMessage::status(from) })
            .await;
        let digest = fetched.descriptor.digest;
        let manifest = self.client.image(fetched, platform, &self.reference).await?;
        let (bytes, config) = self.client.configuration(&manifest).await?;
        self.layers(&manifest, &config).await?;
        let by_digest = self.reference.with_digest(digest);
        let mut names = vec![by_digest];
        if self.reference.digest().is_none() {
            names.push(self.reference.clone());
        }
        let before = self.store.state().index.named(&self.reference);
        let id: ImageId = self.held.run(move |ingest| ingest.add_image(&bytes, &names)).await?;
        let newer = before != Some(id);
        self.progress.tell(ProgressMessage::status(format!("Digest: {digest}"))).await;
        let status = if newer { "Downloaded newer image" } else { "Image is up to date" };
        let status = format!("Status: {status} for {}", self.reference.familiar());
        self.progress.tell(ProgressMessage::status(status)).await;
        Ok(Pulled { id, reference: self.reference.clone(), digest, newer })
    }

    async fn layers(&self, manifest: &Manifest, config: &ImageConfig) -> Result<(), ImageError> {
        let diffs = &config.rootfs.diff_ids;
        if diffs.len() != manifest.layers.len() {
            return Err(ImageError::InvalidDocument {
                what: format!("the manifest of '{}'", self.reference.familiar()),
                reason: format!(
                    "it has {} layers, its configuration {}",
                    manifest.layers.len(),
                    diffs.len()
                ),
            });
        }
        let chains = Digest::chains(diffs);
        let present = self.present(&chains).await?;
        for (layer, present) in manifest.layers.iter().zip(&present) {
            let status = if *present { "Already exists" } else { "Pulling fs layer" };
            self.progress.tell(ProgressMessage::of(&layer.digest.short(), status)).await;
        }
        let jobs: Vec<_> = manifest
            .layers
            .iter()
            .zip(&present)
            .map(|(layer, present)| async move {
                if *present { Ok(()) } else { self.download(layer).await }
            })
            .collect();
        let mut downloads = stream::iter(jobs).buffered(PARALLEL);
        let mut below: Vec<ChainId> = Vec::with_capacity(diffs.len());
        for ((layer, diff), present) in manifest.layers.iter().zip(diffs).zip(&present) {
            downloads.try_next().await?;
            let (parents, diff, blob) = (below.clone(), *diff, layer.digest);
            let (progress, total) = (self.progress.clone(), layer.size);
            let mut told = 0;
            let seen = move |count: u64| {
                if progress.wanted() && count >= told + BAR_STEP {
                    told = count;
                    let id = blob.short();
                    progress.hint(ProgressMessage::bar(&id, "Extracting", count, total));
                }
            };
            let unpack = move |ingest: &Ingest| ingest.add_layer(&parents, Some(diff), &blob, seen);
            // While this one is unpacked, the next ones go on being downloaded: the stream is
            // polled again only afterwards, but their connections are read by their own threads.
            below.push(self.held.run(unpack).await?.chain);
            if !present {
                let done = ProgressMessage::of(&layer.digest.short(), "Pull complete");
                self.progress.tell(done).await;
            }
        }
        Ok(())
    }

    /// Which chains are here already.
    async fn present(&self, chains: &[ChainId]) -> Result<Vec<bool>, ImageError> {
        let chains = chains.to_vec();
        self.held
            .run(move |ingest| Ok(chains.iter().map(|chain| ingest.has_layer(chain)).collect()))
            .await
    }

    async fn download(&self, layer: &Descriptor) -> Result<(), ImageError> {
        let digest = layer.digest;
        if self.held.run(move |ingest| Ok(ingest.has_blob(&digest))).await? {
            return Ok(());
        }
        let mut attempt = 1;
        let spooled = loop {
            match self.transfer(layer).await {
                Err(ImageError::Exchange { .. }) if attempt < ATTEMPTS => attempt += 1,
                other => break other?,
            }
        };
        let id = digest.short();
        self.progress.tell(ProgressMessage::of(&id, "Verifying Checksum")).await;
        let what = format!("the layer {id} from '{}'", self.client.host());
        if spooled.size != layer.size {
            let (expected, found) = (layer.size, spooled.size);
            return Err(ImageError::SizeMismatch { what, expected, found });
        }
        if spooled.digest != digest {
            let found = spooled.digest;
            return Err(ImageError::DigestMismatch { what, expected: digest, found });
        }
        self.held.run(move |ingest| ingest.add_blob(&spooled)).await?;
        self.progress.tell(ProgressMessage::of(&id, "Download complete")).await;
        Ok(())
    }

    /// Brings a blob's bytes into a file of the ingest.
    async fn transfer(&self, layer: &Descriptor) -> Result<Spooled, ImageError> {
        let id = layer.digest.short();
        let action = format!("get the layer {id}");
        let call = Call::get(format!("blobs/{}", layer.digest), "", &action);
        let answer = self.client.send(&call, &no_body).await?;
        let (_, body) = self.client.stream(answer);
        let body = body.take_until(self.held.cancel.clone().cancelled_owned());
        let reader = SyncIoBridge::new(StreamReader::new(Box::pin(body)));
        let (progress, total) = (self.progress.clone(), layer.size);
        let host = self.client.host().to_owned();
        // One byte more than promised is enough to know that the promise is broken.
        let reader = reader.take(total.saturating_add(1));
        let broken = move |source: std::io::Error| ImageError::Exchange {
            host,
            action,
            source: Box::new(source),
        };
        let spool = move |ingest: &Ingest| {
            let bars = Bars { inner: reader, id, progress, count: 0, told: 0, total };
            ingest.spool(bars).map_err(|error| error.or(broken))
        };
        self.held.run(spool).await
    }
}

/// Shows how far a download is.
struct Bars<R> {
    inner: R,
    id: String,
    progress: Progress,
    count: u64,
    told: u64,
    total: u64,
}

impl<R: Read> Read for Bars<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.count += read as u64;
        if self.progress.wanted() && self.count >= self.told + BAR_STEP {
            self.told = self.count;
            let bar = ProgressMessage::bar(&self.id, "Downloading", self.count, self.total);
            self.progress.hint(bar);
        }
        Ok(read)
    }
}
