//! The JSON Schema of the configuration, derived from the options.

use clap::CommandFactory as _;
use serde_json::{Map, Value, json};

use crate::{
    config::key::{IsPath, Key, Kind, keys},
    hsup::args::Cli,
};

/// For `hsup.toml`, and any file in `hsup.d`.
pub(crate) fn config() -> Value {
    let keys = keys(&Cli::command());
    let properties: Map<String, Value> = keys
        .iter()
        .map(|key| (key.name.clone(), property(key)))
        .collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The configuration of hsup",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
    })
}

fn property(key: &Key) -> Value {
    let text = ["string", "number"];
    let mut property = match key.kind {
        Kind::Switch => json!({ "type": "boolean", "default": false }),
        Kind::Value => json!({ "type": text }),
        Kind::List => json!({
            "anyOf": [{ "type": text }, { "type": "array", "items": { "type": text } }]
        }),
        Kind::Pairs => json!({
            "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" } },
                {
                    "type": "object",
                    "additionalProperties": { "type": ["string", "number", "boolean"] }
                }
            ]
        }),
    };
    let mut help = key.help.split_whitespace().collect::<Vec<_>>().join(" ");
    if key.is_path != IsPath::Never {
        help.push_str("; a relative path is relative to the directory of this file");
    }
    property["description"] = help.into();
    if let Some(default) = &key.default {
        property["default"] = default.clone().into();
    }
    property
}

#[cfg(test)]
mod tests {
    use hsup_core::source::control_file;
    use test_case::test_case;

    use super::*;

    #[test_case("config", config, include_str!("../../docs/schemas/config.json"))]
    #[test_case("control", control_file::schema, include_str!("../../docs/schemas/control.json"))]
    fn the_schema_in_docs_is_current(name: &str, schema: fn() -> Value, committed: &str) {
        assert!(
            crate::look::json(&schema()).unwrap() == committed,
            "`hsup schema {name} > docs/schemas/{name}.json`"
        );
    }
}
