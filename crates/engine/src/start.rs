//! Starting a container: what its network side, its files and its shim are told. The order of it
//! all is the machine's, see [`crate::owner`].

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_image::digest::ImageId;
use shoal_life::container::Command;
use shoal_model::fault;
use shoal_model::spec::container::EndpointSettings;
use shoal_runtime::RuntimeError;
use shoal_runtime::container_plan::{ContainerPlan, MountPlan};
use shoal_runtime::protocol::FailureKind;

use crate::attacher::{Attachment, ContainerNetworking, DnsRequest};
use crate::container::Container;
use crate::engine::{Engine, brief};
use crate::error::EngineError;
use crate::mounts::MountSource;
use crate::record::{Files, Record};
use crate::request::InjectedFile;
use crate::unikernel::{self, Workload};
use crate::{files, memory, mount_points, ports, workload_plan};

impl Engine {
    /// Starts a container.
    ///
    /// # Errors
    /// It runs already ([`EngineError::NotModified`]), its network cannot be attached, its program
    /// cannot be run ([`EngineError::Start`]).
    pub async fn start(&self, word: &str) -> Result<(), EngineError> {
        let container = self.find(word)?;
        self.command(&container, Command::Start).await
    }

    /// New contents of a container's memory files, before a start.
    ///
    /// # Errors
    /// No such container.
    pub async fn set_files(&self, word: &str, files: Vec<InjectedFile>) -> Result<(), EngineError> {
        let container = self.find(word)?;
        container.live(|live| live.files = files);
        Ok(())
    }

    /// What the network side is asked for.
    pub(crate) fn attach_request(&self, container: &Container) -> ContainerNetworking {
        container.read(|record| {
            let mode = record.network_mode().to_owned();
            let settings = |s: &Option<EndpointSettings>| s.clone().unwrap_or_default();
            let list = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
            let host = &record.host;
            ContainerNetworking {
                container_id: record.id.clone(),
                name: record.name.clone(),
                hostname: record.config.hostname.clone().unwrap_or_default(),
                labels: record.config.labels.clone().unwrap_or_default(),
                endpoints: record
                    .networking
                    .endpoints_config
                    .iter()
                    .map(|(word, s)| match word.as_str() {
                        // The CLI names the mode's network by the mode's own word.
                        "default" => (mode.clone(), settings(s)),
                        word => (word.to_owned(), settings(s)),
                    })
                    .collect(),
                network_mode: mode,
                published: ports::published(record),
                dns: DnsRequest {
                    servers: list(&host.dns),
                    search: list(&host.dns_search),
                    options: list(&host.dns_options),
                },
                task: record.task.clone(),
                tap_owner: (record.workload == Workload::Unikernel)
                    .then(|| unikernel::uid(&record.id)),
            }
        })
    }

    /// Writes the container's files and puts its plan together.
    pub(crate) async fn prepare(
        &self,
        container: &Arc<Container>,
        attachment: Attachment,
    ) -> Result<ContainerPlan, EngineError> {
        let etc_dir = match container.read(|r| r.shares_network_of().map(str::to_owned)) {
            Some(word) => Some(self.find(&word)?.dir.clone()),
            None => None,
        };
        let files = container.live(|live| live.files.clone());
        let memory = memory::dir(&self.inner.config.exec_root, &container.id);
        let engine = self.clone();
        let container = Arc::clone(container);
        let plan = brief("prepare a container", move || {
            let record = container.read(Record::clone);
            let layers = engine.layers(&container)?;
            if record.workload == Workload::Unikernel {
                let around = unikernel::tender_plan::Surroundings {
                    layers: &layers,
                    attachment: &attachment,
                    injected: &files,
                    memory: &memory,
                };
                return unikernel::tender_plan::container(
                    &engine,
                    &record,
                    &container.files(),
                    &around,
                );
            }
            if etc_dir.is_none() {
                write_etc(&container.files(), &record, &attachment)?;
            }
            let mut mounts = mount_plans(&engine, &record)?;
            mounts.extend(memory::write(&memory, &files)?);
            workload_plan::container(
                &record,
                workload_plan::Surroundings {
                    layers,
                    files: &container.files(),
                    etc: &Files(etc_dir.as_deref().unwrap_or(&container.dir)),
                    attachment: &attachment,
                    mounts,
                },
            )
        });
        plan.await
    }

