//! Placeholders in a service's environment, host name and mounts, and in secrets and configs that
//! are templates: Docker's Go templates without control structures.

use std::collections::BTreeMap;

/// Values by field path, for example `.Task.Slot`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(pub BTreeMap<&'static str, String>);

/// Why a text's placeholders cannot be filled in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ExpandError {
    /// A placeholder that is not known.
    #[error("unknown placeholder {0}")]
    Unknown(String),
    /// It becomes too long.
    #[error("it becomes longer than {0} bytes")]
    TooLong(usize),
}

/// Replaces every `{{ .Field }}` of `text`.
///
/// # Errors
/// The placeholder that is not known.
pub(crate) fn expand(text: &str, fields: &Fields) -> Result<String, String> {
    expand_with(text, usize::MAX, |field| fields.0.get(field).cloned()).map_err(|error| match error
    {
        ExpandError::Unknown(placeholder) => placeholder,
        ExpandError::TooLong(_) => text.to_owned(),
    })
}

/// Replaces every `{{ placeholder }}` of `text` by what `value` says of it. As in Go, `{{- ` and
/// ` -}}` take away the blanks beside them.
///
/// # Errors
/// A placeholder is not known, or the result has more than `bytes_max` bytes.
pub(crate) fn expand_with(
    text: &str,
    bytes_max: usize,
    value: impl Fn(&str) -> Option<String>,
) -> Result<String, ExpandError> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let Some((inside, mut behind)) = after.split_once("}}") else {
            return Err(ExpandError::Unknown(format!("{{{{{after}")));
        };
        let mut placeholder = inside;
        if let Some(cut) = placeholder.strip_prefix("- ") {
            out.truncate(out.trim_end().len());
            placeholder = cut;
        }
        if let Some(cut) = placeholder.strip_suffix(" -") {
            behind = behind.trim_start();
            placeholder = cut;
        }
        match value(placeholder.trim()) {
            Some(value) => out.push_str(&value),
            None => return Err(ExpandError::Unknown(format!("{{{{{inside}}}}}"))),
        }
        if out.len() > bytes_max {
            return Err(ExpandError::TooLong(bytes_max));
        }
        rest = behind;
    }
    out.push_str(rest);
    if out.len() > bytes_max {
        return Err(ExpandError::TooLong(bytes_max));
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_replaced_and_strange_ones_named() {
        let fields = Fields(BTreeMap::from([(".Task.Slot", "3".to_owned())]));
        assert_eq!(expand("a-{{.Task.Slot}}-{{ .Task.Slot }}b", &fields), Ok("a-3-3b".into()));
        assert_eq!(expand("plain", &fields), Ok("plain".into()));
        assert_eq!(expand("{{ .Nope }}", &fields), Err("{{ .Nope }}".into()));
        assert!(expand("{{.Task.Slot", &fields).is_err());
        assert_eq!(expand("a \n{{- .Task.Slot -}}\t b", &fields), Ok("a3b".into()));
    }
}
