//! Whatever happens in whatever order, also with a disk that fails and crashes in between: no token is
//! spent by more keys than it may be, nobody revoked gets anything, and nothing answered is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::super::disk::tests::Flaky;
use super::super::disk::{Disk, Place};
use super::super::open::begin;
use super::*;

const SERVICES: [&str; 2] = ["default/post", "default/user"];

#[derive(Debug, Clone)]
enum Input {
    Token {
        of: usize,
        uses: u32,
    },
    Join {
        token: usize,
        of: usize,
        instance: u8,
        key: usize,
    },
    Renew {
        workload: usize,
        late: bool,
    },
    RevokeSerial(usize),
    AllowSerial(usize),
    RevokeService(usize),
    AllowService(usize),
    Later(u64),
    Rotate,
    Breaks(bool),
    Crash,
}

fn input() -> impl Strategy<Value = Input> {
    prop_oneof![
        2 => (0..2_usize, 1..3_u32).prop_map(|(of, uses)| Input::Token { of, uses }),
        6 => (0..8_usize, 0..2_usize, 0..3_u8, 0..6_usize)
            .prop_map(|(token, of, instance, key)| Input::Join { token, of, instance, key }),
        6 => (0..8_usize, any::<bool>()).prop_map(|(workload, late)| Input::Renew { workload, late }),
        1 => (0..8_usize).prop_map(Input::RevokeSerial),
        1 => (0..8_usize).prop_map(Input::AllowSerial),
        1 => (0..2_usize).prop_map(Input::RevokeService),
        2 => (0..2_usize).prop_map(Input::AllowService),
        2 => (1..2 * LIFE).prop_map(Input::Later),
        1 => Just(Input::Rotate),
        1 => any::<bool>().prop_map(Input::Breaks),
        2 => Just(Input::Crash),
    ]
}

struct World {
    flaky: Arc<Flaky>,
    authority: Arc<Authority>,
    now: Unix,
}

impl World {
    fn new() -> Self {
        let flaky = Arc::new(Flaky::default());
        let parts = begin(NOW, None, &options(), Some(Place::Test(Arc::clone(&flaky)))).expect("begins");
        let authority = Authority::start(NOW, parts, &options(), &Arc::new(Events::default())).expect("starts");
        Self {
            flaky,
            authority,
            now: NOW,
        }
    }

    /// Memory is lost; the keys stand for files that were written before.
    fn crash(&mut self) {
        let broken = self.flaky.broken.swap(false, Ordering::SeqCst);
        let failed = self.authority.is_failing();
        let before = self.authority.state.lock().clone();
        let vault = std::mem::take(&mut *self.authority.vault.lock());
        let nothing = begin(NOW, None, &options(), None).expect("begins");
        let events = Arc::new(Events::default());
        // The file is closed before it is opened again.
        self.authority = Authority::start(NOW, nothing, &options(), &events).expect("starts");
        let (disk, state) = Disk::open(Place::Test(Arc::clone(&self.flaky))).expect("opens");
        // What could not be stored was not answered, whether or not it reached the disk.
        assert!(failed || state == before);
        self.authority = Authority::start(self.now, (disk, state, vault), &options(), &events).expect("starts");
        self.flaky.broken.store(broken, Ordering::SeqCst);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn nothing_is_granted_twice_or_to_the_wrong_one(inputs in proptest::collection::vec(input(), 1..60)) {
        let mut world = World::new();
        let keys: Vec<KeyPair> = (0..6).map(|_| KeyPair::generate().expect("a key")).collect();
        let mut tokens: Vec<(String, usize, u32)> = Vec::new();
        let mut spent: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        let mut workloads: Vec<Workload> = Vec::new();
        // Services and, by instance, workloads whose revocation was answered.
        let (mut out, mut serials_out) = (BTreeSet::new(), BTreeSet::new());
        for input in inputs {
            let (now, authority) = (world.now, Arc::clone(&world.authority));
            let broken = world.flaky.broken.load(Ordering::SeqCst);
            match input {
                Input::Token { of, uses } => {
                    let purpose = Purpose::Join(service(SERVICES[of]));
                    if let Ok(token) = authority.create_token(now, &purpose, uses, 10 * LIFE) {
                        prop_assert!(!broken);
                        tokens.push((token.to_string(), of, uses));
                    }
                }
                Input::Join { token, of, instance, key } => {
                    let Some((text, bound, uses)) = tokens.get(token).cloned() else { continue };
                    let mut workload = Workload::new(SERVICES[of], &format!("i{instance}"));
                    workload.key = KeyPair::try_from(keys[key].serialize_der()).expect("a key");
                    let name = (of, instance);
                    if workload.join(&authority, now, &text).is_ok() {
                        prop_assert!(!broken && bound == of && !out.contains(&of) && !serials_out.contains(&name));
                        let by = spent.entry(token).or_default();
                        if by.last() != Some(&key) {
                            by.push(key);
                        }
                        prop_assert!(by.len() <= uses as usize, "{by:?} of {uses}");
                        workloads.push(workload);
                    }
                }
                Input::Renew { workload, late } => {
                    let Some(workload) = workloads.get_mut(workload) else { continue };
                    let of = SERVICES.iter().position(|s| *s == workload.service).expect("ours");
                    let instance = workload.instance.trim_start_matches('i').parse::<u8>().expect("a number");
                    let renewed = match late {
                        true => workload.renew_late(&authority, now),
                        false => workload.renew(&authority, now),
                    };
                    if renewed.is_ok() {
                        prop_assert!(!broken && !out.contains(&of) && !serials_out.contains(&(of, instance)));
                    }
                }
                Input::RevokeSerial(workload) => {
                    let Some(workload) = workloads.get(workload) else { continue };
                    let of = SERVICES.iter().position(|s| *s == workload.service).expect("ours");
                    let instance = workload.instance.trim_start_matches('i').parse::<u8>().expect("a number");
                    if authority.revoke(now, &by_serial(workload)).is_ok_and(|known| known) {
                        prop_assert!(!broken);
                        serials_out.insert((of, instance));
                    }
                }
                Input::AllowSerial(workload) => {
                    let Some(workload) = workloads.get(workload) else { continue };
                    let of = SERVICES.iter().position(|s| *s == workload.service).expect("ours");
                    let instance = workload.instance.trim_start_matches('i').parse::<u8>().expect("a number");
                    if authority.allow(&by_serial(workload)).is_ok() {
                        serials_out.remove(&(of, instance));
                    }
                }
                Input::RevokeService(of) => {
                    if authority.revoke(now, &by_service(SERVICES[of])).is_ok() {
                        out.insert(of);
                    }
                }
                Input::AllowService(of) => {
                    if authority.allow(&by_service(SERVICES[of])).is_ok() {
                        out.remove(&of);
                    }
                }
                Input::Later(seconds) => {
                    world.now += seconds;
                    authority.tick(world.now, &Alone);
                }
                Input::Rotate => {
                    // Refused while one is under way, or while the disk fails.
                    let _refused = authority.rotate(now, None).is_err();
                }
                Input::Breaks(broken) => world.flaky.broken.store(broken, Ordering::SeqCst),
                Input::Crash => {
                    drop(authority);
                    world.crash();
                }
            }
            let bundle = world.authority.bundle();
            prop_assert!(!bundle.roots.is_empty() && bundle.roots.len() == world.authority.state.lock().trust.roots.len());
            for of in &out {
                prop_assert!(bundle.revoked.contains(&by_service(SERVICES[*of])));
            }
        }
    }
}
