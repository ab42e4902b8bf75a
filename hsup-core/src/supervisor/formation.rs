//! Which dynos are wanted: a release's processes, and what people asked for beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    ops::Range,
};

use hsup_proto::control::{self, scale_request};

use crate::{
    control::ControlError,
    formation::{MAX_QUANTITY, MAX_START_NUMBER},
    name::{DynoName, ProcessType},
    release::Release,
};

/// What people asked for, over what the release says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Wishes {
    /// `hsup start web=2 worker`: these and no others. Outlives releases.
    pub(super) explicit: Option<BTreeMap<ProcessType, u32>>,
    /// `hsupctl scale`: outlives releases that leave the type's own quantity as it is.
    pub(super) scaled: BTreeMap<ProcessType, u32>,
    /// The number of the first dyno of each type.
    pub(super) start_number: u32,
}

/// One process type as it is wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) process_type: ProcessType,
    pub(super) quantity: u32,
    pub(super) command: String,
}

impl Wishes {
    /// The formation of `release`.
    pub(super) fn formation(&self, release: &Release) -> Vec<Wanted> {
        release
            .processes
            .iter()
            .map(|process| Wanted {
                quantity: self.quantity(&process.process_type, process.quantity),
                process_type: process.process_type.clone(),
                command: process.command.clone(),
            })
            .collect()
    }

    fn quantity(&self, process_type: &ProcessType, of_release: u32) -> u32 {
        if process_type.is_release() {
            return 0;
        }
        if let Some(scaled) = self.scaled.get(process_type) {
            return *scaled;
        }
        match &self.explicit {
            Some(explicit) => explicit.get(process_type).copied().unwrap_or(0),
            None => of_release,
        }
    }

    /// Whether a dyno of that name is wanted of `release`.
    pub(super) fn want(&self, release: &Release, name: &DynoName) -> bool {
        let Some(process) = release.process(name.process_type.as_str()) else {
            return false;
        };
        let quantity = self.quantity(&process.process_type, process.quantity);
        self.numbers(quantity).contains(&name.number.get())
    }

    fn numbers(&self, quantity: u32) -> Range<u32> {
        let first = self.start_number.clamp(1, MAX_START_NUMBER);
        first..first + quantity.min(MAX_QUANTITY)
    }

    /// The names that `wanted` stands for.
    pub(super) fn names(&self, wanted: &Wanted) -> Vec<DynoName> {
        self.numbers(wanted.quantity)
            .filter_map(NonZeroU32::new)
            .map(|number| DynoName::new(wanted.process_type.clone(), number))
            .collect()
    }

    /// The names of `release` that are wanted, type by type.
    pub(super) fn names_by_type(
        &self,
        release: &Release,
    ) -> impl Iterator<Item = std::vec::IntoIter<DynoName>> {
        let formation = self.formation(release).into_iter();
        formation.map(|wanted| self.names(&wanted).into_iter())
    }

    /// The names of `release` that are wanted, of all types.
    pub(super) fn all_names(&self, release: &Release) -> BTreeSet<DynoName> {
        self.names_by_type(release).flatten().collect()
    }

    /// What people asked for, as it would be with the release `new` instead of `old`: see
    /// [`Wishes::follow`].
    pub(super) fn after(
        &self,
        old: &Release,
        new: &Release,
        scaled_since: &BTreeSet<ProcessType>,
    ) -> Self {
        let mut wishes = self.clone();
        wishes.follow(old, new, scaled_since);
        wishes
    }

    /// Forgets a scaling where the new release's own quantity differs from the old one's: the
    /// later word counts. For the types in `scaled_since`, that is the scaling.
    pub(super) fn follow(
        &mut self,
        old: &Release,
        new: &Release,
        scaled_since: &BTreeSet<ProcessType>,
    ) {
        self.scaled.retain(|process_type, _| {
            scaled_since.contains(process_type)
                || old.quantity_of(process_type) == new.quantity_of(process_type)
        });
    }

