//! The situations. Each is a function from rules and seed to figures.

mod balance;
mod outage;
mod people;

pub use balance::{Movement, cold_cache, movement, one_slow_of_ten, zone_loss};
pub use outage::{brown_out, chain, flapping, rolling_restart, storm};
pub use people::poisoned;

use crate::rules::{Envoy, Linkerd, Nothing, Outrigger, Rules, Setting};

/// Whose rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whose {
    /// Round robin, one try.
    Nobody,
    /// Envoy's defaults.
    Envoy,
    /// Linkerd's.
    Linkerd,
    /// The sidecar's own code.
    Outrigger,
}

impl Whose {
    /// In the order of the table.
    pub const ALL: [Self; 4] = [Self::Nobody, Self::Envoy, Self::Linkerd, Self::Outrigger];

    /// As the table says it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Nobody => "no policy",
            Self::Envoy => "Envoy",
            Self::Linkerd => "Linkerd",
            Self::Outrigger => "Outrigger",
        }
    }

    /// A caller's rules; `setting` is what the service's document says where the rules read it.
    #[must_use]
    pub fn rules(self, setting: &Setting) -> Box<dyn Rules> {
        match self {
            Self::Nobody => Box::new(Nothing::default()),
            Self::Envoy => Box::new(Envoy::default()),
            Self::Linkerd => Box::new(Linkerd::new()),
            Self::Outrigger => Box::new(Outrigger::new(setting.clone())),
        }
    }
}
