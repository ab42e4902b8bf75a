//! `hsup check`: reads the app's files, or what is deployed on Heroku, and starts nothing.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anyhow::{Context as _, bail};
use hsup_core::{
    files::{Links, read_regular},
    ports,
    release::Release,
    rollout,
    source::{SourceSpec, control_file, directory, heroku},
};

use crate::look::one_line;

/// Reads the release of `source`; shows its formation, or fails with what is wrong.
pub(super) fn check(source: &SourceSpec, rollouts: &rollout::Policy) -> anyhow::Result<u8> {
    let (release, warnings) = load(source)?;
    for warning in warnings.into_iter().chain(rollouts.idle(&release)) {
        writeln!(io::stderr(), "warning: {warning}").context("failed to write a warning")?;
    }
    io::stdout()
        .write_all(report(&release).as_bytes())
        .context("failed to write the formation")?;
    Ok(0)
}

/// The port of the first `web` dyno of an app whose files are here; none where they are not, or
/// are wrong.
pub(super) fn first_port(source: &SourceSpec) -> Option<u16> {
    if matches!(source, SourceSpec::Heroku(_)) {
        return None;
    }
    let (release, _) = load(source).ok()?;
    ports::base(&release.config).ok()
}

fn load(source: &SourceSpec) -> anyhow::Result<(Release, Vec<String>)> {
    match source {
        SourceSpec::Heroku(app) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .context("failed to start the runtime")?;
            let loaded = runtime.block_on(heroku::load(app))?;
            Ok((loaded.release, loaded.warnings))
        }
        SourceSpec::Directory(path) => {
            let path = path
                .canonicalize()
                .with_context(|| format!("failed to find `{}`", path.display()))?;
            Ok(directory::load(&path)?)
        }
        SourceSpec::ControlDir(path) => {
            for name in ["new", "loaded"] {
                let file = path.join(name);
                // As `start` reads it: a FIFO is refused, not waited for.
                let text = match read_regular(&file, Links::Refuse, control_file::MAX_SIZE) {
                    Err(error) if error.is_not_found() => continue,
                    other => other?,
                };
                let parsed = control_file::parse(&text)
                    .with_context(|| format!("`{}` is not a release", file.display()))?;
                return Ok((parsed.release, parsed.warnings));
            }
            bail!(
                "the control directory `{}` has neither `new` nor `loaded`",
                path.display()
            );
        }
    }
}

/// One line a process type: its name, quantity and command.
fn report(release: &Release) -> String {
    let width = release
        .processes
        .iter()
        .map(|process| process.process_type.as_str().len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for process in &release.processes {
        writeln!(
            text,
            "{:width$}  {:>3}  {}",
            process.process_type.as_str(),
            process.quantity,
            one_line(&process.command)
        )
        .expect("writing to a String cannot fail");
    }
    text
}