    /// Whether `hsup start TYPE…` names types that `release` has dynos of.
    pub(super) fn check(&self, release: &Release) -> Result<(), ControlError> {
        match &self.explicit {
            Some(explicit) => check_types(explicit, release),
            None => Ok(()),
        }
    }

    /// Applies a scaling.
    pub(super) fn scale(
        &mut self,
        release: &Release,
        changes: &[scale_request::Change],
    ) -> Result<(), ControlError> {
        let mut scaled = self.scaled.clone();
        for change in changes {
            let process = known(release, &change.process_type)?;
            if process.process_type.is_release() {
                return Err(no_dyno(release));
            }
            let now = scaled
                .get(&process.process_type)
                .copied()
                .unwrap_or_else(|| self.quantity(&process.process_type, process.quantity));
            let quantity = match change.how {
                Some(scale_request::change::How::To(to)) => i64::from(to),
                Some(scale_request::change::How::By(by)) => i64::from(now) + i64::from(by),
                None => {
                    return Err(ControlError::Invalid(format!(
                        "no quantity for `{}`",
                        change.process_type
                    )));
                }
            };
            let allowed = u32::try_from(quantity).ok().filter(|n| *n <= MAX_QUANTITY);
            let Some(quantity) = allowed else {
                return Err(ControlError::Invalid(format!(
                    "`{}` is at {now} and cannot be at {quantity}: a quantity is 0 to {MAX_QUANTITY}",
                    change.process_type
                )));
            };
            scaled.insert(process.process_type.clone(), quantity);
        }
        self.scaled = scaled;
        Ok(())
    }
}

/// See [`Wishes::check`].
pub(super) fn check_types(
    explicit: &BTreeMap<ProcessType, u32>,
    release: &Release,
) -> Result<(), ControlError> {
    for process_type in explicit.keys() {
        let process = known(release, process_type.as_str())?;
        if process.process_type.is_release() {
            return Err(no_dyno(release));
        }
    }
    Ok(())
}

/// The process of that type.
pub(super) fn known<'a>(
    release: &'a Release,
    process_type: &str,
) -> Result<&'a crate::release::Process, ControlError> {
    release.process(process_type).ok_or_else(|| {
        let known: Vec<_> = release
            .processes
            .iter()
            .map(|process| process.process_type.as_str())
            .collect();
        ControlError::NotFound(format!(
            "no process type `{process_type}`: there is {}",
            known.join(", ")
        ))
    })
}

fn no_dyno(release: &Release) -> ControlError {
    let with_dynos = release.processes.iter();
    let with_dynos = with_dynos.filter(|process| !process.process_type.is_release());
    let names: Vec<_> = with_dynos
        .map(|process| process.process_type.as_str())
        .collect();
    ControlError::Invalid(format!(
        "`release` is run once per release and gets no dyno: there is {}",
        names.join(", ")
    ))
}

