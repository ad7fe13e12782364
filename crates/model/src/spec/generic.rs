//! Generic resources: what an operator says that a node has, by name (`GPU=a`, `GPU=b`) or by
//! number (`SSD=3`), so that tasks can reserve it.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// One named resource, or a number of one kind. In JSON as in the Engine API:
/// `{"NamedResourceSpec": {"Kind": "GPU", "Value": "a"}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GenericResource {
    /// One that has a name.
    #[serde(rename = "NamedResourceSpec")]
    Named(NamedResource),
    /// So many, which are all alike.
    #[serde(rename = "DiscreteResourceSpec")]
    Discrete(DiscreteResource),
}

/// One named resource.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct NamedResource {
    /// What it is.
    pub kind: String,
    /// Which one.
    pub value: String,
}

/// A number of one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DiscreteResource {
    /// What they are.
    pub kind: String,
    /// How many.
    #[serde(default)]
    pub value: i64,
}

impl GenericResource {
    /// A named one.
    #[must_use]
    pub fn named(kind: &str, value: &str) -> Self {
        Self::Named(NamedResource { kind: kind.to_owned(), value: value.to_owned() })
    }

    /// So many of a kind.
    #[must_use]
    pub fn discrete(kind: &str, value: i64) -> Self {
        Self::Discrete(DiscreteResource { kind: kind.to_owned(), value })
    }

    /// Reads one as clients write it: some name the other member, too, as `null`.
    #[must_use]
    pub fn read(value: &Value) -> Option<Self> {
        let members = value.as_object()?.iter().filter(|(_, value)| !value.is_null());
        serde_json::from_value(Value::Object(
            members.map(|(name, value)| (name.clone(), value.clone())).collect(),
        ))
        .ok()
    }

    /// What it is.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self {
            Self::Named(one) => &one.kind,
            Self::Discrete(some) => &some.kind,
        }
    }

    /// Reads what an operator says of a node, `KIND=VALUE` each: a number, or name after name.
    ///
    /// # Errors
    /// What is wrong, in Docker's words.
    pub fn parse_all(terms: &[String]) -> Result<Vec<Self>, String> {
        let mut kinds: Vec<(&str, Vec<&str>)> = Vec::new();
        for term in terms {
            let parts: Vec<&str> = term.split('=').map(str::trim).collect();
            let [kind, value] = parts[..] else {
                return Err(wrong(&format!(
                    "incorrect term {term}, missing '=' or malformed expression"
                )));
            };
            if kind.is_empty() || value.is_empty() {
                return Err(wrong(&format!("incorrect term {term}, kind or value is empty")));
            }
            match kinds.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, values)) if values.contains(&value) => {}
                Some((_, values)) => values.push(value),
                None => kinds.push((kind, vec![value])),
            }
        }
        let mut all = Vec::new();
        for (kind, values) in kinds {
            all.extend(Self::of_kind(kind, &values)?);
        }
        Ok(all)
    }

    fn of_kind(kind: &str, values: &[&str]) -> Result<Vec<Self>, String> {
        let number = |value: &str| value.parse::<i64>().ok();
        match (values, values.first().and_then(|value| number(value))) {
            ([_], Some(count)) if count < 0 => {
                Err(wrong(&format!("cannot ask for negative resource {kind}")))
            }
            ([_], Some(count)) => Ok(vec![Self::discrete(kind, count)]),
            _ if values.iter().any(|value| number(value).is_some()) => Err(wrong(&format!(
                "mixed discrete and named resources in expression '{kind}={}'",
                values.join(",")
            ))),
            _ => Ok(values.iter().map(|value| Self::named(kind, value)).collect()),
        }
    }

    /// What a task is told of those that it was given: `DOCKER_RESOURCE_GPU=a,b`.
    #[must_use]
    pub fn environment(given: &[Self]) -> Vec<String> {
        let mut kinds: Vec<(&str, Vec<String>)> = Vec::new();
        for resource in given {
            let value = match resource {
                Self::Named(one) => one.value.clone(),
                Self::Discrete(some) => some.value.to_string(),
            };
            match kinds.iter_mut().find(|(kind, _)| *kind == resource.kind()) {
                Some((_, values)) => values.push(value),
                None => kinds.push((resource.kind(), vec![value])),
            }
        }
        let line = |(kind, values): (&str, Vec<String>)| {
            format!("DOCKER_RESOURCE_{}={}", kind.to_uppercase(), values.join(","))
        };
        kinds.into_iter().map(line).collect()
    }
}

fn wrong(what: &str) -> String {
    format!("could not parse GenericResource: {what}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn parse(terms: &[&str]) -> Result<Vec<GenericResource>, String> {
        GenericResource::parse_all(&terms.iter().map(ToString::to_string).collect::<Vec<_>>())
    }

    #[test]
    fn names_and_numbers_are_read_as_in_docker() {
        let got = parse(&["GPU=a", "SSD=3", "GPU=b", "GPU=a"]).unwrap();
        let wanted = [
            GenericResource::named("GPU", "a"),
            GenericResource::named("GPU", "b"),
            GenericResource::discrete("SSD", 3),
        ];
        assert_eq!(got, wanted);
        assert_eq!(
            GenericResource::environment(&got),
            ["DOCKER_RESOURCE_GPU=a,b", "DOCKER_RESOURCE_SSD=3",]
        );
        for (terms, what) in [
            (&["GPU"][..], "incorrect term GPU"),
            (&["GPU=a=b"], "incorrect term GPU=a=b"),
            (&["=a"], "incorrect term =a"),
            (&["SSD=-1"], "cannot ask for negative resource SSD"),
            (&["GPU=a", "GPU=1"], "mixed discrete and named resources in expression 'GPU=a,1'"),
        ] {
            let said = parse(terms).unwrap_err();
            assert!(said.starts_with("could not parse GenericResource: "), "{said}");
            assert!(said.contains(what), "{said}");
        }
    }

    #[test]
    fn the_form_is_that_of_the_api() {
        let text = r#"{"DiscreteResourceSpec":{"Kind":"SSD","Value":3}}"#;
        let read = GenericResource::read(&serde_json::from_str(text).unwrap()).unwrap();
        assert_eq!(read, GenericResource::discrete("SSD", 3));
        assert_eq!(serde_json::to_string(&read).unwrap(), text);
        let both =
            r#"{"NamedResourceSpec":{"Kind":"GPU","Value":"a"},"DiscreteResourceSpec":null}"#;
        let read = GenericResource::read(&serde_json::from_str(both).unwrap());
        assert_eq!(read, Some(GenericResource::named("GPU", "a")));
        assert_eq!(GenericResource::read(&Value::Null), None);
    }
}
