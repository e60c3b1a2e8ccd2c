//! When one caller is not like the others.

use super::Whose;
use crate::rules::Setting;
use crate::server::{Server, secs};
use crate::world::{Figures, World};

/// Fifty callers of four endpoints; the requests of one fail wherever they go. The poisoned one, and the others.
#[must_use]
pub fn poisoned(whose: Whose, seed: u64) -> (Figures, Figures) {
    let mut world = World::new(seed);
    let servers: Vec<usize> = (0..4).map(|_| world.server(Server::new(50, 5.0))).collect();
    for _ in 0..50 {
        world.caller(whose.rules(&Setting::breaking()), &servers, 20.0);
    }
    world.callers[17].poisoned = true;
    world.run(secs(61.0));
    let span = secs(5.0)..secs(60.0);
    (
        world.figures(span.clone(), |e| e.caller == 17),
        world.figures(span, |e| e.caller != 17),
    )
}
