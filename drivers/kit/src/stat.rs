//! What the kernel tells of one process in one line: `/proc/PID/stat`, `proc_pid_stat`(5).

/// Of a process, what the kit wants to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stat {
    /// It has ended, and its parent has not noticed yet.
    pub(crate) zombie: bool,
    /// Its parent.
    pub(crate) parent: i32,
    /// Its session: the process that began it.
    pub(crate) session: i32,
    /// Processor time in ticks, its own and that of children it has reaped.
    pub(crate) ticks: u64,
    /// When it was started, in ticks since boot: with its pid, who it is.
    pub(crate) started: u64,
    /// Resident memory in pages.
    pub(crate) pages: u64,
}

impl Stat {
    /// Reads the line. The command's name in it may hold anything, parentheses and spaces too.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let (_, after) = line.rsplit_once(") ")?;
        // The third field of the manual is the first after the name.
        let mut fields = after.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let session = fields.nth(1)?.parse().ok()?;
        // The 14th to the 17th.
        let mut ticks: u64 = fields.nth(7)?.parse().ok()?;
        for _ in 0..3 {
            ticks = ticks.checked_add(fields.next()?.parse().ok()?)?;
        }
        let started = fields.nth(4)?.parse().ok()?;
        let pages = fields.nth(1)?.parse().ok()?;
        Some(Self {
            zombie: matches!(state, "Z" | "X"),
            parent,
            session,
            ticks,
            started,
            pages,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: &str = "0 -1 4194560 1 0 0 0 10 20 3 4 20 0 1 0 99 1000 55 18446744073709551615";

    #[test]
    fn the_fields_are_the_manuals_behind_any_name() {
        let line = format!("12 (a) b) S 7 11 12 {REST}");
        let expected = Stat {
            zombie: false,
            parent: 7,
            session: 12,
            ticks: 37,
            started: 99,
            pages: 55,
        };
        assert_eq!(Stat::parse(&line), Some(expected));
        let ended = format!("12 (sh) Z 1 11 12 {REST}");
        assert!(Stat::parse(&ended).unwrap().zombie);
        assert_eq!(Stat::parse("garbage"), None);
        assert_eq!(Stat::parse("12 (sh) S 1 11 12"), None);
    }

    #[test]
    fn our_own_line_is_understood() {
        let line = std::fs::read_to_string("/proc/self/stat").unwrap();
        let own = Stat::parse(&line).unwrap();
        assert_eq!(
            own.parent,
            std::os::unix::process::parent_id().cast_signed()
        );
        assert!(own.started > 0 && own.pages > 0, "{own:?}");
    }
}
