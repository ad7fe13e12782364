//! Secrets and configs: create, change labels, remove. Both are the same but for their names.

use std::fmt::Display;
use std::sync::Arc;

use shoal_model::change::{Change, Expect, Object, ObjectKey};
use shoal_model::cluster_state::ClusterState;
use shoal_model::id::{ConfigId, Revision, SecretId};
use shoal_model::object::{Config, Meta, Secret};
use shoal_model::spec::payload::PayloadSpec;
use shoal_plan::validate::{self, SpecError};

use crate::control::{Control, in_sequence, missing};
use crate::error::ControlError;
use crate::shared::RandomIds;

/// A secret or a config.
trait Kept: Clone + Send + 'static {
    type Id: Clone + Display + Send + 'static;
    const KIND: &'static str;

    fn fresh_id() -> Self::Id;
    fn new(id: Self::Id, spec: PayloadSpec) -> Self;
    fn find<'s>(state: &'s ClusterState, id: &Self::Id) -> Option<&'s Arc<Self>>;
    fn key(id: Self::Id) -> ObjectKey;
    fn meta(&self) -> Meta;
    fn spec(&mut self) -> &mut PayloadSpec;
    fn into_object(self) -> Object;
    fn check_new(state: &ClusterState, spec: &PayloadSpec) -> Result<(), SpecError>;
    fn check_removable(&self, state: &ClusterState) -> Result<(), SpecError>;
}

macro_rules! kept {
    ($kept:ident, $id:ident, $kind:literal, $table:ident, $check_new:ident, $removable:ident) => {
        impl Kept for $kept {
            type Id = $id;
            const KIND: &'static str = $kind;

            fn fresh_id() -> $id {
                $id::generate(&mut RandomIds)
            }
            fn new(id: $id, spec: PayloadSpec) -> Self {
                Self { id, meta: Meta::default(), spec }
            }
            fn find<'s>(state: &'s ClusterState, id: &$id) -> Option<&'s Arc<Self>> {
                state.$table.get(id)
            }
            fn key(id: $id) -> ObjectKey {
                ObjectKey::$kept(id)
            }
            fn meta(&self) -> Meta {
                self.meta
            }
            fn spec(&mut self) -> &mut PayloadSpec {
                &mut self.spec
            }
            fn into_object(self) -> Object {
                Object::$kept(Box::new(self))
            }
            fn check_new(state: &ClusterState, spec: &PayloadSpec) -> Result<(), SpecError> {
                validate::$check_new(state, spec)
            }
            fn check_removable(&self, state: &ClusterState) -> Result<(), SpecError> {
                validate::$removable(state, self)
            }
        }
    };
}

kept!(Secret, SecretId, "secret", secrets, new_secret, removable_secret);
kept!(Config, ConfigId, "config", configs, new_config, removable_config);

impl Control {
    async fn create<K: Kept>(&self, spec: PayloadSpec) -> Result<K::Id, ControlError> {
        let id = K::fresh_id();
        self.shared
            .writer
            .write(move |state, _| {
                K::check_new(state, &spec)?;
                let object = K::new(id.clone(), spec.clone()).into_object();
                Ok((vec![Change::Put { object, expect: Expect::Absent }], id.clone()))
            })
            .await
    }

    async fn update<K: Kept>(
        &self,
        id: &K::Id,
        version: Revision,
        spec: PayloadSpec,
    ) -> Result<(), ControlError> {
        let id = id.clone();
        self.shared
            .writer
            .write(move |state, _| {
                let known = K::find(state, &id).ok_or_else(|| missing(K::KIND, &id))?;
                in_sequence(known.meta(), version)?;
                let mut next = (**known).clone();
                validate::changed_payload(next.spec(), &spec)?;
                next.spec().labels.clone_from(&spec.labels);
                let expect = Expect::Version(known.meta().version);
                Ok((vec![Change::Put { object: next.into_object(), expect }], ()))
            })
            .await
    }

    async fn remove<K: Kept>(&self, id: &K::Id) -> Result<(), ControlError> {
        let id = id.clone();
        self.shared
            .writer
            .write(move |state, _| {
                let known = K::find(state, &id).ok_or_else(|| missing(K::KIND, &id))?;
                known.check_removable(state)?;
                let expect = Expect::Version(known.meta().version);
                Ok((vec![Change::Delete { key: K::key(id.clone()), expect }], ()))
            })
            .await
    }

    /// Stores a new secret.
    ///
    /// # Errors
    /// [`ControlError::Spec`] in Docker's words.
    pub async fn create_secret(&self, spec: PayloadSpec) -> Result<SecretId, ControlError> {
        self.create::<Secret>(spec).await
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
        self.update::<Secret>(id, version, spec).await
    }

    /// Removes a secret that no service refers to.
    ///
    /// # Errors
    /// [`ControlError::Spec`] names the services that do.
    pub async fn remove_secret(&self, id: &SecretId) -> Result<(), ControlError> {
        self.remove::<Secret>(id).await
    }

    /// Stores a new config.
    ///
    /// # Errors
    /// [`ControlError::Spec`] in Docker's words.
    pub async fn create_config(&self, spec: PayloadSpec) -> Result<ConfigId, ControlError> {
        self.create::<Config>(spec).await
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
        self.update::<Config>(id, version, spec).await
    }

    /// Removes a config that no service refers to.
    ///
    /// # Errors
    /// [`ControlError::Spec`] names the services that do.
    pub async fn remove_config(&self, id: &ConfigId) -> Result<(), ControlError> {
        self.remove::<Config>(id).await
    }
}
