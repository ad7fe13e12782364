//! The founding scenario, step by step.

use anyhow::{Context, Result};
use bytes::Bytes;
use shoal_image::builder::{FileSpec, ImageSpec};
use shoal_model::spec::container::{ContainerConfig, Words};

use super::DemoArgs;
use super::report::Report;
use super::steps;
use super::topology::Topology;
use crate::client::Api;

/// The image of every step: this program as its only layer.
pub const IMAGE: &str = "shoal:demo";
/// The network of the scenario.
pub const NETWORK: &str = "mynet1";
/// The service of the scenario.
pub const SERVICE: &str = "mytest";
/// The service whose tasks ask.
pub const CLIENTS: &str = "client";
/// The published port of the scenario.
pub const PORT: u16 = 8091;

/// What every step uses.
pub struct Stage<'a> {
    /// The machines.
    pub topology: &'a Topology,
    /// The nodes' APIs.
    pub apis: Vec<Api>,
    /// What is printed.
    pub report: Report,
    /// How often as long as on a machine of today things may take.
    pub slower: u32,
}

impl Stage<'_> {
    /// The first node: the manager.
    pub fn manager(&self) -> Result<&Api> {
        self.apis.first().context("there is no node")
    }

    /// Name and address of each node.
    pub fn nodes(&self) -> Result<Vec<(String, String)>> {
        let mut list = Vec::new();
        for node in &self.topology.nodes {
            let node = node.lock().map_err(|_| anyhow::anyhow!("a step panicked"))?;
            list.push((node.name.clone(), node.address.clone()));
        }
        Ok(list)
    }
}

/// Runs all steps; fails if one could not be carried out or a claim did not hold.
pub async fn run(topology: &Topology, args: &DemoArgs) -> Result<()> {
    let report = Report::new(args.json);
    let mut stage = Stage { topology, apis: Vec::new(), report, slower: args.slower };
    steps::start_nodes(&mut stage).await?;
    steps::load_image(&mut stage, image_archive().await?).await?;
    steps::init(&mut stage).await?;
    steps::join(&mut stage).await?;
    steps::create_network(&mut stage).await?;
    steps::create_service(&mut stage).await?;
    steps::create_clients(&mut stage).await?;
    steps::resolve(&mut stage).await?;
    steps::ask_virtual_address(&mut stage).await?;
    steps::ask_published_port(&mut stage).await?;
    steps::scale(&mut stage).await?;
    steps::lose_a_node(&mut stage).await?;
    if !args.keep {
        steps::remove_service(&mut stage).await?;
    }
    stage.report.finish()
}

/// The image as `docker load` reads it.
async fn image_archive() -> Result<Bytes> {
    let program = std::env::current_exe().context("find this program")?;
    let build = move || -> Result<Bytes> {
        let words = |list: &[&str]| Words::List(list.iter().map(|w| (*w).to_owned()).collect());
        let spec = ImageSpec {
            name: IMAGE.to_owned(),
            files: vec![
                FileSpec::host("/shoal", 0o755, program),
                FileSpec::directory("/tmp", 0o1777),
            ],
            config: ContainerConfig {
                entrypoint: Some(words(&["/shoal"])),
                cmd: Some(words(&["try", "whoami"])),
                ..ContainerConfig::default()
            },
        };
        let mut archive = Vec::new();
        spec.write_archive(&mut archive).map_err(|error| anyhow::anyhow!(error))?;
        Ok(Bytes::from(archive))
    };
    tokio::task::spawn_blocking(build).await.context("build the image")?
}
