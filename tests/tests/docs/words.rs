//! The lines that hsup itself writes into an app's log: the page of logs has them all, and no
//! other ones.
//!
//! Both are compared as patterns, with `…` for whatever differs. What the sources say is found in
//! their string literals: what of them is a line can be seen where it is handed to the log at
//! once, and where it is one of Heroku's errors. A line that reaches the log by a variable is found
//! from the page alone.

use std::collections::BTreeSet;

/// What a line is handed to.
const CALLS: [&str; 4] = ["note(", "note_release(", "tell(", "tell_once("];

/// The lines of the page's tables.
pub(crate) fn of_page(text: &str) -> BTreeSet<String> {
    let (_, words) = text.split_once("\n## The words\n").unwrap();
    let words = words.split("\n## ").next().unwrap();
    let rows = words.lines().filter_map(|line| line.strip_prefix("| `"));
    let lines = rows.map(|row| {
        let cell = row.split("` |").next().unwrap();
        pattern(cell.trim_matches('`').trim())
    });
    lines.collect()
}

/// What is written in a source.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Said {
    /// Every string.
    pub(crate) all: BTreeSet<String>,
    /// Those that are lines of a log.
    pub(crate) lines: BTreeSet<String>,
}

/// Reads a source; its tests are none of it.
pub(crate) fn of_source(text: &str) -> Said {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let mut said = Said::default();
    // The code before, without blanks, comments and strings; and within which brackets of it a
    // call of the log's is.
    let mut code = String::new();
    let (mut depth, mut call) = (0_usize, None);
    let mut rest = text;
    while let Some(char) = rest.chars().next() {
        let mut length = char.len_utf8();
        if rest.starts_with("//") {
            length = rest.find('\n').unwrap_or(rest.len());
        } else if rest.starts_with("'\"'") {
            length = 3;
        } else if char == '"' {
            let (string, end) = string(&rest[1..]);
            length = 1 + end;
            let line = pattern(&string);
            let is_text = line.contains(' ') && line.contains(char::is_alphabetic);
            let begins = line.starts_with(|char: char| char.is_uppercase() || char == '…');
            if is_text && begins && (call.is_some() || is_error(&line)) {
                said.lines.insert(line.clone());
            }
            said.all.insert(line);
        } else if !char.is_whitespace() {
            code.push(char);
            match char {
                '(' => {
                    depth += 1;
                    let is_call = CALLS.iter().any(|call| code.ends_with(call));
                    if call.is_none() && is_call {
                        call = Some(depth);
                    }
                }
                ')' => {
                    if call == Some(depth) {
                        call = None;
                    }
                    depth = depth.saturating_sub(1);
                }
                _ => {}
            }
        }
        rest = &rest[length..];
    }
    said
}

fn is_error(line: &str) -> bool {
    line.starts_with("Error R") || line.starts_with("Error L")
}

/// What a literal says, and where it ends: behind its quote.
fn string(text: &str) -> (String, usize) {
    let mut string = String::new();
    let mut chars = text.char_indices();
    while let Some((at, char)) = chars.next() {
        match char {
            '"' => return (string, at + 1),
            '\\' => match chars.next() {
                // What is broken goes on at the next word.
                Some((at, '\n')) => {
                    let next = text[at..].trim_start();
                    let skipped = text.len() - next.len() - at - 1;
                    for _ in 0..skipped {
                        chars.next();
                    }
                }
                Some((_, 'n')) => string.push('\n'),
                Some((_, other)) => string.push(other),
                None => {}
            },
            other => string.push(other),
        }
    }
    (string, text.len())
}

/// A line with `…` for what differs.
fn pattern(text: &str) -> String {
    let mut pattern = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        pattern.push_str(before);
        pattern.push('…');
        rest = after.split_once('}').map_or("", |(_, after)| after);
    }
    pattern.push_str(rest);
    // Parts of one number, say.
    let pattern = pattern.replace("….…", "…").replace("……", "…");
    // Nothing, sometimes.
    pattern.trim_end_matches('…').trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(lines: &[&str]) -> BTreeSet<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn lines_are_found_in_sources() {
        let source = r#"
// note("No comment");
fn note(&self) {
    self.note(match how {
        How::A => "Stopping \"it\" at \
                   once",
        How::B => format!("Crashed {} times, {why:?}", seconds(wait)),
    });
    let quote = '"';
    logs.note("build", "It is {whole}.{tenth}% {more}{hint}");
    bail!("Is no line");
    let error = format!("Error R10 (Boot timeout) -> {seconds} seconds");
}
#[cfg(test)]
mod tests {
    fn a() { note("No test"); }
}
"#;
        let lines = [
            "Stopping \"it\" at once",
            "Crashed … times,",
            "It is …%",
            "Error R10 (Boot timeout) -> … seconds",
        ];
        let said = of_source(source);
        assert_eq!(said.lines, set(&lines));
        let all = [&lines[..], &["build", "Is no line"]].concat();
        assert_eq!(said.all, set(&all));
    }

    #[test]
    fn lines_are_found_in_the_page() {
        let page = "\
| `No` | |

## The words

| line | when |
|---|---|
| `State changed from … to …` | a, `b` |
| ``Until `hsupctl start`: …`` | |
| ``Starting `…` `` | |

## Others
| `No` | |
";
        let lines = [
            "State changed from … to",
            "Until `hsupctl start`:",
            "Starting `…`",
        ];
        assert_eq!(of_page(page), set(&lines));
    }
}
