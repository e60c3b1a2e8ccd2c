//! Turns async functions of a [`World`] into tests; a failure shows the ends of all logs.

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use libtest_mimic::{Failed, Trial};

use crate::World;

/// How long one scenario may take, judges apart.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// A test called `room::name`.
pub fn scenario<F, Fut>(room: &str, name: &str, body: F) -> Trial
where
    F: FnOnce(Arc<World>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>>,
{
    patient(room, name, PATIENCE, body)
}

/// A [`scenario`] with a patience of its own.
pub fn patient<F, Fut>(room: &str, name: &str, patience: Duration, body: F) -> Trial
where
    F: FnOnce(Arc<World>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>>,
{
    let room = room.rsplit("::").next().unwrap_or(room);
    Trial::test(format!("{room}::{name}"), move || run(false, patience, body))
}

/// A scenario twice: plain, and as `mtls::room::name` with mutual TLS between all sidecars.
pub fn over_both<F, Fut>(room: &str, name: &str, patience: Duration, body: F) -> [Trial; 2]
where
    F: FnOnce(Arc<World>) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = Result<()>>,
{
    [
        patient(room, name, patience, body.clone()),
        secure(room, name, patience, body),
    ]
}

fn run<F, Fut>(secure: bool, patience: Duration, body: F) -> Result<(), Failed>
where
    F: FnOnce(Arc<World>) -> Fut,
    Fut: Future<Output = Result<()>>,
{
    let world = Arc::new(World::new(secure)?);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let inner = Arc::clone(&world);
    let result = catch_unwind(AssertUnwindSafe(|| {
        runtime.block_on(async {
            tokio::time::timeout(patience, body(inner))
                .await
                .unwrap_or_else(|_| Err(anyhow!("not done after {patience:?}")))
        })
    }))
    .unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Err(anyhow!("panicked: {}", text.unwrap_or_default()))
    });
    runtime.shutdown_background();
    result.map_err(|error| Failed::from(format!("{error:#}\n{}{}", places(&error), world.logs())))
}

/// Where in the scenarios the error came from, when RUST_BACKTRACE is set; a whole backtrace through
/// the runtime hides it.
fn places(error: &anyhow::Error) -> String {
    let trace = error.backtrace().to_string();
    let ours = |line: &&str| line.contains("scenarios/") && line.trim_start().starts_with("at ");
    trace
        .lines()
        .filter(ours)
        .map(|line| format!("{}\n", line.trim()))
        .collect()
}

/// Lists a file's scenarios: `scenarios![a, b, c]`.
#[macro_export]
macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {
        vec![$($crate::runner::scenario(module_path!(), stringify!($name), $name)),*]
    };
}

/// A scenario in a world of mutual TLS, called `mtls::room::name`.
pub fn secure<F, Fut>(room: &str, name: &str, patience: Duration, body: F) -> Trial
where
    F: FnOnce(Arc<World>) -> Fut + Send + 'static,
    Fut: Future<Output = Result<()>>,
{
    let room = room.rsplit("::").next().unwrap_or(room);
    Trial::test(format!("mtls::{room}::{name}"), move || run(true, patience, body))
}

/// Lists a file's scenarios that need mutual TLS.
#[macro_export]
macro_rules! secure_scenarios {
    ($($name:ident),* $(,)?) => {
        vec![$($crate::runner::secure(module_path!(), stringify!($name), $crate::runner::PATIENCE, $name)),*]
    };
}

/// Lists scenarios that hold over plain connections and over mutual TLS alike.
#[macro_export]
macro_rules! over_both {
    ($($name:ident),* $(,)?) => {
        [$($crate::runner::over_both(module_path!(), stringify!($name), $crate::runner::PATIENCE, $name)),*].into_iter().flatten().collect::<Vec<_>>()
    };
}
