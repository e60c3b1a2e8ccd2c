//! Finds processes through `/proc`: who descends from us, and who carries our mark in its environment. It ends them.
//!
//! Both searches are needed. A program that daemonizes leaves its parent, but as we are a subreaper it becomes our
//! child; a program that changes its title or clears its environment loses the mark, but not its ancestry.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{self, Pid};

use super::reap::Reaper;

/// The variable that names one instance; a person finds its processes by it.
pub(crate) const INSTANCE: &str = "OUTRIGGER_INSTANCE";
/// The variable that marks everything one `up` or `run` has started.
pub(crate) const RUN: &str = "OUTRIGGER_RUN";

/// The processes that descend from `root`, without itself and without the dead that nobody has reaped.
pub(crate) fn descendants(root: Pid) -> Vec<Pid> {
    let mut children: HashMap<i32, Vec<Stat>> = HashMap::new();
    for pid in all() {
        if let Some(stat) = Stat::of(pid) {
            children.entry(stat.parent).or_default().push(stat);
        }
    }
    let mut found = Vec::new();
    let mut open = vec![root.as_raw()];
    while let Some(parent) = open.pop() {
        for stat in children.remove(&parent).unwrap_or_default() {
            open.push(stat.pid);
            if stat.state != 'Z' && stat.state != 'X' {
                found.push(Pid::from_raw(stat.pid));
            }
        }
    }
    found
}

/// The processes whose environment holds all of `marks` (`NAME=value`), without ourselves.
pub(crate) fn marked(marks: &[String]) -> Vec<Pid> {
    let own = unistd::getpid();
    all()
        .into_iter()
        .map(Pid::from_raw)
        .filter(|pid| *pid != own && carries(*pid, marks))
        .collect()
}

fn carries(pid: Pid, marks: &[String]) -> bool {
    // Not readable: another user's process, so not one of ours. Empty: a zombie.
    let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
        return false;
    };
    let variables: HashSet<&[u8]> = environment.split(|byte| *byte == 0).collect();
    marks.iter().all(|mark| variables.contains(mark.as_bytes()))
}

/// Sends `signal` to each process; one that is gone already is no error.
pub(crate) fn signal(processes: &[Pid], signal: Signal) {
    for pid in processes {
        kill(*pid, signal).ok();
    }
}

/// Ends all that `find` finds: SIGTERM, up to `grace`, then SIGKILL until none is left, for at most five seconds.
/// Returns how many were found at first.
pub(crate) async fn end(reaper: &Reaper, grace: Duration, find: impl Fn() -> Vec<Pid>) -> usize {
    let first = find();
    let count = first.len();
    if !grace.is_zero() {
        signal(&first, Signal::SIGTERM);
        signal(&first, Signal::SIGCONT);
    }
    let polite = Instant::now() + grace;
    let hard = polite + Duration::from_secs(5);
    loop {
        reaper.sweep();
        let left = find();
        if left.is_empty() || Instant::now() > hard {
            return count;
        }
        if Instant::now() >= polite {
            signal(&left, Signal::SIGKILL);
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// When the process started, in clock ticks since boot: tells a process from a later one with the same id.
pub(crate) fn started(pid: Pid) -> Option<u64> {
    Stat::of(pid.as_raw())
        .filter(|stat| stat.state != 'Z' && stat.state != 'X')
        .map(|stat| stat.started)
}

/// The command line of a process as one would type it, for messages.
pub(crate) fn command_line(pid: Pid) -> Option<String> {
    let raw = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words: Vec<_> = raw
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty())
        .map(String::from_utf8_lossy)
        .collect();
    if words.is_empty() {
        return fs::read_to_string(format!("/proc/{pid}/comm"))
            .ok()
            .map(|name| name.trim().to_owned());
    }
    Some(words.join(" "))
}

/// The ids of all processes.
pub(crate) fn all() -> Vec<i32> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// What we need of `/proc/PID/stat`.
#[derive(Debug)]
struct Stat {
    pid: i32,
    state: char,
    parent: i32,
    started: u64,
}

impl Stat {
    fn of(pid: i32) -> Option<Self> {
        Self::parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parse(pid: i32, text: &str) -> Option<Self> {
        // The name stands in parentheses and may itself hold spaces and parentheses.
        let (_, rest) = text.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_spaces_and_parentheses_does_not_confuse_the_fields() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 98765 1000 200";
        let stat = Stat::parse(42, text).expect("parsed");
        assert_eq!((stat.state, stat.parent, stat.started), ('S', 7, 98765));
    }

    #[test]
    fn we_find_ourselves_alive_and_with_a_command_line() {
        let own = unistd::getpid();
        assert!(started(own).is_some());
        assert!(command_line(own).is_some_and(|line| !line.is_empty()));
    }
}
