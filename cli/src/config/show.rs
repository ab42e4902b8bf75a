//! `hsup config show`: what hsup would go by here, and who says so.

use std::{fmt, path::PathBuf};

use serde::Serialize;

use super::{
    merge::{self, Given, Origin, Setting},
    resolve::Reading,
};
use crate::look::{Cell, Colour, Look, Report, one_line, table};

/// What stands for a secret.
const SECRET: &str = "…";

/// All keys. The names of the fields are what `-o json` prints.
#[derive(Debug, Serialize)]
pub(crate) struct Shown {
    settings: Vec<Row>,
    files: Vec<File>,
}

#[derive(Debug, Serialize)]
struct Row {
    key: String,
    /// None: nobody says anything, and hsup decides.
    value: Option<Value>,
    origin: String,
    #[serde(skip)]
    is_default: bool,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Value {
    Switch(bool),
    One(String),
    Many(Vec<String>),
}

#[derive(Debug, Serialize)]
struct File {
    path: PathBuf,
    /// `read`, `missing` or `forbidden`.
    state: &'static str,
}

impl Shown {
    /// What each of the settings is, and which files were looked for.
    pub(crate) fn of(settings: &[Setting], files: &[(PathBuf, Reading)]) -> Self {
        let file = |(path, reading): &(PathBuf, Reading)| File {
            path: path.clone(),
            state: match reading {
                Reading::Read => "read",
                Reading::Missing => "missing",
                Reading::Forbidden => "forbidden",
            },
        };
        Self {
            settings: settings
                .iter()
                .map(|setting| row(setting, merge::is_passed_over(setting, settings)))
                .collect(),
            files: files.iter().map(file).collect(),
        }
    }
}

fn row(setting: &Setting, is_passed_over: bool) -> Row {
    let hidden = |value: &String| {
        if setting.key.secret {
            SECRET.to_owned()
        } else {
            value.clone()
        }
    };
    let value = setting.given.as_ref().map(|given| match given {
        Given::Switch(on) => Value::Switch(*on),
        Given::Values(values) => match (setting.key.kind, values.as_slice()) {
            (super::key::Kind::Value, [value]) => Value::One(hidden(value)),
            (_, values) => Value::Many(values.iter().map(hidden).collect()),
        },
    });
    let origin = if is_passed_over {
        &Origin::Default
    } else {
        &setting.origin
    };
    Row {
        key: setting.key.name.clone(),
        value: value.filter(|_| !is_passed_over),
        origin: origin.to_string(),
        is_default: *origin == Origin::Default,
    }
}

/// As it would stand in a file, in one line.
fn toml(value: &Value) -> String {
    let quoted = |text: &String| match one_line(text) {
        line if line.contains(['"', '\\']) => format!("'{line}'"),
        line => format!("\"{line}\""),
    };
    match value {
        Value::Switch(on) => on.to_string(),
        Value::One(text) => quoted(text),
        Value::Many(texts) => {
            let texts: Vec<_> = texts.iter().map(quoted).collect();
            format!("[{}]", texts.join(", "))
        }
    }
}

impl Report for Shown {
    fn write(&self, f: &mut fmt::Formatter<'_>, look: &Look) -> fmt::Result {
        let cells = |row: &Row| {
            let (value, colour) = match (&row.value, row.is_default) {
                (Some(value), true) => (toml(value), Colour::Grey),
                (Some(value), false) => (toml(value), Colour::Green),
                (None, _) => ("-".to_owned(), Colour::Grey),
            };
            let origin = one_line(&row.origin);
            vec![
                Cell::from(row.key.as_str()),
                Cell::coloured(value, colour),
                Cell::from(origin),
            ]
        };
        let head = ["KEY", "VALUE", "FROM"].map(Cell::from).to_vec();
        let rows: Vec<_> = std::iter::once(head)
            .chain(self.settings.iter().map(cells))
            .collect();
        f.write_str(&table(&rows, look))?;
        writeln!(f, "\nFiles, of which the last one counts:")?;
        for File { path, state } in &self.files {
            writeln!(f, "  {:9}  {}", state, path.display())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::{error::Place, key::tests::all},
        look::tests::plain,
    };

    #[test]
    fn each_value_has_its_origin_and_a_secret_has_no_value() {
        let setting = |name: &str, given, origin| Setting {
            key: all().into_iter().find(|key| key.name == name).unwrap(),
            given,
            origin,
        };
        let values = |values: &[&str]| {
            Some(Given::Values(
                values.iter().map(|&value| value.to_owned()).collect(),
            ))
        };
        let file = Origin::File(Place {
            path: "/etc/hsup/hsup.toml".into(),
            line: 3,
        });
        let variable = Origin::Variable("HSUP_LOG_TO".to_owned());
        let settings = [
            setting("grace", values(&["10s"]), file),
            setting("log-to", values(&["https://t:s3cret@x"]), variable),
            setting("oneshot", Some(Given::Switch(true)), Origin::Flag),
            setting("boot-timeout", values(&["60s"]), Origin::Default),
            setting("linger", None, Origin::Default),
        ];
        let files = [("/etc/hsup/hsup.toml".into(), Reading::Read)];
        let shown = Shown::of(&settings, &files);
        assert_eq!(
            shown.show(&plain()).to_string(),
            "KEY           VALUE  FROM\n\
             grace         \"10s\"  /etc/hsup/hsup.toml:3\n\
             log-to        [\"…\"]  HSUP_LOG_TO\n\
             oneshot       true   flag\n\
             boot-timeout  \"60s\"  default\n\
             linger        -      default\n\
             \n\
             Files, of which the last one counts:\n\
             \x20 read       /etc/hsup/hsup.toml\n"
        );
        let json = serde_json::to_string(&shown).unwrap();
        assert!(!json.contains("s3cret"), "{json}");
    }
}
