//! [`ContainerBackend`], [`VolumeBackend`] and [`EventBackend`] by the engine.

use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use serde_json::{Value, json};
use shoal_engine::engine::{Engine, ListOptions};
use shoal_engine::events::EventQuery as EngineEventQuery;
use shoal_engine::request::{
    AttachOptions, CreateOptions, ExecCreate as EngineExec, ExecStart as EngineStart, Grace,
    PutOptions, RemoveOptions, StopOptions, UpdateRequest, WaitCondition,
};
use shoal_engine::stream::{StdStream, StdioSession};
use shoal_engine::view::volume::VolumeCreate as EngineVolume;
use shoal_model::event::Event;
use shoal_model::filter::Filters;
use shoal_model::log::LogSelection;
use shoal_model::spec::container::{ContainerCreate, EndpointSettings, Words};
use tokio_util::io::StreamReader;

use crate::backend::container::{
    AttachHow, ByteStream, ContainerBackend, ContainerList, CreateBy, ExecCreate, ExecFacts,
    ExecStart, LogPiece, Logs, PutArchive, RemoveHow, Stdio, StopHow, TerminalSize, VolumeBackend,
    VolumeCreate, WaitEnd, WaitFuture,
};
use crate::backend::system::{EventBackend, EventQuery};
use crate::error::{ApiError, ApiResult};
use crate::http::frame::Channel;

/// The engine as the routes see it.
#[derive(Clone)]
pub struct EngineBackend(Engine);

impl EngineBackend {
    /// Wraps the engine's handle.
    #[must_use]
    pub fn new(engine: Engine) -> Self {
        Self(engine)
    }
}

fn to_json<T: Serialize>(value: T) -> ApiResult<Value> {
    serde_json::to_value(value).map_err(|e| ApiError::internal(format!("write as JSON: {e}")))
}

fn stop_options(how: StopHow) -> StopOptions {
    StopOptions { signal: how.signal, grace: how.timeout.map(Grace::from_secs) }
}

fn channel(stream: StdStream) -> Channel {
    match stream {
        StdStream::Stdout => Channel::Stdout,
        StdStream::Stderr => Channel::Stderr,
        StdStream::System => Channel::SystemErr,
    }
}

fn stdio(session: StdioSession) -> Stdio {
    let output = session.output.map(|frame| (channel(frame.stream), frame.data)).boxed();
    Stdio { tty: session.tty, output, input: session.input }
}

fn byte_stream(stream: shoal_engine::stream::ByteStream) -> ByteStream {
    Box::pin(stream.map_err(|e| std::io::Error::other(shoal_model::fault::report(&e))))
}

#[async_trait]
impl ContainerBackend for EngineBackend {
    fn fresh_name(&self, attempt: u32) -> String {
        shoal_engine::names::random(attempt)
    }

    async fn create(&self, spec: ContainerCreate, by: CreateBy) -> ApiResult<Value> {
        let options =
            CreateOptions { name: by.name, platform: by.platform, ..CreateOptions::default() };
        to_json(self.0.create(spec, options).await?)
    }

    async fn list(&self, query: ContainerList) -> ApiResult<Value> {
        let options = ListOptions {
            all: query.all,
            limit: query.limit.and_then(|limit| usize::try_from(limit).ok()),
            size: query.size,
            filters: query.filters,
        };
        to_json(self.0.list(options).await?)
    }

    async fn inspect(&self, word: &str, size: bool) -> ApiResult<Value> {
        to_json(self.0.inspect(word, size).await?)
    }

    async fn knows(&self, word: &str) -> bool {
        self.0.knows(word)
    }

    async fn start(&self, word: &str) -> ApiResult<()> {
        Ok(self.0.start(word).await?)
    }

    async fn stop(&self, word: &str, how: StopHow) -> ApiResult<()> {
        Ok(self.0.stop(word, stop_options(how)).await?)
    }

    async fn restart(&self, word: &str, how: StopHow) -> ApiResult<()> {
        Ok(self.0.restart(word, stop_options(how)).await?)
    }

    async fn kill(&self, word: &str, signal: &str) -> ApiResult<()> {
        Ok(self.0.kill(word, Some(signal)).await?)
    }

