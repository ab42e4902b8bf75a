//! What processes use, as /proc tells.

use hsup_proto::driver::StatsResponse;
use nix::unistd::{SysconfVar, sysconf};

use crate::{clock::now_unix_ms, stat::Stat};

/// The sum over the processes of a dyno that runs: processor time of those that live, and
/// resident memory (pages that they share are counted for each). Without a single one nothing
/// was measured.
pub(crate) fn of(members: impl Iterator<Item = Stat>) -> StatsResponse {
    let mut measured = StatsResponse {
        at_unix_ms: now_unix_ms(),
        ..Default::default()
    };
    let tick_ns = 1_000_000_000 / sysconf_or(SysconfVar::CLK_TCK, 100);
    let page_bytes = sysconf_or(SysconfVar::PAGE_SIZE, 4096);
    for stat in members {
        *measured.cpu_ns.get_or_insert_default() += stat.ticks * tick_ns;
        *measured.memory_bytes.get_or_insert_default() += stat.pages * page_bytes;
        *measured.pids.get_or_insert_default() += 1;
    }
    measured
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
    fn what_was_not_measured_is_not_zero() {
        let line = std::fs::read_to_string("/proc/self/stat").unwrap();
        let own = Stat::parse(&line).unwrap();
        let stats = of([own, own].into_iter());
        assert!(stats.memory_bytes.unwrap() > 0);
        assert_eq!(stats.pids, Some(2));
        let none = of(std::iter::empty());
        assert_eq!(
            (none.cpu_ns, none.memory_bytes, none.pids),
            (None, None, None)
        );
    }
}
