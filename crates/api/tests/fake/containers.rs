//! Containers on paper: each echoes its input on standard output and says `done` on standard error.

use shoal_model::filter::Filters;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::{Value, json};
use shoal_api::backend::container::*;
use shoal_api::error::{ApiError, ApiResult};
use shoal_api::http::frame::Channel;
use shoal_model::log::LogSelection;
use shoal_model::spec::container::{ContainerCreate, EndpointSettings};
use shoal_model::time::Timestamp;
use tokio::sync::{mpsc, watch};

#[derive(Default)]
pub struct Containers {
    all: Mutex<BTreeMap<String, Arc<One>>>,
    /// The container, and whether the program is missing.
    execs: Mutex<BTreeMap<String, (String, bool)>>,
    pub calls: Mutex<Vec<String>>,
    /// While it is closed, creates wait.
    pub closed: watch::Sender<bool>,
}

struct One {
    name: String,
    spec: ContainerCreate,
    ended: watch::Sender<Option<i64>>,
    started: watch::Sender<bool>,
}

impl Containers {
    fn find(&self, word: &str) -> ApiResult<(String, Arc<One>)> {
        let all = self.all.lock().unwrap();
        let hit = all.iter().find(|(id, one)| id.starts_with(word) || one.name == word);
        hit.map(|(id, one)| (id.clone(), one.clone()))
            .ok_or_else(|| ApiError::not_found(format!("No such container: {word}")))
    }
    fn note(&self, call: &str) {
        self.calls.lock().unwrap().push(call.to_owned());
    }
}

/// Echoes until the end of input, then says `done` on standard error.
fn echo(
    tty: bool,
    wants_input: bool,
    started: watch::Receiver<bool>,
    end: impl FnOnce() + Send + 'static,
) -> Stdio {
    let (typed, mut input) = mpsc::channel::<Bytes>(8);
    let (print, output) = mpsc::channel(8);
    tokio::spawn(async move {
        let mut started = started;
        started.wait_for(|on| *on).await.unwrap();
        while let Some(bytes) = input.recv().await {
            print.send((Channel::Stdout, bytes)).await.unwrap();
        }
        print.send((Channel::Stderr, Bytes::from_static(b"done\n"))).await.unwrap();
        end();
    });
    let output = stream::unfold(output, |mut o| async move { o.recv().await.map(|f| (f, o)) });
    Stdio { tty, output: output.boxed(), input: wants_input.then_some(typed) }
}

