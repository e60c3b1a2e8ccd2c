//! Why something was not granted. Whoever reads it gets no hint that helps with guessing.

/// Why something was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request is not well formed.
    #[error("{0}")]
    Malformed(String),
    /// Who asks is not proven.
    #[error("{0}")]
    Unproven(String),
    /// Who asks is known and may not have it.
    #[error("{0}")]
    Forbidden(String),
    /// There is no such thing.
    #[error("{0}")]
    Unknown(String),
    /// It does not fit what is under way.
    #[error("{0}")]
    Conflict(String),
    /// Asked too often.
    #[error("{who} asks for certificates too often; again in {seconds} s")]
    TooOften {
        /// Whose budget is spent.
        who: String,
        /// When there is some again.
        seconds: u64,
    },
    /// Too many others wait.
    #[error("the queue for certificates is full; ask again")]
    Busy,
    /// It cannot be made durable, so it was not done.
    #[error("the identity state cannot be stored, so nothing is granted: {0}")]
    Store(String),
    /// It cannot be signed.
    #[error("{0}")]
    Signing(String),
}
