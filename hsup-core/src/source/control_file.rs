//! The JSON text of a control file, as a release.
//!
//! The keys are the original's (`Version`, `Name`, `Env`, `Slug`, `Stack`, `Processes` of
//! `Args`, `Quantity` and `Type`, `LogplexURL`), and three of ours: `Image`,
//! `SlugChecksum` and `Limits`. Files that the original took are read as it read them:
//! a key also matches in another case, `null` is as good as absent, and of two equal
//! keys the last counts. What it ignored without a word, such as an unknown key, is a
//! warning here. `Args` are joined with spaces into one shell line.

mod schema;
mod write;

use std::collections::HashMap;

use thiserror::Error;

pub use self::{schema::schema, write::text};
use super::{
    Position,
    json::{Json, SyntaxError, ValueError},
};
use crate::{
    formation::MAX_QUANTITY,
    name::{ProcessType, check_app_name},
    ports,
    release::{ConfigVars, Limits, LogTarget, Process, Release, Slug, slug_checksum},
};

/// The largest text that is read, in bytes.
pub const MAX_SIZE: u64 = 4 << 20;

const KEYS: &[&str] = &[
    "Version",
    "Name",
    "Env",
    "Slug",
    "SlugChecksum",
    "Stack",
    "Image",
    "Limits",
    "LogplexURL",
    "Processes",
];
const PROCESS_KEYS: &[&str] = &["Args", "Quantity", "Type"];
const LIMIT_KEYS: &[&str] = &["MemoryBytes", "CpuMillis", "Pids"];

/// A control file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControlFile {
    /// The release. Its `app` is empty where the file has no `Name`.
    pub release: Release,
    /// What is odd about it but does no harm, such as unknown keys.
    pub warnings: Vec<String>,
}

/// The text is not a control file. No value of `Env` is ever in here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ParseControlFileError {
    /// There is nothing in it.
    #[error("the file is empty: write a release as JSON")]
    Empty,
    /// It is larger than [`MAX_SIZE`].
    #[error("the text is larger than {MAX_SIZE} bytes")]
    TooLarge,
    /// It is not text.
    #[error("{position}: the text is not UTF-8")]
    NotUtf8 {
        /// Of the first byte that is not.
        position: Position,
    },
    /// It is not JSON.
    #[error("{position}{}: {problem}", below(path))]
    Syntax {
        /// Where it stops to be.
        position: Position,
        /// The keys that this is below; empty at the top.
        path: String,
        /// What is wrong there.
        problem: String,
        /// Whether only an end is missing.
        truncated: bool,
    },
    /// A value will not do.
    #[error("{position}, at {path}: {problem}")]
    Value {
        /// Where the value starts.
        position: Position,
        /// Its keys: `Processes[0].Quantity`.
        path: String,
        /// What is wrong with it.
        problem: String,
    },
}

fn below(path: &str) -> String {
    if path.is_empty() {
        String::new()
    } else {
        format!(", at {path}")
    }
}

impl ParseControlFileError {
    /// Whether the text may be what somebody is still writing.
    pub const fn is_truncated(&self) -> bool {
        matches!(
            self,
            Self::Empty
                | Self::Syntax {
                    truncated: true,
                    ..
                }
        )
    }
}

impl From<SyntaxError> for ParseControlFileError {
    fn from(error: SyntaxError) -> Self {
        Self::Syntax {
            position: error.position,
            path: error.path,
            problem: error.problem,
            truncated: error.truncated,
        }
    }
}

impl From<ValueError> for ParseControlFileError {
    fn from(error: ValueError) -> Self {
        Self::Value {
            position: error.position,
            path: if error.path.is_empty() {
                "the top".to_owned()
            } else {
                error.path
            },
            problem: error.problem,
        }
    }
}

/// Reads the text of a control file.
///
/// # Errors
/// When it is no JSON, or a release cannot be made of it.
pub fn parse(text: &[u8]) -> Result<ControlFile, ParseControlFileError> {
    if text.len() as u64 > MAX_SIZE {
        return Err(ParseControlFileError::TooLarge);
    }
    let text = text.strip_prefix(super::BOM).unwrap_or(text);
    let text = str::from_utf8(text).map_err(|error| {
        // Up to there it is text, so the position is one of characters.
        let valid = str::from_utf8(&text[..error.valid_up_to()]).unwrap_or_default();
        ParseControlFileError::NotUtf8 {
            position: Position::of(valid, valid.len()),
        }
    })?;
    if text.trim().is_empty() {
        return Err(ParseControlFileError::Empty);
    }
    let top = Json::parse(text)?;
    let mut warnings = Vec::new();
    let release = release(&top, &mut warnings)?;
    Ok(ControlFile { release, warnings })
}

