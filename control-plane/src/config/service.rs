//! One service's document: raw to validated, defaults filled in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use outrigger_proto::model::{AccessLog, Drain, External, Health, Limits, Mode, ServiceName, Trailers, Underscores};

use super::access::Inherited;
use super::conflict;
use super::origin::Origins;
use super::reader::Reader;
use super::traffic::Traffic;
use super::tree::Node;
use super::whole::Report;
use super::{EnvValue, Location, RESERVED_NAMESPACE, ServiceDoc, VersionDoc, codes, raw, settings};

/// What holds for all services of a file.
pub(super) struct Context<'a> {
    pub(super) namespace: String,
    file: &'a str,
    root: Option<&'a Path>,
    now: SystemTime,
    head: Option<&'a Node>,
    defaults: Option<&'a Node>,
    policy: Policy,
    health: Health,
    pub(super) access: Inherited,
}

/// How callers reach a service that says nothing.
const MODE: Mode = Mode::Strict;

/// What both the mesh document's `defaults` and a service may say.
#[derive(Clone)]
struct Policy {
    traffic: Traffic,
    external: External,
    limits: Limits,
    drain: Drain,
    access_log: AccessLog,
    mode: Mode,
}

struct RawPolicy {
    request: raw::Request,
    caller: raw::Caller,
    external: Option<raw::External>,
    limits: Option<raw::Limits>,
    drain: Option<raw::Drain>,
    access_log: Option<raw::AccessLog>,
    mode: Option<raw::Mode>,
}

impl<'a> Context<'a> {
    /// Reads the mesh document `head`.
    pub(super) fn new(
        (file, root, now): (&'a str, Option<&'a Path>, SystemTime),
        mesh: &raw::Mesh,
        head: Option<&'a Node>,
        report: &mut Report,
    ) -> Self {
        let built_in = Policy {
            traffic: Traffic::default(),
            external: External::Allow,
            limits: Limits::default(),
            drain: Drain::default(),
            access_log: AccessLog::Off,
            mode: MODE,
        };
        let namespace = mesh.namespace.clone().unwrap_or_else(|| "default".to_owned());
        let mut context = Self {
            namespace,
            file,
            root,
            now,
            head,
            defaults: head.and_then(|head| head.get("defaults")),
            policy: built_in,
            health: Health::default(),
            access: Inherited::default(),
        };
        let Some(head) = head else { return context };
        context.access = Inherited::read(mesh, head, report);
        if let Err(reason) = check_namespace(&context.namespace) {
            report.at(head.at(&["namespace"]), reason);
            // Otherwise each service would repeat the complaint.
            "default".clone_into(&mut context.namespace);
        }
        let (Some(defaults), Some(node)) = (&mesh.defaults, head.get("defaults")) else {
            return context;
        };
        let mut reader = Reader { node, report };
        if let Some(health) = &defaults.health {
            let times = (&health.every, &health.timeout, health.healthy, health.unhealthy);
            context.health = reader.health_times(times, &context.health);
        }
        let raw = RawPolicy {
            request: defaults.request.clone(),
            caller: defaults.caller.clone(),
            external: defaults.external.clone(),
            limits: defaults.limits.clone(),
            drain: defaults.drain.clone(),
            access_log: defaults.access_log,
            mode: defaults.mode,
        };
        context.policy = reader.policy(raw, &context.policy);
        context
    }

    /// `path` counted from the file's folder.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        self.root
            .map_or_else(|| PathBuf::from(path), |root| tidy(&root.join(path)))
    }
}

