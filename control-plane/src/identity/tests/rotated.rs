//! The root is replaced while crashes happen between any two steps.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::*;

const POST: &str = "default/post";

/// Sidecars that say which generation they have.
#[derive(Default)]
struct Mesh(Mutex<BTreeSet<String>>);

impl Fleet for Mesh {
    fn lagging(&self) -> BTreeSet<String> {
        self.0.lock().clone()
    }
}

impl Mesh {
    fn lags(&self, names: &[&str]) {
        *self.0.lock() = names.iter().map(ToString::to_string).collect();
    }
}

/// One authority on a disk, killed whenever asked.
struct World {
    scratch: tempfile::TempDir,
    authority: Option<Arc<Authority>>,
    mesh: Mesh,
}

impl World {
    fn new() -> Self {
        let scratch = tempfile::tempdir().expect("scratch");
        let authority = Some(open(NOW, Some(scratch.path())));
        Self {
            scratch,
            authority,
            mesh: Mesh::default(),
        }
    }

    fn authority(&self) -> &Authority {
        self.authority.as_deref().expect("runs")
    }

    /// Nothing is said before: what is not on the disk now is lost.
    fn restart(&mut self, now: Unix) {
        let before = self.authority().state.lock().clone();
        let roots = self.authority().roots();
        self.authority = None;
        let authority = open(now, Some(self.scratch.path()));
        assert_eq!(*authority.state.lock(), before);
        assert_eq!(authority.roots(), roots);
        self.authority = Some(authority);
    }

    fn tick(&mut self, now: Unix) -> RotationView {
        self.restart(now);
        self.authority().tick(now, &self.mesh);
        self.restart(now);
        self.authority().rotation(now, &self.mesh)
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.scratch.path().join("ca")).expect("reads");
        let mut names: Vec<_> = entries
            .map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }
}

fn root_of(authority: &Authority, workload: &Workload) -> u32 {
    let certs = authority.certs(NOW, &Alone).certs;
    certs.iter().find(|c| c.serial == workload.serial).expect("listed").root
}

#[test]
fn a_rotation_goes_on_after_a_kill_in_each_phase() {
    let mut world = World::new();
    let mut post = joined(world.authority(), NOW, POST, "p1");
    let mut user = joined(world.authority(), NOW, "default/user", "u1");
    let old = world.authority().roots();
    world.mesh.lags(&["default/post/p1", "default/user/u1"]);
    world.authority().rotate(NOW, None).expect("begins");
    let both = world.authority().roots();
    assert_eq!((both.len(), &both[1]), (2, &old[0]), "the old one still signs");
    refused(
        world
            .authority()
            .rotate(NOW, Some(0))
            .and(world.authority().rotate(NOW, Some(9999)))
            .and_then(|()| {
                world.authority().rotate(NOW, None)?;
                Err::<(), _>(Refusal::Conflict("again while spreading is no error".into()))
            }),
        "no error",
    );
    // Spreading: waits, by name.
    let view = world.tick(NOW + 10);
    assert_eq!((view.waiting_for.len(), view.generation), (2, 2));
    world.mesh.lags(&["default/user/u1"]);
    let view = world.tick(NOW + 20);
    assert_eq!(view.waiting_for, BTreeSet::from(["default/user/u1".to_owned()]));
    post.renew(world.authority(), NOW + 20).expect("renews meanwhile");
    assert_eq!(root_of(world.authority(), &post), 1);
    let changes = world.authority().changes();
    assert!(!changes.has_changed().expect("open"));
    world.mesh.lags(&[]);
    // Renewing: the new one signs, also the control plane's own.
    let view = world.tick(NOW + 30);
    assert_eq!((view.generation, view.waiting_for.len()), (3, 2));
    assert!(view.ends_by.is_some());
    let now_both = world.authority().roots();
    assert_eq!((&now_both[0], &now_both[1]), (&both[1], &both[0]));
    assert_eq!(world.authority().server_chain().borrow().chain[2], both[0]);
    refused(world.authority().rotate(NOW + 30, None), "under way");
    post.renew(world.authority(), NOW + 40).expect("renews");
    assert_eq!(root_of(world.authority(), &post), 2);
    assert_eq!(
        world.tick(NOW + 50).waiting_for,
        BTreeSet::from(["default/user/u1".to_owned()])
    );
    user.renew(world.authority(), NOW + 60).expect("renews");
    assert_eq!(world.tick(NOW + 70).waiting_for, BTreeSet::new());
    // A connection of an old leaf has 60 s to end.
    assert_eq!(world.tick(NOW + 129).generation, 3);
    let view = world.tick(NOW + 130);
    assert_eq!((view.phase, view.generation), (Phase::Steady, 4));
    assert_eq!(world.authority().roots(), [both[0].clone()]);
    assert_eq!(
        world.files(),
        [
            "identity.redb",
            "issuer-2-1.key",
            "issuer-2-1.pem",
            "root-2.key",
            "root-2.pem"
        ]
    );
    post.renew(world.authority(), NOW + 140).expect("renews");
    let fresh = joined(world.authority(), NOW + 140, POST, "p2");
    assert_eq!(root_of(world.authority(), &fresh), 2);
}

