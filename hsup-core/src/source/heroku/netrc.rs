//! `~/.netrc`, as far as a token for one machine is concerned.

/// The password that `text` has for `machine`.
///
/// An entry `default` is no answer: what it has is meant for whoever asks, and not for Heroku.
pub(super) fn password<'a>(text: &'a str, machine: &str) -> Option<&'a str> {
    let mut of_machine = false;
    let mut words = words(text);
    while let Some(word) = words.next() {
        match word {
            "machine" => of_machine = words.next()? == machine,
            "default" => of_machine = false,
            "password" => {
                let password = words.next()?;
                if of_machine {
                    return Some(password);
                }
            }
            "login" | "account" => drop(words.next()?),
            _ => {}
        }
    }
    None
}

/// The words of all lines but comments and macros, which last until an empty line.
fn words(text: &str) -> impl Iterator<Item = &str> {
    let mut in_macro = false;
    text.lines()
        .filter(move |line| {
            if in_macro {
                in_macro = !line.trim().is_empty();
                return false;
            }
            in_macro = line.trim_start().starts_with("macdef ");
            !in_macro && !line.trim_start().starts_with('#')
        })
        .flat_map(str::split_whitespace)
}

#[cfg(test)]
mod tests {
    use test_case::test_case;

    use super::*;

    const API: &str = "api.heroku.com";

    #[test_case("machine api.heroku.com\n  login me@x\n  password HRKU-1\n" => Some("HRKU-1"); "as the CLI writes it")]
    #[test_case("machine api.heroku.com login me password HRKU-1" => Some("HRKU-1"); "in one line")]
    #[test_case("machine git.heroku.com login me password no\nmachine api.heroku.com password yes" => Some("yes"); "the other machine")]
    #[test_case("machine api.heroku.com login password password HRKU-1" => Some("HRKU-1"); "a login called password")]
    #[test_case("machine x login api.heroku.com password no" => None; "a login called as it")]
    #[test_case("default login me password no" => None; "the default")]
    #[test_case("machine api.heroku.com login me default password no" => None; "no password before the default")]
    #[test_case("# machine api.heroku.com password no\n" => None; "a comment")]
    #[test_case("macdef init\nmachine api.heroku.com password no\n\nmachine api.heroku.com password yes" => Some("yes"); "a macro")]
    #[test_case("machine api.heroku.com password" => None; "cut short")]
    #[test_case("" => None; "empty")]
    fn passwords(text: &str) -> Option<&str> {
        password(text, API)
    }
}
