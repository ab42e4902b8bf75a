//! What a page shows at a prompt.
//!
//! A block ```` ```console ```` has commands (`$ ` or, for root, `# `) with what they print. An
//! HTML comment right before it, which no reader sees, says how it is tried:
//!
//! - `<!-- not run: WHY -->`: it is not
//! - `<!-- beside: COMMAND -->`: while this runs, which the reader has in another terminal
//! - `<!-- first: COMMAND -->`: after this, which the text asks for in words
//! - `<!-- scene: NAME -->`: on a machine that has what `scenes/NAME.sh` makes, until the section ends
//!
//! Before a block of another kind, `<!-- file: PATH -->` has it written there first. A prompt in one
//! of these is a mistake: nobody would run what stands there.
//!
//! Commands are root's, also those at `$ `, unless a scene has a user for these: `scenes/machine.sh`.

const SCENE: &str = "scene ";

/// A block of commands.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Which heading it is under, by number.
    pub(crate) section: usize,
    pub(crate) plan: Plan,
    /// With those that a comment adds.
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Run,
    NotRun,
}

/// A command.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Step {
    /// Its line in the page, from 1.
    pub(crate) line: usize,
    pub(crate) command: String,
    /// What it prints, as the page has it; `None`: the page does not show it.
    pub(crate) prints: Option<String>,
    pub(crate) who: Who,
    pub(crate) lasts: Lasts,
}

/// Who types a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Who {
    Root,
    User,
}

/// How long a command goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lasts {
    /// The next one waits for its end.
    Briefly,
    /// As hsup: until the next hsup is started, or the section ends.
    UntilTheNext,
    /// As a driver that is a service: until the section ends.
    ToTheEnd,
}

impl Step {
    fn new(line: usize, command: &str) -> Self {
        Self {
            line,
            command: command.to_owned(),
            prints: None,
            who: Who::User,
            lasts: Lasts::of(command),
        }
    }

    /// What makes a scene: see `begin.sh`.
    fn scene(line: usize, name: &str) -> Self {
        Self {
            who: Who::Root,
            ..Self::new(line, &format!("{SCENE}{name}"))
        }
    }

    pub(crate) fn makes_scene(&self) -> bool {
        self.command.starts_with(SCENE)
    }
}

impl Lasts {
    fn of(command: &str) -> Self {
        let words: Vec<&str> = command.split_whitespace().collect();
        let mut words = words.iter().skip_while(|word| word.contains('='));
        let program = words.next().and_then(|word| word.rsplit('/').next());
        let first = words.next().copied().unwrap_or_default();
        match program.unwrap_or_default() {
            "hsup" if first == "start" => {}
            "hsup-driver-check" => return Self::Briefly,
            name if name.starts_with("hsup-driver-") && first == "--socket" => {
                return Self::ToTheEnd;
            }
            _ => return Self::Briefly,
        }
        let ends = [" --oneshot", " --help", "|"];
        if ends.iter().any(|end| command.contains(end)) {
            Self::Briefly
        } else {
            Self::UntilTheNext
        }
    }
}

/// Reads a page.
///
/// # Errors
/// `LINE: ` and what is wrong there.
pub(crate) fn blocks(text: &str) -> Result<Vec<Block>, String> {
    let mut blocks = Vec::new();
    let mut section = 0;
    let mut comments = Vec::new();
    let mut lines = text.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if let Some(comment) = comment(line) {
            comments.push((number, comment));
        } else if line.starts_with("```console") {
            let inside = lines.by_ref().take_while(|(line, _)| *line != "```");
            let shown = steps(inside)?;
            blocks.push(block(section, &std::mem::take(&mut comments), shown)?);
        } else if line.trim_start().starts_with("```") {
            // In a list, too, where a block of commands would not be seen.
            if line.trim_start().starts_with("```console") {
                return Err(format!("{number}: a block of commands begins its line"));
            }
            let end = |(line, _): &(&str, usize)| line.trim_start() != "```";
            let inside: Vec<_> = lines.by_ref().take_while(end).collect();
            if let Some((number, (_, path))) = comments.pop_if(|(_, (word, _))| *word == "file") {
                let text: String = inside.iter().flat_map(|(line, _)| [line, "\n"]).collect();
                let file = vec![file(number, path, &text)];
                blocks.push(block(section, &std::mem::take(&mut comments), file)?);
            } else if let Some((_, number)) =
                inside.iter().find(|(inside, _)| is_prompt(line, inside))
            {
                return Err(format!(
                    "{number}: a command stands in a block of another kind: make it ```console"
                ));
            }
        } else if line.starts_with('#') {
            section += 1;
        } else if let Some((number, _)) = comments.first().filter(|_| !line.is_empty()) {
            return Err(format!(
                "{number}: no block of commands follows the comment"
            ));
        }
    }
    Ok(blocks)
}

