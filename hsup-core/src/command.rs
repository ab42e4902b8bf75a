//! What a dyno executes: a shell line, and the words of `hsup run` as one.
//!
//! A process's command and a single word after `run` are shell lines. Several words are
//! a command and its arguments already, taken apart by the caller's shell; they become a
//! line in which each is quoted, so that no second shell takes them apart again.

use std::ffi::{OsStr, OsString};

use thiserror::Error;

/// The words after `run` are no command.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ShellLineError {
    /// There are none.
    #[error("there is no command to run")]
    NoCommand,
    /// A word cannot be told to a driver.
    #[error("word {number} of the command is not UTF-8 text: `{}`", .word.to_string_lossy().escape_debug())]
    NotUtf8 {
        /// Which word, from 1.
        number: usize,
        /// The word.
        word: OsString,
    },
}

/// The shell line that `words` stand for: a single one is the line itself.
///
/// # Errors
/// When there are none, or one is not UTF-8.
pub fn shell_line(words: &[OsString]) -> Result<String, ShellLineError> {
    let text = |(number, word): (usize, &OsString)| match word.to_str() {
        Some(word) => Ok(word.to_owned()),
        None => Err(ShellLineError::NotUtf8 {
            number,
            word: OsStr::to_owned(word),
        }),
    };
    let words: Vec<String> = (1..).zip(words).map(text).collect::<Result<_, _>>()?;
    match words.as_slice() {
        [] => Err(ShellLineError::NoCommand),
        [line] => Ok(line.clone()),
        words => Ok(words
            .iter()
            .map(|word| quote(word))
            .collect::<Vec<_>>()
            .join(" ")),
    }
}

/// The line as no shell takes it for an option of its own: a blank before a line changes nothing of
/// it.
pub fn no_option(line: &str) -> String {
    let is_like_an_option = line.starts_with(['-', '+']);
    let blank = if is_like_an_option { " " } else { "" };
    format!("{blank}{line}")
}

/// What executes a shell line: these three words, as drivers are promised.
pub fn argv(line: &str) -> Vec<String> {
    vec!["bash".into(), "-c".into(), no_option(line)]
}

/// The word as a shell reads it back, whatever is in it.
fn quote(word: &str) -> String {
    // Not `=`: before the command, it would make a word an assignment. Not `~`.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./,:@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use proptest::prelude::*;
    use test_case::test_case;

    use super::*;

    fn line(words: &[&str]) -> String {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        shell_line(&words).unwrap()
    }

    /// What bash makes of a line.
    fn run(line: &str) -> Vec<u8> {
        execute(&argv(line))
    }

    fn execute(argv: &[String]) -> Vec<u8> {
        #[expect(
            clippy::disallowed_methods,
            reason = "the shell itself is the reference"
        )]
        let output = std::process::Command::new(&argv[0])
            .args(&argv[1..])
            .output()
            .unwrap();
        output.stdout
    }

    #[test_case(&["echo $HOME | cat"] => "echo $HOME | cat"; "one word is a line")]
    #[test_case(&["printf", "%s\\n", "a b"] => "printf '%s\\n' 'a b'"; "several are words")]
    #[test_case(&["echo", ""] => "echo ''"; "an empty word")]
    #[test_case(&["echo", "it's", "$HOME"] => r"echo 'it'\''s' '$HOME'"; "quotes and dollars")]
    #[test_case(&["A=b", "c"] => "'A=b' c"; "no assignment")]
    #[test_case(&["ls", "-l", "/tmp/x_1.txt"] => "ls -l /tmp/x_1.txt"; "plain words stay")]
    fn a_line(words: &[&str]) -> String {
        line(words)
    }

    #[test]
    fn what_is_no_command_is_refused() {
        assert_eq!(shell_line(&[]), Err(ShellLineError::NoCommand));
        let words = ["echo".into(), OsString::from_vec(vec![b'a', 0xff])];
        let error = shell_line(&words).unwrap_err();
        assert_eq!(
            error.to_string(),
            "word 2 of the command is not UTF-8 text: `a\u{fffd}`"
        );
    }

    #[test]
    fn words_arrive_as_they_were_given() {
        assert_eq!(run(&line(&["printf", "%s\\n", "a b"])), b"a b\n");
        assert_eq!(run("echo $((1 + 1))"), b"2\n");
    }

    /// It is a command that is not there.
    #[test_case("-x")]
    #[test_case("--version")]
    #[test_case("+x")]
    fn a_line_is_no_option_of_the_shell(line: &str) {
        let argv = argv(&format!("{line} 2>&1 || echo \"code $?\""));
        assert_eq!(argv[..2], ["bash", "-c"]);
        let output = execute(&argv);
        let output = String::from_utf8(output).unwrap();
        assert!(output.ends_with("code 127\n"), "{output}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(3))]

        #[test]
        fn the_shell_reads_every_word_back(words in prop::collection::vec("[^\0]{0,12}", 1..100)) {
            let mut all = vec!["printf", "%s\\0"];
            all.extend(words.iter().map(String::as_str));
            let expected: String = words.iter().map(|word| word.clone() + "\0").collect();
            prop_assert_eq!(run(&line(&all)), expected.into_bytes());
        }
    }
}
