//! Facts of this process from `/proc/self`; zero where the system has none.

use std::time::{SystemTime, UNIX_EPOCH};

use nix::unistd::{SysconfVar, sysconf};

use crate::observe::prometheus::Process;

/// Reads them. Small reads of memory files; nothing waits for a disk.
pub(super) fn read() -> Process {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let page = constant(SysconfVar::PAGE_SIZE, 4096);
    let ticks = constant(SysconfVar::CLK_TCK, 100);
    let rss = field(&text("/proc/self/statm"), 1) * page;
    // The command's name may hold spaces; what follows its bracket does not (proc_pid_stat(5)).
    let stat = text("/proc/self/stat");
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let uptime: f64 = text("/proc/uptime")
        .split(' ')
        .next()
        .and_then(|t| t.parse().ok())
        .unwrap_or(0.0);
    let age = uptime - seconds(field(after, 19), ticks);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64();
    Process {
        rss_bytes: rss,
        fds: std::fs::read_dir("/proc/self/fd").map_or(0, |entries| entries.count() as u64),
        cpu_seconds: seconds(field(after, 11) + field(after, 12), ticks),
        start_seconds: now - age,
    }
}

fn field(text: &str, i: usize) -> u64 {
    text.split_whitespace().nth(i).and_then(|t| t.parse().ok()).unwrap_or(0)
}

fn constant(name: SysconfVar, otherwise: u64) -> u64 {
    sysconf(name)
        .ok()
        .flatten()
        .and_then(|n| u64::try_from(n).ok())
        .filter(|n| *n > 0)
        .unwrap_or(otherwise)
}

#[expect(
    clippy::cast_precision_loss,
    reason = "ticks since the start of the machine fit f64 well enough"
)]
fn seconds(ticks: u64, per_second: u64) -> f64 {
    ticks as f64 / per_second as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_files_and_a_start() {
        let process = read();
        assert!(process.rss_bytes > 100_000, "{process:?}");
        assert!(process.fds >= 3, "{process:?}");
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .expect("after 1970")
            .as_secs_f64();
        assert!(
            process.start_seconds > now - 3600.0 && process.start_seconds <= now + 1.0,
            "{process:?}"
        );
    }
}
