# `just` lists everything; CI calls the same recipes (`.ci/run`).

# List the recipes.
default:
    @just --list

# Bring the blog up.
up:
    cargo run --release -- up examples/blog

# Everything that CI checks.
ci:
    bash .ci/run

# All tests, or those whose name contains NAME.
test NAME='':
    tests/run {{NAME}}

# Unit tests alone.
unit:
    cargo test --workspace --lib --bins

# Put every file into the house's form.
fmt:
    cargo fmt --all

# Formatting, clippy, documentation, licences.
lint:
    bash .ci/run format lint docs licences

# Fuzz each parser that peers or users reach, SECONDS each; names choose targets.
fuzz SECONDS='15' *TARGETS='':
    tests/fuzz/run {{SECONDS}} {{TARGETS}}

# A night's fuzzing: half an hour a target, then keep what reached new code.
fuzz-night SECONDS='1800':
    tests/fuzz/run {{SECONDS}}
    tests/fuzz/run keep

# Run every command of the README.
readme:
    bash .ci/run readme

# Keep the judges' new verdicts.
golden:
    OUTRIGGER_GOLDEN=write tests/run judges

# Measure against other proxies; prints the table.
bench *ARGS:
    python3 tests/bench/bench.py {{ARGS}}