/// Turns one document into a service; none when it has not even a name.
pub(super) fn validate(
    raw: raw::Service,
    node: &Node,
    context: &Context<'_>,
    report: &mut Report,
) -> Option<ServiceDoc> {
    let mut reader = Reader { node, report };
    let name = match ServiceName::new(raw.namespace.as_deref().unwrap_or(&context.namespace), &raw.service) {
        Ok(name) => name,
        Err(error) => {
            reader.refuse(&[&error.path], error.reason, None);
            return None;
        }
    };
    if let Some(Err(reason)) = raw.namespace.as_deref().map(check_namespace) {
        reader.refuse(&["namespace"], reason, None);
    }
    let ports = reader.ports(&raw);
    let health = reader.health(raw.health.as_ref(), &ports, &context.health);
    let dir = raw.dir.as_deref().map(Path::new);
    // Relative to the file's folder, where sidecars run: the same text gives the same resources on every machine.
    let depends = reader.depends(raw.depends.unwrap_or_default(), |path| {
        tidy(&dir.unwrap_or(Path::new("")).join(path))
            .to_string_lossy()
            .into_owned()
    });
    let calls = reader.calls(&raw.calls.unwrap_or_default(), &name);
    let env = reader.env(raw.env.unwrap_or_default(), context);
    let access = reader.access(raw.allow.as_deref(), raw.audit, &name, &ports, &context.access);
    let policy = reader.policy(
        RawPolicy {
            request: raw.request,
            caller: raw.caller,
            external: raw.external,
            limits: raw.limits,
            drain: raw.drain,
            access_log: raw.access_log,
            mode: raw.mode,
        },
        &context.policy,
    );
    if policy.mode == Mode::Off {
        reader.known_callers(&access);
    }
    let labels = raw.labels.unwrap_or_default();
    let alone = VersionDoc {
        name: None,
        run: raw.run.clone(),
        replicas: raw.replicas.unwrap_or(1),
        labels: labels.clone(),
        weight: raw.weight.unwrap_or(1),
        env: env.clone(),
    };
    let versions = reader.versions(raw.versions.as_ref(), raw.replicas.is_some(), alone, context);
    let traffic = Traffic {
        routes: reader.routes(&raw.routes.unwrap_or_default(), &name, &policy.traffic.policy),
        subsets: reader.subsets(&raw.subsets.unwrap_or_default(), &versions),
        failover: reader.failover(&raw.failover.unwrap_or_default(), &name),
        faults: reader.faults(&raw.faults.unwrap_or_default(), &name, context.now),
        rate_limits: reader.rate_limits(&raw.rate_limits.unwrap_or_default()),
        priorities: reader.priorities(&raw.priorities.unwrap_or_default()),
        ..policy.traffic
    };
    for (key, command) in [("run", &raw.run), ("build", &raw.build)] {
        if command.as_deref().is_some_and(|command| command.trim().is_empty()) {
            reader.refuse(
                &[key],
                format!("`{key}` is empty"),
                Some("write a command, or leave the key out".to_owned()),
            );
        }
    }
    let mut service = ServiceDoc {
        name,
        language: raw.language,
        build: raw.build,
        run: raw
            .run
            .or_else(|| versions.iter().find_map(|version| version.run.clone())),
        dir: match (&raw.dir, context.root) {
            (Some(dir), _) => Some(context.resolve(dir)),
            (None, root) => root.map(Path::to_path_buf),
        },
        env,
        replicas: versions.iter().map(|version| version.replicas).sum(),
        versions,
        ports,
        health,
        depends,
        calls,
        traffic,
        external: policy.external,
        limits: policy.limits,
        drain: policy.drain,
        access_log: policy.access_log,
        mode: policy.mode,
        access,
        exposed_app: raw.exposed_app.unwrap_or(false),
        labels,
        weight: raw.weight.unwrap_or(1),
        location: Location {
            file: context.file.to_owned(),
            line: node.span.line,
            column: node.span.column,
        },
        settings: Vec::new(),
    };
    let origins = Origins {
        file: context.file,
        defaults: context.defaults,
        service: node,
        route: None,
    };
    conflict::service(&service, origins, report);
    service.settings = settings::of(&service, origins, context.head);
    Some(service)
}

