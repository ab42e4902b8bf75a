//! Which log drains the command line and the environment name.

use std::env;

use hsup_core::logs::{DrainTarget, ParseTargetError};
use thiserror::Error;

use super::args::Options;

/// A URL that names no drain; wrong usage.
#[derive(Debug, Error)]
#[error("{from} names no log drain")]
pub(super) struct DrainsError {
    from: String,
    source: ParseTargetError,
}

/// The drains of `hsup start`. What an option says goes before what the environment says, which
/// no process list shows.
pub(super) fn drains(options: &Options) -> Result<Vec<DrainTarget>, DrainsError> {
    let from_env = |name: &str| env::var(name).ok().filter(|text| !text.is_empty());
    let logplex = match &options.logplex_url {
        Some(url) => Some((url.expose().to_owned(), "--logplex-url".to_owned())),
        None => from_env("LOGPLEX_URL").map(|url| (url, "LOGPLEX_URL".to_owned())),
    };
    let others: Vec<(String, String)> = if options.log_to.is_empty() {
        let text = from_env("HSUP_LOG_TO").unwrap_or_default();
        text.split_whitespace()
            .zip(1..)
            .map(|(url, number)| (url.to_owned(), format!("URL {number} of HSUP_LOG_TO")))
            .collect()
    } else {
        let urls = options.log_to.iter().zip(1..);
        urls.map(|(url, number)| {
            (
                url.expose().to_owned(),
                numbered("--log-to", number, options),
            )
        })
        .collect()
    };
    let logplex = logplex
        .into_iter()
        .map(|(url, from)| named(DrainTarget::logplex(&url), from));
    let others = others
        .into_iter()
        .map(|(url, from)| named(DrainTarget::parse(&url), from));
    logplex.chain(others).collect()
}

fn numbered(option: &str, number: usize, options: &Options) -> String {
    if options.log_to.len() == 1 {
        option.to_owned()
    } else {
        format!("{option} number {number}")
    }
}

fn named(
    parsed: Result<DrainTarget, ParseTargetError>,
    from: String,
) -> Result<DrainTarget, DrainsError> {
    parsed.map_err(|source| DrainsError { from, source })
}
