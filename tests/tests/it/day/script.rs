//! What happens at Heroku, and what hsup should make of it.

use std::collections::BTreeMap;

use hsup_tests::{
    fake::platform::{Fault, Platform},
    random::Random,
};
use serde_json::Value;

use super::visits::ask;
use crate::app::{App, Running, binaries};

/// How many scalings come with a release.
pub(super) const SCALINGS: u32 = 4;
/// hsup waits for 1, 2, 4, 8, 16 and then 30 times as long as usual, and this is the look after
/// 360 of them: the outage has lasted for an hour where a look is made every 10 s.
const LOOKS_IN_AN_HOUR: usize = 17;

/// What is wrong with a release.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    Ends,
    NeverListens,
    HasNoSlug,
    FailsItsReleasePhase,
    IsKilled,
}

impl Bad {
    /// What its web runs, or else its release phase.
    fn process(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Ends => Some(("web", "exit 3")),
            Self::NeverListens => Some(("web", "exec sleep 1000")),
            Self::HasNoSlug => None,
            Self::FailsItsReleasePhase => Some(("release", "exit 4")),
            Self::IsKilled => Some(("web", "kill -9 $$")),
        }
    }

    /// Part of what people are told.
    fn reason(self) -> &'static str {
        match self {
            Self::Ends => "exited with status 3",
            Self::NeverListens => "R10 (Boot timeout)",
            Self::HasNoSlug => "has no slug",
            Self::FailsItsReleasePhase => "status 4",
            Self::IsKilled => "status 137",
        }
    }
}

/// What `test-tally` does, as a command of the app.
fn command(app: &App, word: &str, front: &str) -> String {
    let program = binaries().join("test-tally");
    let folder = app.path("tallies");
    format!(
        "exec {} {word} {} {front}",
        program.display(),
        folder.display()
    )
}

/// The app as it is at Heroku, and who follows it.
pub(super) struct Day<'a> {
    app: &'a App,
    heroku: &'a Platform,
    random: Random,
    web: u32,
    worker: u32,
    /// The release that should be current.
    good: u64,
    /// What is wrong with the release that came last, if it was not looked at yet.
    bad: Option<(u64, Bad)>,
    pub(super) scalings: u32,
}

impl<'a> Day<'a> {
    /// Begins with a release of one web. Whoever has the same seed has the same day.
    pub(super) fn new(app: &'a App, heroku: &'a Platform, seed: u64) -> Self {
        let mut day = Self {
            app,
            heroku,
            random: Random::new(seed),
            web: 1,
            worker: 0,
            good: 0,
            bad: None,
            scalings: 0,
        };
        day.release(None);
        day
    }

    /// A release before, between or after a few scalings.
    pub(super) fn round(&mut self, hsup: &Running<'_>, bad: Option<Bad>) {
        let place = self.random.below(SCALINGS + 1);
        for n in 0..=SCALINGS {
            self.step(n == place, bad);
            // Now and then the next thing comes while this one is on its way.
            if self.random.below(4) > 0 {
                self.settle(hsup);
            }
        }
        self.settle(hsup);
    }

    /// Two rounds while the API is away for an hour: nothing changes, and then all of it.
    pub(super) fn rounds_without_api(&mut self, hsup: &Running<'_>) {
        let ids = || -> Vec<Value> {
            let dynos = hsup.dynos().into_iter();
            dynos.map(|mut dyno| dyno["dyno_id"].take()).collect()
        };
        let before = ids();
        self.heroku.fail("", Fault::Gone);
        for _ in 0..2 {
            let place = self.random.below(SCALINGS + 1);
            for n in 0..=SCALINGS {
                self.step(n == place, None);
            }
        }
        hsup.wait_for("an hour of looks", || {
            let looks = self.heroku.count("/releases -");
            (looks >= LOOKS_IN_AN_HOUR).then_some(())
        });
        assert_eq!(ids(), before);
        self.heroku.heal();
        self.settle(hsup);
    }

    fn step(&mut self, is_release: bool, bad: Option<Bad>) {
        if is_release {
            self.release(bad);
        } else {
            self.scale();
        }
    }

    fn release(&mut self, bad: Option<Bad>) {
        let web = command(self.app, "web", &self.app.port.to_string());
        let worker = command(self.app, "worker", "");
        let mut processes = BTreeMap::from([("web", &*web), ("worker", &*worker)]);
        if self.random.below(5) == 0 {
            processes.insert("release", "exec true");
        }
        processes.extend(bad.and_then(Bad::process));
        let processes: Vec<_> = processes.into_iter().collect();
        let version = if bad == Some(Bad::HasNoSlug) {
            self.heroku.release(|release| release.slug = None)
        } else {
            self.heroku.deploy(&processes)
        };
        match bad {
            None => self.good = version,
            Some(bad) => self.bad = Some((version, bad)),
        }
    }

    /// Another quantity of web or worker.
    fn scale(&mut self) {
        if self.random.below(3) > 0 {
            self.web = (self.web + self.random.below(3)) % 4 + 1;
            self.heroku.scale("web", self.web.into());
        } else {
            self.worker = 1 - self.worker;
            self.heroku.scale("worker", self.worker.into());
        }
        self.scalings += 1;
    }

    /// Waits until hsup has made of it what it should.
    pub(super) fn settle(&mut self, hsup: &Running<'_>) {
        if let Some((version, bad)) = self.bad.take() {
            wait_rejected(hsup, version, bad);
        }
        let of_type = |name, quantity| (1..=quantity).map(move |number| format!("{name}.{number}"));
        let expected: Vec<_> = of_type("web", self.web)
            .chain(of_type("worker", self.worker))
            .collect();
        let version = self.good;
        hsup.wait_for(&format!("{expected:?} of v{version}"), || {
            let dynos = hsup.dynos();
            let is_right = |dyno: &&Value| {
                // A worker is ready after a second, which nobody has to wait for.
                let is_ready = dyno["ready"] == true || dyno["name"] == "worker.1";
                dyno["state"] == "up" && is_ready && dyno["release"] == version
            };
            let right = dynos.iter().filter(is_right);
            let names: Vec<_> = right.filter_map(|dyno| dyno["name"].as_str()).collect();
            (names == expected && dynos.len() == expected.len()).then_some(())
        });
        // Any web may answer, and all of them are of this release.
        let answer = hsup.wait_for("an answer", || ask(self.app.port, "/").ok());
        assert_eq!(answer, format!("v{version}"));
    }
}

fn wait_rejected(hsup: &Running<'_>, version: u64, bad: Bad) {
    if bad == Bad::HasNoSlug {
        let line = format!("v{version} (Deploy 2c3a0b2) {}", bad.reason());
        return hsup.wait_for_line(&line);
    }
    let reason = hsup.wait_for(&format!("v{version} rejected"), || {
        let releases = hsup.releases();
        let mut of_version = releases
            .iter()
            .filter(|release| release["version"] == version);
        let release = of_version.next()?;
        (release["state"] == "rejected").then(|| release["reason"].to_string())
    });
    assert!(reason.contains(bad.reason()), "{bad:?}: {reason}");
}
