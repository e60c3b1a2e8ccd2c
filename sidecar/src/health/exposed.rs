//! Whether the app can be reached past its sidecar: the addresses that it listens on.
//!
//! Under strict a sidecar lets in who proves who he is; an app that listens on every address lets in anybody
//! who finds its port. Reads the listening sockets of the own network namespace (proc_pid_net(5)).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use outrigger_proto::model::{Mode, Proxy};

use crate::shared::Shared;

/// Fails when the app listens on an address that others reach and nobody said that it may.
pub(super) async fn check(shared: &Shared, proxy: &Proxy) -> Result<(), String> {
    // Without an identity nobody is let in for who he is, and the sidecar's own port is as open.
    if proxy.mode != Mode::Strict || proxy.exposed_app || shared.bootstrap.identity.is_none() {
        return Ok(());
    }
    let mut listening = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        // Another system has none: then nothing is known, and nothing is said.
        let text = tokio::fs::read_to_string(table).await.unwrap_or_default();
        listening.extend(text.lines().filter_map(listener));
    }
    let ports: Vec<u16> = shared.bootstrap.inbound.iter().map(|i| i.app.port()).collect();
    match exposed(&listening, &ports, &shared.own_listeners) {
        None => Ok(()),
        Some(found) => Err(said(found)),
    }
}

fn said(found: SocketAddr) -> String {
    format!(
        "the app listens on {found}, where others reach it past its sidecar: bind it to 127.0.0.1 (HOST), \
         or say that it may with `exposed_app: true`"
    )
}

/// The first listener on one of the app's ports that is not loopback and not the sidecar's own.
fn exposed(listening: &[SocketAddr], ports: &[u16], own: &[SocketAddr]) -> Option<SocketAddr> {
    let open =
        |at: &&SocketAddr| ports.contains(&at.port()) && !at.ip().to_canonical().is_loopback() && !own.contains(at);
    listening.iter().find(open).copied()
}

/// The address of a line of the table that is a listening socket:
/// `0: 0100007F:1F90 00000000:0000 0A ...`, words of the address in the machine's byte order.
fn listener(line: &str) -> Option<SocketAddr> {
    let mut fields = line.split_whitespace().skip(1);
    let local = fields.next()?;
    let listens = fields.nth(1)? == "0A";
    let (address, port) = local.split_once(':').filter(|_| listens)?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let mut bytes = Vec::new();
    for i in (0..address.len()).step_by(8) {
        let word = u32::from_str_radix(address.get(i..i + 8)?, 16).ok()?;
        bytes.extend(word.to_ne_bytes());
    }
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
        _ => return None,
    };
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listening_sockets_are_read_from_the_table() {
        let line =
            |local: &str, state: &str| format!("   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000");
        #[cfg(target_endian = "little")]
        for (local, address) in [
            ("0100007F:1F90", "127.0.0.1:8080"),
            ("00000000:0050", "0.0.0.0:80"),
            ("00000000000000000000000000000000:0050", "[::]:80"),
            ("00000000000000000000000001000000:0050", "[::1]:80"),
            ("0000000000000000FFFF00000100007F:0050", "[::ffff:127.0.0.1]:80"),
        ] {
            assert_eq!(listener(&line(local, "0A")), Some(address.parse().expect("an address")));
            assert_eq!(listener(&line(local, "01")), None, "established");
        }
        for line in [
            "",
            "  sl  local_address rem_address   st",
            "0: xyz:1 0:0 0A",
            "0: 00:1 0:0 0A",
            "0: 0100007F:F1F90 0 0A",
        ] {
            assert_eq!(listener(line), None, "{line}");
        }
    }

    #[test]
    fn only_the_apps_ports_on_addresses_of_others_count() {
        let at = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let (ports, own) = ([8080, 8081], [at("10.0.0.5:8080")]);
        let find = |all: &[&str]| exposed(&all.iter().map(|a| at(a)).collect::<Vec<_>>(), &ports, &own);
        assert_eq!(
            find(&[
                "127.0.0.1:8080",
                "[::1]:8081",
                "127.0.0.9:8081",
                "[::ffff:127.0.0.1]:8080"
            ]),
            None
        );
        assert_eq!(find(&["0.0.0.0:9000", "10.0.0.5:8080"]), None, "another's, and our own");
        assert_eq!(find(&["127.0.0.1:8080", "0.0.0.0:8081"]), Some(at("0.0.0.0:8081")));
        assert_eq!(find(&["[::]:8080"]), Some(at("[::]:8080")));
        assert!(said(at("[::]:8080")).contains("exposed_app: true"));
    }

    #[tokio::test]
    async fn this_systems_table_shows_our_own_socket() {
        let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("binds");
        let at = socket.local_addr().expect("bound");
        let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux");
        assert!(table.lines().filter_map(listener).any(|found| found == at));
    }
}
