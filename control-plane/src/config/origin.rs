//! Where a value comes from: the deepest place that says it.

use serde::Serialize;

use super::tree::{Kind, Node, Span};

/// Who says a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// Nobody: it is built in.
    Default,
    /// The mesh document.
    Mesh,
    /// The service's document.
    Service,
    /// A route.
    Route,
}

impl Level {
    /// The word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Default => "default",
            Self::Mesh => "mesh",
            Self::Service => "service",
            Self::Route => "route",
        }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Who says it.
    pub level: Level,
    /// `file:line`; none for what is built in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

impl Source {
    /// What nobody says.
    #[must_use]
    pub fn built_in() -> Self {
        Self {
            level: Level::Default,
            at: None,
        }
    }
}

/// The places that may say a value of one service, or of one of its routes.
#[derive(Clone, Copy)]
pub(super) struct Origins<'a> {
    pub(super) file: &'a str,
    /// `defaults` of the mesh document.
    pub(super) defaults: Option<&'a Node>,
    pub(super) service: &'a Node,
    pub(super) route: Option<&'a Node>,
}

impl<'a> Origins<'a> {
    /// The same for a route, `number` in document order.
    pub(super) fn of_route(self, number: usize) -> Self {
        let route = self.service.inside(&["routes", &number.to_string()]);
        Self {
            route: Some(route),
            ..self
        }
    }

    /// Who says the value at `path`, and where.
    pub(super) fn find(&self, path: &[&str]) -> Option<(Level, &'a Span)> {
        let at = |level, node: Option<&'a Node>| Some((level, said(node?, path)?));
        at(Level::Route, self.route)
            .or_else(|| at(Level::Service, Some(self.service)))
            .or_else(|| at(Level::Mesh, self.defaults))
    }

    /// Where the value at `path` is said, else the document.
    pub(super) fn place(&self, path: &[&str]) -> &'a Span {
        let own = self.route.unwrap_or(self.service);
        self.find(path).map_or(&own.span, |(_, span)| span)
    }

    /// Where the value at `path` comes from.
    pub(super) fn source(&self, path: &[&str]) -> Source {
        match self.find(path) {
            Some((level, span)) => self.at(level, span),
            None => Source::built_in(),
        }
    }

    /// The source at `span`.
    pub(super) fn at(&self, level: Level, span: &Span) -> Source {
        Source {
            level,
            at: Some(format!("{}:{}", self.file, span.line)),
        }
    }
}

/// The value at `path` or, where a word stands for a whole map (`outlier: off`), that word.
fn said<'a>(node: &'a Node, path: &[&str]) -> Option<&'a Span> {
    if node.is_null() {
        return None;
    }
    match (path.split_first(), &node.kind) {
        (None, _) | (Some(_), Kind::Scalar(..)) => Some(&node.span),
        (Some((first, rest)), Kind::List(items)) => said(items.get(first.parse::<usize>().ok()?)?, rest),
        (Some((first, rest)), Kind::Map(_)) => said(node.get(first)?, rest),
    }
}