impl Reader<'_> {
    /// What runs; `alone` is what holds without `versions`, and where a version says nothing.
    fn versions(
        &mut self,
        raw: Option<&BTreeMap<String, raw::Version>>,
        replicas: bool,
        alone: VersionDoc,
        context: &Context<'_>,
    ) -> Vec<VersionDoc> {
        let Some(raw) = raw.filter(|raw| !raw.is_empty()) else {
            return vec![alone];
        };
        if replicas {
            let message = "`replicas` stands beside `versions`, which have their own";
            self.refuse_as(codes::VERSIONS, &["replicas"], message);
        }
        let mut out: Vec<VersionDoc> = Vec::with_capacity(raw.len());
        for (name, version) in raw {
            if let Err(error) = ServiceName::new("x", name) {
                self.refuse_as(codes::VERSIONS, &["versions", name], error.reason);
            }
            let mut labels = alone.labels.clone();
            labels.insert("version".to_owned(), name.clone());
            labels.extend(version.labels.clone().unwrap_or_default());
            let mut env: BTreeMap<String, EnvValue> = alone.env.clone();
            env.extend(
                self.inside(&["versions", name])
                    .env(version.env.clone().unwrap_or_default(), context),
            );
            let run = version.run.clone().or_else(|| alone.run.clone());
            if run.is_none() && raw.values().any(|version| version.run.is_some()) {
                let message = format!("the version `{}` has no `run`", super::check::short(name));
                self.refuse_as(codes::VERSIONS, &["versions", name], message);
            }
            if let Some(other) = out.iter().find(|other| other.labels == labels) {
                let other = other.name.as_deref().unwrap_or_default();
                let message = format!("the versions `{other}` and `{name}` have the same labels");
                self.refuse_as(codes::VERSIONS, &["versions", name, "labels"], message);
            }
            out.push(VersionDoc {
                name: Some(name.clone()),
                run,
                replicas: version.replicas.unwrap_or(1),
                labels,
                weight: version.weight.unwrap_or(alone.weight),
                env,
            });
        }
        out
    }

    fn policy(&mut self, raw: RawPolicy, defaults: &Policy) -> Policy {
        let limits = raw.limits.unwrap_or_default();
        let drain = raw.drain.unwrap_or_default();
        let size = |given: Option<u32>, default: usize| given.map_or(default, |n| n as usize);
        Policy {
            traffic: self.traffic(&raw.request, &raw.caller, &defaults.traffic),
            external: match raw.external {
                None => defaults.external.clone(),
                Some(raw::External::Mode(raw::ExternalMode::Allow)) => External::Allow,
                Some(raw::External::Mode(raw::ExternalMode::Deny)) => External::Deny,
                Some(raw::External::Hosts(hosts)) => External::List(hosts),
            },
            limits: Limits {
                max_connections: size(limits.max_connections, defaults.limits.max_connections),
                max_connections_per_listener: size(
                    limits.max_connections_per_listener,
                    defaults.limits.max_connections_per_listener,
                ),
                max_header_bytes: size(limits.max_header_bytes, defaults.limits.max_header_bytes),
                max_headers: size(limits.max_headers, defaults.limits.max_headers),
                header_timeout: self.duration(
                    limits.header_timeout.as_deref(),
                    &["limits", "header_timeout"],
                    defaults.limits.header_timeout,
                ),
                idle_timeout: self.duration(
                    limits.idle_timeout.as_deref(),
                    &["limits", "idle_timeout"],
                    defaults.limits.idle_timeout,
                ),
                max_connection_age: self.duration(
                    limits.max_connection_age.as_deref(),
                    &["limits", "max_connection_age"],
                    defaults.limits.max_connection_age,
                ),
                max_streams: limits.max_streams.unwrap_or(defaults.limits.max_streams),
                max_buffered_bytes: limits
                    .max_buffered_mib
                    .map_or(defaults.limits.max_buffered_bytes, |mib| (mib as usize) << 20),
                file_reserve: size(limits.file_reserve, defaults.limits.file_reserve),
                max_resets: limits.max_resets.unwrap_or(defaults.limits.max_resets),
                max_control_frames: limits.max_control_frames.unwrap_or(defaults.limits.max_control_frames),
                underscores: match limits.underscores {
                    None => defaults.limits.underscores,
                    Some(raw::Underscores::Reject) => Underscores::Reject,
                    Some(raw::Underscores::Drop) => Underscores::Drop,
                    Some(raw::Underscores::Allow) => Underscores::Allow,
                },
                trailers: match limits.trailers {
                    None => defaults.limits.trailers,
                    Some(raw::Trailers::Pass) => Trailers::Pass,
                    Some(raw::Trailers::Drop) => Trailers::Drop,
                },
            },
            drain: Drain {
                delay: self.duration(drain.delay.as_deref(), &["drain", "delay"], defaults.drain.delay),
                deadline: self.duration(
                    drain.deadline.as_deref(),
                    &["drain", "deadline"],
                    defaults.drain.deadline,
                ),
            },
            access_log: match raw.access_log {
                None => defaults.access_log,
                Some(raw::AccessLog::Off) => AccessLog::Off,
                Some(raw::AccessLog::Json) => AccessLog::Json,
            },
            mode: match raw.mode {
                None => defaults.mode,
                Some(raw::Mode::Strict) => Mode::Strict,
                Some(raw::Mode::Permissive) => Mode::Permissive,
                Some(raw::Mode::Off) => Mode::Off,
            },
        }
    }
}

/// Refuses what is not a namespace, and the one that is not for services.
pub(super) fn check_namespace(text: &str) -> Result<(), String> {
    if text == RESERVED_NAMESPACE {
        return Err(format!("the namespace `{text}` is the mesh's own"));
    }
    ServiceName::new(text, "x").map(drop).map_err(|error| error.reason)
}

/// Takes `.` and `x/..` out without asking the file system: the folder may not exist yet.
fn tidy(path: &Path) -> PathBuf {
    use std::path::Component;
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if out.file_name().is_some() => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    out
}
