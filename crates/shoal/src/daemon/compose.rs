//! The parts of a node, in the order in which they start; they stop in the opposite order.

use std::ffi::OsString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use shoal_agent::agent::{Agent, AgentConfig};
use shoal_api::adapter;
use shoal_api::backend::ApiState;
use shoal_api::server::changes::Changes;
use shoal_api::server::listen::{Host, Listener};
use shoal_api::server::sessions::Sessions;
use shoal_engine::config::{EngineConfig, system_clock};
use shoal_engine::engine::Engine;
use shoal_engine::request::ShutdownMode;
use shoal_image::store::{ImageStore, StoreOptions};
use shoal_model::fault::{Fault, report};
use shoal_model::id::InstanceId;
use shoal_model::time::Timestamp;
use shoal_network::node_network::{NetworkConfig, NodeNetwork};
use shoal_node::node::{Node, NodeConfig};
use shoal_runtime::{ContainerRuntime, RuntimeConfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::abilities::Abilities;
use super::health::Health;
use super::https::Https;
use super::networks::Networks;
use super::settings::Settings;
use super::swarm::Membership;
use super::visitors::Visitors;
use super::{facts, lock};
use crate::doctor::Checkup;

/// How long containers get when the daemon is told to stop; the rest is killed.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Everything below the API.
struct Parts {
    network: NodeNetwork,
    agent: Agent,
    engine: Engine,
    images: ImageStore,
    node: Node,
    checkup: Checkup,
    abilities: Abilities,
    instance: InstanceId,
    started_at: Timestamp,
}

/// Runs the node until a signal, then stops it.
pub async fn run(settings: &Settings) -> Result<()> {
    let mut term = signal(SignalKind::terminate()).context("watch for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("watch for SIGINT")?;
    let listeners = listen(settings).await?;
    let parts = start(settings).await?;
    let stop = CancellationToken::new();
    let (abilities, agent) = (parts.abilities.clone(), parts.agent.clone());
    let looked_after = async move { abilities.keep(|| agent.describe_again()).await };
    tokio::spawn(stop.clone().run_until_cancelled_owned(looked_after));
    let state = Arc::new(api_state(settings, &parts));
    parts.agent.serve_streams(Arc::new(Visitors(state.clone())));
    let mut server = tokio::spawn(shoal_api::server::serve(listeners, state, stop.clone()));
    tracing::info!(hosts = ?settings.hosts, name = settings.node_name, "node is up");
    let ended = tokio::select! {
        ended = &mut server => Some(ended),
        _ = term.recv() => None,
        _ = int.recv() => None,
    };
    tracing::info!("node is stopping");
    stop.cancel();
    let ended = match ended {
        Some(ended) => ended,
        None => server.await,
    };
    shut_down(settings, parts).await;
    ended.context("serve the API")?.map_err(fault)
}

/// Sockets come first: a clash is found before anything else is touched.
async fn listen(settings: &Settings) -> Result<Vec<Listener>> {
    let tls = match &settings.tls {
        Some(files) => Some(files.acceptor().map_err(fault)?),
        None => None,
    };
    let mut listeners = Vec::new();
    for text in &settings.hosts {
        let host = Host::parse(text).map_err(fault)?;
        listeners.push(Listener::bind(&host, tls.clone()).await.map_err(fault)?);
    }
    Ok(listeners)
}

async fn start(settings: &Settings) -> Result<Parts> {
    let clock = match settings.clock_offset {
        0 => system_clock(),
        offset => Arc::new(move || Timestamp(now().0 + i64::from(offset) * 1_000_000_000)),
    };
    let started_at = clock();
    let instance = lock::instance_of(&settings.data_root, &settings.exec_root)?;
    let program = std::env::current_exe().context("find this program")?;
    let network = NodeNetwork::open(NetworkConfig {
        instance: instance.clone(),
        exec_root: settings.exec_root.clone(),
        host_netns: None,
        program: Some(program.clone()),
    })
    .await
    .map_err(fault)?;
    let checkup = Checkup::of_node(&network, &settings.data_root);
    // Tried before the node takes its first task: what it cannot do is part of its description.
    let abilities = Abilities::find(checkup.clone()).await?;
    let describe = {
        let (name, labels) = (settings.node_name.clone(), settings.labels.clone());
        let (generic, abilities) = (settings.generic_resources.clone(), abilities.clone());
        Arc::new(move || facts::describe_host(&name, &labels, &generic, abilities.found()))
    };
    let agent_config =
        AgentConfig { data_root: settings.data_root.clone(), clock: Arc::clone(&clock), describe };
    let agent = Agent::open(agent_config, network.clone()).map_err(fault)?;
    let store_options = StoreOptions {
        root: settings.data_root.join("images"),
        insecure_registries: settings.insecure_registries.clone(),
        clock: now,
    };
    let images = tokio::task::spawn_blocking(move || ImageStore::open(store_options))
        .await
        .context("open the images")?
        .map_err(fault)?;
    let runtime = ContainerRuntime::new(RuntimeConfig {
        instance: instance.clone(),
        exec_root: settings.exec_root.clone(),
        tender: vec![program.to_string_lossy().into_owned(), "tender".to_owned()],
        helper: vec![program.into_os_string(), OsString::from("shim")],
    })
    .context("prepare the containers' run-time directory")?;
    let engine_config = EngineConfig {
        data_root: settings.data_root.clone(),
        exec_root: settings.exec_root.clone(),
        instance: instance.clone(),
        default_init: settings.default_init,
    };
    let attacher = Arc::new(agent.clone());
    let engine = Engine::open(engine_config, images.clone(), runtime, attacher, Arc::clone(&clock))
        .await
        .map_err(fault)?;
    agent.start(engine.clone(), images.clone());
    engine.resume().await;
    let node_config = NodeConfig {
        data_root: settings.data_root.clone(),
        default_advertise: settings.default_advertise.clone(),
        clock,
        https: Arc::new(Https),
        cert_expiry_min: settings.cert_expiry_min,
    };
    let node = Node::open(node_config, agent.clone()).await.map_err(fault)?;
    Ok(Parts { network, agent, engine, images, node, checkup, abilities, instance, started_at })
}

fn api_state(settings: &Settings, parts: &Parts) -> ApiState {
    let health = Health {
        engine: parts.engine.clone(),
        images: parts.images.clone(),
        agent: parts.agent.clone(),
        node: parts.node.clone(),
    };
    let checked = health.clone();
    let networks = Arc::new(Networks {
        agent: parts.agent.clone(),
        instance: parts.instance.clone(),
        checkup: parts.checkup.clone().with_damage(move || checked.warnings()),
        health,
    });
    let facts = facts::facts(settings, &parts.instance, parts.started_at, &parts.abilities.found());
    ApiState {
        facts,
        swarm: Arc::new(Membership { node: parts.node.clone(), clock: Arc::new(now) }),
        containers: Arc::new(adapter::engine::EngineBackend::new(parts.engine.clone())),
        volumes: Arc::new(adapter::engine::EngineBackend::new(parts.engine.clone())),
        images: Arc::new(adapter::image::StoreBackend::new(
            parts.images.clone(),
            parts.engine.clone(),
        )),
        networks: networks.clone(),
        events: Arc::new(adapter::engine::EngineBackend::new(parts.engine.clone())),
        diagnostics: networks,
        clock: Arc::new(now),
        sessions: Sessions::default(),
        changes: Changes::default(),
    }
}

/// Tells the cluster, stops the containers and takes the network down with them; or, if they are to
/// live on, says that the daemon will be back soon.
async fn shut_down(settings: &Settings, parts: Parts) {
    let mode = if settings.live_restore {
        parts.agent.say_back_soon().await;
        ShutdownMode::Keep
    } else {
        parts.agent.say_leave().await;
        parts.agent.daemon_stops().await;
        ShutdownMode::Stop(STOP_GRACE)
    };
    parts.engine.shutdown(mode).await;
    parts.node.shutdown().await;
    parts.agent.stop().await;
    parts.network.close().await;
    if !settings.live_restore
        && let Err(error) = parts.network.teardown().await
    {
        tracing::warn!(cause = report(&error), "part of the network could not be removed");
    }
}

fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    Timestamp(since.map_or(0, |span| i64::try_from(span.as_nanos()).unwrap_or(i64::MAX)))
}

/// A fault as the user reads it: chain, remedy, id.
fn fault(error: impl Fault) -> anyhow::Error {
    anyhow::anyhow!(report(&error))
}
