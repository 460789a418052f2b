//! JSON schemas (draft 2020-12) of the workflow text and of configuration files, so that editors complete and check
//! them. Both are made from the tables that the readers go by.

use serde_json::{Map, Value as Json, json};

use crate::config::{ClusterKey, ConnectionKind, KINDS, Kind, LIMITS, QUEUE, QUOTA, SETTINGS, keys_of};
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
        let mut leaf = setting_schema(setting.kind);
        leaf["description"] = json!(setting.about);
        if let Some(default) = setting.default {
            leaf["default"] = match setting.kind {
                Kind::Bool => json!(default == "true"),
                _ => json!(default),
            };
        }
        put(&mut root, setting.key, leaf);
    }
    for (section, keys) in [("queues", QUEUE), ("quotas", QUOTA)] {
        let mut entry = json!({"type": ["object", "null"], "properties": {}, "additionalProperties": false});
        for ClusterKey { key, takes, about, .. } in keys {
            let mut leaf = setting_schema(*takes);
            leaf["description"] = json!(about);
            entry["properties"][*key] = leaf;
        }
        root["properties"]["cluster"]["properties"][section] =
            json!({"type": "object", "description": "By name.", "additionalProperties": entry});
    }
    let kinds: Vec<Json> = KINDS.into_iter().map(connection_schema).collect();
    root["properties"]["connections"] = json!({
        "type": "object",
        "description": "What steps reach, by name.",
        "propertyNames": {"pattern": "^[a-z]([a-z0-9]|_[a-z0-9])*$"},
        // Layers are united key by key, so that one file may say only part of a connection.
        "additionalProperties": {"anyOf": kinds},
    });
    root
}

fn connection_schema(kind: ConnectionKind) -> Json {
    let mut root = json!({
        "type": "object",
        "properties": {"kind": {"const": kind.as_str()}},
        "additionalProperties": false,
    });
    for key in keys_of(kind).iter().chain(LIMITS) {
        let mut leaf = setting_schema(key.takes);
        leaf["description"] = json!(key.about);
        put(&mut root, key.key, leaf);
    }
    root
}

/// Puts the schema of a dotted key at its place.
fn put(root: &mut Json, key: &str, leaf: Json) {
    let mut place = root;
    let mut parts = key.split('.').peekable();
    while let Some(part) = parts.next() {
        let properties = &mut place["properties"];
        if parts.peek().is_none() {
            properties[part] = leaf;
            return;
        }
        if properties.get(part).is_none() {
            properties[part] = json!({"type": "object", "properties": {}, "additionalProperties": false});
        }
        place = &mut properties[part];
    }
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
        Kind::WordOrSecret(word) => {
            json!({"type": "string", "pattern": format!("^({word}|env:[A-Za-z0-9_]+|file:.+)$")})
        }
        Kind::Bytes => shape(Shape::Size),
        Kind::Count(most) => json!({"type": "integer", "minimum": 1, "maximum": most}),
        Kind::Number(most) => json!({"type": "integer", "minimum": 0, "maximum": most}),
        Kind::Rate => json!({"type": "number", "exclusiveMinimum": 0}),
        Kind::Duration => shape(Shape::Duration),
        Kind::DurationOrNone => json!({"anyOf": [shape(Shape::Duration), {"const": "none"}]}),
        Kind::TextMap => {
            json!({"type": "object", "additionalProperties": {"type": ["string", "number", "boolean"]}})
        }
        Kind::TextList => {
            json!({"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string", "minLength": 1}}]})
        }
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
    // Where one of several keys must stand, the reader says so in a report of its own.
    let one_of: &[&str] = match table.what {
        "a source" => &["path", "range"],
        "a step" => keys::KINDS,
        "the body of an `http` step" => &["json", "text", "form", "column"],
        "a column of the response" => &["json", "body", "status", "header"],
        _ => &[],
    };
    if !one_of.is_empty() {
        let choices: Vec<Json> = one_of.iter().map(|key| json!({"required": [key]})).collect();
        schema.insert("oneOf".to_owned(), Json::Array(choices));
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
        Shape::Map(value) => json!({
            "type": "object",
            "propertyNames": {"minLength": 1},
            "additionalProperties": shape(*value),
        }),
        Shape::Either(shapes) => {
            // `anyOf`: a word may be a column too.
            let choices: Vec<Json> = shapes.iter().map(|choice| shape(*choice)).collect();
            json!({"anyOf": choices})
        }
        Shape::Template => json!({"type": ["string", "number", "boolean"]}),
        Shape::Templates => json!({
            "oneOf": [
                {"type": ["string", "number", "boolean"]},
                {"type": "array", "items": {"type": ["string", "number", "boolean"]}},
            ]
        }),
        Shape::TemplateList => {
            json!({"type": "array", "items": {"type": ["string", "number", "boolean"]}, "minItems": 1})
        }
        Shape::Duration => json!({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*(ms|s|m|h|d)$"}),
        Shape::Size => json!({
            "oneOf": [
                {"type": "integer", "minimum": 1},
                {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*([kKmMgGtT][iI]?)?[bB]?$"},
            ]
        }),
        Shape::Rate => json!({"type": "string", "pattern": r"^[1-9][0-9]*/(s|min|h)$"}),
        Shape::Share => json!({"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?\s*%$"}),
        Shape::Factor => json!({"type": "number", "minimum": 1}),
        Shape::Statuses => {
            let status = json!({"type": "integer", "minimum": 100, "maximum": 599});
            json!({"oneOf": [status, {"type": "array", "items": status}]})
        }
        Shape::StatusRanges => {
            let status = json!({
                "oneOf": [
                    {"type": "integer", "minimum": 100, "maximum": 599},
                    {"type": "string", "pattern": "^[1-5][0-9]{2}-[1-5][0-9]{2}$"},
                ]
            });
            json!({"oneOf": [status, {"type": "array", "items": status}]})
        }
        Shape::WordOrNull(words) => {
            let mut choices: Vec<Json> = words.iter().map(|word| json!(word)).collect();
            choices.push(Json::Null);
            json!({"enum": choices})
        }
        // Anything that has a form in JSON.
        Shape::Json => json!({}),
        Shape::Secret => json!({"type": "string", "pattern": "^(env:[A-Za-z0-9_]+|file:.+)$"}),
    }
}

/// Types nest, which a pattern cannot say: editors are given examples, and the reader checks.
fn type_schema() -> Json {
    json!({"type": "string", "minLength": 1, "examples": type_words().collect::<Vec<_>>()})
}
