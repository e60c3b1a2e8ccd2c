//! Free ports on loopback that nobody else takes before the program under test binds them.
//!
//! A port of the ephemeral range could become the local end of somebody's connection between
//! "it is free" and "bind it"; a thousand connections in the next test make that likely. So
//! ports come from below the range, each handed out once in a run.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Result, bail};

/// A loopback address whose port is free.
///
/// # Errors
/// When the whole range is taken.
pub fn free() -> Result<SocketAddr> {
    // Two runs on one machine start at different places.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(RANGE))?;
    for _ in 0..RANGE {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start.wrapping_add(step)) % RANGE;
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        if TcpListener::bind(addr).is_ok() {
            return Ok(addr);
        }
    }
    bail!("no free port in {FIRST}..{}", FIRST + RANGE)
}

const FIRST: u16 = 20_000;
const RANGE: u16 = 12_000;
