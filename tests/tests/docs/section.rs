//! Runs what a section of a page shows, in a terminal of its own: a shell that begins in a copy of
//! what the repository shows, with hsup's programs in its PATH, and with a network, processes and a
//! `/tmp` of its own.

use std::{
    fmt::Write as _,
    fs,
    path::Path,
    process::Command,
    sync::{Mutex, PoisonError},
    thread,
    time::Duration,
};

use hsup_tests::{binaries, deadline};
use tempfile::TempDir;

use crate::{
    compare::is_as_shown,
    page::{Block, Lasts, Step, Who},
    repository,
};

/// How long a section may take beside all others.
const PATIENCE: Duration = Duration::from_mins(4);

/// Whose turn it is to have a machine. Engines keep processors busy, and the other sections are about
/// seconds: all at once, these would be late.
static MACHINES: Mutex<()> = Mutex::new(());

/// What the shell does before and after: see `script`.
const BEGIN: &str = include_str!("begin.sh");

/// What came of a command.
pub(crate) struct Outcome {
    pub(crate) step: Step,
    /// A service's is `up`.
    code: String,
    pub(crate) printed: String,
}

/// Runs the commands of a section.
///
/// # Errors
/// Where they went no further, and what was said by then.
#[expect(clippy::disallowed_methods, reason = "a shell is no dyno")]
pub(crate) fn run(page: &str, blocks: Vec<Block>) -> Result<Vec<Outcome>, String> {
    let steps: Vec<Step> = blocks.into_iter().flat_map(|block| block.steps).collect();
    let has_machine = steps.iter().any(Step::makes_scene);
    let _turn = has_machine.then(|| MACHINES.lock().unwrap_or_else(PoisonError::into_inner));
    let stage = TempDir::with_prefix("hsup-docs-").unwrap();
    let _cgroups = has_machine.then(|| Cgroups(stage.path()));
    let output = deadline::output_within(
        PATIENCE,
        Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--uts",
                "--pid",
                "--fork",
                "--mount-proc",
            ])
            .args(["--kill-child", "--", "bash", "-c", &script(&steps), "bash"])
            .args([stage.path(), binaries(), &repository()].map(Path::as_os_str))
            .env_remove("HSUP_CONTROL_SOCKET"),
    );
    let said = String::from_utf8_lossy(&output.stdout);
    let results = results(&said);
    if results.len() != steps.len() || !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        let line = steps[results.len().min(steps.len() - 1)].line;
        return Err(format!("{page}:{line}: it went no further:\n{said}{error}"));
    }
    let results = steps.into_iter().zip(results);
    let outcome = |(step, (code, printed)): (Step, (&str, &str))| Outcome {
        step,
        code: code.to_owned(),
        printed: printed.to_owned(),
    };
    Ok(results.map(outcome).collect())
}

impl Outcome {
    pub(crate) fn printing(step: Step, printed: &str) -> Self {
        Self {
            step,
            code: "0".to_owned(),
            printed: printed.to_owned(),
        }
    }

    /// What is other than the page says.
    pub(crate) fn fault(&self, page: &str) -> Option<String> {
        let (line, command) = (self.step.line, &self.step.command);
        let fault = self.difference()?;
        Some(format!(
            "{page}:{line}: {fault}\n$ {command}\n{}",
            self.printed
        ))
    }

    fn difference(&self) -> Option<String> {
        let Self {
            step,
            code,
            printed,
        } = self;
        if step.lasts != Lasts::Briefly {
            return (code != "up").then(|| format!("it did not come up ({code})"));
        }
        // Only what complains on the page may fail.
        let complains = ["hsup: ", "hsupctl: "];
        let may_fail = step.prints.as_ref().is_some_and(|prints| {
            let mut lines = prints.lines();
            lines.any(|line| complains.iter().any(|begin| line.starts_with(begin)))
        });
        if code != "0" && !may_fail {
            return Some(format!("it ended with {code}"));
        }
        let shown = step.prints.as_ref()?;
        (!is_as_shown(shown, printed)).then(|| format!("the page has\n{shown}and it printed"))
    }
}

/// What a section's containers are in: cgroups are the machine's, and in no namespace that ends with
/// the section. They are below one that has the name of its stage.
struct Cgroups<'a>(&'a Path);

impl Drop for Cgroups<'_> {
    fn drop(&mut self) {
        let all = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(all).into_iter().flatten().flatten();
        let hierarchies = hierarchies.map(|entry| entry.path());
        for hierarchy in hierarchies.chain([all.into()]) {
            let group = hierarchy.join(self.0.file_name().unwrap());
            // Who was in them may be just about to end.
            let gone = deadline::poll(|| {
                remove(&group);
                (!group.exists()).then_some(())
            });
            // A second panic would hide the first.
            let is_known = gone.is_some() || thread::panicking();
            assert!(is_known, "{} cannot be removed", group.display());
        }
    }
}

/// Removes a cgroup and those in it, if nobody is in them.
fn remove(group: &Path) {
    for entry in fs::read_dir(group).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    drop(fs::remove_dir(group));
}

/// The shell's script: the commands as they are.
fn script(steps: &[Step]) -> String {
    let mut script = BEGIN.to_owned();
    for step in steps {
        let does = match step.lasts {
            Lasts::Briefly => "run",
            Lasts::UntilTheNext => "serve",
            Lasts::ToTheEnd => "drive",
        };
        let who = match step.who {
            Who::Root => "as_root",
            Who::User => "as_user",
        };
        let quoted = step.command.replace('\'', r"'\''");
        writeln!(script, "{does} {who} '{quoted}'").unwrap();
    }
    script + "end_service\n"
}

/// How each command ended, and what it printed.
fn results(said: &str) -> Vec<(&str, &str)> {
    said.split('\u{1e}')
        .skip(1)
        .filter_map(|result| result.split_once('\n'))
        .collect()
}
