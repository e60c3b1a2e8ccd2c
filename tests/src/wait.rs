//! Waiting for a condition, always with a deadline; nothing here is a fixed pause.

use std::future::Future;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::Instant;

/// How long a condition may take that takes milliseconds on an idle machine.
pub const SOON: Duration = Duration::from_secs(60);

/// Asks again and again until `condition` is true.
///
/// # Errors
/// After [`SOON`], naming `what`.
pub async fn until<F, Fut>(what: &str, condition: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    until_within(SOON, what, condition).await
}

/// [`until`] with a deadline of its own.
///
/// # Errors
/// After `deadline`, naming `what`.
pub async fn until_within<F, Fut>(deadline: Duration, what: &str, mut condition: F) -> Result<()>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = bool>,
{
    let end = Instant::now() + deadline;
    while !condition().await {
        if Instant::now() >= end {
            bail!("waited {deadline:?} in vain: {what}");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Bounds one step.
///
/// # Errors
/// The step's own, or that it took longer than [`SOON`].
pub async fn soon<T>(what: &str, step: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(SOON, step).await {
        Ok(result) => result,
        Err(_) => bail!("waited {SOON:?} in vain: {what}"),
    }
}
