//! Authorities, compared without regard to case and to a dot at the name's end.

use crate::model::FieldError;

/// Longest `name:port` that can match: a name of 253 bytes (RFC 1035 §2.3.4) or an address, and a port.
const LONGEST: usize = 261;

/// A pattern, in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Pattern {
    /// `name` or `name:port`.
    Named(Box<str>),
    /// What follows `*.`.
    Suffix(Box<str>),
}

/// What a client asked for, in lower case, on the stack: requests name hosts in every spelling.
pub(super) struct Host {
    text: [u8; LONGEST],
    name: usize,
    whole: usize,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| Err(format!("`{}` {why}", text.chars().take(80).collect::<String>()));
        let lower = text.to_ascii_lowercase();
        let (suffix, rest) = match lower.strip_prefix("*.") {
            Some(rest) => (true, rest),
            None => (false, &*lower),
        };
        let (name, port) = split(rest);
        let name = name.strip_suffix('.').unwrap_or(name);
        if name.is_empty() || rest.len() > LONGEST {
            return wrong("is not a host");
        }
        if name.contains('*') {
            return wrong("has a `*` that is not its first label");
        }
        let legal = |b: u8| b.is_ascii_alphanumeric() || b"-._[]:".contains(&b);
        if !name.bytes().all(legal) || (name.contains(':') && !name.starts_with('[')) {
            return wrong("is not `name`, `name:port` or `*.suffix`");
        }
        let whole = match port {
            Some(port) if port.parse::<u16>().is_ok_and(|p| p > 0) => format!("{name}:{port}"),
            Some(_) => return wrong("has a port that is none"),
            None => name.to_owned(),
        };
        Ok(match suffix {
            true => Self::Suffix(whole.into()),
            false => Self::Named(whole.into()),
        })
    }

    pub(super) fn list(hosts: &[String]) -> Result<Vec<Self>, FieldError> {
        let one = |(i, h): (usize, &String)| Self::new(h).map_err(|why| FieldError::new(format!("hosts[{i}]"), why));
        hosts.iter().enumerate().map(one).collect()
    }
}

impl Host {
    /// `None`: too long for any pattern.
    pub(super) fn read(authority: &str) -> Option<Self> {
        let (name, port) = split(authority);
        let name = name.strip_suffix('.').unwrap_or(name).as_bytes();
        let port = port.map(str::as_bytes);
        let whole = name.len() + port.map_or(0, |port| 1 + port.len());
        let mut host = Self {
            text: [0; LONGEST],
            name: name.len(),
            whole,
        };
        host.text.get_mut(..name.len())?.copy_from_slice(name);
        if let Some(port) = port {
            *host.text.get_mut(name.len())? = b':';
            host.text.get_mut(name.len() + 1..whole)?.copy_from_slice(port);
        }
        host.text.make_ascii_lowercase();
        Some(host)
    }

    /// The name, and with its port when it has one.
    pub(super) fn names(&self) -> [&str; 2] {
        [self.part(0, self.name), self.part(0, self.whole)]
    }

    /// What follows each dot, with and without port.
    pub(super) fn suffixes(&self) -> impl Iterator<Item = [&str; 2]> {
        let dots = (1..self.name).filter(|i| self.text.get(*i) == Some(&b'.'));
        dots.map(|dot| [self.part(dot + 1, self.name), self.part(dot + 1, self.whole)])
    }

    fn part(&self, from: usize, to: usize) -> &str {
        let bytes = self.text.get(from..to).unwrap_or_default();
        std::str::from_utf8(bytes).unwrap_or_default()
    }
}

/// The name and the port; an IPv6 address keeps its brackets.
pub(super) fn split(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, Some(port)),
        _ => (authority, None),
    }
}
