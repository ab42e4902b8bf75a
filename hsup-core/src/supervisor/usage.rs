//! What dynos use, in their log: `--log-runtime-metrics`, as Heroku's log-runtime-metrics.

use std::{collections::BTreeMap, time::Duration};

use hsup_proto::control::{Dyno, GetStatusRequest};
use tokio::time::{MissedTickBehavior, interval};

use super::handle::{Request, SupervisorHandle};
use crate::{
    control::Control as _,
    memory::{exceeded, megabytes},
};

/// How often Heroku writes them.
const EVERY: Duration = Duration::from_secs(20);

impl SupervisorHandle {
    /// Writes what each dyno uses into its log, again and again; ends with the supervisor. What
    /// the driver does not measure is not written.
    pub async fn log_runtime_metrics(self) {
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        ticks.tick().await;
        loop {
            ticks.tick().await;
            let request = GetStatusRequest {
                stats: true,
                ..GetStatusRequest::default()
            };
            let Ok(status) = self.status(request).await else {
                return;
            };
            let quotas = self.ask(Request::Quotas).await.unwrap_or_default();
            for dyno in &status.dynos {
                for line in lines(dyno, &quotas) {
                    self.note(&dyno.name, &line);
                }
            }
        }
    }
}

/// The lines about one dyno: the sample, and that it uses more than it should.
fn lines(dyno: &Dyno, quotas: &BTreeMap<String, u64>) -> Vec<String> {
    let Some(memory) = dyno.memory_bytes else {
        return Vec::new();
    };
    let (name, id) = (&dyno.name, &dyno.dyno_id);
    let quota = quotas.get(name).copied();
    let total = megabytes(memory, 2);
    let of_quota = quota
        .map(|quota| format!(" sample#memory_quota={}", megabytes(quota, 2)))
        .unwrap_or_default();
    let mut lines = vec![format!(
        "source={name} dyno={id} sample#memory_total={total}{of_quota}"
    )];
    if let Some(quota) = quota.filter(|quota| (1..memory).contains(quota)) {
        lines.extend(exceeded(memory, quota));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    fn of(memory_bytes: Option<u64>, quota: Option<u64>) -> Vec<String> {
        let dyno = Dyno {
            name: "web.1".into(),
            dyno_id: "web-1-x".into(),
            memory_bytes,
            ..Default::default()
        };
        let quotas = quota.map(|quota| ("web.1".to_owned(), quota));
        lines(&dyno, &quotas.into_iter().collect())
    }

    #[test]
    fn a_dyno_within_its_quota_has_a_sample() {
        let sample = "source=web.1 dyno=web-1-x sample#memory_total=21.50MB";
        assert_eq!(of(Some(43 * MB / 2), None), [sample]);
        assert_eq!(
            of(Some(43 * MB / 2), Some(512 * MB)),
            [format!("{sample} sample#memory_quota=512.00MB")]
        );
        assert_eq!(of(None, Some(512 * MB)), [""; 0]);
    }

    #[test]
    fn a_dyno_above_it_has_herokus_error() {
        let lines = of(Some(529 * MB), Some(512 * MB));
        assert_eq!(lines[1..], exceeded(529 * MB, 512 * MB));
    }
}
