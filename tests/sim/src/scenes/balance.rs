//! When endpoints differ.

use super::Whose;
use crate::rules::Setting;
use crate::server::{Server, State, secs};
use crate::world::{Figures, World};

/// Ten endpoints, one of them ten times slower if `slow`.
#[must_use]
pub fn one_slow_of_ten(whose: Whose, slow: bool, seed: u64) -> Figures {
    let mut world = World::new(seed);
    let servers: Vec<usize> = (0..10).map(|_| world.server(Server::new(16, 10.0))).collect();
    if slow {
        world.servers[3].state = State::Up(10.0);
    }
    for _ in 0..20 {
        world.caller(whose.rules(&Setting::default()), &servers, 100.0);
    }
    world.run(secs(61.0));
    world.figures(secs(10.0)..secs(60.0), |_| true)
}

/// A tenth endpoint joins at 70 % load, ten times slower until it has served 2,000 requests. The 20 s after.
#[must_use]
pub fn cold_cache(whose: Whose, setting: &Setting, seed: u64) -> Figures {
    let mut world = World::new(seed);
    let mut servers: Vec<usize> = (0..9).map(|_| world.server(Server::new(4, 10.0))).collect();
    for _ in 0..50 {
        world.caller(whose.rules(setting), &servers, 50.0);
    }
    let new = world.server(Server {
        cold: 2000,
        ..Server::new(4, 10.0)
    });
    servers.push(new);
    world.at(secs(10.0), move |w| {
        let callers = 0..w.callers.len();
        w.tell_endpoints(callers, &servers);
    });
    world.run(secs(31.0));
    world.figures(secs(10.0)..secs(30.0), |_| true)
}

/// Three zones of four endpoints; a zone falls silent for callers who hear of it after 5 s. From the fall on, 20 s.
#[must_use]
pub fn zone_loss(whose: Whose, seed: u64) -> Figures {
    let mut world = World::new(seed);
    let servers: Vec<usize> = (0..12).map(|_| world.server(Server::new(16, 10.0))).collect();
    for _ in 0..60 {
        world.caller(whose.rules(&Setting::retrying_soon()), &servers, 30.0);
    }
    let left = servers[4..].to_vec();
    world.at(secs(10.0), |w| {
        w.servers.iter_mut().take(4).for_each(|s| s.state = State::Silent)
    });
    world.at(secs(15.0), move |w| {
        let callers = 0..w.callers.len();
        w.tell_endpoints(callers, &left);
    });
    world.run(secs(32.0));
    world.figures(secs(10.0)..secs(30.0), |_| true)
}

/// Share of keys that another endpoint gets when one of `n` leaves.
#[derive(Debug, Clone, Copy)]
pub struct Movement {
    /// On the ring.
    pub ring: f64,
    /// In the Maglev table.
    pub maglev: f64,
    /// What cannot be less: the keys of the one that left.
    pub least: f64,
}

/// One of `n` endpoints leaves.
#[must_use]
pub fn movement(n: usize) -> Movement {
    crate::rules::hash_movement(n)
}
