//! The tree of subcommands. Holds no logic: each leaf leads to a file in `commands`.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::commands::{
    apply, call, certs, completions, config, control_plane, describe, down, events, explain_access, fault, get, health,
    logs, new, ps, restart, routes, run, sidecar, split, stats, token, top, up, version,
};
use crate::exit;

/// A sidecar service mesh: one small proxy beside each service, and no framework inside it
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, after_help = exit::HELP, max_term_width = 110, disable_help_subcommand = true)]
pub(crate) struct Cli {
    /// Whether to use colours; NO_COLOR is honoured
    #[arg(long, global = true, value_enum, default_value = "auto", value_name = "WHEN")]
    color: clap::ColorChoice,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::UpArgs),
    Ps(ps::PsArgs),
    Logs(logs::LogsArgs),
    Restart(restart::RestartArgs),
    Down(down::DownArgs),
    Run(run::RunArgs),
    Apply(apply::ApplyArgs),
    Get(get::GetArgs),
    Describe(describe::DescribeArgs),
    Routes(routes::RoutesArgs),
    Split(split::SplitArgs),
    Fault(fault::FaultArgs),
    Call(call::CallArgs),
    Health(health::HealthArgs),
    Stats(stats::StatsArgs),
    Top(top::TopArgs),
    Events(events::EventsArgs),
    Token(token::TokenArgs),
    Certs(certs::CertsArgs),
    ExplainAccess(explain_access::ExplainAccessArgs),
    Config(config::ConfigArgs),
    New(new::NewArgs),
    Sidecar(sidecar::SidecarArgs),
    ControlPlane(control_plane::ControlPlaneArgs),
    Completions(completions::CompletionsArgs),
    Version(version::VersionArgs),
    /// What `up` starts behind itself.
    #[command(name = up::SUPERVISE, hide = true)]
    Supervise(up::SuperviseArgs),
}

impl Cli {
    /// Does what was asked for.
    pub(crate) fn run(&self) -> anyhow::Result<ExitCode> {
        match self.color {
            clap::ColorChoice::Auto => {}
            clap::ColorChoice::Always => anstream::ColorChoice::Always.write_global(),
            clap::ColorChoice::Never => anstream::ColorChoice::Never.write_global(),
        }
        match &self.command {
            Command::Up(args) => up::up(args),
            Command::Ps(args) => ps::ps(args),
            Command::Logs(args) => logs::logs(args),
            Command::Restart(args) => restart::restart(args),
            Command::Down(args) => down::down(args),
            Command::Run(args) => run::run(args),
            Command::Apply(args) => apply::apply(args),
            Command::Get(args) => get::get(args),
            Command::Describe(args) => describe::describe(args),
            Command::Routes(args) => routes::routes(args),
            Command::Split(args) => split::split(args),
            Command::Fault(args) => fault::fault(args),
            Command::Call(args) => call::call(args),
            Command::Health(args) => health::health(args),
            Command::Stats(args) => stats::stats(args),
            Command::Top(args) => top::top(args),
            Command::Events(args) => events::events(args),
            Command::Token(args) => token::token(args),
            Command::Certs(args) => certs::certs(args),
            Command::ExplainAccess(args) => explain_access::explain_access(args),
            Command::Config(args) => config::config(args),
            Command::New(args) => new::new(args),
            Command::Sidecar(args) => sidecar::sidecar(args),
            Command::ControlPlane(args) => control_plane::control_plane(args),
            Command::Completions(args) => completions::completions(args),
            Command::Version(args) => version::version(args),
            Command::Supervise(args) => up::supervise(args),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::Cli;

    #[test]
    fn the_tree_is_sound() {
        Cli::command().debug_assert();
    }

    /// The help of the whole program and of each subcommand: what users and their scripts rely on.
    #[test]
    fn help() {
        let mut root = Cli::command().term_width(100);
        let mut pages = vec![root.render_long_help().to_string()];
        root.build();
        for command in root.get_subcommands_mut().filter(|command| !command.is_hide_set()) {
            let page = command.render_long_help();
            pages.push(format!("=== {}\n{page}", command.get_name()));
            let outer = command.get_name().to_owned();
            for inner in command.get_subcommands_mut() {
                let page = inner.render_long_help();
                pages.push(format!("=== {outer} {}\n{page}", inner.get_name()));
            }
        }
        insta::assert_snapshot!(pages.join("\n"));
    }
}
