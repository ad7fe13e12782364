//! Ports of a container as clients write them: `80`, `80/tcp`, on the host `8080` or `8080-8090`.

use shoal_model::spec::container::ContainerCreate;

use crate::error::{ApiError, ApiResult};

/// Protocols that a port can have.
const PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// Refuses ports that are none, in Docker's words; nothing has been made then.
///
/// # Errors
/// 400 that names the port or the protocol.
pub fn check(create: &ContainerCreate) -> ApiResult<()> {
    for port in create.config.exposed_ports.iter().flatten().map(|(port, _)| port) {
        check_container_port(port)?;
    }
    for (port, bindings) in create.host_config.port_bindings.iter().flatten() {
        check_container_port(port)?;
        for binding in bindings.iter().flatten() {
            check_host_port(&binding.host_port)?;
        }
    }
    Ok(())
}

fn check_container_port(text: &str) -> ApiResult<()> {
    let (range, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    if !PROTOCOLS.contains(&protocol.to_ascii_lowercase().as_str()) {
        return Err(ApiError::invalid(format!("invalid proto: {protocol}")));
    }
    if is_range(range, 1) { Ok(()) } else { Err(no_port(range)) }
}

/// Empty and `0` are any free one.
fn check_host_port(text: &str) -> ApiResult<()> {
    if text.is_empty() || is_range(text, 0) { Ok(()) } else { Err(no_port(text)) }
}

fn no_port(text: &str) -> ApiError {
    ApiError::invalid(format!("invalid port specification: \"{text}\""))
}

/// Whether `text` is a port of at least `least`, or two with a dash, the lower one first.
fn is_range(text: &str, least: u16) -> bool {
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| digits && *port >= least)
    };
    match text.split_once('-') {
        None => number(text).is_some(),
        Some((first, last)) => match (number(first), number(last)) {
            (Some(first), Some(last)) => first <= last,
            _ => false,
        },
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use serde_json::{Value, json};

    use super::*;

    fn said(body: Value) -> Option<String> {
        let create: ContainerCreate = serde_json::from_value(body).unwrap();
        check(&create).err().map(|error| error.message)
    }

    #[test]
    fn ports_that_are_none_are_refused_in_dockers_words() {
        let exposed = |port: &str| said(json!({ "ExposedPorts": { port: {} } }));
        let bound = |port: &str, host: &str| {
            let bindings = json!({ port: [{ "HostIp": "", "HostPort": host }] });
            said(json!({ "HostConfig": { "PortBindings": bindings } }))
        };
        for good in ["80", "80/tcp", "53/UDP", "65535/sctp", "8000-8010/tcp"] {
            assert_eq!(exposed(good), None, "{good}");
        }
        for (bad, text) in [
            ("65536/tcp", "invalid port specification: \"65536\""),
            ("0/tcp", "invalid port specification: \"0\""),
            ("x", "invalid port specification: \"x\""),
            ("+80", "invalid port specification: \"+80\""),
            ("90-80/tcp", "invalid port specification: \"90-80\""),
            ("80/icmp", "invalid proto: icmp"),
            ("80/", "invalid proto: "),
        ] {
            assert_eq!(exposed(bad).as_deref(), Some(text), "{bad}");
            assert_eq!(bound(bad, "1").as_deref(), Some(text), "{bad}");
        }
        for good in ["", "0", "8080", "8000-8010"] {
            assert_eq!(bound("80/tcp", good), None, "{good}");
        }
        for bad in ["70000", "-1", "80-", "a"] {
            let text = format!("invalid port specification: \"{bad}\"");
            assert_eq!(bound("80/tcp", bad), Some(text), "{bad}");
        }
    }
}
