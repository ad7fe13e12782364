//! Starting a container: network, files, shim, process; and undoing all of it when a step fails.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use shoal_image::digest::ImageId;
use shoal_model::fault;
use shoal_model::net::{Port, Protocol};
use shoal_model::spec::container::{EndpointSettings, HostConfig, PortBinding};
use shoal_runtime::plan::{ContainerPlan, MountPlan};
use shoal_runtime::protocol::FailureKind;
use shoal_runtime::{RuntimeError, Shim};
use tokio_util::sync::CancellationToken;

use crate::attacher::{AttachRequest, Attachment, DnsRequest, PublishRequest};
use crate::change::Phase;
use crate::container::{Container, PendingAttach};
use crate::engine::{Engine, blocking};
use crate::error::EngineError;
use crate::mounts::MountSource;
use crate::record::{Files, Record};
use crate::request::InjectedFile;
use crate::unikernel::{self, Workload};
use crate::{files, health, memory, plan};

impl Engine {
    /// Starts a container.
    ///
    /// # Errors
    /// It runs already ([`EngineError::NotModified`]), its network cannot be attached, its program
    /// cannot be run ([`EngineError::Start`]).
    pub async fn start(&self, word: &str) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let gate = Arc::clone(&container.gate);
        let _turn = gate.lock().await;
        check_startable(&container)?;
        container.change(|record| {
            record.run.stopped_by_user = false;
            record.run.restarts = 0;
            record.run.quick_ends = 0;
        });
        self.start_here(&container).await
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

    /// Removes what a start wrote for the container's memory file system: it is of use only while
    /// the container runs, and the next start writes it anew.
    pub(crate) async fn drop_memory_files(&self, container: &Container) -> Result<(), EngineError> {
        let dir = memory::dir(&self.inner.config.exec_root, &container.id);
        blocking("remove memory files", move || memory::remove(&dir)).await
    }

    /// Starts a container whose gate the caller holds.
    pub(crate) async fn start_here(&self, container: &Arc<Container>) -> Result<(), EngineError> {
        if self.inner.stopping.is_cancelled() {
            return Err(EngineError::ShuttingDown);
        }
        container.live(|live| {
            if let Some(restart) = live.restart.take() {
                restart.cancel();
            }
        });
        match self.try_start(container).await {
            Ok(shim) => self.started(container, shim).await,
            Err(error) => {
                self.undo_start(container, &error).await?;
                Err(error)
            }
        }
    }

    async fn try_start(&self, container: &Arc<Container>) -> Result<Shim, EngineError> {
        let attachment = self.attach_networks(container).await?;
        container.change(|record| record.run.attachment = Some(attachment.clone()));
        self.save(container).await?;
        self.note_networks(container, "connect", &attachment);
        let plan = self.prepare(container, attachment).await?;
        let shim = self.create_shim(container, &plan).await?;
        for pending in container.live(|live| std::mem::take(&mut live.pending)) {
            join(container, &shim, pending).await?;
        }
        let pid = shim.start().await.map_err(|source| start_error(container, source))?;
        container.change(|record| record.run.pid = pid);
        Ok(shim)
    }

    async fn create_shim(
        &self,
        container: &Container,
        plan: &ContainerPlan,
    ) -> Result<Shim, EngineError> {
        let fail = |source| runtime_error("make", container, source);
        match self.inner.runtime.create(plan).await {
            Err(RuntimeError::Exists { .. }) => {
                // Left by an end whose clean-up failed; the gate is ours, so nothing uses it.
                let old = self.inner.runtime.connect(&container.id).await.map_err(fail)?;
                old.delete().await.map_err(fail)?;
                self.inner.runtime.create(plan).await.map_err(fail)
            }
            other => other.map_err(fail),
        }
    }

    async fn started(&self, container: &Arc<Container>, shim: Shim) -> Result<(), EngineError> {
        let now = self.now();
        let run = CancellationToken::new();
        container.change(|record| {
            record.run.phase = Phase::Running;
            record.run.exit_code = 0;
            record.run.error.clear();
            record.run.oom_killed = false;
            record.run.started_at = now;
            record.run.health = health::starting(record);
        });
        container.live(|live| {
            live.shim = Some(shim.clone());
            live.run = run.clone();
        });
        self.inner.images.set_running(&container.id, true);
        self.save(container).await?;
        self.note_volume_use(container, "mount");
        self.note(container, "start", &[]);
        self.publish(container, false);
        self.watch(container, shim, run);
        Ok(())
    }

