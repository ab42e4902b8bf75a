//! What processes use, as /proc tells.

use std::fs;

use hsup_proto::driver::StatsResponse;
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::{clock::now_unix_ms, stat::Stat};

/// The sum over `members`: processor time of those that live, and resident memory (pages
/// that they share are counted for each).
pub fn of(members: &[Pid]) -> StatsResponse {
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
        at_unix_ms: now_unix_ms(),
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
    let line = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let stat = Stat::parse(&line)?;
    Some(Usage {
        cpu_ns: stat.ticks * (1_000_000_000 / sysconf_or(SysconfVar::CLK_TCK, 100)),
        memory_bytes: stat.pages * sysconf_or(SysconfVar::PAGE_SIZE, 4096),
    })
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
    fn we_use_something() {
        let stats = of(&[Pid::this()]);
        assert!(stats.memory_bytes.unwrap() > 0);
        assert_eq!(stats.pids, Some(1));
    }
}
