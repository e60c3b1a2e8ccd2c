//! Keys and certificates on disk: kept, brought along, damaged.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_proto::model::Revocation;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::super::files::Files;
use super::super::pem;
use super::super::testing::{Ca, Spec};
use super::super::{Identity, OpenError};
use crate::config::Bootstrap;
use crate::shared::Shared;

/// Every wait of these tests.
const SOON: Duration = Duration::from_secs(20);

type Pair = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

fn bootstrap(state: &Path) -> Bootstrap {
    serde_json::from_value(serde_json::json!({
        "service": "post", "control_plane": "https://127.0.0.1:1", "state_dir": state, "identity": {},
    }))
    .expect("a bootstrap")
}

fn open(state: &Path) -> Result<Identity, OpenError> {
    let bootstrap = bootstrap(state);
    let identity = Identity::new(bootstrap.identity.as_ref());
    identity.open(&bootstrap)?;
    Ok(identity)
}

/// Opening fails with a text that has all of `words`.
#[track_caller]
fn refuses(state: &Path, words: &[&str]) {
    let error = open(state).expect_err("refused").to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is not in {error:?}");
    }
}

/// A directory with a kept pair of `service`.
fn kept(ca: &Ca, service: &str) -> (tempfile::TempDir, Pair) {
    let dir = tempfile::tempdir().expect("a directory");
    let (chain, key) = ca.leaf(&Spec::of(service));
    let files = Files::open(dir.path()).expect("opens");
    files.keep_trust(&ca.bundle()).expect("kept");
    files.keep(&key, &chain, "p1").expect("kept");
    (dir, (chain, key))
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("a mode");
}

#[test]
fn what_is_kept_is_read_again() {
    let ca = Ca::new();
    let (dir, (chain, _)) = kept(&ca, "default/post");
    let identity = open(dir.path()).expect("opens");
    let (leaf, trust) = identity.parts();
    assert_eq!(leaf.expect("a leaf").key.cert, chain);
    assert_eq!(trust.expect("trust").bundle, ca.bundle());
    assert_eq!(identity.instance("other"), "p1");
    let mut bundle = ca.bundle();
    bundle.revoked = vec![
        Revocation::Serial("ab".into()),
        Revocation::Service("default/user".parse().expect("a name")),
    ];
    identity.files().expect("kept").keep_trust(&bundle).expect("kept");
    drop(identity);
    let identity = open(dir.path()).expect("opens");
    assert_eq!(identity.parts().1.expect("trust").bundle, bundle);
}

#[test]
fn a_crash_leaves_the_pair_before_or_the_pair_after() {
    let ca = Ca::new();
    let (dir, (first, _)) = kept(&ca, "default/post");
    let at = dir.path().join("identity");
    // As far as a crash may have come: another pair is there, and nothing names it.
    fs::create_dir(at.join("2")).expect("a directory");
    fs::write(at.join("2/key.pem"), "half a k").expect("a file");
    fs::write(at.join("roots.tmp"), "half a r").expect("a file");
    std::os::unix::fs::symlink("2", at.join("current.tmp")).expect("a link");
    let identity = open(dir.path()).expect("opens");
    assert_eq!(identity.parts().0.expect("a leaf").key.cert, first);
    let (second, key) = ca.leaf(&Spec::of("default/post"));
    let files = identity.files().expect("kept");
    files.keep(&key, &second, "p1").expect("kept");
    drop((identity, files));
    let identity = open(dir.path()).expect("opens");
    assert_eq!(identity.parts().0.expect("a leaf").key.cert, second);
    let names: Vec<_> = fs::read_dir(&at)
        .expect("a directory")
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert!(!names.contains(&"1".into()), "the old key is gone: {names:?}");
    let through = fs::read(at.join("key.pem")).expect("a link");
    assert_eq!(through, fs::read(at.join("2/key.pem")).expect("the file"));
}

#[test]
fn a_key_that_others_can_read_is_refused_with_the_command() {
    let (dir, _) = kept(&Ca::new(), "default/post");
    let key = dir.path().join("identity/current/key.pem");
    for mode in [0o644, 0o640, 0o604] {
        set_mode(&key, mode);
        let command = format!("run `chmod 600 {}`", key.display());
        refuses(
            dir.path(),
            &["can be read by others", &format!("mode {mode:o}"), &command],
        );
    }
    set_mode(&key, 0o600);
    open(dir.path()).expect("mended");
    // Root reads everything.
    if !nix::unistd::geteuid().is_root() {
        set_mode(&key, 0o000);
        refuses(dir.path(), &["cannot read", &format!("chmod 600 {}", key.display())]);
    }
}

#[test]
fn what_does_not_fit_is_named_and_left_alone() {
    let ca = Ca::new();
    let (dir, (chain, _)) = kept(&ca, "default/post");
    let at = dir.path().join("identity/current");
    let (_, other) = ca.leaf(&Spec::of("default/post"));
    let before = fs::read(at.join("key.pem")).expect("a key");
    fs::write(
        at.join("key.pem"),
        pem::block("PRIVATE KEY", other.secret_der()).as_bytes(),
    )
    .expect("written");
    refuses(
        dir.path(),
        &["key.pem", "chain.pem", "the key does not belong to the certificate"],
    );
    fs::write(at.join("key.pem"), "no key").expect("written");
    refuses(dir.path(), &["key.pem: it holds no private key in PEM"]);
    fs::write(at.join("key.pem"), before).expect("written");
    fs::write(at.join("chain.pem"), "no chain").expect("written");
    refuses(dir.path(), &["chain.pem: it holds no certificate in PEM"]);
    fs::write(
        at.join("chain.pem"),
        "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n",
    )
    .expect("written");
    refuses(dir.path(), &["chain.pem: it is no PEM"]);
    fs::write(at.join("chain.pem"), pem::certificates(chain.iter().map(AsRef::as_ref))).expect("written");
    fs::remove_file(dir.path().join("identity/roots.pem")).expect("gone");
    refuses(dir.path(), &["roots.pem"]);
    let (dir, _) = kept(&ca, "default/user");
    refuses(dir.path(), &["svc/user", "and this is default/post"]);
}

