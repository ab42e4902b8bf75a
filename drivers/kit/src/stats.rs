//! What processes use, as /proc tells.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use hsup_proto::driver::StatsResponse;
use nix::unistd::{Pid, SysconfVar, sysconf};

/// The sum over `members`: processor time of those that live, and resident memory (pages
/// that they share are counted for each).
pub fn of(members: &[Pid]) -> StatsResponse {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut cpu_ns = 0;
    let mut memory_bytes = 0;
    let mut pids = 0;
    for pid in members {
        if let Some(usage) = usage(*pid) {
            cpu_ns += usage.cpu_ns;
            memory_bytes += usage.memory_bytes;
            pids += 1;
        }
    }
    StatsResponse {
        at_unix_ms: i64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(i64::MAX),
        cpu_ns: Some(cpu_ns),
        memory_bytes: Some(memory_bytes),
        memory_peak_bytes: None,
        pids: Some(pids),
    }
}

struct Usage {
    cpu_ns: u64,
    memory_bytes: u64,
}

fn usage(pid: Pid) -> Option<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (ticks, pages) = parse(&stat)?;
    Some(Usage {
        cpu_ns: ticks * (1_000_000_000 / sysconf_or(SysconfVar::CLK_TCK, 100)),
        memory_bytes: pages * sysconf_or(SysconfVar::PAGE_SIZE, 4096),
    })
}

/// Processor time in ticks and resident memory in pages, from a line of `proc_pid_stat`(5).
fn parse(stat: &str) -> Option<(u64, u64)> {
    let (_, after) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<u64>().ok();
    // Fields 14, 15 and 24 of the manual, whose third is our first; reaped children's time
    // (16, 17) is the dyno's, too.
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some((ticks, number(21)?))
}

fn sysconf_or(variable: SysconfVar, otherwise: u64) -> u64 {
    sysconf(variable)
        .ok()
        .flatten()
        .and_then(|value| u64::try_from(value).ok())
        .filter(|value| *value > 0)
        .unwrap_or(otherwise)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_are_the_manuals() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 0 0 0 10 20 3 4 20 0 1 0 99 1000 55 18446744073709551615";
        assert_eq!(parse(stat), Some((37, 55)));
    }

    #[test]
    fn we_use_something() {
        let stats = of(&[Pid::this()]);
        assert!(stats.memory_bytes.unwrap() > 0);
        assert_eq!(stats.pids, Some(1));
    }
}
