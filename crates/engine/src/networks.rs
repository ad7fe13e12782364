//! Networks of containers, as far as the engine has to do with them.

use std::sync::Arc;

use shoal_life::container::Event;
use shoal_model::id::NetworkId;
use shoal_model::spec::container::EndpointSettings;

use crate::attacher::{Attachment, EndpointInfo, NetworkName};
use crate::change::ContainerChange;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::start::network_error;

/// What a running unikernel's single interface does not take part in.
const CHANGE: &str = "change the networks of";
/// What serves instead.
const RESTART: &str = "'docker stop' before the change and 'docker start' after it";

impl Engine {
    /// Adds a network to a container: at once if it runs, else from its next start on.
    ///
    /// # Errors
    /// There is no such network, it is on it already, or it has the host's network.
    pub async fn connect_network(
        &self,
        word: &str,
        network: &str,
        settings: EndpointSettings,
    ) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let mode = container.read(|record| record.network_mode().to_owned());
        if mode == "host" || mode.starts_with("container:") {
            return Err(EngineError::invalid(format!(
                "container cannot be connected to a network: it has the network mode '{mode}'"
            )));
        }
        let found = self.inner.attacher.check_network(network).await;
        let found = found.map_err(|e| network_error("find the network", &container, e))?;
        let engine = self.clone();
        self.owned(async move { engine.connect_here(&container, found, mode, settings).await })
            .await
    }

    async fn connect_here(
        &self,
        container: &Arc<Container>,
        found: NetworkName,
        mode: String,
        settings: EndpointSettings,
    ) -> Result<(), EngineError> {
        let _turn = container.turn().await?;
        if container.phase().is_alive() {
            container.needs_container(CHANGE, RESTART)?;
            let before = container.read(|record| record.run.attachment.clone());
            let word = found.id.as_str();
            let connected =
                self.inner.attacher.connect(&container.id, word, settings.clone()).await;
            let after = connected.map_err(|e| network_error("connect", container, e))?;
            self.note_networks(container, "connect", &difference(&after, before.as_ref()));
            container.change(|record| record.run.attachment = Some(after));
        }
        container.change(|record| {
            let wanted = &mut record.networking.endpoints_config;
            if wanted.is_empty() {
                // Without an entry the mode's network was meant; with one it has to be said.
                wanted.insert(mode, None);
            }
            wanted.insert(found.name, Some(settings));
        });
        // What was done is so, whether it can be written down now or later.
        container.report(Event::Changed).await;
        Ok(())
    }

    /// Takes a network from a container.
    ///
    /// # Errors
    /// It is not on that network.
    pub async fn disconnect_network(
        &self,
        word: &str,
        network: &str,
        force: bool,
    ) -> Result<(), EngineError> {
        let container = self.find(word)?;
        let (engine, network) = (self.clone(), network.to_owned());
        self.owned(async move { engine.disconnect_here(&container, &network, force).await }).await
    }

    async fn disconnect_here(
        &self,
        container: &Arc<Container>,
        network: &str,
        force: bool,
    ) -> Result<(), EngineError> {
        let _turn = container.turn().await?;
        let found = match self.inner.attacher.check_network(network).await {
            Ok(found) => found.name,
            // A network that is gone can still be taken out of the wishes.
            Err(_) if force => network.to_owned(),
            Err(error) => return Err(network_error("find the network", container, error)),
        };
        if container.phase().is_alive() {
            container.needs_container(CHANGE, RESTART)?;
            let before = container.read(|record| record.run.attachment.clone());
            let disconnected = self.inner.attacher.disconnect(&container.id, network).await;
            let after = disconnected.map_err(|e| network_error("disconnect", container, e))?;
            if let Some(before) = before {
                self.note_networks(container, "disconnect", &difference(&before, Some(&after)));
            }
            container.change(|record| record.run.attachment = Some(after));
        }
        container.change(|record| {
            let was_mode = record.network_mode() == found;
            // The CLI names the mode's network `default`.
            let same =
                |word: &str| word == found || word == network || was_mode && word == "default";
            record.networking.endpoints_config.retain(|word, _| !same(word));
            if was_mode {
                let next = record.networking.endpoints_config.keys().next().cloned();
                record.host.network_mode = Some(next.unwrap_or_else(|| "none".into()));
            }
        });
        // What was done is so, whether it can be written down now or later.
        container.report(Event::Changed).await;
        Ok(())
    }

    /// Containers that are attached to a network now: for `network inspect` and for the check
    /// whether a network is in use.
    pub async fn on_network(&self, network: &NetworkId) -> Vec<(ContainerChange, EndpointInfo)> {
        let mut found = Vec::new();
        for container in self.all() {
            let endpoint = container.read(|record| {
                let attachment = record.run.attachment.as_ref()?;
                attachment.endpoints.iter().find(|e| e.network_id == *network).cloned()
            });
            if let Some(endpoint) = endpoint {
                found.push((container.facts(false), endpoint));
            }
        }
        found
    }
}

/// The endpoints of `some` that `others` does not have.
fn difference(some: &Attachment, others: Option<&Attachment>) -> Attachment {
    let known = |id: &NetworkId| {
        others.is_some_and(|others| others.endpoints.iter().any(|e| e.network_id == *id))
    };
    let endpoints = some.endpoints.iter().filter(|e| !known(&e.network_id)).cloned().collect();
    Attachment { endpoints, ..Attachment::default() }
}
