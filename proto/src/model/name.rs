//! Names: `namespace/service` and `namespace/service/instance`.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::FieldError;

/// A service's full name, shown as `namespace/service`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    full: Arc<str>,
    slash: usize,
}

impl ServiceName {
    /// Joins two labels.
    ///
    /// # Errors
    /// When either is not a DNS label (RFC 1123: 1 to 63 of `a-z0-9-`, no `-` at either end).
    pub fn new(namespace: &str, service: &str) -> Result<Self, FieldError> {
        label(namespace, "namespace")?;
        label(service, "service")?;
        Ok(Self {
            full: format!("{namespace}/{service}").into(),
            slash: namespace.len(),
        })
    }

    /// The part before the slash.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.full.get(..self.slash).unwrap_or_default()
    }

    /// The part after the slash.
    #[must_use]
    pub fn service(&self) -> &str {
        self.full.get(self.slash + 1..).unwrap_or_default()
    }

    /// `namespace/service`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.full
    }

    /// The collection of this service's endpoints, `namespace/service/*`.
    #[must_use]
    pub fn collection(&self) -> String {
        format!("{self}/*")
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

impl FromStr for ServiceName {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        match text.split_once('/') {
            Some((namespace, service)) => Self::new(namespace, service),
            None => Err(FieldError::new("name", format!("`{text}` is not namespace/service"))),
        }
    }
}

/// One instance's full name, shown as `namespace/service/instance`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointName {
    /// Whose instance it is.
    pub service: ServiceName,
    /// The instance id.
    pub instance: Arc<str>,
}

impl fmt::Display for EndpointName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.service, self.instance)
    }
}

impl FromStr for EndpointName {
    type Err = FieldError;

    fn from_str(text: &str) -> Result<Self, FieldError> {
        let Some((service, instance)) = text.rsplit_once('/') else {
            return Err(FieldError::new(
                "name",
                format!("`{text}` is not namespace/service/instance"),
            ));
        };
        label(instance, "instance")?;
        Ok(Self {
            service: service.parse()?,
            instance: instance.into(),
        })
    }
}

/// Accepts a DNS label (RFC 1123 §2.1).
pub(crate) fn label(text: &str, path: &str) -> Result<(), FieldError> {
    let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    let inside = bytes
        .iter()
        .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if bytes.len() <= 63 && inside && edge(bytes.first()) && edge(bytes.last()) {
        Ok(())
    } else {
        let shown: String = text.chars().take(80).collect();
        Err(FieldError::new(
            path,
            format!("`{shown}` is not a name: 1 to 63 of a-z, 0-9 and -, with no - at an end"),
        ))
    }
}
