//! From one set of endpoints to the next: a service's own first, then what it fails over to.

use super::picker::{Among, Picker};
use super::{Ask, Sight};

/// What is tried when no endpoint is left that is well and was not tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Resort {
    /// One that is ejected, then one that was tried: right when nothing was sent, because those that were tried do not
    /// even take connections.
    #[default]
    Ejected,
    /// One that was tried, then one that is ejected: right when an endpoint answered badly once.
    Tried,
}

/// The endpoint for the next try: of the first of `pickers` that has one. Ejected ones are used when nothing is well
/// anywhere, unless the service's panic threshold is 0; tried ones again when there is no other. `chance(k)` is a number
/// below `k`.
pub fn choose<'p>(
    pickers: impl Iterator<Item = &'p Picker> + Clone,
    ask: &Ask<'_>,
    resort: Resort,
    chance: &mut impl FnMut(usize) -> usize,
    sight: &impl Sight,
) -> Option<usize> {
    let mut of = |among: Among| pickers.clone().find_map(|p| p.pick(ask, among, chance, sight));
    if let Some(fresh) = of(Among::Fresh) {
        return Some(fresh);
    }
    let (first, second) = match resort {
        Resort::Ejected => (Among::Ejected, Among::Tried),
        Resort::Tried => (Among::Tried, Among::Ejected),
    };
    of(first).or_else(|| of(second))
}
