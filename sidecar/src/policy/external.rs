//! What the app may reach outside the mesh through the proxy port.

use std::net::IpAddr;

use outrigger_proto::model::External;

/// Why a host outside the mesh is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The policy does not name it.
    Policy,
    /// Link-local addresses serve cloud metadata: credentials for whoever asks.
    LinkLocal,
}

/// Decides by the host's name, before it is resolved.
///
/// # Errors
/// When the policy does not allow the host.
pub fn host(policy: &External, host: &str) -> Result<(), Denied> {
    let name = host.trim_matches(['[', ']']).trim_end_matches('.');
    let listed = |pattern: &String| match pattern.strip_prefix("*.") {
        Some(suffix) => name
            .len()
            .checked_sub(suffix.len())
            .filter(|dot| *dot > 1)
            .is_some_and(|dot| {
                name.as_bytes().get(dot - 1) == Some(&b'.')
                    && name.get(dot..).is_some_and(|tail| tail.eq_ignore_ascii_case(suffix))
            }),
        None => pattern.eq_ignore_ascii_case(name),
    };
    match policy {
        External::Allow => Ok(()),
        External::List(hosts) if hosts.iter().any(listed) => Ok(()),
        External::Deny | External::List(_) => Err(Denied::Policy),
    }
}

/// Decides by a resolved address.
///
/// # Errors
/// When the address is link-local (RFC 3927, RFC 4291 §2.5.6) or the IPv6 metadata address.
pub fn address(address: IpAddr) -> Result<(), Denied> {
    let link_local = match address.to_canonical() {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local() || v6.segments() == [0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254],
    };
    if link_local { Err(Denied::LinkLocal) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_match_by_name_and_by_wildcard() {
        let list = External::List(vec!["api.example.com".into(), "*.example.org".into()]);
        for (name, allowed) in [
            ("api.example.com", true),
            ("API.example.com.", true),
            ("example.com", false),
            ("a.example.org", true),
            ("a.b.example.org", true),
            ("example.org", false),
            ("badexample.org", false),
        ] {
            assert_eq!(host(&list, name).is_ok(), allowed, "{name}");
        }
        assert_eq!(host(&External::Deny, "x"), Err(Denied::Policy));
        assert_eq!(host(&External::Allow, "x"), Ok(()));
    }

    #[test]
    fn metadata_addresses_are_refused_in_every_spelling() {
        for text in ["169.254.169.254", "::ffff:169.254.169.254", "fe80::1", "fd00:ec2::254"] {
            assert_eq!(
                address(text.parse().expect("address")),
                Err(Denied::LinkLocal),
                "{text}"
            );
        }
        assert_eq!(address("127.0.0.1".parse().expect("address")), Ok(()));
    }
}
