//! mesh.yaml edited by a command: shown, checked here and by the control plane, written whole or not at all, put in force.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use outrigger_control_plane::config::{self, Edit, Mesh, ServiceDoc};
use outrigger_proto::model::ServiceName;
use serde_json::Value;

use crate::exit::Failure;
use crate::offer;
use crate::output::{self, cell};
use crate::plane::{Target, service_name};

/// Which file, and whether it is only looked at.
#[derive(Debug, Clone, Args)]
pub(crate) struct Revise {
    /// The mesh.yaml to edit, or the folder of one
    #[arg(short, long, default_value = ".", value_name = "FILE|DIR")]
    file: PathBuf,
    /// Show what would be written; write and apply nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    target: Target,
}

/// A mesh.yaml as it was read.
pub(crate) struct Document {
    file: PathBuf,
    text: String,
    new: String,
    mesh: Mesh,
    service: ServiceName,
}

impl Revise {
    /// Reads the file and finds the document of `service` in it.
    pub(crate) fn read(&self, service: &str) -> anyhow::Result<Document> {
        let mesh = config::load(&self.file).map_err(Failure::Config)?;
        let file = match self.file.is_dir() {
            true => self.file.join(config::FILE),
            false => self.file.clone(),
        };
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        let (namespace, name) = service_name(service)?;
        let namespace = if service.contains('/') {
            namespace
        } else {
            mesh.namespace.clone()
        };
        let service = ServiceName::new(&namespace, &name).map_err(|error| Failure::Usage(error.reason))?;
        if mesh.service(&service).is_none() {
            let names: Vec<String> = mesh.services.iter().map(|service| service.name.to_string()).collect();
            let near = config::closest(service.as_str(), names.iter().map(String::as_str));
            let hint = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
            let said = format!("{} has no service {service}{hint}", file.display());
            return Err(Failure::NotFound(said).into());
        }
        let new = text.clone();
        Ok(Document {
            file,
            text,
            new,
            mesh,
            service,
        })
    }

    /// Shows what differs, and unless it is a dry run writes it and puts it in force.
    ///
    /// Nothing is written that this program or the control plane would refuse, or over what somebody else wrote since.
    pub(crate) async fn put(&self, document: &Document) -> anyhow::Result<()> {
        let Document { file, text, new, .. } = document;
        let shown = file.display().to_string();
        match difference(&shown, text, new) {
            None => output::print(&format!("{shown} says so already\n"))?,
            Some(difference) => output::print(&difference)?,
        }
        let mesh = config::parse(&shown, new).map_err(Failure::Config)?;
        offer::warn(&mesh.warnings)?;
        if self.dry_run {
            return Ok(output::print("dry run: nothing is written\n")?);
        }
        let diff = offer::send_text(file, new.clone().into(), &self.target, "/v1/config/diff").await?;
        let changed = diff.get("services").and_then(Value::as_array).into_iter().flatten();
        let others: Vec<String> = changed
            .map(|change| cell(change.get("service")))
            .filter(|name| *name != document.service.as_str())
            .collect();
        if !others.is_empty() {
            let mut err = anstream::stderr();
            writeln!(
                err,
                "note: {shown} has other changes that were not in force: {}",
                others.join(", ")
            )
            .ok();
        }
        if new != text {
            let path = file.canonicalize().with_context(|| shown.clone())?;
            let now = fs::read_to_string(&path).with_context(|| shown.clone())?;
            anyhow::ensure!(now == *text, "{shown} was changed meanwhile; nothing is written");
            write(&path, new).with_context(|| format!("cannot write {shown}"))?;
        }
        let applied = offer::send_text(file, new.clone().into(), &self.target, "/v1/config").await;
        let applied =
            applied.with_context(|| format!("{shown} is written and not in force; `outrigger apply -f {shown}`"))?;
        Ok(output::print(&format!(
            "version {} is in force\n",
            cell(applied.get("version"))
        ))?)
    }
}

impl Document {
    /// What the file says of the service.
    pub(crate) fn service(&self) -> anyhow::Result<&ServiceDoc> {
        self.mesh.service(&self.service).context("the document is gone")
    }

