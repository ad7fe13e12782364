//! Making a container: everything is checked first, then its directory and record are written.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use shoal_image::config::{ImageConfig, Platform};
use shoal_image::digest::ImageId;
use shoal_image::error::ImageError;
use shoal_image::reference::Reference;
use shoal_life::container::Event;
use shoal_life::container::policy::Past;
use shoal_model::id::ContainerId;
use shoal_model::spec::StringMap;
use shoal_model::spec::container::ContainerCreate;

use crate::container::Container;
use crate::engine::{Engine, blocking, brief};
use crate::error::EngineError;
use crate::mounts::{self, MountRecord, MountSource};
use crate::owner::{Message, Owner};
use crate::record::{RECORD_VERSION, Record, RunRecord};
use crate::request::CreateOptions;
use crate::unikernel::devices::{Declaration, Given};
use crate::unikernel::{self, Workload};
use crate::view::summary::Created;
use crate::volumes::ANONYMOUS;
use crate::{admission, merge, names, populate};

/// How often a random name may be taken before the creation gives up; from the fifth attempt on
/// there are more than a billion names.
const NAME_ATTEMPTS_MAX: u32 = 64;

impl Engine {
    /// Makes a container; it does not run yet.
    ///
    /// # Errors
    /// A request that cannot be right or asks for what is not implemented, an image that is not
    /// here, a name in use, a network that does not exist.
    pub async fn create(
        &self,
        body: ContainerCreate,
        options: CreateOptions,
    ) -> Result<Created, EngineError> {
        let engine = self.clone();
        self.owned(async move { engine.create_here(body, options).await }).await
    }

    async fn create_here(
        &self,
        body: ContainerCreate,
        options: CreateOptions,
    ) -> Result<Created, EngineError> {
        if self.inner.stopping.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        let engine = self.clone();
        let body = brief("check a container", move || {
            engine.check_wishes(&body)?;
            admission::check(&body)?;
            Ok(body)
        })
        .await?;
        let id = names::container_id();
        let name = match &options.name {
            Some(name) => {
                let name = names::check(name)?;
                self.reserve(&name, &id)?;
                name
            }
            None => self.reserve_random(&id)?,
        };
        let reservation = Reservation { engine: self.clone(), name: name.clone(), id: id.clone() };
        let created = self.create_named(id, name, body, options).await?;
        reservation.keep();
        Ok(created)
    }

    /// What a unikernel makes no sense of is said before what no container can have: it says what
    /// serves instead.
    fn check_wishes(&self, body: &ContainerCreate) -> Result<(), EngineError> {
        let reference = body.config.image.as_deref().unwrap_or_default();
        // Ignored because: an image that is not there is said when it is needed.
        let Ok((_, image)) = self.image(reference, None) else { return Ok(()) };
        match Workload::of(&image)? {
            Workload::Unikernel => unikernel::admit::check(body, image.config.entrypoint.as_ref()),
            Workload::Container => Ok(()),
        }
    }

    fn reserve_random(&self, id: &ContainerId) -> Result<String, EngineError> {
        for attempt in 0..NAME_ATTEMPTS_MAX {
            let name = names::random(attempt);
            if self.reserve(&name, id).is_ok() {
                return Ok(name);
            }
        }
        Err(EngineError::conflict("no free random name was found; give the container a name"))
    }

    async fn create_named(
        &self,
        id: ContainerId,
        name: String,
        body: ContainerCreate,
        options: CreateOptions,
    ) -> Result<Created, EngineError> {
        let (record, image, options) = self.resolve_record(id.clone(), name, body, options).await?;
        self.hold(&id, &image, &record.image)?;
        self.make_volumes(&record.mounts).await?;
        let dir = self.inner.config.data_root.join("containers").join(id.as_str());
        let (container, inbox) = Container::new(dir.clone(), record, options.files);
        let container = Arc::new(container);
        let subject = Arc::clone(&container);
        let made = brief("make a container", move || make_directory(&subject.dir)).await;
        Owner::new(self, &container, inbox).spawn();
        let filled = match made {
            Ok(()) => populate::copy_up(self, &container).await,
            Err(error) => Err(error),
        };
        // The record comes last: without one the next start removes what is there.
        let made = match filled {
            Ok(()) => self.save(&container).await,
            Err(error) => Err(error),
        };
        if let Err(error) = made {
            container.send(Message::Quit).await;
            // Ignored because: the first error says more, and what is left without a record is
            // removed at the next start.
            let _ = blocking("remove", move || {
                fs::remove_dir_all(&dir).map_err(EngineError::io("remove", &dir))
            })
            .await;
            return Err(error);
        }
        self.insert(Arc::clone(&container));
        if *self.inner.resumed.borrow() {
            container.report(Event::Resumed(Past::Fresh)).await;
        }
        if self.inner.stopping.is_cancelled() {
            // Whoever stops all containers may have looked before this one was there.
            container.report(Event::Stopping).await;
        }
        self.note(&container, "create", &[]);
        self.publish(&container, false);
        Ok(Created { id: id.to_string(), warnings: Vec::new() })
    }

