//! Kept answers in `tests/golden`: a change is seen in review, never by accident.

use anyhow::{Context as _, Result, ensure};

use crate::world::root;

/// Compares `text` with the kept file; `OUTRIGGER_GOLDEN=write` writes it instead.
///
/// # Errors
/// When they differ, with both.
pub fn check(name: &str, text: &str) -> Result<()> {
    let path = root().join("tests/golden").join(name);
    if std::env::var_os("OUTRIGGER_GOLDEN").is_some_and(|v| v == "write") {
        return std::fs::write(&path, text).with_context(|| path.display().to_string());
    }
    let kept = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let changed: Vec<String> = text
        .lines()
        .filter(|line| !kept.lines().any(|k| k == *line))
        .map(|line| format!("+ {line}"))
        .chain(
            kept.lines()
                .filter(|line| !text.lines().any(|t| t == *line))
                .map(|line| format!("- {line}")),
        )
        .collect();
    ensure!(
        changed.is_empty(),
        "tests/golden/{name} differs; OUTRIGGER_GOLDEN=write keeps the new text\n{}",
        changed.join("\n")
    );
    Ok(())
}
