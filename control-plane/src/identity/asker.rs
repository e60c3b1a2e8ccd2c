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
