//! How many dynos Heroku wants of each process type, and what of that is news: pure.
//!
//! The formation is the app's, whatever its release. So what of it differs from what was told is
//! told at every look, before anything is said of a release: what runs may go on for long.

use std::collections::{BTreeMap, BTreeSet};

use super::{assemble::quantity_of, model::Formation};
use crate::{
    formation::MAX_QUANTITY,
    name::ProcessType,
    release::Release,
    source::{Update, excerpt},
};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Quantities {
    /// What was told of each type.
    told: BTreeMap<String, i64>,
    /// The types of the release that was told last.
    known: BTreeSet<ProcessType>,
}

impl Quantities {
    /// `release` is told, and has a command for these types.
    pub(super) fn learn(&mut self, release: &Release) {
        let types = release.processes.iter();
        self.known = types.map(|process| process.process_type.clone()).collect();
    }

    /// What of `formation` is news: quantities, and a warning of each that cannot be. From now
    /// on it is not.
    pub(super) fn news(&mut self, formation: &[Formation]) -> Vec<Update> {
        let (mut scaled, mut news) = (Vec::new(), Vec::new());
        for entry in formation {
            let told = self.told.insert(entry.process_type.clone(), entry.quantity);
            if told == Some(entry.quantity) {
                continue;
            }
            match parse(entry) {
                // What runs may have a command for it, whatever this formation has.
                Ok((process_type, quantity)) => {
                    let problem = self.without_command(entry, &process_type);
                    news.extend(problem.map(Update::Warning));
                    scaled.push((process_type, quantity));
                }
                // Nothing is missing where nothing should run.
                Err(problem) if entry.quantity != 0 => news.push(Update::Warning(problem)),
                Err(_) => {}
            }
        }
        if !scaled.is_empty() {
            news.push(Update::Scaled(scaled));
        }
        news
    }

    fn without_command(&self, entry: &Formation, name: &ProcessType) -> Option<String> {
        let has_one = !entry.command.trim().is_empty() || self.known.contains(name);
        let is_wanted = entry.quantity > 0 && !name.is_release();
        (is_wanted && !has_one).then(|| {
            format!(
                "Warning: Heroku wants {} of `{name}`, for which it has no command: none is \
                 started until a release brings one (`heroku ps:scale {name}=0` leaves it out)",
                dynos(entry.quantity)
            )
        })
    }
}

/// The quantity of a type, or why it is none.
fn parse(entry: &Formation) -> Result<(ProcessType, u32), String> {
    let (name, wanted) = (excerpt(&entry.process_type), dynos(entry.quantity));
    let process_type = entry.process_type.parse::<ProcessType>().map_err(|error| {
        format!(
            "Warning: Heroku wants {wanted} of `{name}`, which gets none: {error} \
             (another name in the Procfile is the way out)"
        )
    })?;
    let quantity = quantity_of(entry.quantity).ok_or_else(|| {
        format!(
            "Warning: Heroku wants {wanted} of `{name}`, which stays as it was: a quantity is 0 to \
             {MAX_QUANTITY} (`heroku ps:scale {name}=…` sets one)"
        )
    })?;
    Ok((process_type, quantity))
}

fn dynos(quantity: i64) -> String {
    let noun = if quantity == 1 { "dyno" } else { "dynos" };
    format!("{quantity} {noun}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::release::Process;

    fn formation(entries: &[(&str, &str, i64)]) -> Vec<Formation> {
        let entry = |&(name, command, quantity): &(&str, &str, i64)| Formation {
            process_type: name.to_owned(),
            command: command.to_owned(),
            quantity,
        };
        entries.iter().map(entry).collect()
    }

    fn told(quantities: &mut Quantities, entries: &[(&str, &str, i64)]) -> Vec<String> {
        let news = quantities.news(&formation(entries));
        let shown = news.into_iter().map(|update| match update {
            Update::Scaled(scaled) => {
                let shown = scaled
                    .iter()
                    .map(|(name, quantity)| format!("{name}={quantity}"));
                shown.collect::<Vec<_>>().join(" ")
            }
            Update::Warning(text) => text,
            other => format!("{other:?}"),
        });
        shown.collect()
    }

    #[test]
    fn all_is_news_at_first_and_then_what_differs() {
        let mut quantities = Quantities::default();
        let (web, worker) = (("web", "x", 2), ("worker", "x", 0));
        assert_eq!(told(&mut quantities, &[web, worker]), ["web=2 worker=0"]);
        assert!(told(&mut quantities, &[web, worker]).is_empty());
        // A release without a worker does not make its quantity news.
        assert_eq!(told(&mut quantities, &[("web", "x", 3)]), ["web=3"]);
        assert!(told(&mut quantities, &[("web", "x", 3), worker]).is_empty());
        assert!(told(&mut quantities, &[]).is_empty());
    }

    #[test]
    fn what_cannot_be_is_told_once_with_its_name_and_the_way_out() {
        let mut quantities = Quantities::default();
        for (entry, expected) in [
            (
                ("cron", " ", 1),
                "Heroku wants 1 dyno of `cron`, for which it has no command",
            ),
            (
                ("web", "x", 20_000),
                "Heroku wants 20000 dynos of `web`, which stays as it was: a quantity is 0 to 10000",
            ),
            (
                ("web", "x", -1),
                "Heroku wants -1 dynos of `web`, which stays as it was: a quantity is 0 to 10000",
            ),
            (
                ("a b", "x", 2),
                "Heroku wants 2 dynos of `a b`, which gets none:",
            ),
        ] {
            let said = told(&mut quantities, &[entry]);
            assert!(
                said[0].starts_with(&format!("Warning: {expected}")),
                "{said:?}"
            );
            assert!(said[0].contains("heroku ps:scale") || said[0].contains("Procfile"));
            assert!(told(&mut quantities, &[entry]).is_empty(), "{entry:?}");
        }
        assert_eq!(told(&mut quantities, &[("web", "x", 3)]), ["web=3"]);
    }

    #[test]
    fn a_command_that_the_release_has_is_one() {
        let mut quantities = Quantities::default();
        quantities.learn(&Release {
            processes: vec![Process::new("cron".parse().unwrap(), "x", 0)],
            ..Release::default()
        });
        assert_eq!(told(&mut quantities, &[("cron", "", 1)]), ["cron=1"]);
        assert_eq!(told(&mut quantities, &[("cron", "", 0)]), ["cron=0"]);
        // Nothing is missing where nothing should run.
        assert_eq!(told(&mut quantities, &[("tick", "", 0)]), ["tick=0"]);
        assert!(told(&mut quantities, &[("a b", "", 0)]).is_empty());
    }
}
