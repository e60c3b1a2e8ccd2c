//! The file as a whole: its documents in order, and what must hold between services.

use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use miette::NamedSource;
use outrigger_proto::model::ServiceName;

use super::access;
use super::check::check;
use super::conflict;
use super::error::{ConfigError, ConfigErrors};
use super::explain::definition;
use super::raw;
use super::service::{self, Context};
use super::suggest::{closest, did_you_mean};
use super::tree::{self, Kind, Node, Span};
use super::{Mesh, ServiceDoc};

/// Collects what is wrong.
pub(super) struct Report {
    source: Arc<NamedSource<Arc<str>>>,
    errors: Vec<ConfigError>,
    warnings: Vec<ConfigError>,
}

impl Report {
    /// An error at `span`, to be completed and pushed. A span of many lines is shown by its first.
    pub(super) fn error(&self, span: &Span, message: impl Into<String>) -> ConfigError {
        ConfigError::new(&self.source, &self.first_line(span), message)
    }

    /// Keeps a mistake, once: what `defaults` says wrong is wrong for every service.
    pub(super) fn push(&mut self, error: ConfigError) {
        if !self.errors.contains(&error) {
            self.errors.push(error);
        }
    }

    /// Keeps a warning, once.
    pub(super) fn warn(&mut self, warning: ConfigError) {
        if !self.warnings.contains(&warning) {
            self.warnings.push(warning);
        }
    }

    pub(super) fn at(&mut self, span: &Span, message: impl Into<String>) {
        let error = self.error(span, message);
        self.push(error);
    }

    /// True while nothing was refused.
    pub(super) fn is_fine(&self) -> bool {
        self.errors.is_empty()
    }

    fn first_line(&self, span: &Span) -> Span {
        let text = self.source.inner().get(span.bytes.clone()).unwrap_or_default();
        let length = text.find('\n').unwrap_or(text.len());
        Span {
            bytes: span.bytes.start..span.bytes.start + length,
            ..span.clone()
        }
    }
}

/// Reads the documents of `text`; `root` is the folder that relative paths are counted from.
/// Ends of faults are compared with `now`.
pub(super) fn read(file: &str, text: &str, root: Option<&Path>, now: SystemTime) -> Result<Mesh, ConfigErrors> {
    // A byte order mark is not part of the text; editors of some systems write one.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut report = Report {
        source: Arc::new(NamedSource::new(file, Arc::from(text))),
        errors: Vec::new(),
        warnings: Vec::new(),
    };
    let (documents, malformed) = tree::read(text);
    let documents: Vec<&Node> = documents.iter().filter(|document| !document.is_null()).collect();
    let broken = malformed.is_some();
    if let Some(malformed) = malformed {
        let star = malformed.message.contains("anchor or alias");
        let error = report.error(&malformed.span, malformed.message);
        report.push(error.help(star.then(|| "a `*` at the start of a value is written in quotes: \"*\"".to_owned())));
    }

    let (head, rest) = match documents.split_first() {
        Some((first, rest)) if is_mesh_document(first) => (Some(*first), rest),
        _ => (None, documents.as_slice()),
    };
    let mesh: raw::Mesh = head
        .and_then(|node| check(node, definition("MeshDocument"), "", &mut report))
        .and_then(|value| serde_json::from_value(value).ok())
        .unwrap_or_default();
    let folder = root
        .and_then(Path::file_name)
        .map(|name| name.to_string_lossy().into_owned());
    let context = Context::new((file, root, now), &mesh, head, &mut report);
    let mut services: Vec<(ServiceDoc, &Node)> = Vec::new();
    for &node in rest {
        if is_mesh_document(node) {
            let error = report.error(
                &node.span,
                "the mesh document must be the first of the file, and there is one only",
            );
            report.push(error.help("a service's document has the key `service`".to_owned()));
            continue;
        }
        let value = check(node, definition("ServiceDocument"), "", &mut report);
        let raw = value.and_then(|value| serde_json::from_value::<raw::Service>(value).ok());
        if let Some(service) = raw.and_then(|raw| service::validate(raw, node, &context, &mut report)) {
            services.push((service, node));
        }
    }
    if rest.is_empty() && !broken {
        let nowhere = Span {
            bytes: 0..0,
            line: 1,
            column: 1,
        };
        let error = report.error(&nowhere, "no service is described");
        report.push(error.help("`outrigger new http NAME` prints a document to start from".to_owned()));
    }
    unique(&services, &mut report);
    let described = described(rest, &context);
    calls(&services, &described, &mut report);
    access::callers(&services, &described, &mut report);
    access::namespaces(&context.access, head, &described, &mut report);
    conflict::destinations(&services, &described, &mut report);
    fixed_ports(&services, &mut report);
    if report.is_fine() {
        for (service, node) in &services {
            conflict::accepted(service, node, &mut report);
        }
    }

    report.warnings.sort_by_key(|warning| (warning.line, warning.column));
    if report.errors.is_empty() {
        return Ok(Mesh {
            name: mesh.mesh.or(folder).unwrap_or_else(|| "mesh".to_owned()),
            namespace: context.namespace,
            hint: mesh.hint,
            services: services.into_iter().map(|(service, _)| service).collect(),
            root: root.map(Path::to_path_buf),
            warnings: report.warnings,
        });
    }
    report.errors.sort_by_key(|error| (error.line, error.column));
    Err(ConfigErrors { errors: report.errors })
}

