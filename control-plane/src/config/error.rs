//! What is wrong with a file: for people (rendered with a snippet), and as data (the API's JSON).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, Severity, SourceCode};
use serde::Serialize;

use super::codes::{self, Code};

/// One mistake and where it stands.
#[derive(Debug, Clone, Serialize)]
pub struct ConfigError {
    /// As it was named by whoever asked.
    pub file: String,
    /// From 1; 0 when the file could not be read.
    pub line: usize,
    /// From 1, in characters; 0 when the file could not be read.
    pub column: usize,
    /// Its number in the table of `outrigger config explain`, for example `OR1101`; not all have one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
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
            code: None,
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

    /// Gives it its number, whose fix is the hint unless there is a better one.
    pub(super) fn code(mut self, code: &'static Code) -> Self {
        self.code = Some(code.code);
        self.help.get_or_insert_with(|| code.fix.to_owned());
        self
    }

    /// True for what is accepted all the same.
    #[must_use]
    pub fn is_warning(&self) -> bool {
        self.code.is_some_and(|code| code >= codes::FIRST_WARNING)
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

    /// `file:line:column: message [code]`, one line.
    #[must_use]
    pub fn one_line(&self) -> String {
        let code = self.code.map(|code| format!(" [{code}]")).unwrap_or_default();
        if self.line == 0 {
            format!("{}: {}{code}", self.file, self.message)
        } else {
            format!("{}:{}:{}: {}{code}", self.file, self.line, self.column, self.message)
        }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for ConfigError {}

/// Equal when they say the same of the same place.
impl PartialEq for ConfigError {
    fn eq(&self, other: &Self) -> bool {
        (self.line, self.column, self.code, &self.message, &self.file)
            == (other.line, other.column, other.code, &other.message, &other.file)
    }
}

impl Eq for ConfigError {}

impl Diagnostic for ConfigError {
    fn code<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        self.code.map(|code| Box::new(code) as Box<dyn fmt::Display>)
    }

    fn severity(&self) -> Option<Severity> {
        Some(match self.is_warning() {
            true => Severity::Warning,
            false => Severity::Error,
        })
    }

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
                code: None,
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
        render(&self.errors, colour)
    }
}

/// The report of mistakes and warnings for people, each with its snippet.
#[must_use]
pub fn render(errors: &[ConfigError], colour: bool) -> String {
    let theme = if colour {
        GraphicalTheme::unicode()
    } else {
        GraphicalTheme::unicode_nocolor()
    };
    let handler = GraphicalReportHandler::new_themed(theme)
        .with_width(100)
        .with_links(false);
    let mut out = String::new();
    for error in errors {
        if handler.render_report(&mut out, error).is_err() {
            out.push_str(&error.one_line());
        }
        out.push('\n');
    }
    out
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