    /// Edits the service's document. Nothing is written yet.
    pub(crate) fn edit(&mut self, edit: Edit<'_>) -> anyhow::Result<()> {
        // Edits change nothing above the document, so it begins where it began.
        let line = self.service()?.location.line;
        self.new = config::edit(&self.new, line, edit).with_context(|| self.file.display().to_string())?;
        Ok(())
    }
}

/// A text as a YAML value in a flow collection: quoted where it would mean something else.
pub(crate) fn yaml(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '/' | '%' | '-');
    let first = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/');
    let word = ["true", "false", "null"]
        .iter()
        .any(|word| text.eq_ignore_ascii_case(word));
    if first && !word && text.chars().all(plain) {
        return text.to_owned();
    }
    // A JSON text is a YAML text.
    Value::String(text.to_owned()).to_string()
}

/// Lines of context around a change.
const AROUND: usize = 2;

/// What differs, as one hunk of a unified diff.
fn difference(name: &str, old: &str, new: &str) -> Option<String> {
    if old == new {
        return None;
    }
    let (a, b): (Vec<&str>, Vec<&str>) = (old.lines().collect(), new.lines().collect());
    let same = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    let tail = a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count();
    let tail = tail.min(a.len() - same).min(b.len() - same);
    let from = same.saturating_sub(AROUND);
    let after = tail.min(AROUND);
    let part = |lines: &[&str], from: usize, to: usize, mark: char| {
        let lines = lines.get(from..to).unwrap_or_default().iter();
        lines.map(|line| format!("{mark}{line}\n")).collect::<String>()
    };
    let (old_end, new_end) = (a.len() - tail, b.len() - tail);
    let (old_lines, new_lines) = (old_end + after - from, new_end + after - from);
    let at = from + 1;
    Some(
        format!("--- {name}\n+++ {name}\n@@ -{at},{old_lines} +{at},{new_lines} @@\n")
            + &part(&a, from, same, ' ')
            + &part(&a, same, old_end, '-')
            + &part(&b, same, new_end, '+')
            + &part(&a, old_end, old_end + after, ' '),
    )
}

/// Writes `text` in place of the file: whoever reads it sees the old or the new one, also after a crash.
fn write(path: &Path, text: &str) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = folder.join(format!(".{name}.{}", uuid::Uuid::new_v4().simple()));
    let mode = fs::metadata(path)?.permissions();
    let written = fill(&draft, text, mode).and_then(|()| fs::rename(&draft, path));
    if written.is_err() {
        fs::remove_file(&draft).ok();
    }
    written?;
    File::open(folder)?.sync_all()
}

fn fill(draft: &Path, text: &str, mode: Permissions) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).open(draft)?;
    file.set_permissions(mode)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::{difference, yaml};

    #[test]
    fn a_difference_is_one_hunk() {
        let (old, new) = ("a\nb\nc\nd\ne\nf\n", "a\nb\nc\nX\ne\nf\n");
        let expected = "--- m\n+++ m\n@@ -2,5 +2,5 @@\n b\n c\n-d\n+X\n e\n f\n";
        assert_eq!(difference("m", old, new).as_deref(), Some(expected));
        assert_eq!(
            difference("m", "a\n", "a\na\n").as_deref(),
            Some("--- m\n+++ m\n@@ -1,1 +1,2 @@\n a\n+a\n")
        );
        assert_eq!(difference("m", old, old), None);
    }

    #[test]
    fn words_are_quoted_where_they_would_mean_something_else() {
        for (text, written) in [
            ("200ms", "200ms"),
            ("ns/web", "ns/web"),
            ("10%", "10%"),
            ("/users/{id}", "\"/users/{id}\""),
            ("*", "\"*\""),
            ("True", "\"True\""),
            ("a, b: c", "\"a, b: c\""),
            ("2026-11-24T10:00:00Z", "\"2026-11-24T10:00:00Z\""),
            ("", "\"\""),
        ] {
            assert_eq!(yaml(text), written);
        }
    }
}
