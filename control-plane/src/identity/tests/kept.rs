//! What outlives a crash, and what is refused because it would not.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::sync::atomic::Ordering;

use super::super::disk::Place;
use super::super::disk::tests::Flaky;
use super::super::open::begin;
use super::*;

const POST: &str = "default/post";

fn open_error(now: Unix, state_dir: &Path, options: &Options) -> String {
    let opened = Authority::open(now, Some(state_dir), options, &Arc::new(Events::default()));
    opened.expect_err("refused").to_string()
}

/// Every file with its bytes.
fn content(directory: &Path) -> Vec<(String, Vec<u8>)> {
    let entries = fs::read_dir(directory)
        .expect("reads")
        .map(|e| e.expect("an entry").path());
    let mut all: Vec<_> = entries
        .map(|p| (p.display().to_string(), fs::read(p).unwrap_or_default()))
        .collect();
    all.sort();
    all
}

/// As `kill -9` leaves it: a copy made while the first one still runs.
fn crashed(state_dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().expect("scratch");
    fs::create_dir(copy.path().join("ca")).expect("creates");
    for sub in ["", "ca"] {
        for entry in fs::read_dir(state_dir.join(sub)).expect("reads") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                fs::copy(&path, copy.path().join(sub).join(path.file_name().expect("a name"))).expect("copies");
            }
        }
    }
    copy
}

#[test]
fn all_that_was_answered_is_there_after_a_crash() {
    let scratch = tempfile::tempdir().expect("scratch");
    let authority = open(NOW, Some(scratch.path()));
    let post = joined(&authority, NOW, POST, "p1");
    let spent = token(&authority, NOW, POST, 1);
    Workload::new(POST, "p2").join(&authority, NOW, &spent).expect("joins");
    let good = token(&authority, NOW, POST, 1);
    authority.revoke(NOW, &by_service("default/user")).expect("revokes");
    let copy = crashed(scratch.path());
    let again = open(NOW + 1, Some(copy.path()));
    assert_eq!(again.bundle(), authority.bundle());
    assert_eq!(*again.state.lock(), *authority.state.lock());
    refused(Workload::new(POST, "p3").join(&again, NOW + 1, &spent), "used as often");
    Workload::new(POST, "p3")
        .join(&again, NOW + 1, &good)
        .expect("still good");
    again
        .issue(NOW + 1, &post.asker(), &post.request(None))
        .expect("renews");
    assert_eq!(again.roots(), authority.roots());
}

#[test]
fn what_is_secret_is_private_and_tokens_are_not_stored() {
    let scratch = tempfile::tempdir().expect("scratch");
    let state_dir = scratch.path().join("state");
    let authority = open(NOW, Some(&state_dir));
    let text = token(&authority, NOW, POST, 1);
    let ca = state_dir.join("ca");
    for directory in [&state_dir, &ca] {
        assert_eq!(
            fs::metadata(directory).expect("there").mode() & 0o777,
            0o700,
            "{}",
            directory.display()
        );
    }
    let files = content(&ca);
    assert_eq!(files.len(), 5, "two keys, two certificates, one state");
    let secret = text
        .parse::<outrigger_proto::model::JoinToken>()
        .expect("a token")
        .secret;
    for (path, bytes) in files {
        assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600, "{path}");
        let text = text.split('.').nth(2).expect("a secret").as_bytes();
        assert!(
            !bytes.windows(32).any(|w| w == secret) && !bytes.windows(text.len()).any(|w| w == text),
            "{path}"
        );
    }
}

#[test]
fn a_first_start_that_was_cut_short_begins_again() {
    let scratch = tempfile::tempdir().expect("scratch");
    let half = scratch.path().join("ca.new");
    fs::create_dir(&half).expect("creates");
    fs::write(half.join("root-1.key"), "half").expect("writes");
    let roots = open(NOW, Some(scratch.path())).roots();
    assert!(!half.exists());
    assert_eq!(open(NOW, Some(scratch.path())).roots(), roots);
}

