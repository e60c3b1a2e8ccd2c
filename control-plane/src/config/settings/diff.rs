//! What one mesh has otherwise than another, service by service and key by key.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::Setting;
use crate::config::ServiceDoc;

/// What is different about one service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ServiceChange {
    /// `namespace/service`.
    pub service: String,
    /// `added`, `removed` or `changed`.
    pub change: &'static str,
    /// The keys that are different; of a service that is new, those that somebody says.
    pub fields: Vec<Change>,
}

/// What is different about one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its path.
    pub key: String,
    /// The value before and where it came from; none when there was none.
    pub old: Option<Setting>,
    /// The value after; none when there is none any more.
    pub new: Option<Setting>,
}

/// What differs from `old` to `new`, by service; nothing when all is the same. Lines that only moved are no difference.
pub fn changes<'a>(
    old: impl IntoIterator<Item = &'a ServiceDoc>,
    new: impl IntoIterator<Item = &'a ServiceDoc>,
) -> Vec<ServiceChange> {
    let named = |service: &'a ServiceDoc| (service.name.as_str(), service);
    let mut both: BTreeMap<&str, (Option<&ServiceDoc>, Option<&ServiceDoc>)> = BTreeMap::new();
    for (name, service) in old.into_iter().map(named) {
        both.entry(name).or_default().0 = Some(service);
    }
    for (name, service) in new.into_iter().map(named) {
        both.entry(name).or_default().1 = Some(service);
    }
    let one = |(name, (old, new)): (&str, (Option<&ServiceDoc>, Option<&ServiceDoc>))| {
        let (change, fields) = match (old, new) {
            (Some(old), Some(new)) => ("changed", fields(&old.settings, &new.settings)),
            (None, Some(new)) => {
                let said = new.settings.iter().filter(|setting| setting.source.at.is_some());
                let field = |setting: &Setting| Change {
                    key: setting.key.clone(),
                    old: None,
                    new: Some(setting.clone()),
                };
                ("added", said.map(field).collect())
            }
            (Some(_), None) => ("removed", Vec::new()),
            (None, None) => return None,
        };
        (change != "changed" || !fields.is_empty()).then(|| ServiceChange {
            service: name.to_owned(),
            change,
            fields,
        })
    };
    both.into_iter().filter_map(one).collect()
}

fn fields(old: &[Setting], new: &[Setting]) -> Vec<Change> {
    fn by_key(all: &[Setting]) -> HashMap<&str, &Setting> {
        all.iter().map(|setting| (setting.key.as_str(), setting)).collect()
    }
    let (before, after) = (by_key(old), by_key(new));
    let mut out = Vec::new();
    for setting in old {
        let after = after.get(setting.key.as_str()).copied();
        if after.is_none_or(|after| after.value != setting.value) {
            out.push(Change {
                key: setting.key.clone(),
                old: Some(setting.clone()),
                new: after.cloned(),
            });
        }
    }
    let added = new.iter().filter(|setting| !before.contains_key(setting.key.as_str()));
    out.extend(added.map(|setting| Change {
        key: setting.key.clone(),
        old: None,
        new: Some(setting.clone()),
    }));
    out
}