    /// Everything that can be known before anything is made.
    async fn resolve_record(
        &self,
        id: ContainerId,
        name: String,
        body: ContainerCreate,
        options: CreateOptions,
    ) -> Result<(Record, ImageId, CreateOptions), EngineError> {
        let engine = self.clone();
        // A client decides how much there is to merge: not on a thread that others need.
        let (record, image, options) = brief("resolve a container", move || {
            let (record, image) = engine.build_record(id, name, body, &options)?;
            Ok((record, image, options))
        })
        .await?;
        self.check_networks(&record).await?;
        Ok((record, image, options))
    }

    /// The record of a container that may be made. Blocks.
    fn build_record(
        &self,
        id: ContainerId,
        name: String,
        body: ContainerCreate,
        options: &CreateOptions,
    ) -> Result<(Record, ImageId), EngineError> {
        let reference = body.config.image.clone().unwrap_or_default();
        if reference.is_empty() {
            return Err(EngineError::invalid("no image was named"));
        }
        let (image, image_config) = self.image(&reference, options.platform.as_deref())?;
        let workload = Workload::of(&image_config)?;
        let mut config = merge::merge(body.config, &image_config.config)?;
        let init = self.inner.config.default_init && workload == Workload::Container;
        let host = admission::normalise(body.host_config, init);
        config.image = Some(reference.clone());
        if config.hostname.as_deref().is_none_or(str::is_empty) {
            config.hostname = Some(default_hostname(&id, host.network_mode.as_deref()));
        }
        let mounts = mounts::resolve(&host, &config, names::random_hex)?;
        check_sources(&mounts)?;
        if workload == Workload::Unikernel {
            unikernel::admit::check_mounts(&mounts)?;
            let declared = Declaration::of(image_config.config.labels.as_ref());
            declared.check(Given {
                mounts: &mounts,
                has_network: host.network_mode.as_deref() != Some("none"),
                memory_bytes: crate::workload_plan::limits(&host).memory_bytes,
            })?;
        }
        let record = Record {
            version: RECORD_VERSION,
            id,
            name,
            created: self.now(),
            image_id: image.to_string(),
            image: reference,
            config,
            host,
            networking: body.networking_config,
            mounts,
            task: options.task.clone(),
            workload,
            run: RunRecord::default(),
        };
        // What the plan refuses (capabilities, users) is better said now than at the start.
        crate::workload_plan::process(&record)?;
        Ok((record, image))
    }

    fn image(
        &self,
        reference: &str,
        platform: Option<&str>,
    ) -> Result<(ImageId, Arc<ImageConfig>), EngineError> {
        let images = &self.inner.images;
        let fail = |source| image_error("find", reference, source);
        let id = images.ready(reference).map_err(fail)?;
        let config = images.config(&id).map_err(fail)?;
        if let Some(word) = platform.filter(|word| !word.is_empty()) {
            let wanted = Platform::parse(word)
                .ok_or_else(|| EngineError::invalid(format!("invalid platform '{word}'")))?;
            let have = Platform {
                architecture: config.architecture.clone(),
                os: config.os.clone(),
                variant: config.variant.clone(),
                ..Platform::default()
            };
            if !have.serves(&wanted) {
                return Err(EngineError::NoSuchImage {
                    reference: format!(
                        "{reference}: image was found but does not provide the specified \
                         platform ({word})"
                    ),
                });
            }
        }
        Ok((id, config))
    }

