//! `/openapi.json`: what this process takes and answers, made from what it runs.

use serde_json::{Map, Value as Json, json};

use super::intake::Intake;
use super::query::{Queries, ROWS};
use crate::sink::query::ROWS_MAX;
use crate::topology::QuerySpec;

/// The description of what is served on the same address.
pub fn describe(intake: &Intake, queries: &Queries, inside: bool) -> Json {
    let mut paths = Map::new();
    let mut sources: Vec<_> = intake.posts().collect();
    sources.sort_by_key(|(path, _)| *path);
    for (path, source) in sources {
        paths.insert(path.to_owned(), json!({ "post": post(&source.name, &source.to) }));
    }
    if !intake.triggers().is_empty() {
        paths.insert("/publish".into(), json!({ "post": trigger("every publisher", true) }));
    }
    for source in intake.triggers() {
        let path = format!("/publish/{}", source.name);
        paths.insert(path, json!({ "post": trigger(&source.name, false) }));
    }
    for query in queries.specs() {
        paths.insert(query.path.clone(), json!({ "get": rows(query) }));
    }
    for (path, summary, answers) in always(inside) {
        let answers = answers
            .iter()
            .map(|(status, about)| ((*status).to_owned(), json!({ "description": about })));
        let get = json!({ "summary": summary, "responses": Map::from_iter(answers) });
        paths.insert(path.to_owned(), json!({ "get": get }));
    }
    if inside {
        paths.extend(super::inside::described());
    }
    let mut api = json!({
        "openapi": "3.1.0",
        "info": { "title": "Aqueduct", "version": env!("CARGO_PKG_VERSION") },
        "paths": paths,
        "components": { "schemas": { "Error": {
            "type": "object",
            "required": ["error"],
            "properties": { "error": { "type": "string" } },
        } } },
    });
    if intake.guard().asks() {
        api["components"]["securitySchemes"] =
            json!({ "token": { "type": "http", "scheme": "bearer" } });
    }
    secure(&mut api, intake);
    api
}

type Served = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

fn always(inside: bool) -> Vec<Served> {
    const HEALTH: &[(&str, &str)] =
        &[("200", "Everything works."), ("503", "What does not work, and why.")];
    const OK: &[(&str, &str)] = &[("200", "Here it is.")];
    let mut all: Vec<Served> = vec![
        ("/livez", "Whether the process turns.", OK),
        ("/healthz", "Whether everything works.", HEALTH),
        ("/readyz", "Whether requests can be taken.", HEALTH),
        ("/openapi.json", "This description.", OK),
    ];
    if inside {
        const STOPPING: &[(&str, &str)] =
            &[("200", "Here it is."), ("503", "The process is stopping.")];
        all.push(("/streams", "Streams, their groups and members.", STOPPING));
        all.push(("/metrics", "Metrics, for Prometheus.", STOPPING));
    }
    all
}

fn idempotency_key() -> Json {
    json!([{
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Repeated with the same body, the request happens once.",
        "schema": { "type": "string", "minLength": 1, "maxLength": 256 },
    }])
}

fn problems(statuses: &[(&str, &str)]) -> Map<String, Json> {
    let error = json!({ "application/json": {
        "schema": { "$ref": "#/components/schemas/Error" },
    } });
    let problem = |about: &str| json!({ "description": about, "content": error });
    statuses.iter().map(|(status, about)| ((*status).to_owned(), problem(about))).collect()
}

fn post(source: &str, stream: &str) -> Json {
    let mut answers = problems(&[
        ("400", "The body is not what it says it is."),
        ("408", "The body took too long."),
        ("413", "The body is larger than `max_body`."),
        ("415", "A Content-Type or Content-Encoding that is not read."),
        ("429", "Too many requests are under way."),
        ("503", "The stream cannot take it now; Retry-After says when to ask again."),
    ]);
    let ids = json!({ "type": "array", "items": { "type": "string", "format": "uuid" } });
    let accepted = json!({
        "description": "The events are durable in the stream.",
        "content": { "application/json": { "schema": {
            "type": "object", "required": ["ids"], "properties": { "ids": ids },
        } } },
    });
    answers.insert("202".into(), accepted);
    json!({
        "summary": format!("Posts events to the stream `{stream}`."),
        "operationId": format!("post_{source}"),
        "parameters": idempotency_key(),
        "requestBody": {
            "required": true,
            "content": {
                "application/json": { "schema": {} },
                "application/x-ndjson": { "schema": { "type": "string" } },
                "text/plain": { "schema": { "type": "string", "minLength": 1 } },
            },
        },
        "responses": answers,
    })
}

