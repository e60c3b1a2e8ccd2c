//! What is wrong with a file: for people (rendered with a snippet), and as data (the API's JSON).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use serde::Serialize;

/// One mistake and where it stands.
#[derive(Debug, Clone, Serialize)]
pub struct ConfigError {
    /// As it was named by whoever asked.
    pub file: String,
    /// From 1; 0 when the file could not be read.
    pub line: usize,
    /// From 1, in characters; 0 when the file could not be read.
    pub column: usize,
    /// What is wrong; names the value.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub help: Option<String>,
    #[serde(skip)]
    labels: Vec<(Range<usize>, String)>,
    #[serde(skip)]
    source: Option<Arc<NamedSource<Arc<str>>>>,
}

impl ConfigError {
    /// A mistake at `at` in `source`.
    pub(super) fn new(source: &Arc<NamedSource<Arc<str>>>, at: &super::tree::Span, message: impl Into<String>) -> Self {
        Self {
            file: source.name().to_owned(),
            line: at.line,
            column: at.column,
            message: message.into(),
            help: None,
            labels: vec![(at.bytes.clone(), "here".to_owned())],
            source: Some(Arc::clone(source)),
        }
    }

    /// Says what to do about it.
    pub(super) fn help(mut self, help: impl Into<Option<String>>) -> Self {
        self.help = help.into();
        self
    }

    /// Writes `text` at the mistake itself.
    pub(super) fn label(mut self, text: &str) -> Self {
        if let Some(first) = self.labels.first_mut() {
            text.clone_into(&mut first.1);
        }
        self
    }

    /// Points at a second place.
    pub(super) fn also(mut self, at: &super::tree::Span, text: impl Into<String>) -> Self {
        self.labels.push((at.bytes.clone(), text.into()));
        self
    }

    /// `file:line:column: message`, one line.
    #[must_use]
    pub fn one_line(&self) -> String {
        if self.line == 0 {
            format!("{}: {}", self.file, self.message)
        } else {
            format!("{}:{}:{}: {}", self.file, self.line, self.column, self.message)
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

impl Diagnostic for ConfigError {
    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.help.as_ref().map(|help| Box::new(help) as Box<dyn fmt::Display>)
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.source.as_deref().map(|source| source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        self.source.as_ref()?;
        let spans = self.labels.iter().enumerate().map(|(i, (bytes, text))| {
            // The first label decides which line the report's headline names.
            if i == 0 {
                LabeledSpan::new_primary_with_span(Some(text.clone()), bytes.clone())
            } else {
                LabeledSpan::new_with_span(Some(text.clone()), bytes.clone())
            }
        });
        Some(Box::new(spans))
    }
}

/// Everything that is wrong with a file, in the order of its lines; never empty.
#[derive(Debug, Clone, Serialize)]
pub struct ConfigErrors {
    /// The mistakes.
    pub errors: Vec<ConfigError>,
}

impl ConfigErrors {
    /// A file that could not be read at all.
    pub(super) fn unreadable(file: &str, reason: &str) -> Self {
        Self {
            errors: vec![ConfigError {
                file: file.to_owned(),
                line: 0,
                column: 0,
                message: format!("cannot read {file}: {reason}"),
                help: None,
                labels: Vec::new(),
                source: None,
            }],
        }
    }

    /// The report for people: each mistake with its snippet. `colour` decides on escape codes.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let theme = if colour {
            GraphicalTheme::unicode()
        } else {
            GraphicalTheme::unicode_nocolor()
        };
        let handler = GraphicalReportHandler::new_themed(theme)
            .with_width(100)
            .with_links(false);
        let mut out = String::new();
        for error in &self.errors {
            if handler.render_report(&mut out, error).is_err() {
                out.push_str(&error.one_line());
            }
            out.push('\n');
        }
        out
    }
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                f.write_str("\n")?;
            }
            f.write_str(&error.one_line())?;
            if let Some(help) = &error.help {
                write!(f, " ({help})")?;
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}
