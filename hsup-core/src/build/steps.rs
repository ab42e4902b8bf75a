//! Which of a driver's reports of progress are worth a line. There are many of them a second.

use std::time::Duration;

use hsup_proto::driver::Progress;
use tokio::time::Instant;

/// A step that is through sooner is none to wait for.
const SLOW: Duration = Duration::from_secs(2);
/// The next line of a step comes so much later.
const EVERY: Duration = Duration::from_secs(10);

/// The step that a build is at.
#[derive(Debug, Default)]
pub(super) struct Steps {
    name: String,
    /// When to tell of it next.
    next: Option<Instant>,
}

impl Steps {
    /// The line that there is to say now, if there is one.
    pub(super) fn line(&mut self, progress: &Progress, now: Instant) -> Option<String> {
        if self.next.is_none() || self.name != progress.step {
            self.name.clone_from(&progress.step);
            self.next = Some(now + SLOW);
        }
        if self.next.is_some_and(|next| next > now) {
            return None;
        }
        self.next = Some(now + EVERY);
        let Progress { done, total, .. } = *progress;
        let done_of = if total == 0 {
            amount(done, &progress.unit)
        } else {
            format!(
                "{} of {}",
                amount(done, &progress.unit),
                amount(total, &progress.unit)
            )
        };
        Some(format!("{}: {done_of}", progress.step))
    }
}

/// Bytes in Heroku's megabytes, which are 2^20.
#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
fn amount(number: u64, unit: &str) -> String {
    match unit {
        "bytes" => format!("{:.1} MB", number as f64 / f64::from(1 << 20)),
        unit => format!("{number} {unit}").trim_end().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(step: &str, done: u64, total: u64, unit: &str) -> Progress {
        Progress {
            step: step.to_owned(),
            done,
            total,
            unit: unit.to_owned(),
        }
    }

    #[test]
    fn a_slow_step_is_told_now_and_then_and_a_quick_one_never() {
        let (mut steps, begun) = (Steps::default(), Instant::now());
        let mut said = Vec::new();
        for tenth in 0..250 {
            let (step, done) = match tenth {
                0..15 => ("check slug", tenth),
                _ => ("download slug", tenth - 15),
            };
            let progress = progress(step, done << 19, 200 << 20, "bytes");
            let now = begun + Duration::from_millis(100 * tenth);
            said.extend(steps.line(&progress, now));
        }
        assert_eq!(
            said,
            [
                "download slug: 10.0 MB of 200.0 MB",
                "download slug: 60.0 MB of 200.0 MB",
                "download slug: 110.0 MB of 200.0 MB",
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_not_told() {
        let now = Instant::now();
        let told = |progress: Progress| {
            let mut steps = Steps::default();
            steps.line(&progress, now);
            steps.line(&progress, now + SLOW).unwrap()
        };
        assert_eq!(
            told(progress("pull", 3, 7, "layers")),
            "pull: 3 layers of 7 layers"
        );
        assert_eq!(told(progress("pull", 3, 0, "")), "pull: 3");
        assert_eq!(
            told(progress("unpack", 1 << 21, 0, "bytes")),
            "unpack: 2.0 MB"
        );
    }
}