#[test]
fn files_that_do_not_belong_together_are_refused_and_left_alone() {
    let other = tempfile::tempdir().expect("scratch");
    open(NOW, Some(other.path()));
    let other = other.path().join("ca");
    type Spoil = fn(&Path, &Path);
    let spoils: [(&str, Spoil); 8] = [
        ("is not the key of", |ca, other| {
            fs::copy(other.join("root-1.key"), ca.join("root-1.key"))
                .map(drop)
                .expect("copies");
        }),
        ("is not the key of", |ca, other| {
            fs::copy(other.join("issuer-1-1.pem"), ca.join("issuer-1-1.pem"))
                .map(drop)
                .expect("copies");
        }),
        ("is not the root that the state names", |ca, other| {
            for name in ["root-1.key", "root-1.pem"] {
                fs::copy(other.join(name), ca.join(name)).map(drop).expect("copies");
            }
        }),
        ("holds no certificate", |ca, _| {
            fs::write(ca.join("root-1.pem"), "garbage").expect("writes")
        }),
        ("No such file", |ca, _| {
            fs::remove_file(ca.join("issuer-1-1.key")).expect("removes")
        }),
        ("is gone, which knows what was revoked", |ca, _| {
            fs::remove_file(ca.join("identity.redb")).expect("removes");
        }),
        ("identity.redb", |ca, _| {
            fs::write(ca.join("identity.redb"), "garbage").expect("writes")
        }),
        ("chmod 600", |ca, _| {
            let open = fs::Permissions::from_mode(0o640);
            fs::set_permissions(ca.join("root-1.key"), open).expect("sets");
        }),
    ];
    for (why, spoil) in spoils {
        let scratch = tempfile::tempdir().expect("scratch");
        open(NOW, Some(scratch.path()));
        let ca = scratch.path().join("ca");
        spoil(&ca, &other);
        // A database that is opened and closed is not byte for byte what it was.
        let files = || {
            let mut all = content(&ca);
            all.retain(|(path, bytes)| !path.ends_with("identity.redb") || bytes == b"garbage");
            all
        };
        let before = files();
        let error = open_error(NOW, scratch.path(), &options());
        assert!(error.contains(why), "{why}: {error}");
        assert!(files() == before, "{why}: something was changed");
    }
}

#[test]
fn a_directory_of_a_newer_version_is_refused_before_anything_in_it_is_opened() {
    let scratch = tempfile::tempdir().expect("scratch");
    open(NOW, Some(scratch.path()));
    fs::write(scratch.path().join("format"), "2\n").expect("writes");
    fs::write(
        scratch.path().join("ca/identity.redb"),
        "what a newer version may write",
    )
    .expect("writes");
    let before = (content(scratch.path()), content(&scratch.path().join("ca")));
    let error = open_error(NOW, scratch.path(), &options());
    assert!(error.contains("was written by a newer version"), "{error}");
    assert!((content(scratch.path()), content(&scratch.path().join("ca"))) == before);
}

#[test]
fn the_trust_domain_is_fixed_and_two_do_not_share_a_directory() {
    let scratch = tempfile::tempdir().expect("scratch");
    let of = |domain: &str| Options {
        trust_domain: Some(domain.into()),
        ..options()
    };
    let first = Authority::open(
        NOW,
        Some(scratch.path()),
        &of("one.local"),
        &Arc::new(Events::default()),
    );
    assert_eq!(
        first.as_ref().expect("opens").id().as_str(),
        "spiffe://one.local/ns/outrigger/svc/control-plane"
    );
    let error = open_error(NOW, scratch.path(), &options());
    assert!(error.contains("already open"), "{error}");
    drop(first);
    let error = open_error(NOW, scratch.path(), &of("two.local"));
    assert!(
        error.contains("one.local, which cannot be changed to two.local"),
        "{error}"
    );
    assert_eq!(open(NOW, Some(scratch.path())).trust_domain(), "one.local");
    for wrong in ["", "Two.local", "a b", "x/y"] {
        assert!(open_error(NOW, scratch.path(), &of(wrong)).contains("is not a trust domain"));
    }
}

