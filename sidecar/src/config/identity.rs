//! `identity` of the bootstrap: how this workload gets its certificate, and where it comes from.

use std::fmt;
use std::path::PathBuf;

use outrigger_proto::model::{FieldError, check_trust_domain};
use serde::{Deserialize, Serialize, Serializer};

/// How the workload proves who it is. Absent from the bootstrap: no identity, everything is plain.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// What joins for the first time; from `outrigger token create`.
    #[serde(default)]
    pub token: Option<Secret>,
    /// A file that holds it.
    #[serde(default)]
    pub token_file: Option<PathBuf>,
    /// Keeps key and certificate in `state_dir`, so that the sidecar starts with the control plane down.
    /// Default true.
    #[serde(default = "on")]
    pub persist: bool,
    /// Offers X25519MLKEM768 first. Default true.
    #[serde(default = "on")]
    pub post_quantum: bool,
    /// The mesh to join; any other is refused. Default: the one that the token leads to.
    #[serde(default)]
    pub trust_domain: Option<String>,
    /// A key and certificates that somebody else renews; the control plane issues none then.
    #[serde(default)]
    pub files: Option<Files>,
}

/// PEM files, read again when they change.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Files {
    /// The workload's certificate, then intermediates.
    pub chain: PathBuf,
    /// Its private key; readable by its owner only.
    pub key: PathBuf,
    /// What is trusted.
    pub roots: PathBuf,
}

/// Text that is neither logged nor shown.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// The text.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(HIDDEN)
    }
}

impl Identity {
    /// Refuses settings that contradict each other.
    ///
    /// # Errors
    /// The first value that is wrong, by field path.
    pub(super) fn check(&self, control_plane: Option<&str>) -> Result<(), FieldError> {
        let wrong = |path: &str, reason: String| {
            Err(FieldError {
                path: path.into(),
                reason,
            })
        };
        if self.token.is_some() && self.token_file.is_some() {
            return wrong(
                "identity.token_file",
                "token is given as well; one of them is enough".into(),
            );
        }
        if let Some(domain) = &self.trust_domain {
            check_trust_domain(domain).map_err(|e| FieldError {
                path: "identity.trust_domain".into(),
                ..e
            })?;
        }
        match control_plane {
            None if self.files.is_none() => wrong(
                "identity",
                "without control_plane nobody issues a certificate: set control_plane or identity.files".into(),
            ),
            Some(url) if !url.starts_with("https://") => wrong(
                "control_plane",
                format!("`{url}` is not https://, and a workload with an identity talks to nobody unproven"),
            ),
            _ => Ok(()),
        }
    }
}

fn on() -> bool {
    true
}

const HIDDEN: &str = "(not shown)";

#[cfg(test)]
mod tests {
    use super::super::Bootstrap;
    use serde_json::json;

    fn check(identity: serde_json::Value, control_plane: Option<&str>) -> Result<(), String> {
        let document = json!({"service": "post", "control_plane": control_plane, "identity": identity});
        let bootstrap: Bootstrap = serde_json::from_value(document).map_err(|e| e.to_string())?;
        bootstrap.check().map_err(|e| e.to_string())
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused() {
        let url = Some("https://127.0.0.1:7070");
        check(json!({"token": "ogt1.x"}), url).expect("good");
        check(json!({}), url).expect("a kept certificate is enough");
        check(json!(null), Some("http://127.0.0.1:7070")).expect("plain");
        let files = json!({"files": {"chain": "a", "key": "b", "roots": "c"}});
        check(files.clone(), None).expect("static mode");
        for (identity, control_plane, words) in [
            (
                json!({"token": "a", "token_file": "b"}),
                url,
                "identity.token_file: token is given as well",
            ),
            (
                json!({"trust_domain": "Not.One"}),
                url,
                "identity.trust_domain: `Not.One`",
            ),
            (json!({"token": "a"}), None, "identity: without control_plane"),
            (json!({"token": "a"}), Some("http://127.0.0.1:7070"), "is not https://"),
            (files, Some("http://127.0.0.1:7070"), "is not https://"),
            (json!(null), url, "needs an identity"),
            (json!({"tokn": "a"}), url, "unknown field `tokn`"),
        ] {
            let error = check(identity, control_plane).expect_err(words);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn a_token_is_not_shown() {
        let document = json!({"service": "post", "identity": {"token": "ogt1.secret"}});
        let bootstrap: Bootstrap = serde_json::from_value(document).expect("a bootstrap");
        let shown = format!("{bootstrap:?}{}", json!(bootstrap));
        assert!(!shown.contains("ogt1") && shown.contains("(not shown)"), "{shown}");
    }
}
