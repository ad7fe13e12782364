//! Changing what a container is: its name, its limits, its restart policy.

use std::sync::Arc;

use shoal_life::container::Event;
use shoal_model::spec::StringMap;

use crate::admission::{check_limits, check_restart, is_unset};
use crate::change::Phase;
use crate::container::Container;
use crate::engine::Engine;
use crate::error::EngineError;
use crate::request::UpdateRequest;
use crate::start::runtime_error;
use crate::{names, plan};

/// What a new memory limit does not do to a unikernel.
const HEAP_STAYS: &str = "the limit is in force; the heap of a unikernel follows at its next start";

impl Engine {
    /// Gives a container another name.
    ///
    /// # Errors
    /// The name is not allowed or in use.
    pub async fn rename(&self, word: &str, name: &str) -> Result<(), EngineError> {
        let container = self.find(word)?;
        if name.is_empty() {
            return Err(EngineError::invalid("Neither old nor new names may be empty"));
        }
        let name = names::check(name)?;
        let engine = self.clone();
        self.owned(async move { engine.rename_here(&container, name).await }).await
    }

    async fn rename_here(
        &self,
        container: &Arc<Container>,
        name: String,
    ) -> Result<(), EngineError> {
        let _turn = container.turn().await?;
        let old = container.name();
        if old == name {
            return Err(EngineError::invalid(
                "Renaming a container with the same name as its current name",
            ));
        }
        self.reserve(&name, &container.id)?;
        container.change(|record| record.name.clone_from(&name));
        if let Err(error) = self.save(container).await {
            container.change(|record| record.name.clone_from(&old));
            self.release_name(&name, &container.id);
            return Err(error);
        }
        self.release_name(&old, &container.id);
        self.note(container, "rename", &[("oldName", format!("/{old}"))]);
        self.publish(container, false);
        Ok(())
    }

    /// Changes limits and restart policy, also while it runs. Gives warnings.
    ///
    /// # Errors
    /// A value that cannot be right, or that the kernel refuses; nothing is changed then.
    pub async fn update(
        &self,
        word: &str,
        request: UpdateRequest,
    ) -> Result<Vec<String>, EngineError> {
        let container = self.find(word)?;
        if let Some((name, _)) = request.extra.iter().find(|(_, value)| !is_unset(value)) {
            return Err(EngineError::missing(format!("update of {name}")));
        }
        let engine = self.clone();
        self.owned(async move { engine.update_here(&container, request).await }).await
    }

    async fn update_here(
        &self,
        container: &Arc<Container>,
        request: UpdateRequest,
    ) -> Result<Vec<String>, EngineError> {
        let _turn = container.turn().await?;
        if matches!(container.phase(), Phase::Removing | Phase::Dead) {
            return Err(EngineError::conflict(
                "container is marked for removal and cannot be updated",
            ));
        }
        let mut host = container.read(|record| record.host.clone());
        let heap_stays = request.memory.is_some_and(|n| n != 0) && container.is_unikernel();
        // The CLI sends zero for what it does not change.
        let set = |slot: &mut Option<i64>, value: Option<i64>| {
            if value.is_some_and(|n| n != 0) {
                *slot = value;
            }
        };
        set(&mut host.memory, request.memory);
        set(&mut host.memory_swap, request.memory_swap);
        set(&mut host.nano_cpus, request.nano_cpus);
        set(&mut host.cpu_shares, request.cpu_shares);
        set(&mut host.cpu_period, request.cpu_period);
        set(&mut host.cpu_quota, request.cpu_quota);
        set(&mut host.pids_limit, request.pids_limit);
        if let Some(policy) = request.restart_policy.filter(|policy| !policy.name.is_empty()) {
            check_restart(Some(&policy), host.auto_remove.unwrap_or(false))?;
            host.restart_policy = Some(policy);
        }
        check_limits(&host)?;
        if let Ok(shim) = container.running_shim() {
            let limits = plan::limits(&host);
            let updated = shim.update(limits).await;
            updated.map_err(|e| runtime_error("change the limits of", container, e))?;
        }
        container.change(|record| record.host = host);
        // What was done is so, whether it can be written down now or later.
        container.report(Event::Changed).await;
        self.note(container, "update", &[]);
        Ok(if heap_stays { vec![HEAP_STAYS.to_owned()] } else { Vec::new() })
    }

    /// Labels of a container.
    ///
    /// # Errors
    /// No such container.
    pub async fn labels(&self, word: &str) -> Result<StringMap, EngineError> {
        let container = self.find(word)?;
        Ok(container.read(|record| record.config.labels.clone().unwrap_or_default()))
    }
}