    pub(crate) fn hold(
        &self,
        id: &ContainerId,
        image: &ImageId,
        reference: &str,
    ) -> Result<(), EngineError> {
        self.inner.images.hold(id, image).map_err(|e| image_error("hold", reference, e))
    }

    /// Makes the volumes that are not there yet.
    async fn make_volumes(&self, mounts: &[MountRecord]) -> Result<(), EngineError> {
        let wanted: Vec<(String, StringMap)> = mounts
            .iter()
            .filter_map(|mount| match &mount.source {
                MountSource::Volume { name, anonymous, labels, .. } => {
                    let mut labels = labels.clone();
                    if *anonymous {
                        labels.insert(ANONYMOUS.into(), String::new());
                    }
                    Some((name.clone(), labels))
                }
                _ => None,
            })
            .collect();
        let engine = self.clone();
        blocking("make volumes", move || {
            for (name, labels) in wanted {
                if engine.inner.volumes.create(&name, labels, None, engine.now())? {
                    engine.note_volume(&name, "create", &[]);
                }
            }
            Ok(())
        })
        .await
    }

    /// Whether the networks that it wants to join exist.
    async fn check_networks(&self, record: &Record) -> Result<(), EngineError> {
        if let Some(word) = record.shares_network_of() {
            self.find(word)?;
            return Ok(());
        }
        if record.task.is_some() {
            return Ok(());
        }
        let mut words: Vec<&str> = vec![record.network_mode()];
        words.extend(
            record
                .networking
                .endpoints_config
                .keys()
                .map(String::as_str)
                .filter(|w| *w != "default"),
        );
        for word in words {
            self.inner.attacher.check_network(word).await.map_err(|source| {
                EngineError::Network {
                    action: "find the network",
                    container: record.name.clone(),
                    source: Box::new(source),
                }
            })?;
        }
        Ok(())
    }
}

/// A fault of the image store, with Docker's text where clients match it.
pub(crate) fn image_error(
    action: &'static str,
    reference: &str,
    source: ImageError,
) -> EngineError {
    if matches!(source, ImageError::NoSuchImage { .. }) {
        let full = match Reference::parse(reference) {
            Ok(name) => name.or_latest().familiar(),
            Err(_) => reference.to_owned(),
        };
        return EngineError::NoSuchImage { reference: full };
    }
    EngineError::Image { action, reference: reference.to_owned(), source: Box::new(source) }
}

fn default_hostname(id: &ContainerId, network_mode: Option<&str>) -> String {
    if network_mode == Some("host") {
        let host = nix::unistd::gethostname().ok().and_then(|name| name.into_string().ok());
        if let Some(name) = host {
            return name;
        }
    }
    id.as_str().chars().take(12).collect()
}

/// Binds in the long form need their source now; in the short form it is made.
fn check_sources(mounts: &[MountRecord]) -> Result<(), EngineError> {
    for mount in mounts {
        if let MountSource::Bind { path, create: false, .. } = &mount.source
            && !Path::new(path).exists()
        {
            return Err(EngineError::invalid(format!(
                "invalid mount config for type \"bind\": bind source path does not exist: {path}"
            )));
        }
    }
    Ok(())
}

/// A name that is taken for a container that is being made; dropping it gives the name back.
struct Reservation {
    engine: Engine,
    name: String,
    id: ContainerId,
}

impl Reservation {
    /// The container is made, and the name its own.
    fn keep(mut self) {
        self.name.clear();
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.name.is_empty() {
            self.engine.release_name(&self.name, &self.id);
            self.engine.inner.images.release(&self.id);
        }
    }
}

fn make_directory(dir: &Path) -> Result<(), EngineError> {
    use std::os::unix::fs::DirBuilderExt;
    let make = |path: &Path, mode: u32| {
        fs::DirBuilder::new()
            .mode(mode)
            .recursive(true)
            .create(path)
            .map_err(EngineError::io("create the directory", path))
    };
    // Only root looks into a container from outside; its own root is open to its users.
    make(dir, 0o700)?;
    let files = crate::record::Files(dir);
    make(&files.upper(), 0o755)?;
    make(&files.work(), 0o700)
}
