//! The shapes of the JSON: a contract with programs, so nothing inside is serialised by itself.

use std::collections::BTreeMap;

use serde::Serialize;
use utoipa::ToSchema;

use crate::config::{Change, ConfigError, RouteRow, ServiceChange, Setting};

/// Why a request was not carried out.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problem {
    /// For people.
    pub(super) error: String,
}

/// A service in a list.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServiceView {
    /// `namespace/service`.
    pub(super) name: String,
    pub(super) namespace: String,
    pub(super) service: String,
    /// As its document says.
    pub(super) language: Option<String>,
    /// False when it only registered and has no document.
    pub(super) configured: bool,
    /// Version of what callers are told; absent without a document.
    pub(super) version: Option<String>,
    pub(super) ports: Vec<PortView>,
    /// Endpoints that are served.
    pub(super) endpoints: usize,
    /// Endpoints that are registered, served or not.
    pub(super) registered: usize,
    /// Set when the last endpoints are kept although their leases lapsed.
    pub(super) stale: Option<StaleView>,
    /// Sidecars that cannot be told of it: `namespace/service/instance: needs sidecar >= version`.
    pub(super) degraded: Vec<String>,
}

/// A named port.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PortView {
    pub(super) name: String,
    pub(super) protocol: String,
}

/// The alarm of a service whose last endpoints are kept.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StaleView {
    pub(super) since_ms: u64,
    /// Leases that lapsed.
    pub(super) lapsed: usize,
    /// Of so many.
    pub(super) of: usize,
}

/// Everything about one service.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServiceDetail {
    #[serde(flatten)]
    pub(super) service: ServiceView,
    /// Services that it calls.
    pub(super) calls: Vec<String>,
    /// Services that call it.
    pub(super) callers: Vec<String>,
    /// The resource `outrigger.mesh.v1.Service` as callers get it.
    #[schema(value_type = Option<Object>)]
    pub(super) policy: Option<serde_json::Value>,
    /// The resource `outrigger.mesh.v1.Proxy` as its own sidecars get it.
    #[schema(value_type = Option<Object>)]
    pub(super) proxy: Option<serde_json::Value>,
    pub(super) document: Option<DocumentView>,
    /// Everything in force, in the words of mesh.yaml, and who says it. Variables are not shown.
    pub(super) settings: Vec<SettingView>,
    /// Where requests go, in the order in which they are tried.
    pub(super) routes: Vec<RouteView>,
    pub(super) instances: Vec<EndpointView>,
}

/// One value in force.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SettingView {
    /// Path of the key, for example `retry.attempts`.
    pub(super) key: String,
    /// As mesh.yaml spells it.
    pub(super) value: String,
    /// `default`, `mesh`, `service` or `route`.
    pub(super) from: &'static str,
    /// `file:line`; absent for what is built in.
    pub(super) at: Option<String>,
}

impl From<&Setting> for SettingView {
    fn from(setting: &Setting) -> Self {
        Self {
            key: setting.key.clone(),
            value: setting.value.clone(),
            from: setting.source.level.as_str(),
            at: setting.source.at.clone(),
        }
    }
}

/// One route.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RouteView {
    pub(super) name: String,
    /// Which requests.
    #[serde(rename = "match")]
    pub(super) matches: String,
    /// What happens to them.
    pub(super) action: String,
    /// What it says in place of the service.
    pub(super) policy: Vec<SettingView>,
    /// `file:line`.
    pub(super) at: Option<String>,
}

impl From<&RouteRow> for RouteView {
    fn from(row: &RouteRow) -> Self {
        Self {
            name: row.name.clone(),
            matches: row.matches.clone(),
            action: row.action.clone(),
            policy: row.policy.iter().map(Into::into).collect(),
            at: row.at.clone(),
        }
    }
}

/// The routes of one service, in their order.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RoutesView {
    /// `namespace/service`.
    pub(super) service: String,
    pub(super) routes: Vec<RouteView>,
}

/// What a configuration would change.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ConfigDiff {
    /// By service; empty when nothing would change.
    pub(super) services: Vec<ServiceDiff>,
    /// What may be wanted all the same.
    pub(super) warnings: Vec<ConfigErrorView>,
}

/// What would change about one service.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServiceDiff {
    /// `namespace/service`.
    pub(super) service: String,
    /// `added`, `removed` or `changed`.
    pub(super) change: &'static str,
    pub(super) fields: Vec<FieldDiff>,
}

/// What would change about one key.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct FieldDiff {
    /// Path of the key, for example `retry.attempts`.
    pub(super) key: String,
    /// What is in force; absent when there is none.
    pub(super) old: Option<SettingView>,
    /// What would be; absent when there would be none.
    pub(super) new: Option<SettingView>,
}

