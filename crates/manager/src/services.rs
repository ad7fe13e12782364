//! Services: create, update, roll back, remove.

use std::sync::Arc;

use shoal_model::change::{Change, Expect, Object, ObjectKey};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{NetworkId, Revision, ServiceId};
use shoal_model::object::{Endpoint, Meta, Service, UpdateState, UpdateStatus};
use shoal_model::spec::Extra;
use shoal_model::spec::service::ServiceSpec;
use shoal_model::time::Timestamp;
use shoal_plan::validate;

use crate::control::{Control, ServiceCreated, ServiceUpdate, in_sequence, missing};
use crate::error::ControlError;
use crate::requests::{ControlReply, ControlRequest, Outcome, done};
use crate::shared::RandomIds;

impl Control {
    /// Creates a service. `registry_auth` is the client's `X-Registry-Auth`, for the nodes' pulls.
    ///
    /// # Errors
    /// [`ControlError::Spec`] in Docker's words.
    pub async fn create_service(
        &self,
        spec: ServiceSpec,
        registry_auth: Option<String>,
    ) -> Result<ServiceCreated, ControlError> {
        let id = ServiceId::generate(&mut RandomIds);
        let (of, spec) = (id.clone(), Box::new(spec));
        let request = ControlRequest::CreateService { id: of, spec, registry_auth };
        Ok(ServiceCreated { id, warnings: self.ask(request).await?.warnings() })
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
        let request = ControlRequest::UpdateService { id, version, update, registry_auth };
        Ok(self.ask(request).await?.warnings())
    }

    /// Removes a service; its tasks end and go.
    ///
    /// # Errors
    /// [`ControlError::NotFound`].
    pub async fn remove_service(&self, id: &ServiceId) -> Result<(), ControlError> {
        self.ask(ControlRequest::RemoveService { id: id.clone() }).await.map(drop)
    }
}

pub(crate) fn create(
    state: &ClusterState,
    id: &ServiceId,
    spec: &ServiceSpec,
    registry_auth: Option<&String>,
) -> Outcome {
    let mut spec = spec.clone();
    set_auth(&mut spec, registry_auth.cloned());
    if let Some(known) = state.services.get(id) {
        return Ok((Vec::new(), warned(state, &known.spec)));
    }
    validate::new_service(state, &spec)?;
    resolve_networks(state, &mut spec);
    let reply = warned(state, &spec);
    let service = Service {
        id: id.clone(),
        meta: Meta::default(),
        spec: Arc::new(spec),
        spec_version: Service::FIRST_SPEC_VERSION,
        previous_spec: None,
        endpoint: Endpoint::default(),
        update_status: None,
        allocation_error: None,
        job_status: None,
        extra: Extra::new(),
    };
    let object = Object::Service(Box::new(service));
    Ok((vec![Change::Put { object, expect: Expect::Absent }], reply))
}

/// Changes the service that the caller saw at a version.
pub(crate) fn update(
    state: &ClusterState,
    now: Timestamp,
    (id, version): (&ServiceId, Revision),
    update: &ServiceUpdate,
    registry_auth: Option<&String>,
) -> Outcome {
    let known = state.services.get(id).ok_or_else(|| missing("service", id))?;
    in_sequence(known.meta, version)?;
    let next = match update {
        ServiceUpdate::Spec(spec) => {
            changed(state, known, (**spec).clone(), registry_auth.cloned())?
        }
        ServiceUpdate::Rollback => rolled_back(state, known, now)?,
    };
    let reply = warned(state, &next.spec);
    let expect = Expect::Version(known.meta.version);
    Ok((vec![Change::Put { object: Object::Service(Box::new(next)), expect }], reply))
}

pub(crate) fn remove(state: &ClusterState, id: &ServiceId) -> Outcome {
    let service = state.services.get(id).ok_or_else(|| missing("service", id))?;
    let expect = Expect::Version(service.meta.version);
    done(vec![Change::Delete { key: ObjectKey::Service(id.clone()), expect }])
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
fn warned(state: &ClusterState, spec: &ServiceSpec) -> ControlReply {
    let placement = spec.task_template.placement.as_ref();
    let suits =
        |n: &Arc<shoal_model::object::Node>| shoal_plan::constraint::constraints_hold(n, placement);
    let mut warnings = Vec::new();
    if !state.nodes.values().any(suits) {
        warnings.push("no node satisfies the placement constraints of this service".to_owned());
    }
    ControlReply::Warnings { warnings }
}
