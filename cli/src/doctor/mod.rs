//! `hsup doctor`: whether this machine can run dynos, and what to do where it cannot.
//!
//! `probe` looks and judges nothing, `judge` judges and looks at nothing, `report` shows
//! it. What is wrong is so for the driver that is asked for, which is the simple one where
//! nobody says; what only another one needs is a note. Which driver there is at a socket it
//! says itself.

pub mod facts;
pub mod judge;
mod listeners;
mod presence;
mod probe;
pub mod report;

use std::path::Path;

use anyhow::Context as _;
use hsup_core::driver::DriverSpec;
use serde::Serialize;

use self::{
    facts::{Health, Way},
    judge::{Finding, Wanted, judge},
    probe::{Seen, look},
    report::Findings,
};
use crate::look::{Look, Report as _, json};

/// The drivers that come with hsup.
const DRIVERS: [&str; 3] = ["simple", "docker", "libcontainer"];

/// Where the package's libcontainer driver is reached, if its socket unit runs.
const PACKAGED_SOCKET: &str = "/run/hsup-driver-libcontainer.sock";

/// What `hsup doctor` is asked.
#[derive(Clone, Debug)]
pub struct Question {
    /// The driver that is to be used; none: no option says which.
    pub driver: Option<DriverSpec>,
    /// The port of the first `web` dyno.
    pub first_port: u16,
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
    let is_named = question.driver.is_some();
    let asked = plan(question.driver, Path::new(PACKAGED_SOCKET).exists());
    let facts = match look(asked, question.first_port, own_program).await {
        Seen::Facts(facts) => facts,
        Seen::Ended(code) => return Ok((String::new(), code)),
    };
    let named = facts.drivers.first().filter(|_| is_named);
    let wanted = named.map_or(Wanted::Simple, |driver| driver.kind.clone());
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

/// A driver that is to be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    /// What it is shown as.
    name: String,
    spec: DriverSpec,
    way: Way,
}

impl Asked {
    /// Which one it is: what it was named by, or else what it says.
    fn kind(&self, health: &Health) -> Wanted {
        match (Wanted::named(&self.name), health) {
            (Wanted::Other(_), Health::Answers(driver)) => Wanted::named(&driver.name),
            (Wanted::Other(_), _) if self.way == Way::PackagedSocket => Wanted::Libcontainer,
            (kind, _) => kind,
        }
    }
}

/// The drivers that are asked: all that come with hsup, unless one was named.
fn plan(named: Option<DriverSpec>, has_packaged_socket: bool) -> Vec<Asked> {
    let child = |name: String| Asked {
        spec: DriverSpec::Child(name.clone()),
        name,
        way: Way::Child,
    };
    match named {
        None => {
            let all = DRIVERS.map(|name| match name {
                // The driver is root's, and its socket is for others.
                "libcontainer" if has_packaged_socket => Asked {
                    name: name.to_owned(),
                    spec: DriverSpec::Socket(PACKAGED_SOCKET.into()),
                    way: Way::PackagedSocket,
                },
                name => child(name.to_owned()),
            });
            all.into()
        }
        Some(DriverSpec::Child(name)) => vec![child(name)],
        Some(DriverSpec::Socket(path)) => vec![Asked {
            name: path.display().to_string(),
            way: if path.as_os_str() == PACKAGED_SOCKET {
                Way::PackagedSocket
            } else {
                Way::Socket
            },
            spec: DriverSpec::Socket(path),
        }],
    }
}

#[cfg(test)]
mod tests {
    use hsup_core::run::Introduction;

    use super::*;

    fn answers(name: &str) -> Health {
        Health::Answers(Introduction {
            name: name.to_owned(),
            version: "1".to_owned(),
            fitness: Ok(()),
        })
    }

    fn at(socket: &str) -> Asked {
        plan(Some(DriverSpec::Socket(socket.into())), true).remove(0)
    }

    #[test]
    fn a_driver_at_a_socket_is_what_it_says_it_is() {
        let mine = at("/tmp/mine.sock");
        assert_eq!(mine.kind(&answers("libcontainer")), Wanted::Libcontainer);
        let other = Wanted::Other("jail".to_owned());
        assert_eq!(mine.kind(&answers("jail")), other);
        let silent = Health::Silent("no".to_owned());
        let unknown = Wanted::Other("/tmp/mine.sock".to_owned());
        assert_eq!(mine.kind(&silent), unknown);
        let packaged = at(PACKAGED_SOCKET);
        assert_eq!(packaged.way, Way::PackagedSocket);
        assert_eq!(packaged.kind(&silent), Wanted::Libcontainer);
    }

    #[test]
    fn where_no_driver_is_named_the_packages_socket_stands_for_its_driver() {
        let ways = |has_socket| plan(None, has_socket).into_iter().map(|asked| asked.way);
        assert!(ways(false).eq([Way::Child; 3]));
        assert!(ways(true).eq([Way::Child, Way::Child, Way::PackagedSocket]));
    }
}
