//! Backends for tests: a cluster that is a real [`ClusterState`] without consensus and agents, and
//! containers that exist on paper only. The server in front of them is the real one.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, dead_code)]

pub mod containers;
pub mod server;
pub mod swarm;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::{self, BoxStream};
use serde_json::{Value, json};
use shoal_api::backend::container::{ByteStream, VolumeBackend, VolumeCreate};
use shoal_api::backend::image::{ImageBackend, ImportRequest, Progress, PullRequest};
use shoal_api::backend::network::{LocalNetwork, NetworkBackend};
use shoal_api::backend::system::{Diagnostics, EventBackend, EventQuery};
use shoal_api::error::{ApiError, ApiResult};
use shoal_model::check::{CheckResult, Need, Verdict};
use shoal_model::event::{Event, Scope};
use shoal_model::filter::Filters;
use shoal_model::id::NetworkId;
use shoal_model::spec::network::NetworkSpec;
use shoal_model::time::Timestamp;

#[async_trait]
impl VolumeBackend for containers::Containers {
    async fn list(&self, _: &Filters) -> ApiResult<Value> {
        Ok(json!({ "Volumes": [], "Warnings": null }))
    }
    async fn list_with_usage(&self) -> ApiResult<Value> {
        Ok(json!([]))
    }
    async fn create(&self, volume: VolumeCreate) -> ApiResult<Value> {
        Ok(json!({ "Name": volume.name }))
    }
    async fn inspect(&self, name: &str) -> ApiResult<Value> {
        Err(ApiError::not_found(format!("get {name}: no such volume")))
    }
    async fn remove(&self, _: &str, _: bool) -> ApiResult<()> {
        Ok(())
    }
    async fn prune(&self, _: &Filters) -> ApiResult<Value> {
        panic!("volumes cannot be pruned here")
    }
}

pub struct Images;

fn no_image(word: &str) -> ApiError {
    ApiError::not_found(format!("No such image: {word}"))
}

#[async_trait]
impl ImageBackend for Images {
    async fn list(&self, _: bool, _: &Filters) -> ApiResult<Value> {
        Ok(json!([{
            "Id": "sha256:00", "ParentId": "", "RepoTags": ["demo:latest"], "RepoDigests": [],
            "Created": 1_500_000_000, "Size": 42, "SharedSize": -1, "Labels": {}, "Containers": 0,
        }]))
    }
    async fn inspect(&self, word: &str) -> ApiResult<Value> {
        if word == "team/demo" { Ok(json!({ "Id": "sha256:00" })) } else { Err(no_image(word)) }
    }
    async fn history(&self, word: &str) -> ApiResult<Value> {
        Err(no_image(word))
    }
    async fn pull(&self, pull: PullRequest) -> ApiResult<Progress> {
        if pull.reference.contains("gone") {
            return Ok(stream::iter([Err(ApiError::not_found("manifest unknown"))]).boxed());
        }
        Ok(stream::iter([
            Ok(json!({ "status": format!("Pulling {}", pull.reference) })),
            Err(ApiError::internal("verify the layer: digest mismatch")),
        ])
        .boxed())
    }
    async fn import(&self, _: ImportRequest, _: ByteStream) -> ApiResult<Progress> {
        Err(ApiError::missing("import"))
    }
    async fn load(&self, _: bool, mut body: ByteStream) -> ApiResult<Progress> {
        let mut size = 0;
        while let Some(piece) = body.next().await {
            size += piece.map_err(|e| ApiError::invalid(e.to_string()))?.len();
        }
        Ok(stream::iter([Ok(json!({ "stream": format!("Loaded {size} bytes\n") }))]).boxed())
    }
    async fn save(&self, _: &[String]) -> ApiResult<ByteStream> {
        Ok(Box::pin(stream::iter([Ok(Bytes::from_static(b"tar"))])))
    }
    async fn tag(&self, word: &str, _: &str) -> ApiResult<()> {
        Err(no_image(word))
    }
    async fn remove(&self, word: &str, _: bool, _: bool) -> ApiResult<Value> {
        Err(no_image(word))
    }
    async fn prune(&self, _: &Filters) -> ApiResult<Value> {
        Ok(json!({ "ImagesDeleted": null, "SpaceReclaimed": 0 }))
    }
    async fn push(&self, reference: &str, _: Option<String>) -> ApiResult<Progress> {
        Err(no_image(reference))
    }
    async fn distribution(&self, _: &str, _: Option<&str>) -> ApiResult<Value> {
        Err(ApiError::not_found("no registry here"))
    }
    async fn login(&self, _: Value) -> ApiResult<Value> {
        Err(ApiError::missing("login"))
    }
    async fn count(&self) -> usize {
        1
    }
}

pub struct Networks;

#[async_trait]
impl NetworkBackend for Networks {
    fn list(&self) -> Vec<LocalNetwork> {
        ["bridge", "host", "none"]
            .iter()
            .zip(["bridge", "host", "null"])
            .map(|(name, driver)| LocalNetwork {
                id: format!("{name:0<64}"),
                created: Timestamp::from_secs(1_500_000_000),
                driver: driver.to_owned(),
                spec: NetworkSpec { name: (*name).to_owned(), ..NetworkSpec::default() },
                subnets: Vec::new(),
                predefined: true,
            })
            .collect()
    }
    async fn create(&self, _: NetworkSpec) -> ApiResult<NetworkId> {
        Ok(NetworkId::new("b".repeat(64)))
    }
    async fn remove(&self, _: &NetworkId) -> ApiResult<()> {
        Ok(())
    }
    fn members(&self, _: &NetworkId) -> serde_json::Map<String, Value> {
        serde_json::Map::new()
    }
}

impl EventBackend for containers::Containers {
    fn subscribe(&self, query: EventQuery) -> ApiResult<BoxStream<'static, Event>> {
        query.filters.only(&["type"])?;
        let event = Event {
            kind: "container".into(),
            action: "start".into(),
            id: "c".repeat(64),
            attributes: [("name".to_owned(), "web".to_owned())].into(),
            scope: Scope::Local,
            time: Timestamp(1_500_000_000_000_000_001),
        };
        let past = stream::iter([event]);
        Ok(if query.until.is_some() { past.boxed() } else { past.chain(stream::pending()).boxed() })
    }
    fn publish(&self, _: Event) {}
}

pub struct Checks;

#[async_trait]
impl Diagnostics for Checks {
    async fn checks(&self) -> ApiResult<Vec<CheckResult>> {
        Ok(vec![CheckResult {
            id: "SH-DOC-001".into(),
            name: "vxlan device".into(),
            verdict: Verdict::Ok,
            detail: "made and removed".into(),
            remedy: String::new(),
            needed_for: Need::Overlay,
        }])
    }
    async fn network(&self) -> ApiResult<Value> {
        Ok(json!({ "Networks": [] }))
    }
    async fn warnings(&self) -> Vec<String> {
        vec!["the layer x is gone".into(), "a record is damaged".into()]
    }
}
