//! Ports in Docker's notation: `80/tcp` inside, `8080` or `8000-8010` on the host.

use std::net::IpAddr;

use shoal_model::net::{Port, Protocol};
use shoal_model::spec::container::{ContainerCreate, HostConfig, PortBinding};

use crate::attacher::PublishRequest;
use crate::error::EngineError;
use crate::record::Record;

/// Refuses ports that there are not, before anything is made.
pub(crate) fn check(body: &ContainerCreate) -> Result<(), EngineError> {
    let exposed = body.config.exposed_ports.iter().flatten().map(|(port, _)| port);
    let bindings = body.host_config.port_bindings.iter().flatten();
    for text in exposed.chain(bindings.clone().map(|(port, _)| port)) {
        if parse_port(text).is_none() {
            return Err(EngineError::invalid(format!(
                "invalid containerPort: {text}: a port is a number from 1 to 65535, with '/tcp', \
                 '/udp' or '/sctp'"
            )));
        }
    }
    for binding in bindings.flat_map(|(_, bindings)| bindings.iter().flatten()) {
        let PortBinding { host_ip, host_port } = binding;
        if host_range(host_port).is_none() {
            return Err(EngineError::invalid(format!(
                "invalid hostPort: {host_port}: a number from 1 to 65535, or two of them with '-' \
                 between, the lower one first"
            )));
        }
        if !host_ip.is_empty() && host_ip.parse::<IpAddr>().is_err() {
            return Err(EngineError::invalid(format!("invalid hostIP: {host_ip}")));
        }
    }
    Ok(())
}

/// The ports that a container wants on the host.
pub(crate) fn published(record: &Record) -> Vec<PublishRequest> {
    let mut wanted = published_by_hand(&record.host);
    if record.host.publish_all_ports.unwrap_or(false) {
        let exposed = record.config.exposed_ports.iter().flatten();
        for container in exposed.filter_map(|(port, _)| parse_port(port)) {
            if !wanted.iter().any(|p| p.container == container) {
                let any = PublishRequest {
                    container,
                    host_ip: None,
                    host_port: None,
                    host_port_last: None,
                };
                wanted.push(any);
            }
        }
    }
    wanted
}

fn published_by_hand(host: &HostConfig) -> Vec<PublishRequest> {
    let mut wanted = Vec::new();
    for (port, bindings) in host.port_bindings.iter().flatten() {
        // Refused at the creation; a record of an earlier version may have one.
        let Some(container) = parse_port(port) else { continue };
        for binding in bindings.iter().flatten() {
            let PortBinding { host_ip, host_port } = binding;
            let Some((first, last)) = host_range(host_port) else { continue };
            wanted.push(PublishRequest {
                container,
                host_ip: host_ip.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified()),
                host_port: first,
                host_port_last: last,
            });
        }
    }
    wanted
}

/// Reads the port on the host: nothing or 0 (any), one, or the first and last of a range.
fn host_range(text: &str) -> Option<(Option<u16>, Option<u16>)> {
    if matches!(text, "" | "0") {
        return Some((None, None));
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| digits(text).filter(|n| *n != 0);
    let (first, last) = (number(first)?, number(last)?);
    (first <= last).then_some((Some(first), Some(last)))
}

/// Reads `80/tcp` or `80`.
pub(crate) fn parse_port(text: &str) -> Option<Port> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => Protocol::Sctp,
        _ => return None,
    };
    Some(Port { protocol, number: digits(number).filter(|n| *n != 0)? })
}

/// A number without a sign.
fn digits(text: &str) -> Option<u16> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| plain)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn checked(more: serde_json::Value) -> Result<(), String> {
        check(&serde_json::from_value(more).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn ports_that_there_are_not_are_refused() {
        use serde_json::json;
        for port in ["70000/tcp", "0/tcp", "80/icmp", "x", "-1", "+80/tcp", "80-90/tcp", ""] {
            let exposed = checked(json!({"ExposedPorts": {port: {}}}));
            assert!(exposed.unwrap_err().contains("invalid containerPort"), "{port}");
            let bound = checked(json!({"HostConfig": {"PortBindings": {port: [{}]}}}));
            assert!(bound.is_err(), "{port}");
        }
        let bound = |ip: &str, port: &str| {
            let binding = json!([{"HostIp": ip, "HostPort": port}]);
            checked(json!({"HostConfig": {"PortBindings": {"80/tcp": binding}}}))
        };
        for port in ["70000", "http", "9-", "-9", "9010-9000", "1-70000", "1-2-3", "0-5"] {
            assert!(bound("", port).unwrap_err().contains("invalid hostPort"), "{port}");
        }
        assert!(bound("localhost", "1").is_err());
        for port in ["", "0", "8080", "8000-8010"] {
            assert_eq!(bound("127.0.0.1", port), Ok(()), "{port}");
        }
        assert_eq!(checked(json!({"ExposedPorts": {"80/tcp": {}, "53/UDP": {}, "7": {}}})), Ok(()));
    }

    #[test]
    fn port_bindings_become_requests() {
        let host: HostConfig = serde_json::from_value(serde_json::json!({"PortBindings": {
            "80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8080"}, {"HostPort": "9000-9010"}],
            "53/udp": [{"HostIp": "", "HostPort": ""}],
            "99/odd": [{}], "81/tcp": null,
        }}))
        .unwrap();
        let wanted = published_by_hand(&host);
        let lines: Vec<String> = wanted
            .iter()
            .map(|p| {
                format!("{} {:?} {:?}-{:?}", p.container, p.host_ip, p.host_port, p.host_port_last)
            })
            .collect();
        assert_eq!(
            lines,
            [
                "53/udp None None-None",
                "80/tcp Some(127.0.0.1) Some(8080)-Some(8080)",
                "80/tcp None Some(9000)-Some(9010)",
            ]
        );
    }
}
