//! `outrigger-sidecar`: the proxy alone, small, for images.

use std::process::ExitCode;

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const USAGE: &str = "usage: outrigger-sidecar --config FILE";

fn main() -> ExitCode {
    outrigger_sidecar::init_logs();
    let args: Vec<String> = std::env::args().skip(1).collect();
    let path = match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--config", path] => path.to_owned(),
        ["--version"] => {
            tracing::info!(version = env!("CARGO_PKG_VERSION"), "outrigger-sidecar");
            return ExitCode::SUCCESS;
        }
        _ => {
            tracing::error!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    let started = outrigger_sidecar::config::Bootstrap::from_file(path.as_ref())
        .map_err(anyhow::Error::from)
        .and_then(|bootstrap| Ok(outrigger_sidecar::run(bootstrap)?));
    match started {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
