//! Kept answers in `tests/golden`: a change is seen in review, never by accident.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};

use crate::world::root;

/// The lines of a kept file; `OUTRIGGER_GOLDEN=write` keeps `now` instead.
///
/// # Errors
/// When the file cannot be read or written.
pub fn lines(name: &str, now: &BTreeSet<String>) -> Result<BTreeSet<String>> {
    let path = root().join("tests/golden").join(name);
    if std::env::var_os("OUTRIGGER_GOLDEN").is_some_and(|v| v == "write") {
        let text: String = now.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    }
    let kept = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    Ok(kept.lines().map(str::to_owned).collect())
}
