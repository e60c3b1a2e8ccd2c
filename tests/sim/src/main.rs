//! Prints the table of all scenes, as `tests/sim/README.md` has it.

fn main() {
    print!("{}", outrigger_sim::table::markdown());
}
