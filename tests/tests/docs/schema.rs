//! Whether a control file that the pages or the examples show is one by the schema that hsup
//! writes: what of JSON Schema is in that, and no more.

use serde_json::{Map, Value};

/// What keeps a value from being what the schema has, with its place.
pub(crate) fn faults(schema: &Value, value: &Value, place: &str) -> Vec<String> {
    let rules = schema.as_object().unwrap();
    let kind = rules["type"].as_str().unwrap();
    let fits = match kind {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "integer" => value.is_u64(),
        other => panic!("a type of its own, which is not looked at: {other}"),
    };
    if !fits {
        return vec![format!("{place}: it is no {kind}: {value}")];
    }
    let mut faults = Vec::new();
    for (rule, what) in rules {
        match (rule.as_str(), value) {
            ("properties", Value::Object(members)) => {
                for (name, member) in members {
                    let place = format!("{place}.{name}");
                    faults.extend(of_member(rules, name, member, &place));
                }
            }
            ("required", Value::Object(members)) => {
                let names = what.as_array().unwrap().iter();
                let missing = names.filter(|name| !members.contains_key(name.as_str().unwrap()));
                faults.extend(missing.map(|name| format!("{place}: {name} is missing")));
            }
            ("items", Value::Array(items)) => {
                for (index, item) in items.iter().enumerate() {
                    faults.extend(self::faults(what, item, &format!("{place}[{index}]")));
                }
            }
            ("minItems", Value::Array(items)) if items.is_empty() => {
                faults.push(format!("{place}: it is empty"));
            }
            ("minimum", Value::Number(number)) if number.as_u64() < what.as_u64() => {
                faults.push(format!("{place}: {number} is less than {what}"));
            }
            ("maximum", Value::Number(number)) if number.as_u64() > what.as_u64() => {
                faults.push(format!("{place}: {number} is more than {what}"));
            }
            // The parser's tests look at patterns.
            ("$schema" | "title" | "description" | "type" | "pattern" | "propertyNames", _) => {}
            ("additionalProperties" | "minItems" | "minimum" | "maximum", _) => {}
            (other, _) => panic!("a rule that is not looked at: {other}"),
        }
    }
    faults
}

fn of_member(rules: &Map<String, Value>, name: &str, member: &Value, place: &str) -> Vec<String> {
    match (
        &rules["properties"][name],
        rules.get("additionalProperties"),
    ) {
        (Value::Null, Some(Value::Bool(false))) => vec![format!("{place}: there is no such key")],
        (Value::Null, Some(schema)) => faults(schema, member, place),
        (Value::Null, None) => Vec::new(),
        (schema, _) => faults(schema, member, place),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_does_not_fit_is_said_with_its_place() {
        let schema = json!({
            "type": "object",
            "required": ["a"],
            "additionalProperties": false,
            "properties": {
                "a": { "type": "integer", "minimum": 1, "maximum": 2 },
                "b": { "type": "array", "minItems": 1, "items": { "type": "string" } },
                "c": { "type": "object", "properties": {}, "additionalProperties": { "type": "string" } },
            },
        });
        let good = json!({ "a": 1, "b": ["x"], "c": { "d": "e" } });
        assert_eq!(faults(&schema, &good, "it"), [""; 0]);
        for (bad, fault) in [
            (json!([]), "it: it is no object: []"),
            (json!({}), "it: \"a\" is missing"),
            (json!({ "a": 0 }), "it.a: 0 is less than 1"),
            (json!({ "a": 3 }), "it.a: 3 is more than 2"),
            (json!({ "a": 1, "b": [] }), "it.b: it is empty"),
            (json!({ "a": 1, "b": [7] }), "it.b[0]: it is no string: 7"),
            (
                json!({ "a": 1, "c": { "d": 7 } }),
                "it.c.d: it is no string: 7",
            ),
            (json!({ "a": 1, "d": 1 }), "it.d: there is no such key"),
        ] {
            assert_eq!(faults(&schema, &bad, "it"), [fault], "{bad}");
        }
    }
}
