//! Who asks: put into the request's extensions by whoever accepted the connection.

use outrigger_proto::model::SpiffeId;

/// Who sent a request. What is not proven is [`Asker::Nobody`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Asker {
    /// A workload, by the client certificate of its connection.
    Workload {
        /// Who it is.
        id: SpiffeId,
        /// The leaf's serial: lower-case hexadecimal of its 16 bytes.
        serial: String,
    },
    /// A person: over the unix socket, or by the admin token.
    Operator,
    /// Nothing was proven.
    #[default]
    Nobody,
}

impl Asker {
    /// Whether it may speak for `service` (`namespace/service`): the workload itself, and operators.
    ///
    /// # Errors
    /// Who it is instead.
    pub fn is_service(&self, service: &str) -> Result<(), String> {
        match self {
            Self::Operator => Ok(()),
            Self::Workload { id, .. } if id.service().as_str() == service => Ok(()),
            Self::Workload { id, .. } => Err(id.to_string()),
            Self::Nobody => Err("nobody".to_owned()),
        }
    }
}
