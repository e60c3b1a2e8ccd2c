//! A mesh.yaml on its way to the control plane. It is checked here first, so that mistakes are shown with their snippet
//! even when nobody answers.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;
use http::StatusCode;
use outrigger_control_plane::config;
use serde_json::Value;

use crate::exit::Failure;
use crate::output::cell;
use crate::plane::{Target, said};

/// Checks a file, says what may be wanted, gives it to the control plane at `path` and returns what it answers.
pub(crate) async fn send(file: &Path, target: &Target, path: &str) -> anyhow::Result<Value> {
    let mesh = config::load(file).map_err(Failure::Config)?;
    warn(&mesh.warnings)?;
    let file = if file.is_dir() {
        file.join(config::FILE)
    } else {
        file.to_path_buf()
    };
    let text = std::fs::read(&file).with_context(|| file.display().to_string())?;
    send_text(&file, text, target, path).await
}

/// Gives what stands, or is to stand, in `file` to the control plane at `path` and returns what it answers.
pub(crate) async fn send_text(file: &Path, text: Vec<u8>, target: &Target, path: &str) -> anyhow::Result<Value> {
    let reply = target.plane()?.post(path, text.into()).await?;
    if reply.status == StatusCode::UNPROCESSABLE_ENTITY {
        let said: Value = serde_json::from_slice(&reply.body)?;
        let reasons = said
            .get("errors")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(|error| {
                let part = |key: &str| cell(error.get(key));
                let help = error
                    .get("help")
                    .and_then(Value::as_str)
                    .map(|help| format!(" ({help})"))
                    .unwrap_or_default();
                format!(
                    "{}:{}:{}: {}{help}",
                    file.display(),
                    part("line"),
                    part("column"),
                    part("message")
                )
            });
        return Err(Failure::Refused(reasons.collect::<Vec<_>>().join("\n")).into());
    }
    anyhow::ensure!(
        reply.status.is_success(),
        "the control plane answered {}: {}",
        reply.status,
        said(&reply.body)
    );
    Ok(serde_json::from_slice(&reply.body)?)
}

/// Writes warnings to standard error.
pub(crate) fn warn(warnings: &[config::ConfigError]) -> std::io::Result<()> {
    match warnings {
        [] => Ok(()),
        warnings => anstream::stderr().write_all(config::render(warnings, true).as_bytes()),
    }
}