    async fn pause(&self, word: &str) -> ApiResult<()> {
        Ok(self.0.pause(word).await?)
    }

    async fn unpause(&self, word: &str) -> ApiResult<()> {
        Ok(self.0.unpause(word).await?)
    }

    async fn rename(&self, word: &str, name: &str) -> ApiResult<()> {
        Ok(self.0.rename(word, name).await?)
    }

    async fn update(&self, word: &str, change: Value) -> ApiResult<Value> {
        let request: UpdateRequest = serde_json::from_value(change)
            .map_err(|e| ApiError::invalid(format!("read the update: {e}")))?;
        let warnings = self.0.update(word, request).await?;
        Ok(json!({ "Warnings": warnings }))
    }

    async fn remove(&self, word: &str, how: RemoveHow) -> ApiResult<()> {
        let options = RemoveOptions { force: how.force, volumes: how.volumes };
        Ok(self.0.remove(word, options).await?)
    }

    async fn wait(&self, word: &str, condition: &str) -> ApiResult<WaitFuture> {
        let handle = self.0.wait(word, WaitCondition::parse(condition)?).await?;
        Ok(Box::pin(async move {
            let outcome = handle.outcome().await?;
            Ok(WaitEnd { status: outcome.status_code })
        }))
    }

    async fn logs(&self, word: &str, wanted: LogSelection) -> ApiResult<Logs> {
        let session = self.0.logs(word, wanted).await?;
        let lines = session.lines.map(|entry| {
            let entry = entry?;
            let stderr = entry.stream == StdStream::Stderr;
            Ok(LogPiece { at: entry.time, stderr, line: entry.line })
        });
        Ok(Logs { tty: session.tty, details: session.details, lines: lines.boxed() })
    }

    async fn attach(&self, word: &str, how: AttachHow) -> ApiResult<Stdio> {
        let options = AttachOptions {
            logs: how.logs,
            stream: how.stream,
            stdin: how.stdin,
            stdout: how.stdout,
            stderr: how.stderr,
            detach_keys: how.detach_keys,
        };
        Ok(stdio(self.0.attach(word, options).await?))
    }

    async fn resize(&self, word: &str, size: TerminalSize) -> ApiResult<()> {
        Ok(self.0.resize(word, size.rows, size.columns).await?)
    }

    async fn top(&self, word: &str, ps_args: &str) -> ApiResult<Value> {
        let args = (!ps_args.is_empty()).then_some(ps_args);
        to_json(self.0.top(word, args).await?)
    }