fn release(top: &Json<'_>, warnings: &mut Vec<String>) -> Result<Release, ValueError> {
    if top.is_null() {
        return Err(top.error("invalid type: null, expected an object"));
    }
    let fields = Fields::read(top, KEYS, warnings)?;
    let release = Release {
        app: app(&fields)?,
        version: fields.integer("Version", u64::MAX)?,
        config: config(&fields, warnings)?,
        slug: fields.string("Slug")?.map(Slug::new),
        slug_checksum: checksum(&fields)?,
        stack: fields.string("Stack")?.unwrap_or_default(),
        image: fields.string("Image")?,
        limits: limits(&fields, warnings)?,
        log_target: log_target(&fields)?,
        processes: processes(top, &fields, warnings)?,
        metadata: None,
    };
    if release.slug_checksum.is_some() && release.slug.is_none() {
        warnings.push("SlugChecksum: there is no Slug".to_owned());
    }
    Ok(release)
}

fn app(fields: &Fields<'_>) -> Result<String, ValueError> {
    let Some(name) = fields.string("Name")? else {
        return Ok(String::new());
    };
    match check_app_name(&name) {
        Ok(()) => Ok(name),
        Err(error) => Err(fields.error("Name", &error)),
    }
}

fn config(fields: &Fields<'_>, warnings: &mut Vec<String>) -> Result<ConfigVars, ValueError> {
    let mut config = ConfigVars::default();
    let Some(env) = fields.get("Env") else {
        return Ok(config);
    };
    for (name, value) in env.members()? {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(value.error(
                "invalid name: a config var needs a name, without `=` and without NUL characters",
            ));
        }
        let text = value.string()?;
        if name == "PORT" && ports::parse(&text).is_none() {
            return Err(value.error("invalid value: expected a port number from 1 to 65535"));
        }
        if config.insert(name, text).is_some() {
            warnings.push(format!(
                "{}: given twice: the last one counts",
                value.path()
            ));
        }
    }
    Ok(config)
}

fn checksum(fields: &Fields<'_>) -> Result<Option<String>, ValueError> {
    let Some(checksum) = fields.string("SlugChecksum")? else {
        return Ok(None);
    };
    match slug_checksum(&checksum) {
        Some(checksum) => Ok(Some(checksum)),
        None => Err(fields.error(
            "SlugChecksum",
            "invalid value: expected `SHA256:` and 64 hexadecimal digits",
        )),
    }
}

fn log_target(fields: &Fields<'_>) -> Result<Option<LogTarget>, ValueError> {
    fields
        .string("LogplexURL")?
        .map(|url| LogTarget::new(url).map_err(|error| fields.error("LogplexURL", &error)))
        .transpose()
}

fn limits(fields: &Fields<'_>, warnings: &mut Vec<String>) -> Result<Limits, ValueError> {
    let Some(limits) = fields.get("Limits") else {
        return Ok(Limits::default());
    };
    let limits = Fields::read(limits, LIMIT_KEYS, warnings)?;
    let narrow = |key| {
        let number = limits.integer(key, u32::MAX.into())?;
        Ok(u32::try_from(number).ok().filter(|&limit| limit > 0))
    };
    Ok(Limits {
        memory_bytes: Some(limits.integer("MemoryBytes", u64::MAX)?).filter(|&limit| limit > 0),
        cpu_millis: narrow("CpuMillis")?,
        pids: narrow("Pids")?,
    })
}

fn processes(
    top: &Json<'_>,
    fields: &Fields<'_>,
    warnings: &mut Vec<String>,
) -> Result<Vec<Process>, ValueError> {
    let items = match fields.get("Processes") {
        Some(list) => list.items()?,
        None => Vec::new(),
    };
    let mut processes: Vec<Process> = Vec::new();
    for item in &items {
        let process = process(item, warnings)?;
        let same = |before: &Process| before.process_type == process.process_type;
        if let Some(before) = processes.iter().position(same) {
            return Err(item.error(format!(
                "the process type `{}` is there already, at Processes[{before}]",
                process.process_type
            )));
        }
        processes.push(process);
    }
    if processes.is_empty() {
        let mut error = fields.get("Processes").unwrap_or(top).error(
            "there is no process: write at least one, such as {\"Type\": \"web\", \"Args\": [\"bin/server\"], \"Quantity\": 1}",
        );
        "Processes".clone_into(&mut error.path);
        return Err(error);
    }
    if processes
        .iter()
        .all(|process| process.process_type.is_release())
    {
        let problem =
            "there is no process but `release`, which is run once per release and gets no dyno";
        return Err(fields.error("Processes", problem));
    }
    Ok(processes)
}