#[test]
fn a_clock_before_the_ca_is_an_error_at_the_start() {
    let scratch = tempfile::tempdir().expect("scratch");
    open(NOW, Some(scratch.path()));
    let error = open_error(NOW - 3600, scratch.path(), &options());
    assert!(error.contains("the clock says 2027-01-15T07:00:00Z"), "{error}");
    open(NOW - 500, Some(scratch.path()));
}

#[test]
fn what_cannot_be_stored_is_not_granted() {
    let flaky = Arc::new(Flaky::default());
    let parts = begin(NOW, None, &options(), Some(Place::Test(Arc::clone(&flaky)))).expect("begins");
    let events = Arc::new(Events::default());
    let authority = Authority::start(NOW, parts, &options(), &events).expect("starts");
    let mut post = joined(&authority, NOW, POST, "p1");
    let text = token(&authority, NOW, POST, 1);
    let before = authority.state.lock().clone();
    flaky.broken.store(true, Ordering::SeqCst);
    refused(
        Workload::new(POST, "p2").join(&authority, NOW, &text),
        "cannot be stored",
    );
    let refusal = refused(post.renew(&authority, NOW), "cannot be stored");
    assert_eq!(refusal.code(), tonic::Code::Unavailable);
    refused(
        authority.create_token(NOW, &Purpose::Operator, 0, 60),
        "cannot be stored",
    );
    refused(authority.revoke(NOW, &by_service(POST)), "cannot be stored");
    refused(authority.rotate(NOW, None), "cannot be stored");
    assert!(authority.is_failing());
    assert_eq!(*authority.state.lock(), before);
    assert_eq!(authority.bundle().roots.len(), 1);
    let told = events
        .since(0)
        .iter()
        .filter(|e| matches!(e.event, Event::IdentityStoreFailed { .. }))
        .count();
    assert_eq!(told, 1);
    flaky.broken.store(false, Ordering::SeqCst);
    Workload::new(POST, "p2")
        .join(&authority, NOW, &text)
        .expect("the token was not spent");
    post.renew(&authority, NOW).expect("renews");
    assert!(!authority.is_failing());
    refused(Workload::new(POST, "p3").join(&authority, NOW, &text), "used as often");
}

#[test]
fn a_ca_that_was_brought_along_stays_the_same_one() {
    let scratch = tempfile::tempdir().expect("scratch");
    let bring = |name: &str, number: u32| {
        let pair = super::super::x509::make_root(NOW, "corp", number).expect("a root");
        let path = |end: &str| scratch.path().join(format!("{name}.{end}"));
        fs::write(path("pem"), super::super::vault::pem(&pair.der)).expect("writes");
        super::super::files::write(&path("key"), pair.key.serialize_pem().as_bytes()).expect("writes");
        let (cert, key) = (path("pem"), path("key"));
        Options {
            ca: Some(CaFiles { cert, key, chain: None }),
            ..options()
        }
    };
    let (first, second) = (bring("first", 1), bring("second", 2));
    let state_dir = scratch.path().join("state");
    let begin = |options: &Options| Authority::open(NOW, Some(&state_dir), options, &Arc::new(Events::default()));
    let authority = begin(&first).expect("opens");
    let mut post = joined(&authority, NOW, POST, "p1");
    assert_eq!(
        (
            authority.server_chain().borrow().chain.len(),
            authority.certs(NOW, &Alone).brought
        ),
        (2, true)
    );
    refused(authority.rotate(NOW, None), "brought along");
    let files: Vec<_> = content(&state_dir.join("ca"))
        .into_iter()
        .map(|(path, _)| path)
        .collect();
    assert_eq!(files.len(), 1, "its key is not copied: {files:?}");
    drop(authority);
    assert!(open_error(NOW, &state_dir, &second).contains("not the one that this mesh was begun with"));
    assert!(open_error(NOW, &state_dir, &options()).contains("bring it again"));
    post.renew(&begin(&first).expect("opens again"), NOW).expect("renews");
    let own = scratch.path().join("own");
    open(NOW, Some(&own));
    assert!(open_error(NOW, &own, &first).contains("begun with a CA of its own"));
}
