//! When endpoints fail: nothing works, less works, something comes and goes.

use super::Whose;
use crate::rules::Setting;
use crate::server::{Server, State, secs};
use crate::world::{Figures, World};

/// All of ten endpoints fail from the start. Figures of 60 s.
#[must_use]
pub fn storm(whose: Whose, clients: usize, rate: f64, seed: u64) -> Figures {
    let mut world = World::new(seed);
    let servers: Vec<usize> = (0..10).map(|_| world.server(Server::new(2000, 1.0))).collect();
    for _ in 0..clients {
        world.caller(whose.rules(&Setting::retrying()), &servers, rate);
    }
    world.servers.iter_mut().for_each(|s| s.state = State::Failing);
    world.run(secs(61.0));
    world.figures(0..secs(60.0), |_| true)
}

/// Five services in a row, three endpoints each; the last fails. What reaches the last one, a request of the first.
#[must_use]
pub fn chain(whose: Whose, seed: u64) -> f64 {
    const HOPS: usize = 5;
    let mut world = World::new(seed);
    let mut next: Option<Vec<usize>> = None;
    let mut last = Vec::new();
    for _ in 0..HOPS {
        let servers: Vec<usize> = (0..3)
            .map(|_| {
                let calls = next
                    .clone()
                    .map(|servers| world.caller(whose.rules(&Setting::retrying()), &servers, 0.0));
                world.server(Server {
                    calls,
                    ..Server::new(5000, 1.0)
                })
            })
            .collect();
        if last.is_empty() {
            last.clone_from(&servers);
        }
        next = Some(servers);
    }
    let first = world.callers.len();
    for _ in 0..20 {
        world.caller(
            whose.rules(&Setting::retrying()),
            next.as_deref().unwrap_or_default(),
            50.0,
        );
    }
    for number in &last {
        if let Some(server) = world.servers.get_mut(*number) {
            server.state = State::Failing;
        }
    }
    world.run(secs(60.0));
    let reached: u64 = last
        .iter()
        .filter_map(|n| world.servers.get(*n))
        .map(|s| s.reached)
        .sum();
    let requests = world.ended.iter().filter(|e| e.caller >= first).count();
    reached as f64 / requests.max(1) as f64
}

/// Ten endpoints at 70 % of what they can do are six times slower for 20 s. Success in the 20 s that begin 10 s after.
#[must_use]
pub fn brown_out(whose: Whose, seed: u64) -> Figures {
    let mut world = World::new(seed);
    let servers: Vec<usize> = (0..10)
        .map(|_| {
            let server = Server {
                queue_length: 4000,
                ..Server::new(4, 10.0)
            };
            // Who has no such thing on the callee's side gets every request to the app.
            world.server(match whose {
                Whose::Outrigger => server.admitting(),
                _ => server,
            })
        })
        .collect();
    // 10 endpoints x 4 places / 10 ms = 4,000 a second.
    for _ in 0..100 {
        world.caller(whose.rules(&Setting::retrying()), &servers, 28.0);
    }
    world.at(secs(10.0), |w| {
        w.servers.iter_mut().for_each(|s| s.state = State::Up(6.0))
    });
    world.at(secs(30.0), |w| {
        w.servers.iter_mut().for_each(|s| s.state = State::Up(1.0))
    });
    world.run(secs(61.0));
    world.figures(secs(40.0)..secs(60.0), |_| true)
}

/// One of five endpoints fails for 5 s of every 10 s.
#[must_use]
pub fn flapping(whose: Whose, seed: u64) -> Figures {
    let mut world = World::new(seed);
    let servers: Vec<usize> = (0..5).map(|_| world.server(Server::new(50, 5.0))).collect();
    for _ in 0..50 {
        world.caller(whose.rules(&Setting::retrying()), &servers, 20.0);
    }
    for round in 0..12 {
        let begin = f64::from(round) * 10.0 + 5.0;
        world.at(secs(begin), |w| w.servers[0].state = State::Failing);
        world.at(secs(begin + 5.0), |w| w.servers[0].state = State::Up(1.0));
    }
    world.run(secs(121.0));
    world.figures(secs(5.0)..secs(120.0), |_| true)
}

/// Six endpoints are replaced one after another: the old one refuses connections 200 ms before callers hear of it.
#[must_use]
pub fn rolling_restart(whose: Whose, seed: u64) -> Figures {
    let mut world = World::new(seed);
    let mut servers: Vec<usize> = (0..6).map(|_| world.server(Server::new(50, 5.0))).collect();
    for _ in 0..50 {
        world.caller(whose.rules(&Setting::retrying()), &servers, 20.0);
    }
    for step in 0..6 {
        let begin = 5.0 + step as f64 * 5.0;
        let old = servers[step];
        let new = world.server(Server::new(50, 5.0));
        servers[step] = new;
        let told = servers.clone();
        world.at(secs(begin), move |w| w.servers[old].state = State::Refusing);
        world.at(secs(begin + 0.2), move |w| {
            let callers = 0..w.callers.len();
            w.tell_endpoints(callers, &told);
        });
    }
    world.run(secs(41.0));
    world.figures(secs(1.0)..secs(40.0), |_| true)
}
