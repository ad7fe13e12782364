//! The small files that a container finds in `/etc`.

use std::fmt::Write as _;
use std::net::IpAddr;

use crate::attacher::Attachment;

/// How a client writes "the address of the host".
pub(crate) const HOST_GATEWAY: &str = "host-gateway";

/// Splits `name:address`; newer clients also write `name=address`.
pub(crate) fn parse_extra_host(line: &str) -> Option<(&str, &str)> {
    let (name, address) = line.split_once(['=', ':'])?;
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    let fine = bare == HOST_GATEWAY || bare.parse::<IpAddr>().is_ok();
    (!name.is_empty() && fine).then_some((name, bare))
}

/// The text of `/etc/hosts`.
pub(crate) fn hosts(
    hostname: &str,
    domainname: &str,
    extra: &[String],
    attachment: &Attachment,
) -> String {
    let mut text = String::from(
        "127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         ff00::\tip6-mcastprefix\n\
         ff02::1\tip6-allnodes\n\
         ff02::2\tip6-allrouters\n",
    );
    let gateway = attachment.endpoints.iter().find_map(|e| e.gateway).map(IpAddr::V4);
    for line in extra {
        let Some((name, address)) = parse_extra_host(line) else { continue };
        // Ignored because: writing to a String cannot fail.
        let _ = match (address, gateway) {
            (HOST_GATEWAY, Some(gateway)) => writeln!(text, "{gateway}\t{name}"),
            (HOST_GATEWAY, None) => Ok(()),
            _ => writeln!(text, "{address}\t{name}"),
        };
    }
    let names = match domainname {
        "" => hostname.to_owned(),
        domain => format!("{hostname}.{domain} {hostname}"),
    };
    for endpoint in &attachment.endpoints {
        let v4 = endpoint.ipv4.map(|(address, _)| IpAddr::V4(address));
        let v6 = endpoint.ipv6.map(|(address, _)| IpAddr::V6(address));
        for address in [v4, v6].into_iter().flatten() {
            // Ignored because: writing to a String cannot fail.
            let _ = writeln!(text, "{address}\t{names}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_hosts_are_read_in_both_forms() {
        assert_eq!(parse_extra_host("a:1.2.3.4"), Some(("a", "1.2.3.4")));
        assert_eq!(parse_extra_host("a=::1"), Some(("a", "::1")));
        assert_eq!(parse_extra_host("a:[::1]"), Some(("a", "::1")));
        assert_eq!(parse_extra_host("a:host-gateway"), Some(("a", "host-gateway")));
        for bad in ["a", ":1.2.3.4", "a:b", "a:"] {
            assert_eq!(parse_extra_host(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_hosts_file_names_the_container_last() {
        let extra = ["db:10.0.0.9".to_owned()];
        let text = hosts("web", "", &extra, &Attachment::default());
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"));
        assert!(text.ends_with("10.0.0.9\tdb\n"));
    }
}
