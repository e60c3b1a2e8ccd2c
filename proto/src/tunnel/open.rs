//! OPEN: what a stream asks for, as types, lengths and values.
//!
//! Names only. There is no field for an address to dial, and none can be added that an acceptor of
//! this version would obey.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::{Frame, MAX_OPEN, Violation};
use crate::model::{ServiceName, check_label};

/// Set in a type that must be understood.
const CRITICAL: u8 = 0x80;
const NUMBER: u8 = CRITICAL | 1;
const SERVICE: u8 = CRITICAL | 2;
const PORT: u8 = CRITICAL | 3;
const TRACEPARENT: u8 = 4;
const SOURCE: u8 = 5;

/// What a stream asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Open {
    /// One more than the stream before on the same connection; the first is 1.
    pub number: u32,
    /// The service called.
    pub service: ServiceName,
    /// The port's name.
    pub port: Arc<str>,
    /// The caller's trace (W3C Trace Context §3.2).
    pub traceparent: Option<String>,
    /// Where the application connection came from; a hint for logs, never for decisions.
    pub source: Option<SocketAddr>,
}

/// What became of an OPEN.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Read {
    /// Understood.
    Whole(Open),
    /// Well formed, and asks for something that this version does not know.
    Unsupported(u32),
}

impl Open {
    /// Appends the frame to `out`. A trace that is not one is left out.
    pub fn write(&self, out: &mut Vec<u8>) {
        let mut tlvs = Vec::with_capacity(256);
        put(&mut tlvs, NUMBER, &self.number.to_be_bytes());
        put(&mut tlvs, SERVICE, self.service.as_str().as_bytes());
        put(&mut tlvs, PORT, self.port.as_bytes());
        if let Some(trace) = self.traceparent.as_deref().filter(|t| is_trace(t.as_bytes())) {
            put(&mut tlvs, TRACEPARENT, trace.as_bytes());
        }
        match self.source {
            Some(SocketAddr::V4(v4)) => put_source(&mut tlvs, &v4.ip().octets(), v4.port()),
            Some(SocketAddr::V6(v6)) => put_source(&mut tlvs, &v6.ip().octets(), v6.port()),
            None => {}
        }
        // The parts are at most 7 + 130 + 66 + 58 + 21 bytes.
        debug_assert!(tlvs.len() <= MAX_OPEN);
        Frame::Open(&tlvs).write(out);
    }

    /// Reads what follows the header.
    ///
    /// # Errors
    /// When it is not well formed: a length beyond the end, a part that stands twice or is missing, a
    /// name that is none.
    pub(super) fn read(mut rest: &[u8]) -> Result<Read, Violation> {
        let (mut number, mut service, mut port) = (None, None, None);
        let (mut traceparent, mut source) = (None, None);
        let mut unknown = false;
        while !rest.is_empty() {
            let Some((&[kind, high, low], tail)) = rest.split_first_chunk::<3>() else {
                return Err(Violation::Open("a part is cut off"));
            };
            let Some((value, tail)) = tail.split_at_checked(usize::from(u16::from_be_bytes([high, low]))) else {
                return Err(Violation::Open("a part is longer than the frame"));
            };
            rest = tail;
            match kind {
                NUMBER => {
                    let value = value
                        .try_into()
                        .map_err(|_| Violation::Open("the number is not 4 bytes"))?;
                    once(&mut number, u32::from_be_bytes(value))?;
                }
                SERVICE => {
                    let name = std::str::from_utf8(value)
                        .ok()
                        .and_then(|v| v.parse::<ServiceName>().ok());
                    once(&mut service, name.ok_or(Violation::Open("the service is not a name"))?)?;
                }
                PORT => {
                    let name = std::str::from_utf8(value)
                        .ok()
                        .filter(|v| check_label(v, "port").is_ok());
                    let name = name.ok_or(Violation::Open("the port is not a name"))?;
                    once(&mut port, Arc::from(name))?;
                }
                TRACEPARENT => {
                    // What is only for logs is left out when it is wrong, and refuses nobody.
                    let text = is_trace(value).then(|| String::from_utf8_lossy(value).into_owned());
                    once(&mut traceparent, text)?;
                }
                SOURCE => once(&mut source, read_source(value))?,
                _ if kind & CRITICAL != 0 => unknown = true,
                _ => {}
            }
        }
        let number = number.ok_or(Violation::Open("it has no number"))?;
        if unknown {
            return Ok(Read::Unsupported(number));
        }
        Ok(Read::Whole(Self {
            number,
            service: service.ok_or(Violation::Open("it names no service"))?,
            port: port.ok_or(Violation::Open("it names no port"))?,
            traceparent: traceparent.flatten(),
            source: source.flatten(),
        }))
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), Violation> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(Violation::Open("a part stands twice")),
    }
}

fn put(out: &mut Vec<u8>, kind: u8, value: &[u8]) {
    out.push(kind);
    out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(0).to_be_bytes());
    out.extend_from_slice(value);
}

fn put_source(out: &mut Vec<u8>, address: &[u8], port: u16) {
    let mut value = address.to_vec();
    value.extend_from_slice(&port.to_be_bytes());
    put(out, SOURCE, &value);
}

fn read_source(value: &[u8]) -> Option<SocketAddr> {
    let (address, port) = value.split_last_chunk::<2>()?;
    let address = match *address {
        [a, b, c, d] => IpAddr::from([a, b, c, d]),
        _ => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
    };
    Some(SocketAddr::new(address, u16::from_be_bytes(*port)))
}

/// `00-<32 hex>-<16 hex>-<2 hex>`, lower case, or a later version of the same length.
fn is_trace(value: &[u8]) -> bool {
    value.len() == 55
        && value.iter().enumerate().all(|(i, b)| match i {
            2 | 35 | 52 => *b == b'-',
            _ => b.is_ascii_digit() || (b'a'..=b'f').contains(b),
        })
}