/// Whether a line in a block that begins with `fence` shows a command, and is no comment of a
/// configuration or a program. Where the block does not say what it is, a comment begins with no
/// word in lower case.
fn is_prompt(fence: &str, line: &str) -> bool {
    let kind = fence.trim_start().trim_start_matches('`');
    let is_plain = matches!(kind, "" | "sh" | "bash" | "shell" | "text");
    let line = line.trim_start();
    let begins = |c: char| c.is_lowercase() || c == '[';
    let as_root =
        |command: &str| command.starts_with("hsup") || is_plain && command.starts_with(begins);
    line.starts_with("$ ") || line.strip_prefix("# ").is_some_and(as_root)
}

/// A comment that means something here.
fn comment(line: &str) -> Option<(&str, &str)> {
    let inside = line.strip_prefix("<!-- ")?.strip_suffix(" -->")?;
    let (word, rest) = inside.split_once(": ")?;
    matches!(word, "not run" | "beside" | "first" | "scene" | "file").then_some((word, rest))
}

/// What a reader is to write into a file.
fn file(line: usize, path: &str, text: &str) -> Step {
    Step::new(line, &format!("cat >{path} <<'END'\n{text}END"))
}

fn block(
    section: usize,
    comments: &[(usize, (&str, &str))],
    shown: Vec<Step>,
) -> Result<Block, String> {
    let mut plan = Plan::Run;
    let mut steps = Vec::new();
    for (line, (word, rest)) in comments {
        let mut step = Step::new(*line, rest);
        match *word {
            "not run" => {
                plan = Plan::NotRun;
                continue;
            }
            "beside" => step.lasts = Lasts::UntilTheNext,
            "first" => step.lasts = Lasts::Briefly,
            "scene" => step = Step::scene(*line, rest),
            _ => return Err(format!("{line}: these are commands, and no file")),
        }
        steps.push(step);
    }
    if plan == Plan::NotRun && !steps.is_empty() {
        return Err(format!("{}: what is not run needs nothing", steps[0].line));
    }
    steps.extend(shown);
    Ok(Block {
        section,
        plan,
        steps,
    })
}

