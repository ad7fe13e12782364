//! Secrets and configs: create, change labels, remove.

use shoal_model::change::{Change, Expect, Object, ObjectKey};
use shoal_model::id::{ConfigId, Revision, SecretId};
use shoal_model::object::{Config, Meta, Secret};
use shoal_model::spec::payload::PayloadSpec;
use shoal_plan::validate;

use crate::control::{Control, in_sequence, missing};
use crate::error::ControlError;
use crate::shared::RandomIds;

impl Control {
    /// Stores a new secret.
    ///
    /// # Errors
    /// [`ControlError::Spec`] in Docker's words.
    pub async fn create_secret(&self, spec: PayloadSpec) -> Result<SecretId, ControlError> {
        let id = SecretId::generate(&mut RandomIds);
        self.shared
            .writer
            .write(move |state, _| {
                validate::new_secret(state, &spec)?;
                let secret = Secret { id: id.clone(), meta: Meta::default(), spec: spec.clone() };
                let object = Object::Secret(Box::new(secret));
                Ok((vec![Change::Put { object, expect: Expect::Absent }], id.clone()))
            })
            .await
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
        let id = id.clone();
        self.shared
            .writer
            .write(move |state, _| {
                let known = state.secrets.get(&id).ok_or_else(|| missing("secret", &id))?;
                in_sequence(known.meta, version)?;
                validate::changed_payload(&known.spec, &spec)?;
                let mut secret = (**known).clone();
                secret.spec.labels.clone_from(&spec.labels);
                let expect = Expect::Version(known.meta.version);
                Ok((vec![Change::Put { object: Object::Secret(Box::new(secret)), expect }], ()))
            })
            .await
    }

    /// Removes a secret that no service refers to.
    ///
    /// # Errors
    /// [`ControlError::Spec`] names the services that do.
    pub async fn remove_secret(&self, id: &SecretId) -> Result<(), ControlError> {
        let id = id.clone();
        self.shared
            .writer
            .write(move |state, _| {
                let secret = state.secrets.get(&id).ok_or_else(|| missing("secret", &id))?;
                validate::removable_secret(state, secret)?;
                let key = ObjectKey::Secret(id.clone());
                let expect = Expect::Version(secret.meta.version);
                Ok((vec![Change::Delete { key, expect }], ()))
            })
            .await
    }

    /// Stores a new config.
    ///
    /// # Errors
    /// [`ControlError::Spec`] in Docker's words.
    pub async fn create_config(&self, spec: PayloadSpec) -> Result<ConfigId, ControlError> {
        let id = ConfigId::generate(&mut RandomIds);
        self.shared
            .writer
            .write(move |state, _| {
                validate::new_config(state, &spec)?;
                let config = Config { id: id.clone(), meta: Meta::default(), spec: spec.clone() };
                let object = Object::Config(Box::new(config));
                Ok((vec![Change::Put { object, expect: Expect::Absent }], id.clone()))
            })
            .await
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
        let id = id.clone();
        self.shared
            .writer
            .write(move |state, _| {
                let known = state.configs.get(&id).ok_or_else(|| missing("config", &id))?;
                in_sequence(known.meta, version)?;
                validate::changed_payload(&known.spec, &spec)?;
                let mut config = (**known).clone();
                config.spec.labels.clone_from(&spec.labels);
                let expect = Expect::Version(known.meta.version);
                Ok((vec![Change::Put { object: Object::Config(Box::new(config)), expect }], ()))
            })
            .await
    }

    /// Removes a config that no service refers to.
    ///
    /// # Errors
    /// [`ControlError::Spec`] names the services that do.
    pub async fn remove_config(&self, id: &ConfigId) -> Result<(), ControlError> {
        let id = id.clone();
        self.shared
            .writer
            .write(move |state, _| {
                let config = state.configs.get(&id).ok_or_else(|| missing("config", &id))?;
                validate::removable_config(state, config)?;
                let key = ObjectKey::Config(id.clone());
                let expect = Expect::Version(config.meta.version);
                Ok((vec![Change::Delete { key, expect }], ()))
            })
            .await
    }
}
