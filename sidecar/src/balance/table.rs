//! Consistent hashing: a ring of points, or a Maglev table. Made once for a set of endpoints and shared by all workers.

use super::hash::mix;

/// Points of an endpoint of weight 1 on a ring. libketama has 160; more make the shares even: with 512 one endpoint's
/// share differs from its weight by 4.4 % (one standard deviation).
const POINTS: u64 = 512;
/// Points of a whole ring (2 MiB); above, each endpoint has fewer.
const MOST_POINTS: u64 = 1 << 18;
/// Entries of a Maglev table: prime, and more than a hundred for each of 655 endpoints, which keeps shares within 1 %
/// (Eisenbud et al., "Maglev", NSDI 2016, §3.4 and §5.3).
const ENTRIES: u64 = 65_537;

/// One endpoint to be put into a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// The hash of its name.
    pub key: u64,
    /// Relative share, not 0.
    pub weight: u32,
}

/// Where every hash goes. Endpoints are known by their place in the list that it was made of.
#[derive(Debug)]
pub enum Table {
    /// Points on a circle, ascending: the upper half is the place, the lower half is whose it is
    /// (Karger et al. 1997; weights by the number of points, as in libketama).
    Ring(Box<[u64]>),
    /// An entry for every remainder (Eisenbud et al. 2016, §3.4).
    Maglev(Box<[u32]>),
}

impl Table {
    /// A ring. An endpoint's points depend on its name and weight alone: when another one leaves, they stay.
    #[must_use]
    pub fn ring(nodes: &[Node]) -> Self {
        let sum: u64 = nodes.iter().map(|n| u64::from(n.weight)).sum();
        // By powers of two, so that coming and going rarely changes how many points the others have.
        let fits = |shift: &u32| (sum.saturating_mul(POINTS) >> shift) <= MOST_POINTS;
        let shift = (0..40).find(fits).unwrap_or(40);
        let mut points = Vec::new();
        for (slot, node) in (0u32..).zip(nodes) {
            let own = ((u64::from(node.weight) * POINTS) >> shift).max(1);
            points.extend((0..own).map(|k| point(node.key, k) | u64::from(slot)));
        }
        points.sort_unstable();
        Self::Ring(points.into())
    }

    /// A Maglev table. Each endpoint in turn takes the next free entry of its own permutation; a lighter one takes
    /// fewer turns.
    #[must_use]
    pub fn maglev(nodes: &[Node]) -> Self {
        let heaviest = nodes.iter().map(|n| n.weight).max().unwrap_or(1);
        // Turns go by key and not by place in the list: callers must agree.
        let mut order: Vec<(u64, u32, u32)> = (0u32..).zip(nodes).map(|(i, n)| (n.key, i, n.weight)).collect();
        order.sort_unstable();
        let mut walks: Vec<_> = order
            .into_iter()
            .map(|(key, slot, weight)| Walk {
                slot,
                weight,
                credit: 0,
                at: key % ENTRIES,
                skip: mix(key ^ SALT) % (ENTRIES - 1) + 1,
            })
            .collect();
        let mut table = vec![NOBODY; ENTRIES as usize];
        let mut left = if walks.is_empty() { 0 } else { ENTRIES };
        while left > 0 {
            for walk in &mut walks {
                walk.credit += walk.weight;
                if walk.credit < heaviest {
                    continue;
                }
                walk.credit -= heaviest;
                if left > 0 && walk.take(&mut table) {
                    left -= 1;
                }
            }
        }
        Self::Maglev(table.into())
    }

    /// Bytes of memory.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Ring(points) => size_of_val(&**points),
            Self::Maglev(entries) => size_of_val(&**entries),
        }
    }

    /// Whose a hash is when nothing is said against any endpoint.
    #[must_use]
    pub fn slot(&self, hash: u64) -> Option<usize> {
        self.at(self.start(hash))
    }

    /// The place where a walk begins.
    pub(super) fn start(&self, hash: u64) -> usize {
        match self {
            // Not below the hash: clockwise; past the last one comes the first.
            Self::Ring(points) => points.partition_point(|p| *p >> 32 < hash >> 32),
            Self::Maglev(_) => (hash % ENTRIES) as usize,
        }
    }

    /// Whose the place is; beyond the end it begins anew.
    pub(super) fn at(&self, place: usize) -> Option<usize> {
        let slot = match self {
            Self::Ring(points) => (*points.get(place.checked_rem(points.len())?)? & u64::from(u32::MAX)) as u32,
            Self::Maglev(entries) => *entries.get(place.checked_rem(entries.len())?)?,
        };
        (slot != NOBODY).then_some(slot as usize)
    }
}

/// One endpoint's way through a Maglev table.
struct Walk {
    slot: u32,
    weight: u32,
    credit: u32,
    at: u64,
    skip: u64,
}

impl Walk {
    /// Takes the next entry that is free; false when none is.
    fn take(&mut self, table: &mut [u32]) -> bool {
        for _ in 0..ENTRIES {
            let at = self.at as usize;
            // Prime: the walk comes by every entry.
            self.at = (self.at + self.skip) % ENTRIES;
            if let Some(free) = table.get_mut(at).filter(|e| **e == NOBODY) {
                *free = self.slot;
                return true;
            }
        }
        false
    }
}

/// The `k`th point of an endpoint, in the upper half.
fn point(key: u64, k: u64) -> u64 {
    mix(key.wrapping_add(mix(k ^ SALT))) & !u64::from(u32::MAX)
}

/// An entry that nobody has.
const NOBODY: u32 = u32::MAX;
/// Makes a second hash of the first.
const SALT: u64 = 0x9e37_79b9_7f4a_7c15;
