//! Secrets and configs.

use serde_json::Value;
use shoal_model::object::{Config, Secret};
use shoal_model::spec::payload::{PayloadData, PayloadSpec};

use super::{head, spec_json};

/// `Secret` of the Engine API: without its data, which only tasks may read.
#[must_use]
pub fn secret(secret: &Secret) -> Value {
    let mut out = head(secret.id.as_str(), secret.meta);
    let spec = PayloadSpec { data: PayloadData::default(), ..secret.spec.clone() };
    out.insert("Spec".into(), spec_json(&spec));
    Value::Object(out)
}

/// `Config` of the Engine API.
#[must_use]
pub fn config(config: &Config) -> Value {
    let mut out = head(config.id.as_str(), config.meta);
    out.insert("Spec".into(), spec_json(&config.spec));
    Value::Object(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoal_model::object::Meta;

    #[test]
    fn only_a_configs_data_is_shown() {
        let spec = PayloadSpec {
            name: "a".into(),
            data: PayloadData::new(b"hunter2".as_slice()),
            ..PayloadSpec::default()
        };
        let hidden = Secret {
            id: "s".into(),
            meta: Meta::default(),
            spec: spec.clone(),
            extra: Default::default(),
        };
        let shown = secret(&hidden);
        assert_eq!(shown["Spec"], serde_json::json!({"Name": "a", "Labels": {}}));
        let open =
            Config { id: "c".into(), meta: Meta::default(), spec, extra: Default::default() };
        assert_eq!(config(&open)["Spec"]["Data"], "aHVudGVyMg==");
    }
}
