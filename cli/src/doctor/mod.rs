//! `hsup doctor`: whether this machine can run dynos, and what to do where it cannot.
//!
//! `probe` looks and judges nothing, `judge` judges and looks at nothing, `report` shows
//! it. What is wrong is so for the driver that is asked for, which is the simple one where
//! nobody says; what only another one needs is a note.

pub mod facts;
pub mod judge;
mod presence;
mod probe;
pub mod report;

use std::path::Path;

use anyhow::Context as _;
use hsup_core::driver::DriverSpec;
use serde::Serialize;

use self::{
    judge::{Finding, Wanted, judge},
    probe::{Seen, look},
    report::Findings,
};
use crate::look::{Look, Report as _, json};

/// The drivers that come with hsup.
const DRIVERS: [&str; 3] = ["simple", "docker", "libcontainer"];

/// What `hsup doctor` is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The driver that is to be used; none: no option says which.
    pub driver: Option<DriverSpec>,
    pub json: bool,
}

/// What `-o json` prints.
#[derive(Debug, Serialize)]
struct Json<'a> {
    driver: &'a str,
    ok: bool,
    findings: &'a [Finding],
}

/// Looks, and answers a text and an exit code.
pub async fn examine(
    question: Question,
    own_program: &Path,
    to: &Look,
) -> anyhow::Result<(String, u8)> {
    let (wanted, drivers) = plan(question.driver);
    let facts = match look(&drivers, own_program).await {
        Seen::Facts(facts) => facts,
        Seen::Ended(code) => return Ok((String::new(), code)),
    };
    let found = Findings {
        driver: wanted.name().to_owned(),
        findings: judge(&facts, &wanted),
    };
    let code = u8::from(found.is_wrong());
    let text = if question.json {
        let report = Json {
            driver: &found.driver,
            ok: !found.is_wrong(),
            findings: &found.findings,
        };
        json(&report).context("failed to write JSON")?
    } else {
        found.show(to).to_string()
    };
    Ok((text, code))
}

/// The driver by which everything is judged, and those that are asked: all that come with
/// hsup, unless one was named.
fn plan(named: Option<DriverSpec>) -> (Wanted, Vec<(String, DriverSpec)>) {
    match named {
        None => {
            let all = DRIVERS.map(|name| (name.to_owned(), DriverSpec::Child(name.to_owned())));
            (Wanted::Simple, all.into())
        }
        Some(spec) => {
            let wanted = match &spec {
                DriverSpec::Child(name) => Wanted::named(name),
                DriverSpec::Socket(path) => Wanted::Other(path.display().to_string()),
            };
            let asked = (wanted.name().to_owned(), spec);
            (wanted, vec![asked])
        }
    }
}
