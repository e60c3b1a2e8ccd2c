//! The parts of a service's document, each read and checked in its place.

use std::collections::BTreeMap;
use std::time::Duration;

use outrigger_proto::model::{Dependency, DependencyCheck, Health, Probe, Protocol, ServiceName};

use super::check::short;
use super::codes::{self, Code};
use super::service::Context;
use super::suggest::did_you_mean;
use super::tree::Node;
use super::whole::Report;
use super::{EnvValue, PortDoc, raw};

/// A node and where its mistakes go.
pub(super) struct Reader<'a> {
    pub(super) node: &'a Node,
    pub(super) report: &'a mut Report,
}

impl Reader<'_> {
    pub(super) fn refuse(&mut self, path: &[&str], message: impl Into<String>, help: Option<String>) {
        let error = self.report.error(self.node.at(path), message).help(help);
        self.report.push(error);
    }

    /// As [`Self::refuse`], with a numbered mistake, whose fix is the hint.
    pub(super) fn refuse_as(&mut self, code: &'static Code, path: &[&str], message: impl Into<String>) {
        self.refuse_with(code, path, message, None);
    }

    /// As [`Self::refuse_as`], with a better hint where there is one.
    pub(super) fn refuse_with(
        &mut self,
        code: &'static Code,
        path: &[&str],
        message: impl Into<String>,
        help: Option<String>,
    ) {
        let error = self.report.error(self.node.at(path), message);
        let help = help.unwrap_or_else(|| code.fix.to_owned());
        self.report.push(error.code(code).help(help));
    }

    /// Warns of what may be wanted.
    pub(super) fn warn(&mut self, code: &'static Code, path: &[&str], message: impl Into<String>) {
        let error = self.report.error(self.node.at(path), message);
        self.report.warn(error.code(code).help(code.fix.to_owned()));
    }

    /// A reader of what is at `path`.
    pub(super) fn inside(&mut self, path: &[&str]) -> Reader<'_> {
        Reader {
            node: self.node.inside(path),
            report: self.report,
        }
    }

    pub(super) fn ports(&mut self, raw: &raw::Service) -> Vec<PortDoc> {
        let Some(listed) = &raw.ports else {
            let protocol = raw.protocol.map_or(Protocol::Auto, protocol);
            let name = short_form_name(protocol).to_owned();
            return vec![PortDoc {
                name,
                protocol,
                port: raw.port,
                app_port: raw.app_port,
                server_first: false,
            }];
        };
        for (key, given) in [
            ("port", raw.port.is_some()),
            ("app_port", raw.app_port.is_some()),
            ("protocol", raw.protocol.is_some()),
        ] {
            if given {
                let help = format!("move `{key}` into an entry of `ports`");
                self.refuse(
                    &[key],
                    format!("`{key}` is the short form and stands beside `ports`"),
                    Some(help),
                );
            }
        }
        if listed.is_empty() {
            let help = Some("leave `ports` out for one port of any number".to_owned());
            self.refuse(&["ports"], "`ports` is empty", help);
        }
        let mut ports: Vec<PortDoc> = Vec::with_capacity(listed.len());
        for (i, port) in listed.iter().enumerate() {
            let index = i.to_string();
            // A port's name follows the same rule as a service's.
            if let Err(error) = ServiceName::new("x", &port.name) {
                self.refuse(&["ports", &index, "name"], error.reason, None);
            }
            if let Some(j) = ports.iter().position(|other| other.name == port.name) {
                let error = self.report.error(
                    self.node.at(&["ports", &index, "name"]),
                    format!("the port `{}` stands twice", port.name),
                );
                let first = self.node.at(&["ports", &j.to_string(), "name"]);
                self.report.push(error.label("again here").also(first, "first here"));
            }
            let server_first = port.server_first.unwrap_or(false);
            let spoken = port.protocol.map_or(Protocol::Auto, protocol);
            if server_first && spoken != Protocol::Tcp {
                let help = Some("in the other protocols the client speaks first; leave it out".to_owned());
                let message = format!(
                    "`server_first` is for `protocol: tcp`, and this is `{}`",
                    spoken.as_str()
                );
                self.refuse(&["ports", &index, "server_first"], message, help);
            }
            ports.push(PortDoc {
                name: port.name.clone(),
                protocol: spoken,
                port: port.port,
                app_port: port.app_port,
                server_first,
            });
        }
        ports
    }

    pub(super) fn health(&mut self, raw: Option<&raw::Health>, ports: &[PortDoc], defaults: &Health) -> Health {
        let Some(raw) = raw else { return defaults.clone() };
        let given = [
            ("http", raw.http.is_some()),
            ("grpc", raw.grpc.is_some()),
            ("tcp", raw.tcp.is_some()),
            ("exec", raw.exec.is_some()),
        ];
        let named: Vec<&str> = given.iter().filter(|(_, given)| *given).map(|(key, _)| *key).collect();
        if let [_, second, ..] = named.as_slice() {
            let help = Some("keep one of http, grpc, tcp, exec".to_owned());
            self.refuse(
                &["health", second],
                format!("`health` asks in {} ways: {}", named.len(), named.join(", ")),
                help,
            );
        }
        let port = raw.port.clone();
        if let Some(port) = &port
            && !ports.iter().any(|known| known.name == *port)
        {
            let names = || ports.iter().map(|known| known.name.as_str());
            let help = did_you_mean(port, names())
                .unwrap_or_else(|| format!("ports here: {}", names().collect::<Vec<_>>().join(", ")));
            self.refuse(
                &["health", "port"],
                format!("the service has no port `{}`", short(port)),
                Some(help),
            );
        }
        let probe = if let Some(path) = &raw.http {
            if !path.starts_with('/') {
                self.refuse(
                    &["health", "http"],
                    format!("`{}` is not a path", short(path)),
                    Some("it starts with /".to_owned()),
                );
            }
            Probe::Http {
                path: path.clone(),
                port,
            }
        } else if let Some(service) = &raw.grpc {
            Probe::Grpc {
                service: service.clone(),
                port,
            }
        } else if let Some(command) = &raw.exec {
            if command.is_empty() {
                self.refuse(&["health", "exec"], "`exec` needs a program", None);
            }
            if port.is_some() {
                self.refuse(&["health", "port"], "`exec` asks no port", None);
            }
            Probe::Exec {
                command: command.clone(),
            }
        } else {
            if raw.tcp == Some(false) {
                let help =
                    Some("an app without a probe would be registered while it is dead; leave the key out".to_owned());
                self.refuse(&["health", "tcp"], "`tcp` can only be true", help);
            }
            Probe::Tcp { port }
        };
        let times = (&raw.every, &raw.timeout, raw.healthy, raw.unhealthy);
        Health {
            probe,
            ..self.health_times(times, defaults)
        }
    }

    pub(super) fn health_times(
        &mut self,
        (every, timeout, healthy, unhealthy): (&Option<String>, &Option<String>, Option<u32>, Option<u32>),
        defaults: &Health,
    ) -> Health {
        Health {
            probe: defaults.probe.clone(),
            interval: self.duration(every.as_deref(), &["health", "every"], defaults.interval),
            timeout: self.duration(timeout.as_deref(), &["health", "timeout"], defaults.timeout),
            healthy_threshold: healthy.unwrap_or(defaults.healthy_threshold),
            unhealthy_threshold: unhealthy.unwrap_or(defaults.unhealthy_threshold),
        }
    }

    pub(super) fn depends(&mut self, raw: Vec<raw::Depends>, resolve: impl Fn(&str) -> String) -> Vec<Dependency> {
        let mut out = Vec::with_capacity(raw.len());
        for (i, one) in raw.into_iter().enumerate() {
            let index = i.to_string();
            let (written, check) = match (one.file, one.tcp, one.http) {
                (Some(file), None, None) => (file.clone(), DependencyCheck::File(resolve(&file))),
                (None, Some(address), None) => {
                    let valid = address.rsplit_once(':').is_some_and(|(host, port)| {
                        !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0)
                    });
                    if !valid {
                        self.refuse(
                            &["depends", &index, "tcp"],
                            format!("`{}` is not host:port", short(&address)),
                            None,
                        );
                    }
                    (address.clone(), DependencyCheck::Tcp(address))
                }
                (None, None, Some(url)) => {
                    if !url.starts_with("http://") {
                        let help =
                            Some("it starts with http://; the sidecar makes no TLS connection for this".to_owned());
                        self.refuse(
                            &["depends", &index, "http"],
                            format!("`{}` is not such a URL", short(&url)),
                            help,
                        );
                    }
                    (url.clone(), DependencyCheck::Http(url))
                }
                _ => {
                    self.refuse(&["depends", &index], "exactly one of file, tcp, http is needed", None);
                    continue;
                }
            };
            out.push(Dependency {
                name: one.name.unwrap_or(written),
                check,
            });
        }
        out
    }

    pub(super) fn calls(&mut self, raw: &[String], own: &ServiceName) -> Vec<ServiceName> {
        let mut out = Vec::with_capacity(raw.len());
        for (i, call) in raw.iter().enumerate() {
            let name = if call.contains('/') {
                call.parse()
            } else {
                ServiceName::new(own.namespace(), call)
            };
            match name {
                Ok(name) => out.push(name),
                Err(error) => self.refuse(&["calls", &i.to_string()], error.reason, None),
            }
        }
        // Positions are used to point into the file; a gap would make them lie.
        if out.len() == raw.len() { out } else { Vec::new() }
    }

    pub(super) fn env(&mut self, raw: BTreeMap<String, raw::Env>, context: &Context<'_>) -> BTreeMap<String, EnvValue> {
        let mut out = BTreeMap::new();
        for (name, value) in raw {
            let letter = |c: char| c.is_ascii_alphanumeric() || c == '_';
            if !name.chars().all(letter) || name.starts_with(|c: char| c.is_ascii_digit()) || name.is_empty() {
                let help = Some("letters, digits and _, no digit first".to_owned());
                let key = self.node.get("env").and_then(|env| env.entry(&name));
                let at = key.map_or(&self.node.span, |(key, _)| &key.span);
                let message = format!("`{}` is not a variable's name", short(&name));
                let error = self.report.error(at, message).help(help);
                self.report.push(error);
            }
            let value = match value {
                raw::Env::Plain(text) => EnvValue::Plain(text),
                raw::Env::From(raw::EnvFrom {
                    from_env: Some(other),
                    from_file: None,
                }) => EnvValue::FromEnv(other),
                raw::Env::From(raw::EnvFrom {
                    from_env: None,
                    from_file: Some(path),
                }) => EnvValue::FromFile(context.resolve(&path)),
                raw::Env::From(_) => {
                    self.refuse(&["env", &name], "exactly one of from_env, from_file is needed", None);
                    continue;
                }
            };
            out.insert(name, value);
        }
        out
    }

    pub(super) fn duration(&mut self, text: Option<&str>, path: &[&str], default: Duration) -> Duration {
        let Some(text) = text else { return default };
        let problem = match humantime::parse_duration(text) {
            // On the wire a duration is whole milliseconds below a day, and 0 means the default.
            Ok(read) if read < Duration::from_millis(1) => "is less than 1ms",
            Ok(read) if read >= Duration::from_secs(86_400) => "is a day or more",
            Ok(read) => return read,
            Err(_) => "is not a duration",
        };
        let help = Some("write for example 500ms, 2s, 5m or 1h".to_owned());
        self.refuse_with(codes::NOT_A_VALUE, path, format!("`{}` {problem}", short(text)), help);
        default
    }
}

fn protocol(raw: raw::Protocol) -> Protocol {
    match raw {
        raw::Protocol::Http => Protocol::Http,
        raw::Protocol::Http2 => Protocol::Http2,
        raw::Protocol::Grpc => Protocol::Grpc,
        raw::Protocol::Tcp => Protocol::Tcp,
        raw::Protocol::Tls => Protocol::Tls,
        raw::Protocol::Auto => Protocol::Auto,
    }
}

/// The name of the one port of the short form.
fn short_form_name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Auto => "main",
        Protocol::Http | Protocol::Http2 => "http",
        Protocol::Grpc => "grpc",
        Protocol::Tcp => "tcp",
        Protocol::Tls => "tls",
    }
}
