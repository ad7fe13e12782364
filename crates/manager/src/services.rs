//! Services: create, update, roll back, remove.

use std::sync::Arc;

use shoal_model::change::{Change, Expect, Object, ObjectKey};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{NetworkId, Revision, ServiceId};
use shoal_model::object::{Endpoint, Meta, Service, UpdateState, UpdateStatus};
use shoal_model::spec::service::ServiceSpec;
use shoal_model::time::Timestamp;
use shoal_plan::validate;

use crate::control::{Control, ServiceCreated, ServiceUpdate, in_sequence, missing};
use crate::error::ControlError;
use crate::shared::RandomIds;

impl Control {
    /// Creates a service. `registry_auth` is the client's `X-Registry-Auth`, for the nodes' pulls.
    ///
    /// # Errors
    /// [`ControlError::Spec`] in Docker's words.
    pub async fn create_service(
        &self,
        mut spec: ServiceSpec,
        registry_auth: Option<String>,
    ) -> Result<ServiceCreated, ControlError> {
        set_auth(&mut spec, registry_auth);
        let id = ServiceId::generate(&mut RandomIds);
        self.shared
            .writer
            .write(move |state, _| {
                validate::new_service(state, &spec)?;
                let mut spec = spec.clone();
                resolve_networks(state, &mut spec);
                let warnings = warnings(state, &spec);
                let service = Service {
                    id: id.clone(),
                    meta: Meta::default(),
                    spec: Arc::new(spec),
                    spec_version: 1,
                    previous_spec: None,
                    endpoint: Endpoint::default(),
                    update_status: None,
                    allocation_error: None,
                    job_status: None,
                };
                let object = Object::Service(Box::new(service));
                let created = ServiceCreated { id: id.clone(), warnings };
                Ok((vec![Change::Put { object, expect: Expect::Absent }], created))
            })
            .await
    }

    /// Changes the service `id`, which the caller saw at `version`. Returns warnings.
    ///
    /// # Errors
    /// [`ControlError::OutOfSequence`] when somebody else changed it in between.
    pub async fn update_service(
        &self,
        id: &ServiceId,
        version: Revision,
        update: ServiceUpdate,
        registry_auth: Option<String>,
    ) -> Result<Vec<String>, ControlError> {
        let id = id.clone();
        self.shared
            .writer
            .write(move |state, now| {
                let known = state.services.get(&id).ok_or_else(|| missing("service", &id))?;
                in_sequence(known.meta, version)?;
                let next = match &update {
                    ServiceUpdate::Spec(spec) => {
                        changed(state, known, (**spec).clone(), registry_auth.clone())?
                    }
                    ServiceUpdate::Rollback => rolled_back(state, known, now)?,
                };
                let warnings = warnings(state, &next.spec);
                let expect = Expect::Version(known.meta.version);
                Ok((
                    vec![Change::Put { object: Object::Service(Box::new(next)), expect }],
                    warnings,
                ))
            })
            .await
    }

    /// Removes a service; its tasks end and go.
    ///
    /// # Errors
    /// [`ControlError::NotFound`].
    pub async fn remove_service(&self, id: &ServiceId) -> Result<(), ControlError> {
        let id = id.clone();
        self.shared
            .writer
            .write(move |state, _| {
                let service = state.services.get(&id).ok_or_else(|| missing("service", &id))?;
                let key = ObjectKey::Service(id.clone());
                let expect = Expect::Version(service.meta.version);
                Ok((vec![Change::Delete { key, expect }], ()))
            })
            .await
    }
}

fn changed(
    state: &ClusterState,
    known: &Arc<Service>,
    mut spec: ServiceSpec,
    registry_auth: Option<String>,
) -> Result<Service, ControlError> {
    validate::changed_service(state, known, &spec)?;
    resolve_networks(state, &mut spec);
    // Clients send the credentials only when they are asked to; without them the known ones stay.
    set_auth(&mut spec, registry_auth.or_else(|| auth_of(&known.spec)));
    let mut old = (*known.spec).clone();
    // Other credentials alone are no reason to replace tasks.
    set_auth(&mut old, auth_of(&spec));
    let mut next = (**known).clone();
    if validate::outdates_tasks(&old, &spec) {
        next.spec_version += 1;
        next.update_status = None;
    }
    next.previous_spec = Some(std::mem::replace(&mut next.spec, Arc::new(spec)));
    Ok(next)
}

fn rolled_back(
    state: &ClusterState,
    known: &Arc<Service>,
    now: Timestamp,
) -> Result<Service, ControlError> {
    let mut next = (**known).clone();
    let Some(previous) = next.previous_spec.take() else {
        return Err(ControlError::Precondition {
            message: format!("service {} does not have a previous spec", known.spec.name),
        });
    };
    // What only an earlier spec refers to may have been removed meanwhile.
    validate::check_existence(state, &previous)?;
    if validate::outdates_tasks(&next.spec, &previous) {
        next.spec_version += 1;
    }
    next.previous_spec = Some(std::mem::replace(&mut next.spec, previous));
    next.update_status = Some(UpdateStatus {
        state: UpdateState::RollbackStarted,
        started_at: now,
        completed_at: None,
        message: "manually requested rollback".to_owned(),
    });
    Ok(next)
}

/// Writes the networks' ids where the client said names, as Docker does.
fn resolve_networks(state: &ClusterState, spec: &mut ServiceSpec) {
    let lists = [&mut spec.task_template.networks, &mut spec.networks];
    for attachment in lists.into_iter().flatten().flatten() {
        let known = state.networks.contains_key(&NetworkId::new(attachment.target.as_str()));
        let named = || state.networks.values().find(|n| n.spec.name == attachment.target);
        if !known && let Some(network) = named() {
            attachment.target = network.id.to_string();
        }
    }
}

fn set_auth(spec: &mut ServiceSpec, auth: Option<String>) {
    if let Some(container) = spec.task_template.container_spec.as_mut() {
        container.set_registry_auth(auth);
    }
}

fn auth_of(spec: &ServiceSpec) -> Option<String> {
    let container = spec.task_template.container_spec.as_ref()?;
    container.registry_auth().map(str::to_owned)
}

/// What the user should know although the request is right.
fn warnings(state: &ClusterState, spec: &ServiceSpec) -> Vec<String> {
    let placement = spec.task_template.placement.as_ref();
    let suits =
        |n: &Arc<shoal_model::object::Node>| shoal_plan::constraint::constraints_hold(n, placement);
    if state.nodes.values().any(suits) {
        return Vec::new();
    }
    vec!["no node satisfies the placement constraints of this service".to_owned()]
}
