//! Who is told how far a build is, as the parts of it speak to them.

use std::collections::HashMap;

use bollard::models::{CreateImageInfo, PushImageInfo};
use hsup_driver_kit::{proto::Progress, service::BuildLog};
use hsup_slug::Step;

/// Is told how far a build is.
pub(super) trait Listener: Send + Sync {
    fn line(&self, text: &str);
    fn progress(&self, step: &str, done: u64, total: u64);
}

impl Listener for BuildLog {
    fn line(&self, text: &str) {
        self.log(format!("{text}\n").as_bytes());
    }

    fn progress(&self, step: &str, done: u64, total: u64) {
        Self::progress(
            self,
            Progress {
                step: step.to_owned(),
                done,
                total,
                unit: "bytes".to_owned(),
            },
        );
    }
}

/// A listener, as whoever fetches slugs knows it.
pub(super) struct Told<'a>(pub(super) &'a dyn Listener);

impl hsup_slug::Progress for Told<'_> {
    fn progress(&self, step: Step, done: u64, total: u64) {
        self.0.progress(step.name(), done, total);
    }

    fn note(&self, text: &str) {
        self.0.line(text);
    }
}

/// How far a pull is: the sum of its layers, as far as the engine has begun with them.
#[derive(Debug, Default)]
pub(super) struct Pulled {
    layers: HashMap<String, (u64, u64)>,
}

impl Pulled {
    /// What is done and what there is, after the engine said this; `None` if it is not about
    /// that.
    pub(super) fn hear(&mut self, said: &CreateImageInfo) -> Option<(u64, u64)> {
        if said.status.as_deref() != Some("Downloading") {
            return None;
        }
        let (layer, detail) = (said.id.as_ref()?, said.progress_detail.as_ref()?);
        let number = |number: Option<i64>| u64::try_from(number?).ok();
        let (current, total) = number(detail.current).zip(number(detail.total))?;
        self.layers.insert(layer.clone(), (current, total));
        let sum = |(done, all), (more, of): &(u64, u64)| (done + more, all + of);
        Some(self.layers.values().fold((0, 0), sum))
    }
}

/// How far a push is: the sum of its layers, as far as the engine has begun with them. The client
/// library leaves out which layer it is about; their sizes tell them apart, and of two of one size
/// how far they are, which is a guess.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    /// How far those of each size are.
    layers: HashMap<u64, Vec<u64>>,
}

impl Pushed {
    /// The same as of a pull.
    pub(super) fn hear(&mut self, said: &PushImageInfo) -> Option<(u64, u64)> {
        match said.status.as_deref() {
            Some("Pushing") => {}
            // One of them begins anew; those that do not say how far they are, too.
            Some(status) if status.starts_with("Retrying") => {
                for (total, layers) in &mut self.layers {
                    layers.retain(|done| done == total);
                }
                return None;
            }
            _ => return None,
        }
        let detail = said.progress_detail.as_ref()?;
        let number = |number: Option<i64>| u64::try_from(number?).ok();
        let (current, total) = number(detail.current).zip(number(detail.total))?;
        // What is packed may be larger in the end.
        let current = current.min(total);
        let layers = self.layers.entry(total).or_default();
        let is_told = current == total && layers.contains(&total);
        // None goes back: the one that is next to it.
        let unfinished = layers.iter_mut().filter(|done| **done < total);
        match unfinished.filter(|done| **done <= current).max() {
            Some(done) => *done = current,
            // Its end may be told more than once.
            None if is_told => {}
            None => layers.push(current),
        }
        Some(self.sum())
    }

    fn sum(&self) -> (u64, u64) {
        let all = self.layers.iter().flat_map(|(total, layers)| {
            let of_size = |done: &u64| (*done, *total);
            layers.iter().map(of_size)
        });
        all.fold((0, 0), |(done, all), (more, of)| (done + more, all + of))
    }
}

#[cfg(test)]
mod tests {
    use bollard::models::ProgressDetail;

    use super::*;

    #[test]
    fn layers_are_summed() {
        let mut pulled = Pulled::default();
        let mut hear = |id: &str, status: &str, current| {
            pulled.hear(&CreateImageInfo {
                id: Some(id.to_owned()),
                status: Some(status.to_owned()),
                progress_detail: Some(ProgressDetail {
                    current: Some(current),
                    total: Some(100),
                }),
                ..CreateImageInfo::default()
            })
        };
        assert_eq!(hear("a", "Downloading", 10), Some((10, 100)));
        assert_eq!(hear("b", "Downloading", 5), Some((15, 200)));
        assert_eq!(hear("b", "Extracting", 50), None);
        assert_eq!(hear("a", "Downloading", 100), Some((105, 200)));
    }

    fn hear(pushed: &mut Pushed, status: &str, current: i64, total: i64) -> Option<(u64, u64)> {
        pushed.hear(&PushImageInfo {
            status: Some(status.to_owned()),
            progress_detail: Some(ProgressDetail {
                current: Some(current),
                total: Some(total),
            }),
            ..PushImageInfo::default()
        })
    }

    #[test]
    fn pushed_layers_are_summed() {
        let mut pushed = Pushed::default();
        let mut hear = |status, current, total| hear(&mut pushed, status, current, total);
        assert_eq!(hear("Preparing", 0, 100), None);
        assert_eq!(hear("Pushing", 10, 100), Some((10, 100)));
        assert_eq!(hear("Pushing", 5, 50), Some((15, 150)));
        // What is packed may be larger in the end, which is told twice.
        assert_eq!(hear("Pushing", 110, 100), Some((105, 150)));
        assert_eq!(hear("Pushing", 110, 100), Some((105, 150)));
        assert_eq!(hear("Pushed", 100, 100), None);
        assert_eq!(hear("Pushing", 50, 50), Some((150, 150)));
    }

    #[test]
    fn pushed_layers_of_one_size_are_two() {
        let mut pushed = Pushed::default();
        let mut hear = |status, current, total| hear(&mut pushed, status, current, total);
        assert_eq!(hear("Pushing", 10, 100), Some((10, 100)));
        assert_eq!(hear("Pushing", 5, 100), Some((15, 200)));
        assert_eq!(hear("Pushing", 20, 100), Some((25, 200)));
        assert_eq!(hear("Pushing", 15, 100), Some((35, 200)));
        assert_eq!(hear("Pushing", 100, 100), Some((115, 200)));
        assert_eq!(hear("Pushing", 100, 100), Some((200, 200)));
    }

    #[test]
    fn a_layer_that_is_pushed_again_is_one() {
        let mut pushed = Pushed::default();
        let mut hear = |status, current, total| hear(&mut pushed, status, current, total);
        assert_eq!(hear("Pushing", 70, 70), Some((70, 70)));
        assert_eq!(hear("Pushing", 50, 100), Some((120, 170)));
        assert_eq!(hear("Retrying in 5 seconds", 0, 0), None);
        assert_eq!(hear("Pushing", 10, 100), Some((80, 170)));
    }
}