fn process(item: &Json<'_>, warnings: &mut Vec<String>) -> Result<Process, ValueError> {
    let fields = Fields::read(item, PROCESS_KEYS, warnings)?;
    let Some(name) = fields.string("Type")? else {
        return Err(fields.error("Type", "a process needs a type, such as `web`"));
    };
    let process_type: ProcessType = name
        .parse()
        .map_err(|error| fields.error("Type", &format!("invalid value: {error}")))?;
    let args = match fields.get("Args") {
        Some(list) => list
            .items()?
            .iter()
            .map(Json::string)
            .collect::<Result<Vec<_>, _>>()?,
        None => Vec::new(),
    };
    let command = args.join(" ");
    if command.trim().is_empty() {
        return Err(fields.error(
            "Args",
            "there is no command: write what to run, such as [\"bin/server\"]",
        ));
    }
    let quantity = fields.integer("Quantity", MAX_QUANTITY.into())?;
    let quantity = u32::try_from(quantity).unwrap_or(MAX_QUANTITY);
    if process_type.is_release() && quantity > 0 {
        warnings.push(format!(
            "{}.Quantity: `release` is the command of the release phase and gets no dyno",
            item.path()
        ));
    }
    Ok(Process::new(process_type, command, quantity))
}

/// The members of an object that has fixed keys.
struct Fields<'a> {
    object: Json<'a>,
    values: HashMap<&'static str, Json<'a>>,
}

impl<'a> Fields<'a> {
    fn read(
        object: &Json<'a>,
        keys: &'static [&'static str],
        warnings: &mut Vec<String>,
    ) -> Result<Self, ValueError> {
        let mut values: HashMap<&'static str, Json<'a>> = HashMap::new();
        for (written, value) in object.members()? {
            let Some(key) = keys.iter().find(|key| key.eq_ignore_ascii_case(&written)) else {
                warnings.push(unknown(&value, &written, keys));
                continue;
            };
            // Go sets nothing from a null, so what came before it stays.
            if values.contains_key(key) {
                warnings.push(format!(
                    "{}: given twice: the last one counts",
                    value.path()
                ));
            }
            if !value.is_null() {
                values.insert(key, value);
            }
        }
        Ok(Self {
            object: object.clone(),
            values,
        })
    }

    fn get(&self, key: &str) -> Option<&Json<'a>> {
        self.values.get(key)
    }

    /// A string; `None` where it is absent or empty.
    fn string(&self, key: &str) -> Result<Option<String>, ValueError> {
        let string = self.get(key).map(Json::string).transpose()?;
        Ok(string.filter(|string| !string.is_empty()))
    }

    /// A whole number up to `max`; 0 where it is absent.
    fn integer(&self, key: &str, max: u64) -> Result<u64, ValueError> {
        self.get(key)
            .map_or(Ok(0), |value| value.integer(&(0..=max)))
    }

    /// That the value of `key` will not do, or that it is missing.
    fn error(&self, key: &str, problem: &(impl ToString + ?Sized)) -> ValueError {
        if let Some(value) = self.get(key) {
            return value.error(problem.to_string());
        }
        let mut error = self.object.error(problem.to_string());
        error.path = match self.object.path() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        error
    }
}

fn unknown(value: &Json<'_>, written: &str, keys: &[&str]) -> String {
    let nearest = keys
        .iter()
        .map(|key| (distance(written, key), key))
        .min()
        .filter(|(distance, _)| *distance <= 2);
    match nearest {
        Some((_, key)) => format!("{}: unknown key, did you mean `{key}`?", value.path()),
        None => format!("{}: unknown key, ignored", value.path()),
    }
}

/// How many letters must be inserted, left out or replaced to make `a` of `b`, whatever
/// their case.
fn distance(a: &str, b: &str) -> usize {
    // What is far longer is not near; and the work stays small.
    if a.len() > b.len() + 8 {
        return usize::MAX;
    }
    let b: Vec<u8> = b.to_ascii_lowercase().into_bytes();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (above, x) in (0..).zip(a.to_ascii_lowercase().bytes()) {
        let mut diagonal = above;
        row[0] = above + 1;
        for (column, &y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests;