/// The commands of a block.
fn steps<'a>(lines: impl Iterator<Item = (&'a str, usize)>) -> Result<Vec<Step>, String> {
    let mut steps: Vec<Step> = Vec::new();
    for (line, number) in lines {
        let users = line.strip_prefix("$ ").map(|command| (Who::User, command));
        let roots = || line.strip_prefix("# ").map(|command| (Who::Root, command));
        let last = steps.last_mut();
        match (users.or_else(roots), last) {
            (Some((who, command)), _) => steps.push(Step {
                who,
                ..Step::new(number, command)
            }),
            (None, Some(last)) if last.command.ends_with('\\') && last.prints.is_none() => {
                last.command = format!("{}\n{line}", last.command);
            }
            (None, Some(last)) => {
                let prints = last.prints.get_or_insert_default();
                prints.push_str(line);
                prints.push('\n');
            }
            (None, None) => return Err(format!("{number}: a block begins with `$ ` or `# `")),
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::{
        Lasts::{Briefly, ToTheEnd, UntilTheNext},
        *,
    };

    #[test]
    fn commands_have_what_they_print_and_what_goes_before() {
        let page = "\
# A

<!-- beside: hsup start -->
<!-- first: export A=1 -->
```console
$ hsupctl ps
web

worker
# mount \\
  tmpfs
$ LOGPLEX_URL=x hsup start -s b     # serves
$ hsup start --oneshot
```
```
not a command
```
## B
<!-- not run: no engine -->

```console
$ docker ps
```
<!-- file: /tmp/a -->
```json
{}
```
# C
<!-- scene: docker -->
```console
# hsup-driver-docker --socket /a
```
";
        let step = |line, command: &str, prints: Option<&str>, lasts| Step {
            line,
            command: command.to_owned(),
            prints: prints.map(str::to_owned),
            who: Who::User,
            lasts,
        };
        let by_root = |step: Step| Step {
            who: Who::Root,
            ..step
        };
        let expected = [
            Block {
                section: 1,
                plan: Plan::Run,
                steps: vec![
                    step(3, "hsup start", None, UntilTheNext),
                    step(4, "export A=1", None, Briefly),
                    step(6, "hsupctl ps", Some("web\n\nworker\n"), Briefly),
                    by_root(step(10, "mount \\\n  tmpfs", None, Briefly)),
                    step(
                        12,
                        "LOGPLEX_URL=x hsup start -s b     # serves",
                        None,
                        UntilTheNext,
                    ),
                    step(13, "hsup start --oneshot", None, Briefly),
                ],
            },
            Block {
                section: 2,
                plan: Plan::NotRun,
                steps: vec![step(22, "docker ps", None, Briefly)],
            },
            Block {
                section: 2,
                plan: Plan::Run,
                steps: vec![step(24, "cat >/tmp/a <<'END'\n{}\nEND", None, Briefly)],
            },
            Block {
                section: 3,
                plan: Plan::Run,
                steps: vec![
                    by_root(step(29, "scene docker", None, Briefly)),
                    by_root(step(31, "hsup-driver-docker --socket /a", None, ToTheEnd)),
                ],
            },
        ];
        assert_eq!(blocks(page).unwrap(), expected);
    }

    #[test]
    fn a_service_is_known_wherever_its_program_is() {
        for (command, lasts) in [
            ("hsup start", UntilTheNext),
            ("A=1 target/debug/hsup start -d ./driver", UntilTheNext),
            ("hsup start --oneshot", Briefly),
            ("hsup-shim start", Briefly),
            ("ls hsup start", Briefly),
            ("target/debug/hsup-driver-simple --socket /a", ToTheEnd),
            ("hsup-driver-simple stack list", Briefly),
            ("hsup-driver-check --socket /a", Briefly),
        ] {
            assert_eq!(Lasts::of(command), lasts, "{command}");
        }
    }

    #[test]
    fn a_command_that_nobody_would_run_is_a_mistake() {
        for page in [
            "$ ls\n",
            "# hsup doctor\n",
            "a\n$ hsup ps\n",
            "# systemctl stop x\n",
            "# [ -e x ] || touch x\n",
        ] {
            let line = page.lines().count() + 1;
            let error =
                format!("{line}: a command stands in a block of another kind: make it ```console");
            for fence in ["```", "  ```sh", "```bash"] {
                let end = fence.trim_end_matches(char::is_alphabetic);
                let page = format!("{fence}\n{page}{end}\n");
                assert_eq!(blocks(&page).unwrap_err(), error, "{page}");
            }
        }
        let page = "- a\n  ```console\n  $ ls\n  ```\n";
        let error = "2: a block of commands begins its line";
        assert_eq!(blocks(page).unwrap_err(), error);
        for page in ["```toml\n# a comment\n```\n", "```\n# /srv/Procfile\n```\n"] {
            assert_eq!(blocks(page), Ok(Vec::new()), "{page}");
        }
    }

    #[test]
    fn a_comment_that_nothing_follows_is_a_mistake() {
        let page = "<!-- not run: why -->\ntext\n";
        let error = blocks(page).unwrap_err();
        assert_eq!(error, "1: no block of commands follows the comment");
        assert_eq!(blocks("<!-- a note -->\ntext\n"), Ok(Vec::new()));
    }
}
