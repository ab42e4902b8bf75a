//! A day in the life of an app on Heroku, as a script: 50 releases of which 5 are bad, 200
//! scalings, an hour without Heroku's API, and a Logplex that refuses, and is away for a while.
//!
//! The driver is the simple one that says its dynos have networks of their own: each web has a
//! port that nobody else has, so that webs are replaced start-first as they are in containers.
//! What all webs listen on besides (`test-tally`) is there to be connected to all day long.
//!
//! An hour is as long as 360 looks at the API are apart, which is 10 s usually and 20 ms here.

use std::{fs, process::Command};

use hsup_tests::fake::{
    logplex::{Dialect, FakeLogplex, Fault},
    platform::{Platform, TOKEN},
};
use nix::sys::signal::Signal;

use crate::{
    app::{App, binaries},
    drains,
};

use self::{
    lines::{Books, are_all_in, tallies},
    script::{Bad, Day, SCALINGS},
    visits::{Visitor, ask},
};

pub(crate) mod lines;
mod script;
pub(crate) mod visits;

const ROUNDS: u32 = 50;
const BAD: [(u32, Bad); 5] = [
    (5, Bad::Ends),
    (11, Bad::NeverListens),
    (18, Bad::HasNoSlug),
    (35, Bad::FailsItsReleasePhase),
    (41, Bad::IsKilled),
];
/// What goes wrong with Logplex while it is there.
const FAULTS: [Fault; 5] = [
    Fault::Status(400, None),
    Fault::Reset,
    Fault::Status(503, None),
    Fault::Status(413, None),
    Fault::CutBody,
];

/// `hsup start` that follows the app, and sends its lines to this Logplex and into `all.log`.
fn start(app: &App, heroku: &Platform, logplex: &FakeLogplex) -> Command {
    app.faults("is own-network\n");
    let mut start = app.command("hsup");
    start
        .env("HEROKU_HOST", heroku.url())
        .env("HEROKU_API_KEY", TOKEN)
        .env("LOGPLEX_URL", logplex.url())
        .args(["start", "-a", "shop", "--poll-every", "20ms"])
        .args([
            "--grace",
            "60s",
            "--boot-timeout",
            "10s",
            "--max-surge",
            "100%",
        ])
        .arg("-d")
        .arg(binaries().join("hsup-driver-fault"))
        .arg("-s")
        .arg(app.path("s"))
        .arg("--log-to")
        .arg(format!(
            "file://{}?max-size=1G",
            app.path("all.log").display()
        ));
    start
}

#[test]
fn a_day_ends_with_the_right_dynos_no_downtime_and_every_line_accounted_for() {
    let (app, heroku) = (App::empty(), Platform::start("shop"));
    let logplex = FakeLogplex::start(Dialect::Logplex).unwrap();
    heroku.leave(u32::MAX);
    fs::create_dir(app.path("tallies")).unwrap();
    let mut day = Day::new(&app, &heroku, 20_261_128);
    let mut hsup = app.running(start(&app, &heroku, &logplex));
    day.settle(&hsup);
    let visitor = Visitor::of(app.port);
    // What became of the lines of Logplex, 1, and of the file, 2, as hsup says it.
    let books = |drain| drains::books(&app.path("s"), drain);

    let mut round = 0;
    while round < ROUNDS {
        let bad = BAD.iter().find(|(of, _)| *of == round).map(|(_, bad)| *bad);
        match round {
            23 => {
                day.rounds_without_api(&hsup);
                round += 2;
                continue;
            }
            // Not after Logplex was away: what was taken then and is sent again, for the answer
            // was lost, would be counted as lost when it is refused.
            28 => logplex.fail(FAULTS),
            29 => hsup.wait_for("all of that", || {
                let seen = logplex.seen();
                let failed = seen.iter().filter(|seen| seen.status != 204);
                (failed.count() >= FAULTS.len()).then_some(())
            }),
            33 => logplex.down(),
            // More lines than may wait for Logplex, never more at once than the file takes.
            36 => {
                while books(1)[2] == 0 {
                    // The web that takes it may be on its way out.
                    drop(ask(app.port, "/write/2000/2000"));
                    hsup.wait_for("the file", || (books(2)[4] == 0).then_some(()));
                }
            }
            39 => logplex.back().unwrap(),
            _ => {}
        }
        day.round(&hsup, bad);
        round += 1;
    }
    assert_eq!(day.scalings, ROUNDS * SCALINGS);
    let releases = hsup.releases();
    let mut current = releases
        .iter()
        .filter(|release| release["state"] == "current");
    // One more than the rounds: what the day began with.
    assert_eq!(current.next().unwrap()["version"], ROUNDS + 1);
    for release in &releases {
        assert_eq!(release["gap_ms"], 0, "{release}");
    }

    let visits = visitor.end();
    hsup.wait_for("what is missing to be told", || {
        let [_, _, dropped, lost, _] = books(1);
        (logplex.told_missing() == (dropped, lost)).then_some(())
    });
    // What comes from now on is what hsup says at its end that it could not deliver.
    logplex.always(Some(Fault::Hang));
    hsup.signal(Signal::SIGINT);
    assert_eq!(hsup.end().code(), Some(130));
    hsup.nothing_is_left();

    // The file has each line that was written; and of these Logplex has got each, or it was told
    // that it is missing.
    let tallies = tallies(&app.path("tallies"));
    let text = fs::read_to_string(app.path("all.log")).unwrap();
    are_all_in(&text, &tallies);
    let books = Books::of(&logplex, &hsup.log());
    assert!(
        books.dropped > 0 && books.lost > 0 && books.left > 0,
        "{books:?}"
    );
    let sum = books.sent + books.dropped + books.lost + books.left;
    assert_eq!(sum, text.lines().count() as u64, "{books:?}");

    // There always was a web, and one that was ended took no more than one visit with it.
    let webs = tallies.keys().filter(|id| id.starts_with("web-")).count();
    assert_eq!(visits.refused, 0, "{visits:?}");
    assert!(
        visits.answered > 0 && visits.cut <= webs,
        "{visits:?} of {webs}"
    );
}
