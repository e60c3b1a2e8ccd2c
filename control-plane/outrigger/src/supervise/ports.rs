//! Finds free ports on loopback and, where one is taken, says by whom.
//!
//! The ports lie below the range from which the kernel gives ports to outgoing connections, so that none of those takes
//! one away between our test and the child's bind.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr as SocketName, UnixListener};
use std::path::Path;

use nix::sys::socket::{self, Backlog};
use nix::unistd::Pid;

use super::tree;

/// Where we look for free ports, in blocks that one mesh has at a time.
const LOWEST: u16 = 18_000;
const HIGHEST: u16 = 32_000;
const BLOCK: u16 = 100;
/// Blocks below this one are taken first.
const FIRST: u16 = 20_000;

/// Hands out each port once. Ports are bound long after they are chosen, so two meshes that start at the same moment
/// choose from different blocks.
#[derive(Debug, Default)]
pub(crate) struct Ports {
    given: HashSet<u16>,
    blocks: Vec<Block>,
    /// How many ports of the blocks were looked at; goes round.
    cursor: usize,
}

#[derive(Debug)]
struct Block {
    first: u16,
    /// A name that one process of the machine has, for as long as it lives.
    _claim: Option<UnixListener>,
}

impl Ports {
    /// Any free port.
    pub(crate) fn free(&mut self) -> io::Result<u16> {
        loop {
            let all: Vec<u16> = self
                .blocks
                .iter()
                .flat_map(|block| block.first..block.first + BLOCK)
                .collect();
            for _ in 0..all.len() {
                let Some(port) = all.get(self.cursor % all.len()).copied() else {
                    break;
                };
                self.cursor += 1;
                if !self.given.contains(&port) && TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                    self.given.insert(port);
                    return Ok(port);
                }
            }
            self.claim()?;
            self.cursor = all.len();
        }
    }

    /// All that was given is in use by now, or free again.
    pub(crate) fn settled(&mut self) {
        self.given.clear();
    }

    /// Takes one more block.
    fn claim(&mut self) -> io::Result<()> {
        let mut near: Vec<u16> = (LOWEST..FIRST).step_by(BLOCK.into()).collect();
        let mut far: Vec<u16> = (FIRST..HIGHEST).step_by(BLOCK.into()).collect();
        fastrand::shuffle(&mut near);
        fastrand::shuffle(&mut far);
        for first in near.into_iter().chain(far) {
            if self.blocks.iter().any(|block| block.first == first) {
                continue;
            }
            let name = SocketName::from_abstract_name(format!("outrigger-ports-{first}"))?;
            let claim = match UnixListener::bind_addr(&name) {
                Ok(claim) => Some(claim),
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => continue,
                // Without such names there is only the look at each port.
                Err(_) => None,
            };
            self.blocks.push(Block { first, _claim: claim });
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("no free port between {LOWEST} and {HIGHEST}"),
        ))
    }

    /// Reserves exactly `port`; the error says who has it.
    pub(crate) fn fixed(&mut self, port: u16) -> Result<u16, String> {
        self.open(port).map(|_| port)
    }

    /// Listens on exactly `port`, for a sidecar that is handed the socket.
    pub(crate) fn door(&mut self, port: u16) -> Result<TcpListener, String> {
        let door = self.open(port)?;
        // The queue that `std` asks for is shorter than what a sidecar has.
        Backlog::new(1024)
            .and_then(|backlog| socket::listen(&door, backlog))
            .map_err(|error| format!("port {port} cannot be used: {error}"))?;
        Ok(door)
    }

    fn open(&mut self, port: u16) -> Result<TcpListener, String> {
        if !self.given.insert(port) {
            return Err(format!("port {port} is given to two services of this mesh"));
        }
        match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
            Ok(door) => Ok(door),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(match holder(port) {
                Some(holder) => format!("port {port} is in use by {holder}"),
                None => format!("port {port} is in use (by a process of another user)"),
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(format!(
                "port {port} needs more rights than this user has; use one from 1024 on"
            )),
            Err(error) => Err(format!("port {port} cannot be used: {error}")),
        }
    }
}

/// Who listens on `port`: process id and command, as far as the system tells us.
pub(crate) fn holder(port: u16) -> Option<String> {
    let sockets = listening(port);
    if sockets.is_empty() {
        return None;
    }
    tree::all()
        .into_iter()
        .find(|pid| has_socket(*pid, &sockets))
        .map(|pid| {
            let command = tree::command_line(Pid::from_raw(pid)).unwrap_or_default();
            format!("process {pid} ({})", command.chars().take(120).collect::<String>())
        })
}

/// The inodes of the sockets that listen on `port`.
fn listening(port: u16) -> HashSet<String> {
    ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|table| {
            table
                .lines()
                .skip(1)
                .filter_map(|line| listener(line, port))
                .collect::<Vec<_>>()
        })
        .collect()
}

fn listener(line: &str, port: u16) -> Option<String> {
    const LISTEN: &str = "0A";
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, local) = fields.get(1)?.rsplit_once(':')?;
    (u16::from_str_radix(local, 16).ok()? == port && *fields.get(3)? == LISTEN)
        .then(|| fields.get(9).map(|inode| format!("socket:[{inode}]")))
        .flatten()
}

fn has_socket(pid: i32, sockets: &HashSet<String>) -> bool {
    let Ok(entries) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else {
        return false;
    };
    entries
        .flatten()
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .any(|target| target.to_str().is_some_and(|target| sockets.contains(target)))
}

/// A loopback address.
pub(crate) fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_names_the_process_that_holds_it() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("bind");
        let port = listener.local_addr().expect("address").port();
        let error = Ports::default().fixed(port).expect_err("in use");
        assert!(
            error.contains(&format!("port {port} is in use by process {}", std::process::id())),
            "{error}"
        );
    }

    #[test]
    fn two_at_the_same_time_choose_from_different_ports() {
        let (mut one, mut other) = (Ports::default(), Ports::default());
        let mut ports = || [one.free().expect("free"), other.free().expect("free")];
        let all: HashSet<u16> = (0..150).flat_map(|_| ports()).collect();
        assert_eq!(all.len(), 300);
    }

    #[test]
    fn one_port_is_never_given_twice() {
        let mut ports = Ports::default();
        let given: HashSet<u16> = (0..50).map(|_| ports.free().expect("free")).collect();
        assert_eq!(given.len(), 50);
        let taken = *given.iter().next().expect("one");
        assert!(ports.fixed(taken).is_err());
    }
}
