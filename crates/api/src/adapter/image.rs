//! [`ImageBackend`] by the image store.

use std::future::Future;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt, future, stream};
use serde::Serialize;
use serde_json::Value;
use shoal_engine::engine::Engine;
use shoal_image::config::Platform;
use shoal_image::error::ImageError;
use shoal_image::progress::{Progress as Sender, ProgressMessage};
use shoal_image::registry::auth::RegistryAuth;
use shoal_image::store::{
    ImageStore, ImportRequest as StoreImport, PullRequest as StorePull, RemoveOptions,
};
use shoal_image::view::Deleted;
use shoal_model::filter::Filters;
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::backend::container::ByteStream;
use crate::backend::image::{ImageBackend, ImportRequest, Progress, PullRequest};
use crate::error::{ApiError, ApiResult};

/// The image store as the routes see it; the engine records events of images.
#[derive(Clone)]
pub struct StoreBackend {
    store: ImageStore,
    engine: Engine,
}

impl StoreBackend {
    /// Wraps the handles.
    #[must_use]
    pub fn new(store: ImageStore, engine: Engine) -> Self {
        Self { store, engine }
    }

    /// Runs `work` on a thread that may block: the store reads files.
    async fn blocking<T, F>(&self, work: F) -> ApiResult<T>
    where
        T: Send + 'static,
        F: FnOnce(&ImageStore) -> Result<T, ImageError> + Send + 'static,
    {
        let store = self.store.clone();
        let done = tokio::task::spawn_blocking(move || work(&store)).await;
        let done = done.map_err(|e| ApiError::internal(format!("read the image store: {e}")))?;
        Ok(done?)
    }
}

fn to_json<T: Serialize>(value: T) -> ApiResult<Value> {
    serde_json::to_value(value).map_err(|e| ApiError::internal(format!("write as JSON: {e}")))
}

fn platform(text: Option<&str>) -> ApiResult<Option<Platform>> {
    let Some(text) = text else { return Ok(None) };
    let unreadable = || ApiError::invalid(format!("invalid platform '{text}'"));
    Platform::parse(text).map(Some).ok_or_else(unreadable)
}

fn credentials(header: Option<&str>) -> ApiResult<Option<RegistryAuth>> {
    match header {
        Some(header) => Ok(RegistryAuth::from_header(header)?),
        None => Ok(None),
    }
}

/// Runs `work` while its messages are read; its failure is the last item. Both stop when the reader
/// goes away.
fn run(
    messages: mpsc::Receiver<ProgressMessage>,
    work: impl Future<Output = ApiResult<()>> + Send + 'static,
) -> Progress {
    let messages = stream::unfold(messages, |mut messages| async move {
        messages.recv().await.map(|message| (to_json(message), messages))
    });
    let end = stream::once(work).filter_map(|result| future::ready(result.err().map(Err)));
    stream::select(messages, end).boxed()
}

#[async_trait]
impl ImageBackend for StoreBackend {
    async fn list(&self, _all: bool, filters: &Filters) -> ApiResult<Value> {
        let filters = filters.clone();
        to_json(self.blocking(move |store| store.list(&filters)).await?)
    }

    async fn inspect(&self, word: &str) -> ApiResult<Value> {
        let word = word.to_owned();
        to_json(self.blocking(move |store| store.inspect(&word)).await?)
    }

    async fn history(&self, word: &str) -> ApiResult<Value> {
        let word = word.to_owned();
        to_json(self.blocking(move |store| store.history(&word)).await?)
    }

    async fn pull(&self, pull: PullRequest) -> ApiResult<Progress> {
        let request = StorePull {
            auth: credentials(pull.auth.as_deref())?,
            platform: platform(pull.platform.as_deref())?,
            reference: pull.reference,
        };
        let (sender, messages) = Sender::channel();
        let (store, engine) = (self.store.clone(), self.engine.clone());
        let work = async move {
            let pulled = store.pull(request, sender).await?;
            let name = pulled.reference.to_string();
            engine.note_image("pull", &name, &name);
            Ok(())
        };
        Ok(run(messages, work))
    }

    async fn import(&self, import: ImportRequest, body: ByteStream) -> ApiResult<Progress> {
        let request = StoreImport {
            platform: platform(import.platform.as_deref())?,
            reference: import.reference,
            changes: import.changes,
            message: import.message,
        };
        let (sender, messages) = Sender::channel();
        let (store, engine) = (self.store.clone(), self.engine.clone());
        let work = async move {
            let id = store.import(request, StreamReader::new(body), sender).await?;
            let id = id.to_string();
            engine.note_image("import", &id, &id);
            Ok(())
        };
        Ok(run(messages, work))
    }

    async fn load(&self, _quiet: bool, body: ByteStream) -> ApiResult<Progress> {
        let (sender, messages) = Sender::channel();
        let (store, engine) = (self.store.clone(), self.engine.clone());
        let work = async move {
            for loaded in store.load(StreamReader::new(body), sender).await? {
                let id = loaded.id.to_string();
                engine.note_image("load", &id, loaded.names.first().unwrap_or(&id));
            }
            Ok(())
        };
        Ok(run(messages, work))
    }

    async fn save(&self, names: &[String]) -> ApiResult<ByteStream> {
        let names = names.to_vec();
        let stream = self.blocking(move |store| store.save(&names)).await?;
        let broken = |e: ImageError| std::io::Error::other(shoal_model::fault::report(&e));
        Ok(Box::pin(stream.map_err(broken)))
    }

    async fn tag(&self, word: &str, target: &str) -> ApiResult<()> {
        self.store.tag(word, target).await?;
        let word = word.to_owned();
        let id = self.blocking(move |store| store.resolve(&word)).await?;
        self.engine.note_image("tag", &id.to_string(), target);
        Ok(())
    }

    async fn remove(&self, word: &str, force: bool, _noprune: bool) -> ApiResult<Value> {
        let removed = self.store.remove(word, RemoveOptions { force }).await?;
        for item in &removed {
            match item {
                Deleted::Untagged(name) => self.engine.note_image("untag", name, name),
                Deleted::Deleted(id) => self.engine.note_image("delete", id, id),
            }
        }
        to_json(removed)
    }

    async fn prune(&self, filters: &Filters) -> ApiResult<Value> {
        to_json(self.store.prune(filters).await?)
    }

    async fn push(&self, reference: &str, auth: Option<String>) -> ApiResult<Progress> {
        let auth = credentials(auth.as_deref())?;
        let (sender, messages) = Sender::channel();
        let (store, engine) = (self.store.clone(), self.engine.clone());
        let reference = reference.to_owned();
        let work = async move {
            store.push(&reference, auth, sender).await?;
            engine.note_image("push", &reference, &reference);
            Ok(())
        };
        Ok(run(messages, work))
    }

    async fn distribution(&self, reference: &str, auth: Option<&str>) -> ApiResult<Value> {
        to_json(self.store.distribution(reference, credentials(auth)?).await?)
    }

    async fn login(&self, _credentials: Value) -> ApiResult<Value> {
        Err(ApiError::missing("logging in to a registry"))
    }

    async fn count(&self) -> usize {
        let filters = Filters::default();
        self.blocking(move |store| store.list(&filters)).await.map_or(0, |list| list.len())
    }
}
