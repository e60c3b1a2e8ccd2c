//! Start and stop of a service: where it listens, how it reaches a neighbour, and that it finishes its calls on SIGTERM.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;
use tonic::Status;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::ServingStatus;
use tracing::{error, info};

/// How long calls in flight may go on after SIGTERM.
pub const GRACE: Duration = Duration::from_secs(5);

/// Runs a service to its end. Its log goes to standard output, one line an event, and so does what ended it too early.
pub fn run(service: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_target(false)
        .with_ansi(false)
        .without_time()
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from);
    match runtime.and_then(|runtime| runtime.block_on(service)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(cause) => {
            error!("{cause:#}");
            ExitCode::FAILURE
        }
    }
}

/// Binds `HOST` (default 127.0.0.1) and `PORT`.
///
/// # Errors
/// When `PORT` is missing or is no port, or somebody else has it.
pub async fn listener() -> anyhow::Result<TcpListener> {
    let host = std::env::var("HOST").unwrap_or_else(|_| "127.0.0.1".to_owned());
    let port = std::env::var("PORT").context("PORT is not set")?;
    let address: SocketAddr = format!("{host}:{port}")
        .parse()
        .with_context(|| format!("no address: {host}:{port}"))?;
    let listener = TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}"))?;
    info!("listening on {address}");
    Ok(listener)
}

/// A channel to the neighbour whose address stands in `variable`; it connects at the first call.
///
/// # Errors
/// When the variable is missing or holds no address.
pub fn neighbour(variable: &str) -> anyhow::Result<Channel> {
    let address = std::env::var(variable).with_context(|| format!("{variable} is not set"))?;
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .with_context(|| format!("{variable} is no address: {address}"))?;
    Ok(endpoint.connect_lazy())
}

/// A neighbour's refusal as this service's own: the code and the words, not the neighbour's headers.
#[must_use]
pub fn relay(status: Status) -> Status {
    Status::new(status.code(), status.message())
}

/// Becomes ready at SIGTERM or SIGINT.
///
/// # Errors
/// When the process may not listen for signals.
pub async fn stop() -> std::io::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    info!("stopping");
    Ok(())
}

/// Serves `routes` with the standard health and reflection services until SIGTERM, then finishes the calls in flight.
///
/// `name` is the full gRPC name that health probes ask for.
///
/// # Errors
/// When the port cannot be had or the descriptor set cannot be read.
pub async fn serve(name: &str, descriptors: &'static [u8], routes: Routes) -> anyhow::Result<()> {
    let incoming = TcpIncoming::from(listener().await?).with_nodelay(Some(true));
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status(name, ServingStatus::Serving).await;
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(descriptors)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Many clients still ask by reflection's older name only.
    let (reflection, older_reflection) = (reflection().build_v1()?, reflection().build_v1alpha()?);
    let routes = routes
        .add_service(health_service)
        .add_service(reflection)
        .add_service(older_reflection);

    let (stopping, stopped) = oneshot::channel::<()>();
    let server = Server::builder()
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, async {
            stopped.await.ok();
        });
    tokio::pin!(server);
    tokio::select! {
        done = &mut server => return Ok(done?),
        stop = stop() => stop?,
    }
    health.set_service_status("", ServingStatus::NotServing).await;
    health.set_service_status(name, ServingStatus::NotServing).await;
    stopping.send(()).ok();
    // A client may keep a stream open for ever (health's Watch does), so the wait has an end.
    match tokio::time::timeout(GRACE, server).await {
        Ok(done) => Ok(done?),
        Err(_) => Ok(()),
    }
}
