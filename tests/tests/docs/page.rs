//! What a page shows at a prompt.
//!
//! A block ```` ```console ```` has commands (`$ ` or, for root, `# `) with what they print. An
//! HTML comment right before it, which no reader sees, says how it is tried:
//!
//! - `<!-- not run: WHY -->`: it is not
//! - `<!-- beside: COMMAND -->`: while this runs, which the reader has in another terminal
//! - `<!-- first: COMMAND -->`: after this, which the text asks for in words
//!
//! Before a block of another kind, `<!-- file: PATH -->` has it written there first. A prompt in one
//! of these is a mistake: nobody would run what stands there.

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
    /// It goes on while the next ones are run.
    pub(crate) serves: bool,
}

impl Step {
    fn new(line: usize, command: &str) -> Self {
        Self {
            line,
            command: command.to_owned(),
            prints: None,
            serves: serves(command),
        }
    }
}

/// Whether a command goes on until it is told to end.
fn serves(command: &str) -> bool {
    let words: Vec<&str> = command.split_whitespace().collect();
    let mut words = words.iter().skip_while(|word| word.contains('='));
    let program = words.next().and_then(|word| word.rsplit('/').next());
    program == Some("hsup")
        && words.next() == Some(&"start")
        && !command.contains(" --oneshot")
        && !command.contains(" --help")
        && !command.contains('|')
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
    matches!(word, "not run" | "beside" | "first" | "file").then_some((word, rest))
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
            "beside" => step.serves = true,
            "first" => step.serves = false,
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
        let command = line.strip_prefix("$ ").or(line.strip_prefix("# "));
        let last = steps.last_mut();
        match (command, last) {
            (Some(command), _) => steps.push(Step::new(number, command)),
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
    use super::*;

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
";
        let step = |line, command: &str, prints: Option<&str>, serves| Step {
            line,
            command: command.to_owned(),
            prints: prints.map(str::to_owned),
            serves,
        };
        let expected = [
            Block {
                section: 1,
                plan: Plan::Run,
                steps: vec![
                    step(3, "hsup start", None, true),
                    step(4, "export A=1", None, false),
                    step(6, "hsupctl ps", Some("web\n\nworker\n"), false),
                    step(10, "mount \\\n  tmpfs", None, false),
                    step(12, "LOGPLEX_URL=x hsup start -s b     # serves", None, true),
                    step(13, "hsup start --oneshot", None, false),
                ],
            },
            Block {
                section: 2,
                plan: Plan::NotRun,
                steps: vec![step(22, "docker ps", None, false)],
            },
            Block {
                section: 2,
                plan: Plan::Run,
                steps: vec![step(24, "cat >/tmp/a <<'END'\n{}\nEND", None, false)],
            },
        ];
        assert_eq!(blocks(page).unwrap(), expected);
    }

    #[test]
    fn a_service_is_known_wherever_its_program_is() {
        for (command, is_service) in [
            ("hsup start", true),
            ("A=1 target/debug/hsup start -d ./driver", true),
            ("hsup start --oneshot", false),
            ("hsup-shim start", false),
            ("ls hsup start", false),
        ] {
            assert_eq!(serves(command), is_service, "{command}");
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
