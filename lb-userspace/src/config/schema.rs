//! The JSON Schema of the file, made from the definitions of its keys (<https://json-schema.org>,
//! draft 2020-12): editors complete and check with it while a file is written.

use serde_json::{Map, Value, json};

use super::{
    keys,
    reader::{Describe, Nested, Section},
};

/// The schema of a configuration; with `part`, of one file of a directory, in which nothing of the
/// top level must be.
pub fn schema(part: bool) -> Value {
    let mut schema = section(&keys::TOP);
    if let Value::Object(fields) = &mut schema {
        if part {
            fields.remove("required");
        }
        fields.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        fields.insert("title".to_owned(), json!("Configuration of the load balancer `lb`"));
    }
    schema
}

/// A table with these keys and no others.
fn section(section: &Section) -> Value {
    let properties: Map<String, Value> =
        section.keys.iter().map(|key| (key.name().to_owned(), described(*key))).collect();
    let required: Vec<&str> =
        section.keys.iter().filter(|key| key.left_out().is_none()).map(|key| key.name()).collect();
    let mut schema = json!({ "type": "object", "properties": properties, "additionalProperties": false });
    if !required.is_empty() {
        schema["required"] = json!(required);
    }
    schema
}

fn described(key: &dyn Describe) -> Value {
    let mut schema = key.schema();
    if let Value::Object(fields) = &mut schema {
        fields.insert("description".to_owned(), format!("{} Value: {}.", key.doc(), key.allowed()).into());
        if let Some(default) = key.default_text().and_then(value_of) {
            fields.insert("default".to_owned(), default);
        }
    }
    schema
}

/// A nested table's part of its section's schema.
pub(super) fn nested(nested: &Nested) -> Value {
    let table = section(nested.section);
    if nested.repeated { json!({ "type": "array", "items": table }) } else { table }
}

/// A value that is written in TOML, as JSON.
fn value_of(text: String) -> Option<Value> {
    let table: toml::Table = format!("value = {text}").parse().ok()?;
    serde_json::to_value(table.get("value")?).ok()
}
