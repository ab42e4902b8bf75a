//! What happens: steps that are drawn from a seed, and from nothing else.

use hsup_tests::random::Random;

/// One thing that happens, after which all must be well again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something of every day.
    Do(Deed),
    /// A release that cannot come up, and whether hsup is killed while it tries.
    BadRelease { kill: bool },
    /// Stopped by hand, and started again; hsup may be killed in between.
    StopAndStart { what: Target, kill: bool },
    /// `kill -9`, so long after something else began, and maybe again while what was killed
    /// begins anew. Every dyno writes so many lines while it is gone, and while it begins.
    Kill {
        whom: Whom,
        after: Deed,
        pause_ms: u32,
        again_ms: Option<u32>,
        lines: (u32, u32),
    },
    /// SIGUSR2 for hsup, SIGTERM for the driver, so long after something else began; and every
    /// dyno writes so many lines until there is another one.
    Upgrade {
        whom: Whom,
        during: Deed,
        pause_ms: u32,
        lines: u32,
    },
    /// SIGSTOP, and SIGCONT when something has happened meanwhile, and maybe hsup has noticed.
    Hang {
        whom: Whom,
        during: Deed,
        noticed: bool,
    },
    /// hsup or the driver is told to end, and begins again.
    End { whom: Whom, after: Deed },
    /// The driver misbehaves as `hsup-driver-fault` has it; hsup may be killed meanwhile.
    Fault {
        script: String,
        during: Deed,
        kill: bool,
    },
    /// The disk with hsup's state has no room; hsup may be killed and begin meanwhile.
    FullDisk { during: Deed, kill: bool },
    /// The log drain is away, or refuses.
    Outage {
        refuses: bool,
        during: Deed,
        kill: bool,
    },
    /// The machine's clock jumps forwards or back; hsup may be killed and begin in the new time.
    Clock {
        minutes: i64,
        during: Deed,
        kill: bool,
    },
}

/// What people and programs do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    Nothing,
    /// Every dyno writes so many lines.
    Write(u32),
    /// A dyno writes a last line and is killed; which one, of all of them.
    Crash(u32),
    Scale {
        web: u32,
        worker: u32,
    },
    Restart(Target),
    Release,
}

/// What an operator names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    All,
    Web,
    Worker,
}

/// What is killed, hangs or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Whom {
    Hsup,
    Driver,
    Both,
}

/// The calls that may go wrong; the last four may also be left without an answer: one that is not
/// answered while a dyno is started, stopped or waited for is given up after minutes.
const CALLS: [&str; 8] = [
    "build", "start", "stop", "wait", "info", "ip", "list", "remove",
];
const ANSWERED: usize = 4;
const FAULTS: [&str; 12] = [
    "delay 50",
    "die",
    "die-after",
    "cut",
    "cut-after",
    "unavailable the backend is away",
    "unavailable-after the backend is away",
    "internal no idea",
    "internal-after no idea",
    "resource-exhausted no room",
    "aborted something else is under way",
    "hang-after",
];
const OFTEN: [&str; 4] = ["once", "2 times", "skip 1 2 times", "50%"];

/// What there is to do steps with.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Means {
    /// A disk of its own, to be filled.
    pub(crate) disk: bool,
    /// A driver that can be replaced.
    pub(crate) durable: bool,
    /// A clock that may be set.
    pub(crate) clock: bool,
}

/// Draws steps, the same ones for the same seed and the same means.
#[derive(Debug)]
pub(crate) struct Steps {
    random: Random,
    means: Means,
}

impl Steps {
    /// Steps for which the means are not there are left out.
    pub(crate) const fn new(seed: u64, means: Means) -> Self {
        let random = Random::new(seed);
        Self { random, means }
    }

    fn one_in(&mut self, count: u32) -> bool {
        self.random.below(count) == 0
    }

    fn of<T: Clone>(&mut self, all: &[T]) -> T {
        let count = u32::try_from(all.len()).unwrap_or(u32::MAX);
        all[self.random.below(count) as usize].clone()
    }

    pub(crate) fn draw(&mut self) -> Step {
        loop {
            let step = if self.means.clock && self.one_in(2) {
                self.clock()
            } else {
                self.any()
            };
            let is_possible = match &step {
                Step::FullDisk { .. } => self.means.disk,
                Step::Upgrade { whom, .. } => self.means.durable || *whom == Whom::Hsup,
                _ => true,
            };
            if is_possible {
                return step;
            }
        }
    }