/// A document without `service` (nor a slip of it) but with a key that only the mesh document has.
fn is_mesh_document(node: &Node) -> bool {
    let Kind::Map(entries) = &node.kind else { return false };
    let only_there = ["mesh", "defaults", "try", "access", "namespaces"];
    let service = node.get("service").is_some();
    let names_service = ["run", "calls", "port", "protocol"]
        .iter()
        .any(|key| node.get(key).is_some());
    let known = |text: &str| only_there.contains(&text) || closest(text, only_there).is_some();
    let only_namespace = entries.len() == 1 && node.get("namespace").is_some();
    !service && !names_service && (only_namespace || entries.iter().any(|(key, _)| known(&key.text)))
}

fn unique(services: &[(ServiceDoc, &Node)], report: &mut Report) {
    for (i, (service, node)) in services.iter().enumerate() {
        let earlier = services.get(..i).unwrap_or_default();
        if let Some((_, first)) = earlier.iter().find(|(other, _)| other.name == service.name) {
            let error = report.error(
                node.at(&["service"]),
                format!("the service `{}` is described twice", service.name),
            );
            report.push(
                error
                    .label("again here")
                    .also(first.at(&["service"]), "first here")
                    .help("give one of them another name or namespace".to_owned()),
            );
        }
    }
}

/// The names of all documents. One that was refused counts too: its own mistakes are reported already.
fn described(documents: &[&Node], context: &Context<'_>) -> Vec<ServiceName> {
    let name = |node: &&Node| {
        let word = |key: &str| match node.get(key).map(|value| &value.kind) {
            Some(Kind::Scalar(text, _)) => Some(text.as_str()),
            _ => None,
        };
        ServiceName::new(word("namespace").unwrap_or(&context.namespace), word("service")?).ok()
    };
    documents.iter().filter_map(name).collect()
}

/// Every call leads to a service of the mesh. A cycle is allowed: services may need each other.
fn calls(services: &[(ServiceDoc, &Node)], described: &[ServiceName], report: &mut Report) {
    for (service, node) in services {
        for (i, call) in service.calls.iter().enumerate() {
            let at = node.at(&["calls", &i.to_string()]);
            if !described.contains(call) {
                let short: Vec<&str> = described.iter().map(|name| shown(name, service)).collect();
                let help = did_you_mean(shown(call, service), short.iter().copied())
                    .unwrap_or_else(|| format!("services here: {}", short.join(", ")));
                let message = format!(
                    "`{}` calls `{}`, which is not in this mesh",
                    service.name.service(),
                    shown(call, service)
                );
                let error = report.error(at, message);
                report.push(error.label("no such service").help(help));
            }
            let own = variables(call, services);
            let earlier = service.calls.get(..i).unwrap_or_default();
            let clash = earlier.iter().enumerate().find_map(|(j, other)| {
                let theirs = variables(other, services);
                own.iter()
                    .find(|variable| theirs.contains(variable))
                    .map(|variable| (j, other, variable))
            });
            if let Some((j, other, variable)) = clash {
                let first = node.at(&["calls", &j.to_string()]);
                let message = if other == call {
                    format!("`{}` stands twice in `calls`", shown(call, service))
                } else {
                    let (one, two) = (shown(other, service), shown(call, service));
                    format!("`{one}` and `{two}` would both be told to the app as {variable}")
                };
                let error = report.error(at, message).label("again here").also(first, "first here");
                let help = (other != call).then(|| "call one of them by the HTTP proxy, or rename it".to_owned());
                report.push(error.help(help));
            }
        }
    }
}

/// The variables by which an app is told where `call` is: one for the service, and one for each of its ports.
fn variables(call: &ServiceName, services: &[(ServiceDoc, &Node)]) -> Vec<String> {
    let word = |text: &str| text.to_ascii_uppercase().replace('-', "_");
    let name = word(call.service());
    let ports = services
        .iter()
        .find(|(service, _)| service.name == *call)
        .map(|(service, _)| service.ports.as_slice());
    let named = ports
        .unwrap_or_default()
        .iter()
        .map(|port| format!("{name}_{}_ADDR", word(&port.name)));
    std::iter::once(format!("{name}_ADDR")).chain(named).collect()
}

/// The name as a document of the same namespace writes it.
pub(super) fn shown<'a>(name: &'a ServiceName, from: &ServiceDoc) -> &'a str {
    if name.namespace() == from.name.namespace() {
        name.service()
    } else {
        name.as_str()
    }
}

/// Two listeners cannot have one port: not two services, and not two replicas.
fn fixed_ports(services: &[(ServiceDoc, &Node)], report: &mut Report) {
    let mut taken: Vec<(u16, &str, &Span)> = Vec::new();
    for (service, node) in services {
        for (i, port) in service.ports.iter().enumerate() {
            let index = i.to_string();
            for (key, number) in [("port", port.port), ("app_port", port.app_port)] {
                let Some(number) = number else { continue };
                let at = if node.get("ports").is_some() {
                    node.at(&["ports", &index, key])
                } else {
                    node.at(&[key])
                };
                if let Some((_, owner, first)) = taken.iter().find(|(other, ..)| *other == number) {
                    let error = report.error(at, format!("port {number} is asked for twice"));
                    let owner = format!("first here, by `{owner}`");
                    let error = error.label("again here").also(first, owner);
                    report.push(error.help("leave one out: any free port is taken then".to_owned()));
                } else if service.replicas > 1 {
                    let message = format!(
                        "`{key}` is fixed to {number}, and {} replicas cannot share it",
                        service.replicas
                    );
                    let error = report.error(at, message);
                    report.push(error.help(format!("leave `{key}` out, or run one replica")));
                }
                taken.push((number, service.name.service(), at));
            }
        }
    }
}