#[test]
fn the_old_root_ends_with_its_last_leaf_when_somebody_never_renews() {
    let mut world = World::new();
    let sleeper = joined(world.authority(), NOW + 100, POST, "p1");
    world.authority().rotate(NOW + 100, Some(60)).expect("begins");
    world.mesh.lags(&["default/post/p1"]);
    assert_eq!(world.tick(NOW + 159).generation, 2);
    assert_eq!(world.tick(NOW + 160).generation, 3, "forced");
    let end = NOW + 100 + LIFE;
    assert_eq!(world.tick(end).generation, 3);
    let view = world.tick(end + 1);
    assert_eq!((view.phase, world.authority().roots().len()), (Phase::Steady, 1));
    // It may come back: its registration is still known, though it has to trust the new root first.
    let mut sleeper = sleeper;
    sleeper.renew_late(world.authority(), end + 2).expect("renews late");
}

#[test]
fn what_a_crash_between_two_writes_leaves_is_cleaned() {
    let mut world = World::new();
    let roots = world.authority().roots();
    let before = world.files();
    // Killed after the files of the new root and before its state.
    let made = world.authority().vault.lock().make_root(NOW, TRUST_DOMAIN, 2);
    made.expect("makes");
    std::fs::write(world.scratch.path().join("ca/root-2.new"), "half").expect("writes");
    assert_eq!(world.files().len(), before.len() + 5);
    world.restart(NOW);
    assert_eq!((world.files(), world.authority().roots()), (before, roots));
    // And with state, before the files of the old root are gone.
    world.authority().rotate(NOW, Some(0)).expect("begins");
    world.tick(NOW + 1);
    let ca = world.scratch.path().join("ca");
    let key = std::fs::read(ca.join("root-1.key")).expect("there");
    world.tick(NOW + 2);
    let view = world.tick(NOW + 100);
    assert_eq!(view.phase, Phase::Steady);
    std::fs::write(ca.join("root-1.key"), key).expect("writes");
    world.restart(NOW + 100);
    assert!(!ca.join("root-1.key").exists(), "a key that nobody needs is not kept");
}

#[test]
fn the_intermediate_is_renewed_long_before_it_ends() {
    let mut world = World::new();
    const DAY: u64 = 86_400;
    let chain = |world: &World| world.authority().server_chain().borrow().chain[1].clone();
    let first = chain(&world);
    world.tick(NOW + 244 * DAY);
    assert_eq!(chain(&world), first);
    world.authority().tick(NOW + 246 * DAY, &Alone);
    world.authority().tick(NOW + 246 * DAY + LIFE, &Alone);
    assert_ne!(chain(&world), first);
    assert_eq!(world.files().len(), 7, "the one before is kept until the next start");
    world.restart(NOW + 247 * DAY);
    assert_eq!(world.files().len(), 5);
    let post = joined(world.authority(), NOW + 247 * DAY, POST, "p1");
    assert_eq!(root_of(world.authority(), &post), 1);
    let certs = world.authority().certs(NOW + 247 * DAY, &Alone);
    assert!(certs.roots[0].issuer_not_after.starts_with("2028"), "{certs:?}");
    // Down for years: the next start makes another.
    world.authority = None;
    let authority = open(NOW + 3000 * DAY, Some(world.scratch.path()));
    joined(&authority, NOW + 3000 * DAY, POST, "p2");
}

#[test]
fn the_own_certificate_is_renewed_at_half_its_life() {
    let authority = open(NOW, None);
    let leaf = || Arc::clone(&authority.server_chain().borrow());
    let first = leaf();
    authority.tick(NOW + LIFE / 2 - 1, &Alone);
    assert!(Arc::ptr_eq(&leaf(), &first));
    authority.tick(NOW + LIFE / 2, &Alone);
    assert!(leaf().not_after > first.not_after);
}

#[test]
fn what_ends_soon_is_told_once_a_day() {
    const DAY: u64 = 86_400;
    let events = Arc::new(Events::default());
    let authority = Authority::open(NOW, None, &options(), &events).expect("opens");
    let warned = || {
        let all = events.since(0);
        all.iter()
            .filter(|e| matches!(e.event, Event::ExpiryNear { .. }))
            .count()
    };
    authority.tick(NOW + 3600 * DAY, &Alone);
    assert_eq!(warned(), 0);
    for hour in 0..48 {
        authority.tick(NOW + 3625 * DAY + hour * 3600, &Alone);
    }
    assert_eq!(warned(), 4, "the root and what signs under it, on two days");
}
