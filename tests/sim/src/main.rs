//! Prints the table of all scenes, as `tests/sim/README.md` has it.

use std::io::Write as _;

fn main() -> std::io::Result<()> {
    std::io::stdout().write_all(outrigger_sim::table::markdown().as_bytes())
}
