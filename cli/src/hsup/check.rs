//! `hsup check`: reads the app's files and starts nothing.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use anyhow::Context as _;
use hsup_core::{
    release::Release,
    source::{SourceSpec, control_file, directory},
};

/// Reads the release of `source`; shows its formation, or fails with what is wrong.
pub(super) fn check(source: &SourceSpec) -> anyhow::Result<u8> {
    let (release, warnings) = load(source)?;
    for warning in warnings {
        writeln!(io::stderr(), "warning: {warning}").context("failed to write a warning")?;
    }
    io::stdout()
        .write_all(report(&release).as_bytes())
        .context("failed to write the formation")?;
    Ok(0)
}

fn load(source: &SourceSpec) -> anyhow::Result<(Release, Vec<String>)> {
    match source {
        SourceSpec::Directory(path) => {
            let path = path
                .canonicalize()
                .with_context(|| format!("failed to find `{}`", path.display()))?;
            Ok(directory::load(&path)?)
        }
        SourceSpec::ControlDir(path) => {
            let file = ["new", "loaded"]
                .iter()
                .map(|name| path.join(name))
                .find(|file| file.exists())
                .with_context(|| {
                    format!(
                        "the control directory `{}` has neither `new` nor `loaded`",
                        path.display()
                    )
                })?;
            let text = std::fs::read(&file)
                .with_context(|| format!("failed to read `{}`", file.display()))?;
            let parsed = control_file::parse(&text)
                .with_context(|| format!("`{}` is not a release", file.display()))?;
            Ok((parsed.release, parsed.warnings))
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
            process.command
        )
        .expect("writing to a String cannot fail");
    }
    text
}
