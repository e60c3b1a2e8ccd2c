//! A match as written → a match that can be compared. Everything that is wrong with a match is found here.

use regex::bytes::Regex;

use super::host::Pattern;
use super::value::{Value, regex};
use super::{Asked, query};
use crate::model::{FieldError, FieldMatch, Match, PathMatch};
use crate::paths::{End, Template, check_method};

/// What a match says beside host and path.
#[derive(Debug)]
pub(super) struct Compiled {
    /// Number of the list that it stands in.
    pub(super) route: usize,
    /// Segments of the prefix.
    pub(super) segments: usize,
    methods: Vec<Box<str>>,
    fields: Vec<(Box<str>, Value)>,
    query: Vec<(Box<str>, Value)>,
    pub(super) regex: Option<Regex>,
}

/// Where a match is filed.
#[derive(Debug)]
pub(super) struct Place {
    /// Empty: any.
    pub(super) hosts: Vec<Pattern>,
    pub(super) path: Path,
}

/// What a match says of paths.
#[derive(Debug)]
pub(super) enum Path {
    Any,
    Templates(Vec<Template>),
    Regex,
}

impl Compiled {
    pub(super) fn new(route: usize, wanted: &Match) -> Result<(Self, Place), FieldError> {
        if wanted.path.is_some() && !wanted.grpc.is_empty() {
            return Err(FieldError::new(
                "grpc",
                "a match names a path or gRPC methods, not both: write two matches",
            ));
        }
        for (i, method) in wanted.methods.iter().enumerate() {
            check_method(method).map_err(|why| FieldError::new(format!("methods[{i}]"), why))?;
        }
        let mut compiled = Self {
            route,
            segments: 0,
            methods: wanted.methods.iter().map(|m| m.as_str().into()).collect(),
            fields: fields(&wanted.headers, "headers", check_field)?,
            query: fields(&wanted.query, "query", |_| Ok(()))?,
            regex: None,
        };
        let mut path = Path::Any;
        if let Some(wanted) = &wanted.path {
            let wrong = |why: String| FieldError::new("path", why);
            let template = match wanted {
                PathMatch::Exact(text) => Some(Template::exact(text).map_err(wrong)?),
                PathMatch::Prefix(text) => Some(Template::prefix(text).map_err(wrong)?),
                PathMatch::Template(text) => Some(Template::path(text).map_err(wrong)?),
                PathMatch::Regex(text) => {
                    compiled.regex = Some(path_regex(text).map_err(wrong)?);
                    None
                }
            };
            path = template.map_or(Path::Regex, |template| {
                if template.end == End::Below {
                    compiled.segments = template.segments.len();
                }
                Path::Templates(vec![template])
            });
        }
        if !wanted.grpc.is_empty() {
            if !compiled.methods.is_empty() && !compiled.methods.iter().any(|m| &**m == "POST") {
                return Err(FieldError::new(
                    "methods",
                    "a gRPC call is a POST, so this matches nothing",
                ));
            }
            compiled.methods = vec!["POST".into()];
            let one =
                |(i, g): (usize, &String)| Template::grpc(g).map_err(|why| FieldError::new(format!("grpc[{i}]"), why));
            path = Path::Templates(wanted.grpc.iter().enumerate().map(one).collect::<Result<_, _>>()?);
        }
        let hosts = Pattern::list(&wanted.hosts)?;
        Ok((compiled, Place { hosts, path }))
    }

    /// Whether all fits but host and path.
    pub(super) fn fits(&self, asked: &Asked<'_>) -> bool {
        (self.methods.is_empty() || self.methods.iter().any(|m| **m == *asked.method))
            && self.fields.iter().all(|(name, value)| value.fits((asked.field)(name)))
            && self.query.iter().all(|(name, value)| {
                let found = asked.query.and_then(|query| query::first(query, name));
                value.fits(found.as_deref())
            })
    }
}

fn path_regex(text: &str) -> Result<Regex, String> {
    if !text.is_ascii() {
        return Err(format!(
            "`{text}` is not ASCII; paths are compared in normal form, where `é` is `%C3%A9`"
        ));
    }
    regex(text)
}

fn fields(
    list: &[FieldMatch],
    what: &str,
    check: impl Fn(&str) -> Result<(), &'static str>,
) -> Result<Vec<(Box<str>, Value)>, FieldError> {
    let one = |(i, field): (usize, &FieldMatch)| {
        let at = |part: &str| format!("{what}[{i}].{part}");
        check(&field.name).map_err(|why| FieldError::new(at("name"), format!("`{}` {why}", field.name)))?;
        let value = Value::new(&field.value).map_err(|why| FieldError::new(at("value"), why))?;
        Ok((field.name.as_str().into(), value))
    };
    list.iter().enumerate().map(one).collect()
}

fn check_field(name: &str) -> Result<(), &'static str> {
    if name == "host" {
        return Err("is not among the fields of every version of HTTP; use `hosts`");
    }
    super::check::name(name)
}