/// The formation for the wire.
pub(super) fn to_wire(formation: &[Wanted]) -> Vec<control::Process> {
    formation
        .iter()
        .map(|wanted| control::Process {
            process_type: wanted.process_type.to_string(),
            quantity: wanted.quantity,
            command: wanted.command.clone(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(processes: &[(&str, u32)]) -> Release {
        Release {
            processes: processes
                .iter()
                .map(|(name, quantity)| {
                    crate::release::Process::new(name.parse().unwrap(), "true", *quantity)
                })
                .collect(),
            ..Release::default()
        }
    }

    fn change(process_type: &str, how: scale_request::change::How) -> scale_request::Change {
        scale_request::Change {
            process_type: process_type.to_owned(),
            how: Some(how),
        }
    }

    fn quantities(wishes: &Wishes, release: &Release) -> Vec<u32> {
        wishes
            .formation(release)
            .iter()
            .map(|wanted| wanted.quantity)
            .collect()
    }

    #[test]
    fn explicit_types_are_the_only_ones() {
        let wishes = Wishes {
            explicit: Some(BTreeMap::from([("web".parse().unwrap(), 2)])),
            ..Wishes::default()
        };
        let release = release(&[("web", 1), ("worker", 5)]);
        assert_eq!(quantities(&wishes, &release), [2, 0]);
    }

    #[test]
    fn a_scaling_lasts_until_the_release_says_otherwise() {
        use scale_request::change::How;
        let old = release(&[("web", 1), ("worker", 1)]);
        let mut wishes = Wishes::default();
        wishes
            .scale(
                &old,
                &[change("web", How::To(3)), change("worker", How::By(1))],
            )
            .unwrap();
        assert_eq!(quantities(&wishes, &old), [3, 2]);
        let new = release(&[("web", 1), ("worker", 4)]);
        let mut scaled_before = wishes.clone();
        scaled_before.follow(&old, &new, &BTreeSet::new());
        assert_eq!(quantities(&scaled_before, &new), [3, 4]);
        wishes.follow(&old, &new, &BTreeSet::from(["worker".parse().unwrap()]));
        assert_eq!(quantities(&wishes, &new), [3, 2]);
    }

    #[test]
    fn a_bad_scaling_changes_nothing() {
        use scale_request::change::How;
        let release = release(&[("web", 1)]);
        let mut wishes = Wishes::default();
        for bad in [
            vec![change("web", How::By(-2))],
            vec![change("web", How::To(10_001))],
            vec![change("web", How::To(5)), change("cron", How::To(1))],
        ] {
            assert!(wishes.scale(&release, &bad).is_err());
            assert_eq!(quantities(&wishes, &release), [1]);
        }
    }

    #[test]
    fn a_scaling_that_no_type_can_have_says_where_it_would_lead() {
        use scale_request::change::How;
        let release = release(&[("web", 1)]);
        for (by, there) in [(-2, "-1"), (10_000, "10001")] {
            let error = Wishes::default().scale(&release, &[change("web", How::By(by))]);
            assert_eq!(
                error.unwrap_err().to_string(),
                format!("`web` is at 1 and cannot be at {there}: a quantity is 0 to 10000")
            );
        }
    }

    #[test]
    fn numbers_begin_where_asked() {
        let wishes = Wishes {
            start_number: 3,
            ..Wishes::default()
        };
        let formation = wishes.formation(&release(&[("web", 2)]));
        let names: Vec<_> = wishes
            .names(&formation[0])
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(names, ["web.3", "web.4"]);
        let wanted = |name: &str| wishes.want(&release(&[("web", 2)]), &name.parse().unwrap());
        assert!(wanted("web.3") && wanted("web.4"));
        assert!(!wanted("web.2") && !wanted("web.5") && !wanted("worker.3"));
    }

    #[test]
    fn the_last_numbers_are_numbers_as_well() {
        let wishes = Wishes {
            start_number: MAX_START_NUMBER,
            ..Wishes::default()
        };
        let formation = wishes.formation(&release(&[("web", MAX_QUANTITY)]));
        let names = wishes.names(&formation[0]);
        assert_eq!(names.len(), MAX_QUANTITY as usize);
    }

    #[test]
    fn a_type_on_the_command_line_is_one_that_there_is() {
        let release = release(&[("web", 1), ("release", 0)]);
        let check = |process_type: &str| {
            let explicit = BTreeMap::from([(process_type.parse().unwrap(), 1)]);
            let wishes = Wishes {
                explicit: Some(explicit),
                ..Wishes::default()
            };
            wishes.check(&release).map_err(|error| error.to_string())
        };
        assert_eq!(check("web"), Ok(()));
        assert_eq!(
            check("cron").unwrap_err(),
            "no process type `cron`: there is web, release"
        );
        assert_eq!(
            check("release").unwrap_err(),
            "`release` is run once per release and gets no dyno: there is web"
        );
    }
}