    /// Takes back whatever a failed start has made, and records why it failed.
    async fn undo_start(
        &self,
        container: &Arc<Container>,
        error: &EngineError,
    ) -> Result<(), EngineError> {
        let leftover = match self.inner.runtime.connect(&container.id).await {
            Ok(shim) => shim.delete().await.err(),
            Err(_) => None,
        };
        let leftover = leftover.map(|error| fault::chain(&error));
        let dropped = self.drop_memory_files(container).await.err();
        let released = self.release_networks(container).await.err();
        let own = [dropped, released].into_iter().flatten().map(|error| fault::chain(&error));
        let further: Vec<String> = leftover.into_iter().chain(own).collect();
        container.change(|record| {
            record.run.pid = 0;
            record.run.error = fault::report(error);
            for text in &further {
                record.run.error.push_str("; then: ");
                record.run.error.push_str(text);
            }
            record.run.exit_code = match error {
                EngineError::Start { exit_code, .. } => *exit_code,
                _ => 128,
            };
            if record.run.phase != Phase::Created {
                record.run.phase = Phase::Exited;
            }
        });
        // Clients that attached before the start see the end of their stream.
        container.live(|live| live.pending.clear());
        self.save(container).await?;
        self.publish(container, false);
        if container.read(Record::auto_remove) {
            self.spawn_removal(container);
        }
        Ok(())
    }

