//! `outrigger`, the user's one program: its roles and tools are subcommands. See `cli` for the list.

mod cli;
mod commands;
mod exit;
mod http;
mod offer;
mod output;
mod plane;
mod revise;
mod supervise;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    cli::Cli::parse().run().unwrap_or_else(|error| exit::report(&error))
}
