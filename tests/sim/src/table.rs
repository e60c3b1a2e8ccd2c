//! The figures of all scenes, as the document shows them.

use crate::rules::Setting;
use crate::scenes::{
    Whose, brown_out, chain, cold_cache, flapping, movement, one_slow_of_ten, poisoned, rolling_restart, storm,
    zone_loss,
};
use crate::world::Figures;

const SEED: u64 = 1;

/// The table, in Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::new();
    let mut row = |scene: &str, figure: &str, of: &dyn Fn(Whose) -> String| {
        let cells = Whose::ALL.map(of).join(" | ");
        out.extend(["| ", scene, " | ", figure, " | ", &cells, " |\n"]);
    };
    row("scene", "figure", &|w| w.name().to_owned());
    row("---", "---", &|_| "---".to_owned());
    row("one slow of ten", "p99 ms, all well → one slow", &|w| {
        let (well, slow) = (one_slow_of_ten(w, false, SEED), one_slow_of_ten(w, true, SEED));
        format!("{:.0} → {:.0} ({:.2}×)", well.p99, slow.p99, slow.p99 / well.p99)
    });
    for (clients, rate) in [(100, 1.0), (100, 5.0), (5, 1000.0)] {
        row(
            "all endpoints fail",
            &format!("tries a request at {rate} a second a caller"),
            &|w| format!("{:.2}", storm(w, clients, rate, SEED).tries),
        );
    }
    row(
        "five hops, the last one fails",
        "requests that reach it, a request of the first",
        &|w| format!("{:.2}", chain(w, SEED)),
    );
    row("brown-out of 20 s", "success, 10 s after it", &|w| {
        percent(brown_out(w, SEED))
    });
    row("one of five flaps", "success", &|w| percent(flapping(w, SEED)));
    row("rolling restart of six", "success", &|w| {
        percent(rolling_restart(w, SEED))
    });
    row("one of three zones is lost", "success, p99 ms", &|w| {
        let figures = zone_loss(w, SEED);
        format!("{}, {:.0}", percent(figures), figures.p99)
    });
    row("a cold endpoint joins", "p99 ms (with slow start)", &|w| {
        let (at_once, slowly) = (
            cold_cache(w, &Setting::default(), SEED),
            cold_cache(w, &Setting::slow_start(), SEED),
        );
        match w {
            Whose::Outrigger => format!("{:.0} ({:.0})", at_once.p99, slowly.p99),
            _ => format!("{:.0}", at_once.p99),
        }
    });
    row("one poisoned caller of 50", "success of the others", &|w| {
        percent(poisoned(w, SEED).1)
    });
    let moved = movement(10);
    row(
        "one of ten leaves a hash",
        "keys moved (least: its own)",
        &|w| match w {
            Whose::Outrigger => format!(
                "ring {:.3}, Maglev {:.3} ({:.3})",
                moved.ring, moved.maglev, moved.least
            ),
            _ => "–".to_owned(),
        },
    );
    out
}

fn percent(figures: Figures) -> String {
    format!("{:.2} %", figures.success * 100.0)
}
