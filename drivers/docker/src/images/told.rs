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
/// library leaves out which layer it is about; their sizes tell them apart.
#[derive(Debug, Default)]
pub(super) struct Pushed {
    layers: HashMap<u64, u64>,
}

impl Pushed {
    /// The same as of a pull.
    pub(super) fn hear(&mut self, said: &PushImageInfo) -> Option<(u64, u64)> {
        if said.status.as_deref() != Some("Pushing") {
            return None;
        }
        let detail = said.progress_detail.as_ref()?;
        let number = |number: Option<i64>| u64::try_from(number?).ok();
        let (current, total) = number(detail.current).zip(number(detail.total))?;
        // What is packed may be larger in the end.
        self.layers.insert(total, current.min(total));
        let done = self.layers.values().sum();
        Some((done, self.layers.keys().sum()))
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
}