    /// What the network side is asked for.
    pub(crate) fn attach_request(&self, container: &Container) -> AttachRequest {
        container.read(|record| {
            let mode = record.network_mode().to_owned();
            let settings = |s: &Option<EndpointSettings>| s.clone().unwrap_or_default();
            let list = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
            let host = &record.host;
            AttachRequest {
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
                published: published(record),
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

    async fn attach_networks(&self, container: &Container) -> Result<Attachment, EngineError> {
        if let Some(word) = container.read(|r| r.shares_network_of().map(str::to_owned)) {
            let other = self.find(&word)?;
            if !other.phase().is_alive() {
                return Err(EngineError::conflict(format!(
                    "cannot join network of a non running container: {}",
                    other.id
                )));
            }
            let theirs = other.read(|record| record.run.attachment.clone()).unwrap_or_default();
            let netns = theirs.netns;
            return Ok(Attachment { netns, ..Attachment::default() });
        }
        let request = self.attach_request(container);
        let attached = self.inner.attacher.attach(request).await;
        attached.map_err(|source| network_error("attach the networks", container, source))
    }

    /// Releases what [`Self::attach_networks`] made, and says so.
    pub(crate) async fn release_networks(&self, container: &Container) -> Result<(), EngineError> {
        let Some(attachment) = container.read(|record| record.run.attachment.clone()) else {
            return Ok(());
        };
        if container.read(|record| record.shares_network_of().is_none()) {
            let released = self.inner.attacher.detach(&container.id).await;
            released.map_err(|e| network_error("release the networks", container, e))?;
            self.note_networks(container, "disconnect", &attachment);
        }
        container.change(|record| record.run.attachment = None);
        Ok(())
    }

    /// Writes the container's files and puts its plan together.
    async fn prepare(
        &self,
        container: &Arc<Container>,
        attachment: Attachment,
    ) -> Result<ContainerPlan, EngineError> {
        let layers = self.layers(container)?;
        let etc_dir = match container.read(|r| r.shares_network_of().map(str::to_owned)) {
            Some(word) => Some(self.find(&word)?.dir.clone()),
            None => None,
        };
        let files = container.live(|live| live.files.clone());
        let memory = memory::dir(&self.inner.config.exec_root, &container.id);
        let engine = self.clone();
        let container = Arc::clone(container);
        let plan = blocking("prepare a container", move || {
            let record = container.read(Record::clone);
            if record.workload == Workload::Unikernel {
                let around = unikernel::plan::Surroundings {
                    layers: &layers,
                    attachment: &attachment,
                    injected: &files,
                    memory: &memory,
                };
                return unikernel::plan::container(&engine, &record, &container.files(), &around);
            }
            if etc_dir.is_none() {
                write_etc(&container.files(), &record, &attachment)?;
            }
            let mut mounts = mount_plans(&engine, &record)?;
            mounts.extend(memory::write(&memory, &files)?);
            plan::container(
                &record,
                plan::Surroundings {
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

    /// The directories of the container's image.
    pub(crate) fn layers(&self, container: &Container) -> Result<Vec<PathBuf>, EngineError> {
        let (image, reference) =
            container.read(|record| (record.image_id.clone(), record.image.clone()));
        let missing = || EngineError::NoSuchImage { reference: reference.clone() };
        let id = ImageId::parse(&image).ok_or_else(missing)?;
        self.inner
            .images
            .mount_layers(&id)
            .map_err(|e| crate::create::image_error("mount", &reference, e))
    }
}

fn check_startable(container: &Container) -> Result<(), EngineError> {
    match container.phase() {
        Phase::Running => {
            Err(EngineError::NotModified { message: "Container already started".into() })
        }
        Phase::Paused => {
            Err(EngineError::conflict("cannot start a paused container, try unpause instead"))
        }
        Phase::Removing | Phase::Dead => {
            Err(EngineError::conflict("container is marked for removal and cannot be started"))
        }
        Phase::Created | Phase::Restarting | Phase::Exited => Ok(()),
    }
}

/// Joins a client that attached before the start.
async fn join(
    container: &Container,
    shim: &Shim,
    pending: PendingAttach,
) -> Result<(), EngineError> {
    if pending.ready.is_closed() {
        return Ok(());
    }
    let streams = shim
        .attach(pending.stdin, pending.stdout, pending.stderr)
        .await
        .map_err(|source| runtime_error("attach to", container, source))?;
    // Ignored because: a client that just went away loses nothing.
    let _ = pending.ready.send(streams);
    Ok(())
}

/// The text and exit status of a start that failed inside, as Docker's clients match them.
fn start_error(container: &Container, source: RuntimeError) -> EngineError {
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

/// The ports that a container wants on the host.
fn published(record: &Record) -> Vec<PublishRequest> {
    let mut wanted = published_by_hand(&record.host);
    if record.host.publish_all_ports.unwrap_or(false) {
        let exposed = record.config.exposed_ports.iter().flatten();
        for container in exposed.filter_map(|(port, _)| parse_port(port)) {
            if !wanted.iter().any(|p| p.container == container) {
                let any = PublishRequest {
                    container,
                    host_ip: None,
                    host_port: None,
                    host_port_last: None,
                };
                wanted.push(any);
            }
        }
    }
    wanted
}

fn published_by_hand(host: &HostConfig) -> Vec<PublishRequest> {
    let mut wanted = Vec::new();
    for (port, bindings) in host.port_bindings.iter().flatten() {
        let Some(container) = parse_port(port) else { continue };
        for binding in bindings.iter().flatten() {
            let PortBinding { host_ip, host_port } = binding;
            let (first, last) = host_port.split_once('-').unwrap_or((host_port, host_port));
            let number = |text: &str| text.parse::<u16>().ok().filter(|n| *n != 0);
            wanted.push(PublishRequest {
                container,
                host_ip: host_ip.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified()),
                host_port: number(first),
                host_port_last: number(last),
            });
        }
    }
    wanted
}

/// Reads `80/tcp` or `80`.
pub(crate) fn parse_port(text: &str) -> Option<Port> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some(Port { protocol, number: number.parse().ok().filter(|n| *n != 0)? })
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn port_bindings_become_requests() {
        let host: HostConfig = serde_json::from_value(serde_json::json!({"PortBindings": {
            "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostPort": "9000-9010"}],
            "53/udp": [{"HostIp": "", "HostPort": ""}],
            "99/odd": [{}], "81/tcp": null,
        }}))
        .unwrap();
        let wanted = published_by_hand(&host);
        let lines: Vec<String> = wanted
            .iter()
            .map(|p| {
                format!("{} {:?} {:?}-{:?}", p.container, p.host_ip, p.host_port, p.host_port_last)
            })
            .collect();
        assert_eq!(
            lines,
            [
                "53/udp None None-None",
                "80/tcp Some(127.0.0.1) Some(8080)-Some(8080)",
                "80/tcp None Some(9000)-Some(9010)",
            ]
        );
    }
}