impl From<&ServiceChange> for ServiceDiff {
    fn from(change: &ServiceChange) -> Self {
        let field = |field: &Change| FieldDiff {
            key: field.key.clone(),
            old: field.old.as_ref().map(Into::into),
            new: field.new.as_ref().map(Into::into),
        };
        Self {
            service: change.service.clone(),
            change: change.change,
            fields: change.fields.iter().map(field).collect(),
        }
    }
}

/// The parts of a document that are not policy. Variables are not shown: they may be secret.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct DocumentView {
    /// `file:line`.
    pub(super) location: String,
    pub(super) run: Option<String>,
    pub(super) replicas: u32,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) weight: u32,
}

/// One registration.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct EndpointView {
    /// `namespace/service/instance`.
    pub(super) name: String,
    /// `namespace/service`.
    pub(super) service: String,
    pub(super) instance: String,
    pub(super) address: String,
    pub(super) ports: BTreeMap<String, u16>,
    pub(super) state: EndpointState,
    /// Why it is not served.
    pub(super) reason: Option<String>,
    pub(super) epoch: u64,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) weight: u32,
    pub(super) meshed: bool,
    pub(super) capabilities: Vec<String>,
    /// Time since it was renewed.
    pub(super) lease_age_ms: u64,
    /// Time until it lapses; 0 when it has.
    pub(super) lease_left_ms: u64,
}

/// Whether an endpoint is served.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum EndpointState {
    /// Served.
    Serving,
    /// Served although its lease lapsed.
    Stale,
    /// Registered but not served.
    Unhealthy,
}

/// One sidecar.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SidecarView {
    /// `namespace/service/instance`; also its node id.
    pub(super) name: String,
    /// `namespace/service`.
    pub(super) service: String,
    pub(super) instance: String,
    /// Address of its admin pages.
    pub(super) admin: String,
    pub(super) version: String,
    /// True while its session is open.
    pub(super) connected: bool,
    /// True while it has a stream of resources.
    pub(super) subscribed: bool,
    pub(super) epoch: u64,
    pub(super) features: Vec<String>,
    /// Time since its session said anything.
    pub(super) heard_ms: u64,
    /// Time since its lease was renewed; absent without a registration.
    pub(super) lease_age_ms: Option<u64>,
    /// The state of its registration; absent without one.
    pub(super) state: Option<EndpointState>,
    /// What it says it runs with.
    pub(super) applied: Vec<AppliedView>,
    /// What it refused.
    pub(super) rejected: Vec<AppliedView>,
    /// What it cannot be told: `resource: needs sidecar >= version`.
    pub(super) degraded: Vec<String>,
    pub(super) checks: Vec<CheckView>,
}

/// One resource at one sidecar.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ToSchema)]
pub(super) struct AppliedView {
    /// `Proxy`, `Service` or `Endpoint`.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) resource: String,
    pub(super) version: String,
    /// Why it was refused.
    pub(super) reason: Option<String>,
}

/// One health check of the app.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CheckView {
    pub(super) name: String,
    pub(super) ok: bool,
    pub(super) reason: String,
}

/// Which configuration is in force.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ConfigView {
    pub(super) status: ConfigStatus,
    /// Version in force: the last good one.
    pub(super) version: Option<String>,
    /// The mesh's name.
    pub(super) mesh: Option<String>,
    /// Where the version in force came from.
    pub(super) origin: Option<String>,
    /// When it was applied, RFC 3339.
    pub(super) at: Option<String>,
    /// The newest configuration, when it was refused.
    pub(super) refused: Option<RefusedView>,
}

/// What became of the newest configuration.
#[derive(Debug, PartialEq, Eq, Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ConfigStatus {
    /// There has been none yet.
    None,
    /// It is in force.
    Applied,
    /// It was refused; the last good one, if any, is in force.
    Refused,
}

/// A configuration that was refused.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RefusedView {
    pub(super) origin: String,
    /// RFC 3339.
    pub(super) at: String,
    pub(super) reasons: Vec<ConfigErrorView>,
}

/// One mistake.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ConfigErrorView {
    pub(super) file: String,
    pub(super) line: usize,
    pub(super) column: usize,
    /// `OR1101` and the like; not all have one.
    pub(super) code: Option<&'static str>,
    pub(super) message: String,
    pub(super) help: Option<String>,
}

impl From<&ConfigError> for ConfigErrorView {
    fn from(error: &ConfigError) -> Self {
        Self {
            file: error.file.clone(),
            line: error.line,
            column: error.column,
            code: error.code,
            message: error.message.clone(),
            help: error.help.clone(),
        }
    }
}

/// Everything that is wrong with a posted configuration.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Problems {
    pub(super) errors: Vec<ConfigErrorView>,
}

/// What a posted configuration changed.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ConfigApplied {
    pub(super) version: String,
    /// Services that are new, different or gone.
    pub(super) changed: Vec<String>,
    /// What may be wanted all the same.
    pub(super) warnings: Vec<ConfigErrorView>,
}

/// The control plane's own health.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok` or `degraded`.
    pub(super) status: &'static str,
    pub(super) reasons: Vec<String>,
}