    fn any(&mut self) -> Step {
        match self.random.below(100) {
            0..18 => Step::Do(self.deed()),
            18..22 => Step::BadRelease {
                kill: self.one_in(3),
            },
            22..28 => Step::StopAndStart {
                what: self.target(),
                kill: self.one_in(3),
            },
            28..50 => Step::Kill {
                whom: self.of(&[Whom::Hsup, Whom::Driver, Whom::Both]),
                after: self.deed(),
                pause_ms: self.random.below(3) * self.random.below(40),
                again_ms: self.one_in(2).then(|| self.random.below(150)),
                lines: (self.lines(), self.lines()),
            },
            50..60 => Step::Upgrade {
                whom: self.of(&[Whom::Hsup, Whom::Driver, Whom::Both]),
                during: self.deed(),
                pause_ms: self.random.below(3) * self.random.below(40),
                lines: self.lines(),
            },
            60..67 => Step::Hang {
                whom: self.of(&[Whom::Hsup, Whom::Driver]),
                during: self.deed(),
                noticed: self.one_in(8),
            },
            67..70 => Step::End {
                whom: self.of(&[Whom::Hsup, Whom::Driver]),
                after: self.deed(),
            },
            70..89 => Step::Fault {
                script: self.script(),
                during: self.deed(),
                kill: self.one_in(6),
            },
            89..94 => Step::FullDisk {
                during: self.deed(),
                kill: self.one_in(3),
            },
            _ => Step::Outage {
                refuses: self.one_in(2),
                during: self.deed(),
                kill: self.one_in(4),
            },
        }
    }

    /// Up to thirty hours, in either direction.
    fn clock(&mut self) -> Step {
        let minutes = i64::from(1 + self.random.below(30 * 60));
        Step::Clock {
            minutes: if self.one_in(2) { minutes } else { -minutes },
            during: self.deed(),
            kill: self.one_in(3),
        }
    }

    /// As many as a FIFO holds, when they are written three times.
    fn lines(&mut self) -> u32 {
        self.random.below(2) * self.random.below(300)
    }

    fn deed(&mut self) -> Deed {
        match self.random.below(20) {
            0..2 => Deed::Nothing,
            2..6 => Deed::Write(1 + self.random.below(50)),
            6..10 => Deed::Crash(self.random.below(60)),
            10..14 => Deed::Scale {
                web: 1 + self.random.below(3),
                worker: self.random.below(3),
            },
            14..18 => Deed::Restart(self.target()),
            _ => Deed::Release,
        }
    }

    fn target(&mut self) -> Target {
        self.of(&[Target::All, Target::Web, Target::Worker])
    }

    fn script(&mut self) -> String {
        let first = self.rule();
        if self.one_in(3) {
            return format!("{first}\n{}", self.rule());
        }
        first
    }

    fn rule(&mut self) -> String {
        let (often, call) = (self.of(&OFTEN), self.of(&CALLS));
        let faults = if CALLS[..ANSWERED].contains(&call) {
            &FAULTS[..FAULTS.len() - 1]
        } else {
            &FAULTS
        };
        format!("{often} {call} {}", self.of(faults))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Means = Means {
        disk: true,
        durable: true,
        clock: true,
    };

    fn drawn(seed: u64, means: Means) -> Vec<Step> {
        let mut steps = Steps::new(seed, means);
        (0..500).map(|_| steps.draw()).collect()
    }

    #[test]
    fn a_seed_has_its_steps_and_another_one_others() {
        assert_eq!(drawn(1, ALL), drawn(1, ALL));
        assert_ne!(drawn(1, ALL), drawn(2, ALL));
    }

    #[test]
    fn for_what_there_are_no_means_there_are_no_steps() {
        let fills = |step: &Step| matches!(step, Step::FullDisk { .. });
        let jumps = |step: &Step| matches!(step, Step::Clock { .. });
        let replaces = |step: &Step| {
            let of_driver = [Whom::Driver, Whom::Both];
            matches!(step, Step::Upgrade { whom, .. } if of_driver.contains(whom))
        };
        for needs in [fills, jumps, replaces] {
            assert!(drawn(1, ALL).iter().any(needs));
            assert!(!drawn(1, Means::default()).iter().any(needs));
        }
    }
}