fn trigger(source: &str, several: bool) -> Json {
    let mut answers = problems(&[
        ("400", "The Idempotency-Key is empty or too long."),
        ("429", "Too many requests are under way."),
        ("503", "The stream cannot take it now; Retry-After says when to ask again."),
    ]);
    let run = json!({
        "type": "object",
        "required": ["source", "published", "numbers"],
        "properties": {
            "source": { "type": "string" },
            "published": { "type": "integer" },
            "numbers": { "type": "array", "items": { "type": "integer" } },
        },
    });
    let schema = if several { json!({ "type": "array", "items": run }) } else { run };
    let done = json!({
        "description": "All of it is durable in the stream.",
        "content": { "application/json": { "schema": schema } },
    });
    answers.insert("200".into(), done);
    let id = if several { "publish_all".to_owned() } else { format!("publish_{source}") };
    json!({
        "summary": format!("Has {source} send its whole range anew."),
        "operationId": id,
        "parameters": idempotency_key(),
        "responses": answers,
    })
}

fn rows(query: &QuerySpec) -> Json {
    let mut answers = problems(&[
        ("400", "A column that there is not, a value that is none of its type, or a bad `after`."),
        ("429", "Too many requests are under way."),
        ("503", "The database cannot answer now; Retry-After says when to ask again."),
        ("504", "The database took longer than the query may."),
    ]);
    let page = json!({
        "type": "object",
        "required": ["rows", "next", "cached"],
        "properties": {
            "rows": { "type": "array", "items": { "type": "object" }, "maxItems": ROWS_MAX },
            "next": {
                "type": ["string", "null"],
                "description": "The `after` of the next page; null: there is none.",
            },
            "cached": { "type": "boolean" },
        },
    });
    let text = |about: &str| json!({ "description": about, "schema": { "type": "string" } });
    let headers = json!({
        "ETag": text("Stands for the rows and `next`."),
        "Cache-Control": text("How long the answer is good, and for whom."),
    });
    let found = json!({
        "description": "Rows, newest first.",
        "headers": headers,
        "content": { "application/json": { "schema": page } },
    });
    answers.insert("200".into(), found);
    let same = json!({ "description": "They are those of If-None-Match.", "headers": headers });
    answers.insert("304".into(), same);
    let parameter = |place: &str, name: &str, about: &str, schema: Json| json!({ "name": name, "in": place, "description": about, "schema": schema });
    let limit = json!({ "type": "integer", "minimum": 1, "maximum": ROWS_MAX, "default": ROWS });
    let after = json!({ "type": "string", "pattern": "^[A-Za-z0-9_-]{13,}$" });
    let filters = json!({ "type": "object", "additionalProperties": true });
    let about = "Any other name is a column, or a member of the JSON column (dotted for nested \
                 ones), and the value it is to have.";
    json!({
        "summary": format!("Rows of the sink `{}`, newest first.", query.sink),
        "operationId": format!("query_{}", query.name),
        "parameters": [
            parameter("query", "limit", "Rows in the page.", limit),
            parameter("query", "after", "`next` of the page before.", after),
            parameter("query", "filters", about, filters),
            parameter("header", "If-None-Match", "ETags that are known.", json!({
                "type": "string",
            })),
        ],
        "responses": answers,
    })
}

/// Every request that makes or shows events asks for a token, where one is set.
fn secure(api: &mut Json, intake: &Intake) {
    if !intake.guard().asks() {
        return;
    }
    let Some(paths) = api["paths"].as_object_mut() else { return };
    let operations = paths.values_mut().filter_map(Json::as_object_mut).flat_map(Map::values_mut);
    for operation in operations.filter(|it| it.get("operationId").is_some()) {
        operation["security"] = json!([{ "token": [] }]);
        let refused = problems(&[("401", "No token, or a wrong one.")]);
        if let Some(answers) = operation["responses"].as_object_mut() {
            answers.extend(refused);
        }
    }
}
