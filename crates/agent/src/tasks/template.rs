//! Placeholders in a service's environment, host name and mounts: the fields of Docker's Go
//! templates, without functions.

use std::collections::BTreeMap;

/// Values by field path, for example `.Task.Slot`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Fields(pub BTreeMap<&'static str, String>);

/// Replaces every `{{ .Field }}` of `text`.
///
/// # Errors
/// The placeholder that is not known.
pub(crate) fn expand(text: &str, fields: &Fields) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        out.push_str(before);
        let Some((inside, behind)) = after.split_once("}}") else {
            return Err(format!("{{{{{after}"));
        };
        // Go trims blanks beside a dash.
        let field = inside.trim().trim_matches('-').trim();
        match fields.0.get(field) {
            Some(value) => out.push_str(value),
            None => return Err(format!("{{{{{inside}}}}}")),
        }
        rest = behind;
    }
    out.push_str(rest);
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
    }
}
