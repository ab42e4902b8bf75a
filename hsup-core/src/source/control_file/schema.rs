//! The JSON Schema of a control file, for editors and for who writes one by program.

use serde_json::{Value, json};

use crate::formation::MAX_QUANTITY;

/// What [`super::parse`] takes, but for what it takes for old times' sake: keys in another
/// case, `null`, and unknown keys, which are a warning.
pub fn schema() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    let count = |description: &str, most: u64| json!({ "type": "integer", "minimum": 0, "maximum": most, "description": description });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A release of hsup, as in a control directory",
        "type": "object",
        "additionalProperties": false,
        "required": ["Processes"],
        "properties": {
            "Version": count("The release's name: another version is another release", u64::MAX),
            "Name": text("The app's name"),
            "Env": {
                "type": "object",
                "description": "The config vars; PORT is the base of the dynos' ports",
                "propertyNames": { "pattern": "^[^=\u{0}]+$" },
                "properties": { "PORT": { "type": "string", "pattern": "^[0-9]+$" } },
                "additionalProperties": { "type": "string" },
            },
            "Slug": text("Where the slug is: a path, file://, https:// or http://"),
            "SlugChecksum": {
                "type": "string",
                "pattern": "^(SHA256:[0-9a-fA-F]{64})?$",
                "description": "The checksum of the slug's archive",
            },
            "Stack": text("The stack to run on"),
            "Image": text("An image to run instead of a slug, where the driver can"),
            "Limits": {
                "type": "object",
                "description": "What each dyno may use, where the driver can set it; 0: no limit",
                "additionalProperties": false,
                "properties": {
                    "MemoryBytes": count("Memory", u64::MAX),
                    "CpuMillis": count("Processor time, in thousandths of one", u32::MAX.into()),
                    "Pids": count("Processes and threads", u32::MAX.into()),
                },
            },
            "LogplexURL": text("Where the lines are sent to while this release is wanted; a secret"),
            "Processes": {
                "type": "array",
                "minItems": 1,
                "items": {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["Type", "Args"],
                    "properties": {
                        "Type": text("The process type; `release` runs once before the others"),
                        "Args": {
                            "type": "array",
                            "minItems": 1,
                            "items": { "type": "string" },
                            "description": "Joined with spaces into one shell line",
                        },
                        "Quantity": count("How many dynos", MAX_QUANTITY.into()),
                    },
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{
        super::{KEYS, LIMIT_KEYS, PROCESS_KEYS},
        *,
    };

    #[test]
    fn it_has_the_keys_that_are_read() {
        let schema = schema();
        let keys = |path: &str| {
            let properties = schema.pointer(path).unwrap().as_object().unwrap();
            properties
                .keys()
                .cloned()
                .collect::<std::collections::BTreeSet<_>>()
        };
        let set = |keys: &[&str]| keys.iter().map(|&key| key.to_owned()).collect();
        assert_eq!(keys("/properties"), set(KEYS));
        assert_eq!(keys("/properties/Limits/properties"), set(LIMIT_KEYS));
        let processes = "/properties/Processes/items/properties";
        assert_eq!(keys(processes), set(PROCESS_KEYS));
    }
}
