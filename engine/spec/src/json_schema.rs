//! JSON schemas (draft 2020-12) of the workflow text and of configuration files, so that editors complete and check
//! them. Both are made from the tables that the readers go by.

use serde_json::{Map, Value as Json, json};

use crate::config::{Kind, SETTINGS};
use crate::keys::{self, FORMAT_VERSION, Shape, Table};
use crate::types::type_words;

const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
const NAME_PATTERN: &str = r"^[\p{L}_][\p{L}\p{N}_]*$";
const WORKFLOW_NAME_PATTERN: &str = r"^[\p{L}_][\p{L}\p{N}_-]*$";

/// The schema of a workflow's text.
pub fn workflow_schema() -> Json {
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), json!(DRAFT));
    schema.insert("title".to_owned(), json!("Rowmill workflow"));
    schema.extend(table(&keys::WORKFLOW));
    Json::Object(schema)
}

/// The schema of a configuration file.
pub fn config_schema() -> Json {
    let mut root = json!({
        "$schema": DRAFT,
        "title": "Rowmill configuration",
        "type": "object",
        "properties": {},
        "additionalProperties": false,
    });
    for setting in SETTINGS {
        let mut place = &mut root;
        let mut parts = setting.key.split('.').peekable();
        while let Some(part) = parts.next() {
            let properties = &mut place["properties"];
            if parts.peek().is_none() {
                let mut leaf = setting_schema(setting.kind);
                leaf["description"] = json!(setting.about);
                if let Some(default) = setting.default {
                    leaf["default"] = match setting.kind {
                        Kind::Bool => json!(default == "true"),
                        _ => json!(default),
                    };
                }
                properties[part] = leaf;
                break;
            }
            if properties.get(part).is_none() {
                properties[part] = json!({"type": "object", "properties": {}, "additionalProperties": false});
            }
            place = &mut properties[part];
        }
    }
    root
}

fn setting_schema(kind: Kind) -> Json {
    match kind {
        Kind::BytesOrAuto => json!({
            "oneOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^(auto|[0-9]+(\.[0-9]+)?\s*([kKmMgGtT][iI]?)?[bB]?)$"},
            ]
        }),
        Kind::CountOrAuto(most) => {
            json!({"oneOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": most}]})
        }
        Kind::PathOrAuto | Kind::Text => json!({"type": "string", "minLength": 1}),
        Kind::Url => json!({"type": "string", "pattern": "^https?://"}),
        Kind::Word(words) => json!({"enum": words}),
        Kind::Bool => json!({"type": "boolean"}),
        Kind::Secret => json!({"type": "string", "pattern": "^(env:[A-Za-z0-9_]+|file:.+)$"}),
    }
}

fn table(table: &Table) -> Map<String, Json> {
    let mut properties = Map::new();
    for key in table.keys {
        let mut schema = shape(key.shape);
        schema["description"] = json!(key.about);
        properties.insert(key.name.to_owned(), schema);
    }
    let required: Vec<&str> = table.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    let mut schema = Map::new();
    schema.insert("type".to_owned(), json!("object"));
    schema.insert("properties".to_owned(), Json::Object(properties));
    if !required.is_empty() {
        schema.insert("required".to_owned(), json!(required));
    }
    // A source is one of two things; the reader says so in a report of its own.
    if table.keys.iter().any(|key| key.name == "range") {
        schema.insert("oneOf".to_owned(), json!([{"required": ["path"]}, {"required": ["range"]}]));
    }
    schema.insert("additionalProperties".to_owned(), json!(false));
    schema
}

fn shape(shape_of: Shape) -> Json {
    match shape_of {
        Shape::Version => json!({"const": FORMAT_VERSION}),
        Shape::Text => json!({"type": ["string", "number", "boolean"]}),
        Shape::Sql | Shape::Path => json!({"type": "string", "minLength": 1}),
        Shape::Name => json!({"type": "string", "pattern": NAME_PATTERN}),
        Shape::WorkflowName => json!({"type": "string", "pattern": WORKFLOW_NAME_PATTERN}),
        Shape::Paths | Shape::Columns => json!({
            "oneOf": [
                {"type": "string", "minLength": 1},
                {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
            ]
        }),
        Shape::Bool => json!({"type": "boolean"}),
        Shape::Character => json!({"type": "string", "minLength": 1, "maxLength": 1}),
        Shape::Count(least) => json!({"type": "integer", "minimum": least}),
        Shape::Integer => json!({"type": "integer"}),
        Shape::Type => type_schema(),
        Shape::Literal => json!({
            "oneOf": [
                {"type": ["string", "number", "boolean", "null"]},
                {"type": "array", "items": {"type": ["string", "number", "boolean", "null"]}},
            ]
        }),
        Shape::Word(words) => json!({"enum": words}),
        Shape::OpenWord(words) => json!({"type": "string", "minLength": 1, "examples": words}),
        Shape::Object(inner) => Json::Object(table(inner)),
        Shape::Named(value) => {
            let mut schema = json!({"type": "object", "additionalProperties": shape(*value)});
            // Columns may have any name; what else is named is used by SQL.
            if !matches!(value, Shape::Type) {
                schema["propertyNames"] = json!({"pattern": NAME_PATTERN});
            }
            schema
        }
        Shape::TypeOr(inner) => json!({"oneOf": [type_schema(), Json::Object(table(inner))]}),
    }
}

/// Types nest, which a pattern cannot say: editors are given examples, and the reader checks.
fn type_schema() -> Json {
    json!({"type": "string", "minLength": 1, "examples": type_words().collect::<Vec<_>>()})
}
