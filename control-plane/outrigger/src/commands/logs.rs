//! `outrigger logs`: what the services wrote, merged by time, also after they have stopped.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use clap::Args;

use crate::supervise::console::Console;
use crate::supervise::front::Signals;
use crate::supervise::logs::{self, Entry, Follower};
use crate::supervise::state::Layout;

/// Show what services wrote.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogsArgs {
    /// Services or instances; all services when none is named. `user-1.sidecar` and `control-plane` have logs too.
    #[arg(value_name = "SERVICE")]
    services: Vec<String>,
    /// Go on until the mesh stops.
    #[arg(short, long)]
    follow: bool,
    /// Only the last lines of each.
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
    /// The folder of mesh.yaml, or the file.
    #[arg(long, default_value = ".", value_name = "DIR")]
    dir: PathBuf,
}

const LOOK: Duration = Duration::from_millis(100);

/// Runs `logs`.
pub(crate) fn logs(args: &LogsArgs) -> anyhow::Result<ExitCode> {
    let layout = Layout::of(&args.dir)?;
    let all = logs::names(&layout.logs());
    let chosen: Vec<String> = all
        .iter()
        .filter(|name| wanted(name, &args.services))
        .cloned()
        .collect();
    if chosen.is_empty() {
        match args.services.as_slice() {
            [] => bail!("nothing has run here yet"),
            services => bail!("no logs of {}; there are: {}", services.join(", "), all.join(", ")),
        }
    }
    let console = Console::shown();
    console.introduce(chosen.iter().map(String::as_str));
    let mut followers: Vec<(String, Follower)> = chosen
        .into_iter()
        .map(|name| (name.clone(), Follower::new(layout.log(&name))))
        .collect();
    show(&console, &mut followers, args.tail);
    if args.follow {
        crate::supervise::runtime()?.block_on(async {
            let mut signals = Signals::listen()?;
            loop {
                // Looked at before reading: what is written before the end is still shown.
                let over = !layout.busy();
                show(&console, &mut followers, None);
                tokio::select! {
                    () = tokio::time::sleep(LOOK) => if over { return std::io::Result::Ok(()) },
                    () = signals.next() => return Ok(()),
                }
            }
        })?;
    }
    Ok(ExitCode::SUCCESS)
}

fn show(console: &Console, followers: &mut [(String, Follower)], tail: Option<usize>) {
    let mut lines: Vec<(Entry, &str)> = Vec::new();
    for (name, follower) in followers {
        let entries = follower.read();
        let skip = tail.map_or(0, |tail| entries.len().saturating_sub(tail));
        lines.extend(entries.into_iter().skip(skip).map(|entry| (entry, name.as_str())));
    }
    // Stable, so lines of one service and one millisecond keep their order.
    lines.sort_by(|(a, _), (b, _)| a.time.cmp(&b.time));
    for (entry, name) in lines {
        console.line(name, &entry.text);
    }
}

fn wanted(name: &str, services: &[String]) -> bool {
    let instance_of = name
        .rsplit_once('-')
        .filter(|(_, number)| number.parse::<u32>().is_ok());
    if services.is_empty() {
        return instance_of.is_some();
    }
    services
        .iter()
        .any(|wanted| wanted == name || instance_of.is_some_and(|(service, _)| service == wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(services: &[&str], shown: &[&str]) {
        let services: Vec<String> = services.iter().map(|name| (*name).to_owned()).collect();
        let all = [
            "build",
            "control-plane",
            "up",
            "user-1",
            "user-1.sidecar",
            "user-2",
            "user-data-1",
        ];
        let found: Vec<&str> = all.into_iter().filter(|name| wanted(name, &services)).collect();
        assert_eq!(found, shown);
    }

    #[test]
    fn names_choose_services_instances_and_on_request_the_mesh() {
        check(&[], &["user-1", "user-2", "user-data-1"]);
        check(&["user"], &["user-1", "user-2"]);
        check(&["user-2"], &["user-2"]);
        check(
            &["user-1.sidecar", "control-plane"],
            &["control-plane", "user-1.sidecar"],
        );
    }
}
