//! How the program ends: the one place where a failure becomes an exit code and a text on standard error.

use std::io::Write as _;
use std::process::ExitCode;

use outrigger_control_plane::config::ConfigErrors;

/// Shown in `outrigger --help`.
pub(crate) const HELP: &str = "\
Exit codes:
  0  done
  1  failed; `health`: something is not well; `call`: the answer was an error;
     `config diff`: something would change
  2  the command line is not understood
  3  the control plane cannot be reached
  4  not found
  5  the configuration was refused
  6  `explain-access`: denied
  7  the control plane does not let us in, or is not the one that the token is of";

/// A failure that has an exit code of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Nobody answers at the control plane's address.
    #[error(
        "cannot reach the control plane at {address}: {reason}; is `outrigger up` or `outrigger control-plane` running?"
    )]
    Unreachable {
        /// Its address.
        address: String,
        /// What the system says.
        reason: String,
    },
    /// The control plane, or what guards it, refuses whoever asks.
    #[error("the control plane at {address} does not let us in: {said}")]
    NotLetIn {
        /// Its address.
        address: String,
        /// Why.
        said: String,
    },
    /// Whoever answers is not the token's control plane.
    #[error("nobody at {address} is the control plane that the token is of: {reason}")]
    Stranger {
        /// Where it answers.
        address: String,
        /// What it lacks.
        reason: String,
    },
    /// What was asked for does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The command line asks for something impossible.
    #[error("{0}")]
    Usage(String),
    /// A mesh.yaml that this program read.
    #[error("the configuration is refused")]
    Config(#[from] ConfigErrors),
    /// A mesh.yaml that the control plane read.
    #[error("the control plane refused the configuration:\n{0}")]
    Refused(String),
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Usage(_) => 2,
            Self::Unreachable { .. } => 3,
            Self::NotFound(_) => 4,
            Self::Config(_) | Self::Refused(_) => 5,
            Self::NotLetIn { .. } | Self::Stranger { .. } => 7,
        }
    }
}

/// Writes `error` for a person and names the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // A reader that went away (`outrigger get services | head`) is no failure.
    let broken_pipe = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    };
    if error.chain().any(broken_pipe) {
        return ExitCode::SUCCESS;
    }
    let failure = error.chain().find_map(|cause| cause.downcast_ref::<Failure>());
    let mut err = anstream::stderr();
    let config = error.chain().find_map(|cause| cause.downcast_ref::<ConfigErrors>());
    // Nothing is left to do when standard error is gone.
    if let Some(errors) = config {
        write!(err, "{}", errors.render(true)).ok();
        return ExitCode::from(5);
    }
    writeln!(err, "{}error:{} {error:#}", ERROR.render(), ERROR.render_reset()).ok();
    ExitCode::from(failure.map_or(1, Failure::code))
}

const ERROR: anstyle::Style = anstyle::AnsiColor::Red.on_default().bold();