#[async_trait]
impl ContainerBackend for Containers {
    fn fresh_name(&self, attempt: u32) -> String {
        format!("fresh_{attempt}")
    }
    async fn create(&self, spec: ContainerCreate, by: CreateBy) -> ApiResult<Value> {
        self.note("create");
        self.closed.subscribe().wait_for(|closed| !*closed).await.unwrap();
        if spec.config.image.as_deref() != Some("demo") {
            let image = spec.config.image.unwrap_or_default();
            return Err(ApiError::not_found(format!("No such image: {image}")));
        }
        let mut all = self.all.lock().unwrap();
        let id = format!("{:0>64x}", all.len() + 0xabc);
        let one = One {
            name: by.name.unwrap_or_else(|| format!("c{}", all.len())),
            spec,
            ended: watch::channel(None).0,
            started: watch::channel(false).0,
        };
        all.insert(id.clone(), Arc::new(one));
        Ok(json!({ "Id": id, "Warnings": [] }))
    }
    async fn list(&self, query: ContainerList) -> ApiResult<Value> {
        query.filters.only(&["name", "label", "status"])?;
        let all = self.all.lock().unwrap();
        Ok(all
            .iter()
            .map(|(id, one)| {
                json!({
                    "Id": id, "Names": [format!("/{}", one.name)], "Image": "demo",
                    "ImageID": "sha256:00", "Command": "sh", "Created": 1_500_000_000,
                    "Ports": [], "Labels": {}, "State": "running", "Status": "Up 2 seconds",
                    "HostConfig": { "NetworkMode": "bridge" },
                    "NetworkSettings": { "Networks": {} }, "Mounts": [],
                })
            })
            .collect())
    }
    async fn inspect(&self, word: &str, _: bool) -> ApiResult<Value> {
        let (id, one) = self.find(word)?;
        let tty = one.spec.config.tty.unwrap_or(false);
        let running = *one.started.borrow() && one.ended.borrow().is_none();
        Ok(json!({
            "Id": id, "Name": format!("/{}", one.name),
            "Config": {
                "Tty": tty,
                "OpenStdin": one.spec.config.attach_stdin,
                "Labels": one.spec.config.labels,
            },
            "ExecIDs": ["e1"],
            "State": { "Running": running, "ExitCode": 0 },
            "HostConfig": { "LogConfig": { "Type": "json-file", "Config": {} } },
        }))
    }
    async fn start(&self, word: &str) -> ApiResult<()> {
        self.note("start");
        let one = self.find(word)?.1;
        if one.started.send_replace(true) {
            return Err(ApiError::not_modified());
        }
        if !one.spec.config.attach_stdin.unwrap_or(false) {
            one.ended.send_replace(Some(7));
        }
        Ok(())
    }
    async fn stop(&self, word: &str, _: StopHow) -> ApiResult<()> {
        self.find(word)?.1.ended.send_replace(Some(137));
        Ok(())
    }
    async fn restart(&self, word: &str, _: StopHow) -> ApiResult<()> {
        self.find(word).map(|_| ())
    }
    async fn kill(&self, word: &str, _: &str) -> ApiResult<()> {
        self.find(word).map(|_| ())
    }
    async fn pause(&self, word: &str) -> ApiResult<()> {
        self.find(word).map(|_| ())
    }
    async fn unpause(&self, word: &str) -> ApiResult<()> {
        self.find(word).map(|_| ())
    }
    async fn rename(&self, word: &str, _: &str) -> ApiResult<()> {
        self.find(word).map(|_| ())
    }
    async fn update(&self, word: &str, _: Value) -> ApiResult<Value> {
        self.find(word).map(|_| json!({ "Warnings": null }))
    }
    async fn remove(&self, word: &str, _: RemoveHow) -> ApiResult<()> {
        let (id, _) = self.find(word)?;
        self.all.lock().unwrap().remove(&id);
        Ok(())
    }
    async fn wait(&self, word: &str, _: &str) -> ApiResult<WaitFuture> {
        self.note("wait");
        let one = self.find(word)?.1;
        let mut ended = one.ended.subscribe();
        Ok(Box::pin(async move {
            let status = ended.wait_for(Option::is_some).await.unwrap().unwrap();
            Ok(WaitEnd { status })
        }))
    }
    async fn logs(&self, word: &str, _: LogSelection) -> ApiResult<Logs> {
        self.find(word)?;
        let at = Timestamp(1_500_000_000_000_000_000);
        let line = |stderr, text: &'static [u8]| {
            Ok(LogPiece { at, stderr, line: Bytes::from_static(text) })
        };
        let lines = stream::iter([line(false, b"out\n"), line(true, b"err\n")]);
        Ok(Logs { tty: false, details: vec!["a=b".into()], lines: lines.boxed() })
    }
    async fn attach(&self, word: &str, how: AttachHow) -> ApiResult<Stdio> {
        self.note("attach");
        let one = self.find(word)?.1;
        let started = one.started.subscribe();
        let tty = one.spec.config.tty.unwrap_or(false);
        let end = move || {
            one.ended.send_replace(Some(3));
        };
        Ok(echo(tty, how.stdin, started, end))
    }
    async fn resize(&self, word: &str, _: TerminalSize) -> ApiResult<()> {
        self.find(word).map(|_| ())
    }
    async fn top(&self, word: &str, _: &str) -> ApiResult<Value> {
        self.find(word)?;
        Ok(json!({ "Titles": ["PID", "CMD"], "Processes": [["1", "sh"]] }))
    }
    async fn stats(
        &self,
        word: &str,
        _: bool,
        _: bool,
    ) -> ApiResult<BoxStream<'static, ApiResult<Value>>> {
        self.find(word)?;
        Ok(stream::iter([Ok(json!({ "id": word }))]).boxed())
    }
    async fn changes(&self, word: &str) -> ApiResult<Value> {
        self.find(word).map(|_| json!([]))
    }
    async fn export(&self, word: &str) -> ApiResult<ByteStream> {
        self.find(word)?;
        Ok(Box::pin(stream::iter([Ok(Bytes::from_static(b"tar"))])))
    }
    async fn stat_path(&self, word: &str, path: &str) -> ApiResult<Value> {
        self.find(word).map(|_| json!({ "name": path }))
    }
    async fn get_archive(&self, word: &str, path: &str) -> ApiResult<(Value, ByteStream)> {
        self.find(word)?;
        let tar: ByteStream = Box::pin(stream::iter([Ok(Bytes::from_static(b"tar"))]));
        Ok((json!({ "name": path }), tar))
    }
    async fn put_archive(&self, word: &str, _: PutArchive, _: ByteStream) -> ApiResult<()> {
        self.find(word).map(|_| ())
    }
    async fn prune(&self, _: &Filters) -> ApiResult<Value> {
        Ok(json!({ "ContainersDeleted": [], "SpaceReclaimed": 0 }))
    }
    async fn exec_create(&self, word: &str, spec: ExecCreate) -> ApiResult<String> {
        let (container, _) = self.find(word)?;
        let mut execs = self.execs.lock().unwrap();
        let id = format!("{:0>64x}", execs.len() + 0xeee);
        execs.insert(id.clone(), (container, spec.cmd.first().is_some_and(|c| c == "missing")));
        Ok(id)
    }
    async fn exec_facts(&self, id: &str) -> ApiResult<ExecFacts> {
        let execs = self.execs.lock().unwrap();
        execs
            .get(id)
            .map(|_| ExecFacts { tty: false })
            .ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))
    }
    async fn exec_start(&self, id: &str, _: ExecStart) -> ApiResult<Option<Stdio>> {
        if self.execs.lock().unwrap()[id].1 {
            return Err(ApiError::invalid("exec: \"missing\": executable file not found in $PATH"));
        }
        let (_keep, started) = watch::channel(true);
        Ok(Some(echo(false, true, started, || {})))
    }
    async fn exec_inspect(&self, id: &str) -> ApiResult<Value> {
        let found = self.execs.lock().unwrap().get(id).cloned();
        let missing = || ApiError::not_found(format!("No such exec instance: {id}"));
        let (container, missing) = found.ok_or_else(missing)?;
        let code = if missing { 127 } else { 7 };
        Ok(json!({ "ID": id, "Running": false, "ExitCode": code, "ContainerID": container }))
    }
    async fn exec_resize(&self, _: &str, _: TerminalSize) -> ApiResult<()> {
        Ok(())
    }
    async fn connect(&self, word: &str, _: &str, _: EndpointSettings) -> ApiResult<()> {
        self.find(word).map(|_| ())
    }
    async fn disconnect(&self, word: &str, _: &str, _: bool) -> ApiResult<()> {
        self.find(word).map(|_| ())
    }
}
