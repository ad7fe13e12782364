//! Secrets and configs: create, change labels, remove. Both are the same but for their names.

use shoal_model::change::{Change, Expect, Object, ObjectKey};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ConfigId, Revision, SecretId};
use shoal_model::object::{Config, Meta, Secret};
use shoal_model::spec::Extra;
use shoal_model::spec::payload::PayloadSpec;
use shoal_plan::validate;

use crate::control::{Control, in_sequence, missing};
use crate::error::ControlError;
use crate::requests::{ControlRequest, Outcome, PayloadId, done};
use crate::shared::RandomIds;

impl Control {
    /// Stores a new secret.
    ///
    /// # Errors
    /// [`ControlError::Spec`] in Docker's words.
    pub async fn create_secret(&self, spec: PayloadSpec) -> Result<SecretId, ControlError> {
        let id = SecretId::generate(&mut RandomIds);
        self.create_payload(PayloadId::Secret(id.clone()), spec).await?;
        Ok(id)
    }

    /// Changes the labels of a secret, which the caller saw at `version`.
    ///
    /// # Errors
    /// [`ControlError::Spec`] if anything else differs; [`ControlError::OutOfSequence`] when
    /// somebody else changed it in between.
    pub async fn update_secret(
        &self,
        id: &SecretId,
        version: Revision,
        spec: PayloadSpec,
    ) -> Result<(), ControlError> {
        self.update_payload(PayloadId::Secret(id.clone()), version, spec).await
    }

    /// Removes a secret that no service refers to.
    ///
    /// # Errors
    /// [`ControlError::Spec`] names the services that do.
    pub async fn remove_secret(&self, id: &SecretId) -> Result<(), ControlError> {
        self.remove_payload(PayloadId::Secret(id.clone())).await
    }

    /// Stores a new config.
    ///
    /// # Errors
    /// [`ControlError::Spec`] in Docker's words.
    pub async fn create_config(&self, spec: PayloadSpec) -> Result<ConfigId, ControlError> {
        let id = ConfigId::generate(&mut RandomIds);
        self.create_payload(PayloadId::Config(id.clone()), spec).await?;
        Ok(id)
    }

    /// Changes the labels of a config, which the caller saw at `version`.
    ///
    /// # Errors
    /// As [`Self::update_secret`].
    pub async fn update_config(
        &self,
        id: &ConfigId,
        version: Revision,
        spec: PayloadSpec,
    ) -> Result<(), ControlError> {
        self.update_payload(PayloadId::Config(id.clone()), version, spec).await
    }

    /// Removes a config that no service refers to.
    ///
    /// # Errors
    /// [`ControlError::Spec`] names the services that do.
    pub async fn remove_config(&self, id: &ConfigId) -> Result<(), ControlError> {
        self.remove_payload(PayloadId::Config(id.clone())).await
    }

    async fn create_payload(&self, id: PayloadId, spec: PayloadSpec) -> Result<(), ControlError> {
        self.ask(ControlRequest::CreatePayload { id, spec }).await.map(drop)
    }

    async fn update_payload(
        &self,
        id: PayloadId,
        version: Revision,
        spec: PayloadSpec,
    ) -> Result<(), ControlError> {
        self.ask(ControlRequest::UpdatePayload { id, version, spec }).await.map(drop)
    }

    async fn remove_payload(&self, id: PayloadId) -> Result<(), ControlError> {
        self.ask(ControlRequest::RemovePayload { id }).await.map(drop)
    }
}

impl PayloadId {
    fn key(&self) -> ObjectKey {
        match self {
            Self::Secret(id) => ObjectKey::Secret(id.clone()),
            Self::Config(id) => ObjectKey::Config(id.clone()),
        }
    }

    /// A new one.
    fn object(&self, spec: PayloadSpec) -> Object {
        let (meta, extra) = (Meta::default(), Extra::new());
        match self {
            Self::Secret(id) => {
                Object::Secret(Box::new(Secret { id: id.clone(), meta, spec, extra }))
            }
            Self::Config(id) => {
                Object::Config(Box::new(Config { id: id.clone(), meta, spec, extra }))
            }
        }
    }

    /// The known one with another spec.
    fn changed(&self, state: &ClusterState, spec: PayloadSpec) -> Option<Object> {
        match self {
            Self::Secret(id) => state
                .secrets
                .get(id)
                .map(|known| Object::Secret(Box::new(Secret { spec, ..(**known).clone() }))),
            Self::Config(id) => state
                .configs
                .get(id)
                .map(|known| Object::Config(Box::new(Config { spec, ..(**known).clone() }))),
        }
    }

    fn find<'s>(&self, state: &'s ClusterState) -> Option<(Meta, &'s PayloadSpec)> {
        match self {
            Self::Secret(id) => state.secrets.get(id).map(|known| (known.meta, &known.spec)),
            Self::Config(id) => state.configs.get(id).map(|known| (known.meta, &known.spec)),
        }
    }

    fn known<'s>(&self, state: &'s ClusterState) -> Result<(Meta, &'s PayloadSpec), ControlError> {
        self.find(state).ok_or_else(|| match self {
            Self::Secret(id) => missing("secret", id),
            Self::Config(id) => missing("config", id),
        })
    }
}

pub(crate) fn create(state: &ClusterState, id: &PayloadId, spec: &PayloadSpec) -> Outcome {
    if id.find(state).is_some() {
        return done(Vec::new());
    }
    match id {
        PayloadId::Secret(_) => validate::new_secret(state, spec)?,
        PayloadId::Config(_) => validate::new_config(state, spec)?,
    }
    let object = id.object(spec.clone());
    done(vec![Change::Put { object, expect: Expect::Absent }])
}

pub(crate) fn update(
    state: &ClusterState,
    id: &PayloadId,
    version: Revision,
    spec: &PayloadSpec,
) -> Outcome {
    let (meta, known) = id.known(state)?;
    in_sequence(meta, version)?;
    validate::changed_payload(known, spec)?;
    let mut next = known.clone();
    next.labels.clone_from(&spec.labels);
    let expect = Expect::Version(meta.version);
    let object = id.changed(state, next);
    done(object.map(|object| Change::Put { object, expect }).into_iter().collect())
}

pub(crate) fn remove(state: &ClusterState, id: &PayloadId) -> Outcome {
    let (meta, _) = id.known(state)?;
    match id {
        PayloadId::Secret(id) => {
            state.secrets.get(id).map_or(Ok(()), |s| validate::removable_secret(state, s))?;
        }
        PayloadId::Config(id) => {
            state.configs.get(id).map_or(Ok(()), |c| validate::removable_config(state, c))?;
        }
    }
    done(vec![Change::Delete { key: id.key(), expect: Expect::Version(meta.version) }])
}