    /// The directories of the container's image, the topmost first, and below them the layer of
    /// [`mount_points`].
    pub(crate) fn layers(&self, container: &Container) -> Result<Vec<PathBuf>, EngineError> {
        let (image, reference) =
            container.read(|record| (record.image_id.clone(), record.image.clone()));
        let missing = || EngineError::NoSuchImage { reference: reference.clone() };
        let id = ImageId::parse(&image).ok_or_else(missing)?;
        let mut layers = self
            .inner
            .images
            .mount_layers(&id)
            .map_err(|e| crate::create::image_error("mount", &reference, e))?;
        let exec_root = &self.inner.config.exec_root;
        let points = mount_points::layer(exec_root);
        layers.push(points.map_err(EngineError::io("make mount points below", exec_root))?);
        Ok(layers)
    }
}

/// The text and exit status of a start that failed inside, as Docker's clients match them.
pub(crate) fn start_error(container: &Container, source: RuntimeError) -> EngineError {
    let program = container.read(Record::argv).into_iter().next().unwrap_or_default();
    let said = fault::chain(&source);
    let (exit_code, words) = match source.failure_kind() {
        Some(FailureKind::ProgramNotFound) => {
            (127, format!("exec: \"{program}\": executable file not found in $PATH"))
        }
        Some(FailureKind::ProgramNotExecutable) => {
            (126, format!("exec: \"{program}\": permission denied"))
        }
        Some(_) => (128, String::new()),
        None => return runtime_error("start", container, source),
    };
    let reason = match words.as_str() {
        "" => said,
        words if said.contains(words) => said,
        words => format!("{words}: {said}"),
    };
    EngineError::Start { reason, exit_code }
}

pub(crate) fn runtime_error(
    action: &'static str,
    container: &Container,
    source: RuntimeError,
) -> EngineError {
    EngineError::Runtime { action, container: container.name(), source: Box::new(source) }
}

pub(crate) fn network_error(
    action: &'static str,
    container: &Container,
    source: crate::error::AttachError,
) -> EngineError {
    EngineError::Network { action, container: container.name(), source: Box::new(source) }
}

fn write_etc(
    files: &Files<'_>,
    record: &Record,
    attachment: &Attachment,
) -> Result<(), EngineError> {
    let hostname = record.config.hostname.clone().unwrap_or_default();
    let domain = record.config.domainname.clone().unwrap_or_default();
    let extra = record.host.extra_hosts.clone().unwrap_or_default();
    let write = |path: PathBuf, text: &str| {
        // In place: a bind mount of another container may show this very file.
        fs::write(&path, text).map_err(EngineError::io("write", &path))
    };
    write(files.hosts(), &files::hosts(&hostname, &domain, &extra, attachment))?;
    write(files.hostname(), &format!("{hostname}\n"))?;
    write(files.resolv_conf(), &attachment.resolv_conf)
}

fn mount_plans(engine: &Engine, record: &Record) -> Result<Vec<MountPlan>, EngineError> {
    for mount in &record.mounts {
        match &mount.source {
            MountSource::Bind { path, create: true, .. } if !Path::new(path).exists() => {
                fs::create_dir_all(path).map_err(EngineError::io("create the directory", path))?;
            }
            MountSource::Volume { name, labels, .. } => {
                // A volume that was removed by force since the creation comes back empty.
                engine.inner.volumes.create(name, labels.clone(), None, engine.now())?;
            }
            _ => {}
        }
    }
    Ok(record.mounts.iter().map(|m| m.plan(|name| engine.inner.volumes.path(name))).collect())
}
