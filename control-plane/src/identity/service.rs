//! The gRPC face: `outrigger.agent.v1.Identity`.

use std::io;
use std::sync::Arc;
use std::time::SystemTime;

use outrigger_proto::wire::agent::identity_server;
use outrigger_proto::wire::agent::{IssueRequest, IssueResponse};
use tonic::{Code, Request, Response, Status};

use super::queue::Queue;
use super::{Asker, Authority, Refusal, clock};

/// The service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    authority: Arc<Authority>,
    queue: Arc<Queue>,
}

impl Service {
    /// Starts the thread that signs.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(authority: Arc<Authority>) -> io::Result<Self> {
        let queue = Arc::new(Queue::start(Arc::clone(&authority))?);
        Ok(Self { authority, queue })
    }
}

impl Refusal {
    /// As gRPC says it.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Malformed(_) => Code::InvalidArgument,
            Self::Unproven(_) => Code::Unauthenticated,
            Self::Forbidden(_) => Code::PermissionDenied,
            Self::Unknown(_) => Code::NotFound,
            Self::Conflict(_) => Code::FailedPrecondition,
            Self::TooOften { .. } => Code::ResourceExhausted,
            Self::Busy | Self::Store(_) | Self::Signing(_) => Code::Unavailable,
        }
    }
}

#[tonic::async_trait]
impl identity_server::Identity for Service {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<IssueResponse>, Status> {
        let asker = request.extensions().get::<Asker>().cloned().unwrap_or_default();
        let status = |refusal: Refusal| Status::new(refusal.code(), refusal.to_string());
        let now = clock();
        let checked = self.authority.check(now, &asker, request.get_ref()).map_err(status)?;
        let granted = self.queue.grant(now, checked).await.map_err(status)?;
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        Ok(Response::new(IssueResponse {
            chain: granted.chain,
            trust: Some(granted.trust.into()),
            now_ms: since.map_or(0, |s| i64::try_from(s.as_millis()).unwrap_or(i64::MAX)),
        }))
    }
}