    async fn stats(
        &self,
        word: &str,
        stream: bool,
        one_shot: bool,
    ) -> ApiResult<BoxStream<'static, ApiResult<Value>>> {
        if one_shot {
            let sample = self.0.stats(word).await?;
            return Ok(stream::once(async move { to_json(sample) }).boxed());
        }
        let samples = self.0.stats_stream(word).await?.map(to_json);
        // A single sample without `one-shot` has a predecessor, so that clients can compute rates.
        Ok(if stream { samples.boxed() } else { samples.skip(1).take(1).boxed() })
    }

    async fn changes(&self, word: &str) -> ApiResult<Value> {
        to_json(self.0.fs_changes(word).await?)
    }

    async fn export(&self, word: &str) -> ApiResult<ByteStream> {
        Ok(byte_stream(self.0.export(word).await?))
    }

    async fn stat_path(&self, word: &str, path: &str) -> ApiResult<Value> {
        to_json(self.0.archive_stat(word, path).await?)
    }

    async fn get_archive(&self, word: &str, path: &str) -> ApiResult<(Value, ByteStream)> {
        let (stat, tar) = self.0.archive_get(word, path).await?;
        Ok((to_json(stat)?, byte_stream(tar)))
    }

    async fn put_archive(&self, word: &str, put: PutArchive, body: ByteStream) -> ApiResult<()> {
        let options = PutOptions {
            no_overwrite_dir_non_dir: put.no_overwrite_dir_non_dir,
            copy_uid_gid: put.copy_uid_gid,
        };
        let reader = Box::new(StreamReader::new(body));
        Ok(self.0.archive_put(word, &put.path, options, reader).await?)
    }

    async fn prune(&self, filters: &Filters) -> ApiResult<Value> {
        to_json(self.0.prune_containers(filters).await?)
    }

    async fn exec_create(&self, word: &str, spec: ExecCreate) -> ApiResult<String> {
        let some = |text: String| (!text.is_empty()).then_some(text);
        let body = EngineExec {
            attach_stdin: spec.attach_stdin,
            attach_stdout: spec.attach_stdout,
            attach_stderr: spec.attach_stderr,
            detach_keys: some(spec.detach_keys),
            tty: spec.tty,
            env: Some(spec.env),
            cmd: Some(Words::List(spec.cmd)),
            privileged: spec.privileged,
            user: some(spec.user),
            working_dir: some(spec.working_dir),
            console_size: spec.console_size,
        };
        Ok(self.0.exec_create(word, body).await?)
    }

    async fn exec_facts(&self, id: &str) -> ApiResult<ExecFacts> {
        let exec = self.0.exec_inspect(id).await?;
        if exec.running || exec.exit_code.is_some() {
            return Err(ApiError::conflict(format!("exec {id} has already run")));
        }
        Ok(ExecFacts { tty: exec.process_config.tty })
    }

    async fn exec_start(&self, id: &str, start: ExecStart) -> ApiResult<Option<Stdio>> {
        let body =
            EngineStart { detach: start.detach, tty: start.tty, console_size: start.console_size };
        Ok(self.0.exec_start(id, body).await?.map(stdio))
    }

    async fn exec_inspect(&self, id: &str) -> ApiResult<Value> {
        to_json(self.0.exec_inspect(id).await?)
    }

    async fn exec_resize(&self, id: &str, size: TerminalSize) -> ApiResult<()> {
        Ok(self.0.exec_resize(id, size.rows, size.columns).await?)
    }

    async fn connect(
        &self,
        word: &str,
        network: &str,
        settings: EndpointSettings,
    ) -> ApiResult<()> {
        Ok(self.0.connect_network(word, network, settings).await?)
    }

    async fn disconnect(&self, word: &str, network: &str, force: bool) -> ApiResult<()> {
        Ok(self.0.disconnect_network(word, network, force).await?)
    }
}

#[async_trait]
impl VolumeBackend for EngineBackend {
    async fn list(&self, filters: &Filters) -> ApiResult<Value> {
        let volumes = self.0.list_volumes(filters).await?;
        Ok(json!({ "Volumes": to_json(volumes)?, "Warnings": null }))
    }

    async fn list_with_usage(&self) -> ApiResult<Value> {
        let filters = shoal_model::filter::Filters::default();
        let mut volumes = to_json(self.0.list_volumes(&filters).await?)?;
        for volume in volumes.as_array_mut().into_iter().flatten() {
            let Some(members) = volume.as_object_mut() else { continue };
            members.entry("UsageData").or_insert(json!({ "Size": -1, "RefCount": -1 }));
        }
        Ok(volumes)
    }

    async fn create(&self, volume: VolumeCreate) -> ApiResult<Value> {
        let body = EngineVolume {
            name: volume.name,
            driver: volume.driver,
            driver_opts: volume.driver_opts,
            labels: volume.labels,
            cluster_volume_spec: volume.cluster_volume_spec,
        };
        to_json(self.0.create_volume(body).await?)
    }

    async fn inspect(&self, name: &str) -> ApiResult<Value> {
        to_json(self.0.inspect_volume(name).await?)
    }

    async fn remove(&self, name: &str, force: bool) -> ApiResult<()> {
        Ok(self.0.remove_volume(name, force).await?)
    }

    async fn prune(&self, filters: &Filters) -> ApiResult<Value> {
        to_json(self.0.prune_volumes(filters).await?)
    }
}

impl EventBackend for EngineBackend {
    fn subscribe(&self, query: EventQuery) -> ApiResult<BoxStream<'static, Event>> {
        let query =
            EngineEventQuery { since: query.since, until: query.until, filters: query.filters };
        Ok(self.0.events().subscribe(query)?)
    }

    fn publish(&self, event: Event) {
        self.0.events().publish(event);
    }
}
