//! A Build of the docker driver against `docker build`: the same files onto the same stack.

use std::{
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
};

use anyhow::{Result, ensure};
use nix::unistd::sync;

use super::{
    super::{
        clock::{self, Spread},
        report::Row,
    },
    LARGE,
    baselines::Docker,
    docker::STACK,
    driver::{Dynos, Slug},
    host::Host,
    show, time,
};

/// What the engine's own builds make.
const IMAGE: &str = "hsup-bench-build";

/// Measures, so many times, in turns.
pub(super) fn measure(host: &Host, engine: &Docker, dynos: &Dynos, rounds: usize) -> Result<Row> {
    let context = Context::make(host)?;
    let mut taken: [Vec<u64>; 2] = Default::default();
    // The first finds nothing in the page cache.
    for round in 0..=rounds {
        let slug = context.renew(round)?;
        sync();
        let begun = clock::now();
        dynos.build(&slug)?;
        let hsup = clock::now() - begun;
        sync();
        let docker = time(&mut engine.build(IMAGE, &context.0))?;
        // The driver has removed the one before, too.
        engine.prune()?;
        if round > 0 {
            for (all, one) in taken.iter_mut().zip([hsup, docker]) {
                all.push(one);
            }
        }
    }
    let [hsup, docker] = taken.map(Spread::of_nanoseconds);
    let ratio = hsup.median / docker.median;
    Ok(Row {
        what: "Build of a slug of 200 MB; `docker build --no-cache` with COPY of the same files onto the same stack",
        hsup: show(hsup),
        baseline: show(docker),
        ratio: Some(ratio),
        budget: "≤ 1.2 ×",
        met: Some(ratio <= 1.2),
    })
}

/// A folder with files, and what says how an image is made of them.
struct Context(PathBuf);

impl Context {
    fn make(host: &Host) -> Result<Self> {
        let folder = host.disk().join("context");
        fs::create_dir(&folder)?;
        Slug::make(&folder, "app", LARGE)?;
        let mut file = File::create(folder.join("Dockerfile"))?;
        writeln!(file, "FROM {STACK}\nCOPY --chown=1000:1000 app /app")?;
        Ok(Self(folder))
    }

    /// Makes it another, so that nobody has seen it before; and a slug of it, as from Heroku.
    fn renew(&self, round: usize) -> Result<Slug> {
        write!(File::create(self.0.join("app/round"))?, "{round}")?;
        let archive = self.0.with_extension("tgz");
        let slug = Slug::pack(&self.0, "app", &archive)?;
        ensure!(
            fs::metadata(archive)?.len() > LARGE as u64,
            "a slug is too small"
        );
        Ok(slug)
    }
}
