//! Dockerfile lines that change an image's configuration: `docker import --change`.

use serde_json::{Map, Value};
use shoal_model::spec::container::{ContainerConfig, Words};

use crate::error::ImageError;

/// Applies lines such as `CMD ["sh"]` or `ENV A=b`.
pub(crate) fn apply(config: &mut ContainerConfig, changes: &[String]) -> Result<(), ImageError> {
    for change in changes {
        let line = change.trim();
        let invalid = |reason: &str| ImageError::InvalidChange {
            change: change.clone(),
            reason: reason.into(),
        };
        if line.is_empty() {
            continue;
        }
        let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        if rest.is_empty() && !word.eq_ignore_ascii_case("CMD") {
            return Err(invalid("it has no argument"));
        }
        apply_one(config, &word.to_ascii_uppercase(), rest).map_err(invalid)?;
    }
    Ok(())
}

fn apply_one(config: &mut ContainerConfig, word: &str, rest: &str) -> Result<(), &'static str> {
    match word {
        "CMD" => config.cmd = Some(command(rest)?),
        "ENTRYPOINT" => config.entrypoint = Some(command(rest)?),
        "USER" => config.user = Some(rest.into()),
        "WORKDIR" => {
            if !rest.starts_with('/') {
                return Err("the directory must be absolute");
            }
            config.working_dir = Some(rest.into());
        }
        "STOPSIGNAL" => config.stop_signal = Some(rest.into()),
        "ENV" => {
            let env = config.env.get_or_insert_default();
            for (name, value) in pairs(rest)? {
                let prefix = format!("{name}=");
                env.retain(|have| !have.starts_with(&prefix));
                env.push(prefix + &value);
            }
        }
        "LABEL" => config.labels.get_or_insert_default().extend(pairs(rest)?),
        "EXPOSE" => {
            let ports = config.exposed_ports.get_or_insert_default();
            for port in rest.split_whitespace() {
                ports.insert(port_name(port)?, Value::Object(Map::new()));
            }
        }
        "VOLUME" => {
            let paths = match command(rest)? {
                Words::List(list) if rest.starts_with('[') => list,
                _ => rest.split_whitespace().map(str::to_owned).collect(),
            };
            let volumes = config.volumes.get_or_insert_default();
            volumes.extend(paths.into_iter().map(|path| (path, Value::Object(Map::new()))));
        }
        _ => {
            return Err("only CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and \
                         WORKDIR can be changed");
        }
    }
    Ok(())
}

/// `["a", "b"]`, or a line for the shell.
fn command(text: &str) -> Result<Words, &'static str> {
    if text.starts_with('[') {
        let list = serde_json::from_str(text);
        return list.map(Words::List).map_err(|_| "not a JSON list of texts");
    }
    if text.is_empty() {
        return Ok(Words::List(Vec::new()));
    }
    Ok(Words::List(vec!["/bin/sh".into(), "-c".into(), text.into()]))
}

fn port_name(text: &str) -> Result<String, &'static str> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !number.parse::<u16>().is_ok_and(|n| n > 0) {
        return Err("not a port between 1 and 65535");
    }
    if !matches!(protocol, "tcp" | "udp" | "sctp") {
        return Err("not a protocol: tcp, udp or sctp");
    }
    Ok(format!("{number}/{protocol}"))
}

/// `a=b c="d e"`, or the old form `name value`.
fn pairs(text: &str) -> Result<Vec<(String, String)>, &'static str> {
    let words = split_words(text)?;
    match words.first() {
        Some(first) if !first.contains('=') => {
            let (name, value) = text.split_once(char::is_whitespace).ok_or("it has no value")?;
            Ok(vec![(name.into(), value.trim().into())])
        }
        _ => words
            .iter()
            .map(|word| match word.split_once('=') {
                Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
                _ => Err("not a list of name=value"),
            })
            .collect(),
    }
}

/// Words between spaces; quotes and backslashes as in a shell.
fn split_words(text: &str) -> Result<Vec<String>, &'static str> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, quote) {
            ('\\', q) if q != Some('\'') => {
                word.get_or_insert_default().push(chars.next().ok_or("it ends in a backslash")?);
            }
            (c, Some(q)) if c == q => quote = None,
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    if quote.is_some() {
        return Err("a quote is not closed");
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn changed(lines: &[&str]) -> Result<ContainerConfig, ImageError> {
        let mut config = ContainerConfig::default();
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        apply(&mut config, &lines).map(|()| config)
    }

    #[test]
    fn lines_change_the_configuration() {
        let config = changed(&[
            r#"CMD ["sh", "-c", "x"]"#,
            "entrypoint /run me",
            r#"ENV A=b C="d e""#,
            "ENV A 2 3",
            "EXPOSE 80 53/udp",
            "LABEL x=y",
            "USER me:us",
            "WORKDIR /srv",
        ])
        .unwrap();
        assert_eq!(config.cmd.unwrap().list(), ["sh", "-c", "x"]);
        assert_eq!(config.entrypoint.unwrap().list(), ["/bin/sh", "-c", "/run me"]);
        assert_eq!(config.env.unwrap(), ["C=d e", "A=2 3"]);
        let ports: Vec<String> = config.exposed_ports.unwrap().keys().cloned().collect();
        assert_eq!(ports, ["80/tcp", "53/udp"]);
        assert_eq!(config.labels.unwrap()["x"], "y");
        assert_eq!(config.user.as_deref(), Some("me:us"));
        assert_eq!(config.working_dir.as_deref(), Some("/srv"));
    }

    #[test]
    fn wrong_lines_are_named() {
        for line in
            ["RUN x", "CMD [1", "ENV", "EXPOSE 0", "EXPOSE 80/xyz", "WORKDIR a", "LABEL \"a"]
        {
            let error = changed(&[line]).unwrap_err().to_string();
            assert!(error.contains(&format!("'{line}'")), "{error}");
        }
    }
}
