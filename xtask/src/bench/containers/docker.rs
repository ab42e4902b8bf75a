//! The docker driver against the engine that it uses.
//!
//! It needs root and the programs `docker`, `dockerd` and `busybox` (packages docker.io and
//! busybox-static), and is therefore run only when asked for by name.

use anyhow::{Context as _, Result, ensure};
use nix::unistd::Uid;

use super::{
    super::{
        clock::{self, Spread},
        report::{Row, say},
    },
    SMALL,
    baselines::Docker,
    builds,
    driver::{Dynos, PROGRAM, Slug},
    host::Host,
    show, time,
};

/// How many dynos start at once.
const TOGETHER: usize = 20;
/// Between rounds: what has ended is cleared away by engine and kernel.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(500);
pub(super) const STACK: &str = "heroku/heroku:26";
/// What the dynos listen on, if they are given a port.
const PORT: &str = "5000";
/// What hsup calls the image of the app of [`Host`].
const IMAGE: &str = "hsup/app:v1";

/// Measures, each row so many times.
pub(in super::super) fn measure(rounds: usize) -> Result<Vec<Row>> {
    ensure!(
        Uid::effective().is_root(),
        "an engine of its own needs root"
    );
    let host = Host::new()?;
    let engine = Docker::start(host.disk(), host.memory(), &host.stack())?;
    engine.is_stack(STACK)?;
    let mut rows = runs(&host, &engine, rounds)?;
    let driver = host.docker_driver(&engine)?;
    let mut dynos = Dynos::connect(&host, &driver)?;
    say("measuring builds");
    rows.push(builds::measure(&host, &engine, &dynos, rounds)?);
    say("measuring twenty dynos");
    rows.extend(starts(&host, &engine, &mut dynos, rounds)?);
    Ok(rows)
}

/// Whole programs, from the call to the exit status.
fn runs(host: &Host, engine: &Docker, rounds: usize) -> Result<Vec<Row>> {
    let mut taken: [Vec<u64>; 2] = Default::default();
    // The first makes the image.
    for round in 0..=rounds {
        let times = [
            time(&mut host.hsup_run_docker(engine, "true"))?,
            time(&mut engine.run_image(IMAGE, "/bin/true"))?,
        ];
        if round > 0 {
            for (all, one) in taken.iter_mut().zip(times) {
                all.push(one);
            }
        }
    }
    let [hsup, docker] = taken.map(Spread::of_nanoseconds);
    let ratio = hsup.median / docker.median;
    Ok(vec![Row {
        what: "`hsup run -d docker true` with its image there; `docker run --rm` of the same image",
        hsup: show(hsup),
        baseline: show(docker),
        ratio: Some(ratio),
        budget: "≤ 1.15 ×",
        met: Some(ratio <= 1.15),
    }])
}

/// Many at once, until all have answered. A dyno's first words are not waited for: the engine's
/// log keeps them until their line ends.
fn starts(host: &Host, engine: &Docker, dynos: &mut Dynos, rounds: usize) -> Result<Vec<Row>> {
    let artifact = dynos.build(&Slug::make(host.disk(), "small", SMALL)?)?;
    let together = Together {
        engine,
        rounds,
        image: image(&artifact)?,
        artifact: &artifact,
    };
    let bare = together.measure(
        dynos,
        &[],
        "20 Starts at once, until all have answered; 20 `docker run -d` of the same image at once",
    )?;
    dynos.give(PORT);
    let reached = together.measure(
        dynos,
        &["--publish", &format!("127.0.0.1::{PORT}")],
        "the same, each with a port of the host's",
    )?;
    Ok(vec![bare, reached])
}

/// The engine's name of what was built, which is the end of the driver's.
fn image(artifact: &str) -> Result<&str> {
    let at = artifact.find("sha256:");
    at.and_then(|at| artifact.get(at..))
        .with_context(|| format!("there is no image in `{artifact}`"))
}

/// Many at once, of one image.
struct Together<'a> {
    engine: &'a Docker,
    rounds: usize,
    artifact: &'a str,
    image: &'a str,
}

impl Together<'_> {
    /// Dynos and the engine's own containers, with these options, in turns.
    fn measure(&self, dynos: &mut Dynos, options: &[&str], what: &'static str) -> Result<Row> {
        let mut taken: [Vec<u64>; 2] = Default::default();
        for _ in 0..self.rounds {
            std::thread::sleep(PAUSE);
            let begun = clock::now();
            dynos.start(self.artifact, TOGETHER, TOGETHER)?;
            taken[0].push(clock::now() - begun);
            dynos.end()?;
            std::thread::sleep(PAUSE);
            taken[1].push(self.containers(options)?);
            self.engine.clear()?;
        }
        let [hsup, docker] = taken.map(Spread::of_nanoseconds);
        let ratio = hsup.median / docker.median;
        Ok(Row {
            what,
            hsup: show(hsup),
            baseline: show(docker),
            ratio: Some(ratio),
            budget: "no slower",
            met: Some(ratio <= 1.0),
        })
    }

    fn containers(&self, options: &[&str]) -> Result<u64> {
        let begun = clock::now();
        let mut children = Vec::new();
        for _ in 0..TOGETHER {
            let mut command = self.engine.run_detached(options, self.image, &PROGRAM);
            let child = command.stdout(std::process::Stdio::null()).spawn();
            children.push(child.context("failed to run docker")?);
        }
        for mut child in children {
            ensure!(child.wait()?.success(), "docker run failed");
        }
        Ok(clock::now() - begun)
    }
}