#[test]
fn a_second_sidecar_does_not_throw_away_the_keys_of_the_first() {
    let ca = Ca::new();
    let (dir, (first, _)) = kept(&ca, "default/post");
    let one = open(dir.path()).expect("opens");
    let two = open(dir.path()).expect("opens as well");
    let (chain, key) = ca.leaf(&Spec::of("default/post"));
    two.files()
        .expect("there")
        .keep(&key, &chain, "p2")
        .expect("in memory only");
    drop(one);
    let again = open(dir.path()).expect("opens");
    assert_eq!(again.parts().0.expect("a leaf").key.cert, first);
    drop(again);
    // The first has ended: the second takes over.
    two.files().expect("there").keep(&key, &chain, "p2").expect("kept");
    drop(two);
    let again = open(dir.path()).expect("opens");
    assert_eq!(again.parts().0.expect("a leaf").key.cert, chain);
}

fn write_key(path: &PathBuf, key: &PrivateKeyDer<'_>) {
    fs::write(path, pem::block("PRIVATE KEY", key.secret_der()).as_bytes()).expect("written");
    set_mode(path, 0o600);
}

fn write_chain(path: &PathBuf, chain: &[CertificateDer<'_>]) {
    fs::write(path, pem::certificates(chain.iter().map(AsRef::as_ref))).expect("written");
}

#[tokio::test(start_paused = true)]
async fn files_that_are_brought_along_are_read_again_when_they_change() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().expect("a directory"));
    let at = |name: &str| dir.path().join(name);
    let (key, chain, roots) = (at("tls.key"), at("tls.crt"), at("ca.crt"));
    let (certificates, secret) = ca.leaf(&Spec::of("default/post"));
    write_key(&key, &secret);
    write_chain(&chain, &certificates);
    write_chain(&roots, &ca.roots());
    let bootstrap: Bootstrap = serde_json::from_value(serde_json::json!({
        "service": "post", "identity": {"files": {"key": key, "chain": chain, "roots": roots}},
    }))
    .expect("a bootstrap");
    bootstrap.check().expect("no control plane is needed");
    let shared = Arc::new(Shared::new(bootstrap).expect("valid"));
    shared.identity.open(&shared.bootstrap).expect("opens");
    let first = shared.identity.current().expect("at once");
    let task = tokio::spawn(super::super::run(shared.clone()));
    let (certificates, secret) = ca.leaf(&Spec::of("default/post"));
    let mut changes = shared.identity.changes();
    // One after the other, as whoever renews them writes them.
    write_chain(&chain, &certificates);
    let failed = async {
        while shared.identity.page().failures == 0 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout(SOON, failed).await.expect("seen in time");
    assert_eq!(shared.identity.current(), Some(first.clone()), "the pair before");
    write_key(&key, &secret);
    tokio::time::timeout(SOON, changes.changed())
        .await
        .expect("in time")
        .expect("goes on");
    let second = shared.identity.current().expect("the second");
    assert_ne!(second.serial, first.serial);
    // The mesh says who is revoked, and not who is trusted.
    let mut bundle = Ca::new().bundle();
    bundle.revoked = vec![Revocation::Serial("ab".into())];
    shared.identity.trust(&bundle);
    let trust = shared.identity.parts().1.expect("trust");
    assert_eq!(
        (trust.bundle.roots.clone(), trust.bundle.revoked.len()),
        (ca.bundle().roots, 1)
    );
    set_mode(&key, 0o644);
    let refused = shared
        .identity
        .open(&shared.bootstrap)
        .expect_err("refused")
        .to_string();
    assert!(refused.contains("chmod 600"), "{refused}");
    task.abort();
}

#[test]
fn files_of_somebody_else_do_not_start_a_sidecar() {
    let (ca, dir) = (Ca::new(), tempfile::tempdir().expect("a directory"));
    let at = |name: &str| dir.path().join(name);
    let (key, chain, roots) = (at("key"), at("chain"), at("roots"));
    let bootstrap: Bootstrap = serde_json::from_value(serde_json::json!({
        "service": "post", "identity": {"files": {"key": key, "chain": chain, "roots": roots}},
    }))
    .expect("a bootstrap");
    let open = || Identity::new(bootstrap.identity.as_ref()).open(&bootstrap);
    let refused = || open().expect_err("refused").to_string();
    assert!(refused().contains("key"));
    let expired = Spec {
        not_after: SystemTime::now() - Duration::from_secs(3),
        ..Spec::of("default/post")
    };
    write_chain(&roots, &ca.roots());
    for (spec, why) in [
        (Spec::of("default/user"), "this is default/post"),
        (expired, "expired 3 s ago"),
    ] {
        let (certificates, secret) = ca.leaf(&spec);
        write_key(&key, &secret);
        write_chain(&chain, &certificates);
        assert!(refused().contains(why), "{}", refused());
    }
    let (certificates, secret) = Ca::new().leaf(&Spec::of("default/post"));
    write_key(&key, &secret);
    write_chain(&chain, &certificates);
    assert!(refused().contains("does not lead to a root"), "{}", refused());
}
