//! What is said of the memory that a dyno uses, in Heroku's words: pure.

/// A dyno uses more than its release's limit, and goes on.
pub(crate) fn exceeded(used: u64, quota: u64) -> [String; 2] {
    [
        running(used, quota),
        "Error R14 (Memory quota exceeded)".to_owned(),
    ]
}

/// The kernel has killed a dyno for its memory.
pub(crate) fn vastly_exceeded(quota: Option<u64>) -> Vec<String> {
    // The kernel kills at the limit, so that is what was in use. Without one it was the
    // machine's memory that came to its end, and nobody has a share of that to exceed.
    let running = quota
        .filter(|quota| *quota > 0)
        .map(|quota| running(quota, quota));
    let error = "Error R15 (Memory quota vastly exceeded)".to_owned();
    let killed = "Stopping process with SIGKILL".to_owned();
    running.into_iter().chain([error, killed]).collect()
}

fn running(used: u64, quota: u64) -> String {
    let tenths = u128::from(used) * 1000 / u128::from(quota.max(1));
    let (whole, tenth) = (tenths / 10, tenths % 10);
    format!(
        "Process running mem={}({whole}.{tenth}%)",
        megabytes(used, 0)
    )
}

/// In Heroku's megabytes, which are 2^20.
#[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
pub(crate) fn megabytes(bytes: u64, digits: usize) -> String {
    format!("{:.digits$}MB", bytes as f64 / f64::from(1 << 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn above_the_quota_it_is_r14() {
        assert_eq!(
            exceeded(529 * MB, 512 * MB),
            [
                "Process running mem=529MB(103.3%)",
                "Error R14 (Memory quota exceeded)"
            ]
        );
    }

    #[test]
    fn what_the_kernel_kills_is_r15_and_was_at_its_limit() {
        let end = [
            "Error R15 (Memory quota vastly exceeded)",
            "Stopping process with SIGKILL",
        ];
        assert_eq!(
            vastly_exceeded(Some(512 * MB)),
            [&["Process running mem=512MB(100.0%)"][..], &end].concat()
        );
        assert_eq!(vastly_exceeded(None), end);
    }
}
