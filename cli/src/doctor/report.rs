//! How the findings look.

use std::fmt;

use super::judge::{Finding, Verdict};
use crate::look::{Colour, Look, Report, one_line};

/// All of them, for the driver that was asked for.
#[derive(Debug)]
pub struct Findings {
    pub driver: String,
    pub findings: Vec<Finding>,
}

impl Findings {
    pub fn is_wrong(&self) -> bool {
        self.count(Verdict::Wrong) > 0
    }

    fn count(&self, verdict: Verdict) -> usize {
        let of_it = |finding: &&Finding| finding.verdict == verdict;
        self.findings.iter().filter(of_it).count()
    }

    fn summary(&self) -> String {
        let notes = match self.count(Verdict::Note) {
            0 => String::new(),
            1 => ", one note".to_owned(),
            count => format!(", {count} notes"),
        };
        let driver = one_line(&self.driver);
        match self.count(Verdict::Wrong) {
            0 => format!("All is well for the driver {driver}{notes}."),
            1 => format!("One thing is wrong for the driver {driver}{notes}."),
            count => format!("{count} things are wrong for the driver {driver}{notes}."),
        }
    }
}

impl Report for Findings {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        let wide = |finding: &Finding| finding.what.chars().count();
        // A driver's path may be long.
        let widest = self.findings.iter().map(wide).max().unwrap_or(0).min(16);
        let mut area = "";
        for finding in &self.findings {
            if finding.area != area {
                area = finding.area;
                writeln!(f, "{area}")?;
            }
            let colour = match finding.verdict {
                Verdict::Ok => Colour::Green,
                Verdict::Note => Colour::Yellow,
                Verdict::Wrong => Colour::Red,
            };
            let verdict = look.paint(colour, format_args!("{:5}", finding.verdict));
            write!(f, "  {verdict}  {:widest$}  ", one_line(&finding.what))?;
            let indent = 2 + 5 + 2 + widest.max(wide(finding)) + 2;
            wrapped(f, &finding.found, indent, look.width)?;
            if let Some(advice) = &finding.advice {
                let indent = 2 + 5 + 2 + widest + 2;
                write!(f, "{:indent$}→ ", "")?;
                wrapped(f, advice, indent + 2, look.width)?;
            }
        }
        writeln!(f, "\n{}", self.summary())
    }
}

/// Writes a text whose first line begins at `indent`, and so its others.
fn wrapped(
    f: &mut fmt::Formatter<'_>,
    text: &str,
    indent: usize,
    width: Option<usize>,
) -> fmt::Result {
    /// Narrower columns are harder to read than long lines.
    const NARROWEST: usize = 20;
    let room = width.map_or(usize::MAX, |width| {
        width.saturating_sub(indent).max(NARROWEST)
    });
    let mut begun = false;
    for paragraph in text.lines() {
        let mut column = 0;
        if begun {
            write!(f, "\n{:indent$}", "")?;
        }
        begun = true;
        for word in paragraph.split_whitespace() {
            let word = one_line(word);
            let long = word.chars().count();
            if column > 0 && column + 1 + long > room {
                write!(f, "\n{:indent$}", "")?;
                column = 0;
            } else if column > 0 {
                f.write_str(" ")?;
                column += 1;
            }
            f.write_str(&word)?;
            column += long;
        }
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::look::tests::plain;

    fn finding(area: &'static str, verdict: Verdict, found: &str, advice: Option<&str>) -> Finding {
        Finding {
            area,
            what: "thing".to_owned(),
            found: found.to_owned(),
            verdict,
            advice: advice.map(str::to_owned),
        }
    }

    fn findings() -> Findings {
        Findings {
            driver: "simple".to_owned(),
            findings: vec![
                finding("kernel", Verdict::Ok, "there", None),
                finding(
                    "kernel",
                    Verdict::Note,
                    "missing",
                    Some("only others need it"),
                ),
                finding("limits", Verdict::Wrong, "too\x1bfew", Some("raise it")),
            ],
        }
    }

    #[test]
    fn they_stand_below_what_they_are_of() {
        assert_eq!(
            findings().show(&plain()).to_string(),
            "kernel\n\
             \x20 ok     thing  there\n\
             \x20 note   thing  missing\n\
             \x20               → only others need it\n\
             limits\n\
             \x20 wrong  thing  too\\u{1b}few\n\
             \x20               → raise it\n\
             \n\
             One thing is wrong for the driver simple, one note.\n"
        );
    }

    #[test]
    fn a_long_text_has_lines_that_fit() {
        let look = Look {
            width: Some(40),
            ..plain()
        };
        let long = "a text of some length\nand one more, which is rather long";
        let one = Findings {
            driver: "simple".to_owned(),
            findings: vec![finding("kernel", Verdict::Ok, long, None)],
        };
        assert_eq!(
            one.show(&look).to_string(),
            "kernel\n\
             \x20 ok     thing  a text of some length\n\
             \x20               and one more, which is\n\
             \x20               rather long\n\
             \n\
             All is well for the driver simple.\n"
        );
    }
}
