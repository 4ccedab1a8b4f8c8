//! The API described for tools: OpenAPI 3.1 (<https://spec.openapis.org/oas/v3.1.0>), whose schemas are
//! JSON Schema as it is.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    model::{API_VERSION, ErrorView, Kind},
    operations::{OPERATIONS, Operation},
};

/// The document of this version of the API.
pub fn document() -> Value {
    let mut settings = SchemaSettings::draft2020_12();
    settings.definitions_path = "/components/schemas".into();
    settings.meta_schema = None;
    let mut generator = settings.into_generator();
    let mut paths: Map<String, Value> = Map::new();
    for operation in OPERATIONS {
        let method = if operation.body.is_some() { "post" } else { "get" };
        let described = described(operation, method, &mut generator);
        paths.entry(operation.path).or_insert_with(|| json!({}))[method] = described;
    }
    let error = answer(ErrorView::KIND, generator.subschema_for::<ErrorView>().to_value());
    let mut schemas = generator.take_definitions(true);
    schemas.insert("ErrorDocument".to_owned(), error);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "The agent of the load balancer `lb`",
            "description": "HTTP and JSON over a unix socket. Every answer carries `apiVersion` and `kind`; fields \
                            are added, never renamed or removed, while the version stays the same.",
            "version": env!("CARGO_PKG_VERSION"),
        },
        "servers": [{ "url": "http://lb", "description": "The unix socket, usually /run/lb/lb.sock." }],
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn described(operation: &Operation, method: &str, generator: &mut SchemaGenerator) -> Value {
    let content = |schema: Value| json!({ "application/json": { "schema": schema } });
    let schema = match &operation.answer {
        Some((kind, schema)) => answer(kind, schema(generator).to_value()),
        None => json!({ "type": "object" }),
    };
    let mut described = json!({
        "operationId": operation_id(operation, method),
        "summary": operation.summary,
        "parameters": parameters(operation),
        "responses": {
            "200": { "description": "Done.", "content": content(schema.clone()) },
            "default": {
                "description": "Not done: what, why, and what to do next.",
                "content": content(json!({ "$ref": "#/components/schemas/ErrorDocument" })),
            },
        },
    });
    if operation.path == "/v1/health" {
        described["responses"]["503"] = json!({ "description": "Something is not.", "content": content(schema) });
    }
    if let Some(body) = operation.body {
        described["requestBody"] = json!({ "required": true, "content": content(body(generator).to_value()) });
        described["responses"]["409"] = json!({
            "description": "It conflicts with how things are, or with another writer.",
            "content": content(json!({ "$ref": "#/components/schemas/ErrorDocument" })),
        });
    }
    described
}

/// `get_v1_services_name`.
fn operation_id(operation: &Operation, method: &str) -> String {
    let path = operation.path.replace(['/', '.'], "_").replace(['{', '}'], "");
    format!("{method}{path}")
}

fn parameters(operation: &Operation) -> Value {
    let text = json!({ "type": "string" });
    let parameter = |place: &str, name: &str, words: &str, schema: &Value| json!({ "in": place, "name": name, "description": words, "required": place == "path", "schema": schema });
    let mut parameters = Vec::new();
    if operation.path.contains("{name}") {
        parameters.push(parameter("path", "name", "The service's name.", &text));
    }
    parameters.extend(operation.query.iter().map(|(name, words)| parameter("query", name, words, &text)));
    if operation.body.is_some() {
        let flag = json!({ "type": "boolean", "default": false });
        let only = "Only if the configuration is at this revision; otherwise 409.";
        parameters.push(parameter("query", "dry_run", "Only say what would be.", &flag));
        parameters.push(parameter("query", "revision", only, &text));
        parameters.push(parameter("header", "If-Match", only, &text));
    }
    json!(parameters)
}

/// A document of this kind.
fn answer(kind: &str, body: Value) -> Value {
    json!({
        "allOf": [
            {
                "type": "object",
                "properties": { "apiVersion": { "const": API_VERSION }, "kind": { "const": kind } },
                "required": ["apiVersion", "kind"],
            },
            body,
        ],
    })
}
