//! A release as the text of a control file: for one that did not come as a text, or whose text
//! is not kept any more.

use serde_json::{Map, Value, json};

use crate::{
    name::check_app_name,
    release::{Limits, LogTarget, Process, Release, Slug},
    source::ControlText,
};

/// The text that reads as `release`.
pub fn text(release: &Release) -> ControlText {
    let mut file = Map::new();
    let mut put = |key: &str, value: Value| drop(file.insert(key.to_owned(), value));
    put("Version", release.version.into());
    // A directory may be called what no app may; then the directory tells its name again.
    if check_app_name(&release.app).is_ok() {
        put("Name", release.app.as_str().into());
    }
    let env = release.config.iter();
    put(
        "Env",
        env.map(|(name, value)| (name.to_owned(), Value::from(value)))
            .collect(),
    );
    let given = [
        ("Slug", release.slug.as_ref().map(Slug::expose)),
        ("SlugChecksum", release.slug_checksum.as_deref()),
        ("Stack", Some(&*release.stack)),
        ("Image", release.image.as_deref()),
        (
            "LogplexURL",
            release.log_target.as_ref().map(LogTarget::expose),
        ),
    ];
    for (key, value) in given {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            put(key, value.into());
        }
    }
    if release.limits != Limits::default() {
        put("Limits", limits(&release.limits));
    }
    put("Processes", release.processes.iter().map(process).collect());
    ControlText::new(format!("{:#}\n", Value::Object(file)).as_bytes())
}

fn limits(limits: &Limits) -> Value {
    json!({
        "MemoryBytes": limits.memory_bytes,
        "CpuMillis": limits.cpu_millis,
        "Pids": limits.pids,
    })
}

fn process(process: &Process) -> Value {
    json!({
        "Type": process.process_type.as_str(),
        "Args": [process.command],
        "Quantity": process.quantity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::control_file::parse;

    #[test]
    fn what_is_written_reads_the_same() {
        for original in [
            r#"{"Processes": [{"Type": "web", "Args": ["true"]}]}"#,
            r#"{"Version": 3, "Name": "shop", "Env": {"A": "x\"\n\u00fc", "B": ""},
                "Slug": "https://user:key@s/a.tgz?sig=1",
                "SlugChecksum": "SHA256:00000000000000000000000000000000000000000000000000000000000000aa",
                "Stack": "heroku-24", "Image": "i", "Limits": {"Pids": 9},
                "LogplexURL": "https://token@logs/x",
                "Processes": [{"Type": "web", "Args": ["a  b", "'c d'"], "Quantity": 2},
                              {"Type": "release", "Args": ["migrate"]}]}"#,
        ] {
            let release = parse(original.as_bytes()).unwrap().release;
            let read = parse(text(&release).expose().as_bytes()).unwrap();
            assert_eq!(read.release, release);
            assert_eq!(read.warnings, Vec::<String>::new());
        }
    }
}
