//! The keys of the topology file as a JSON Schema (draft 2020-12, of which only words are used
//! that older drafts know too), for editors. It comes from the tables that parsing uses.

use serde_json::{Map, Value as Json, json};

use super::tables::{GROUP, KindKeys, Kinds, PLAIN, QUERY, STREAM_KIND, common};
use crate::spec::text::redact;
use crate::spec::{Default, Key, Room, Selector, Ty};

/// A string that holds a variable: what it will be, the environment tells.
const VARIABLE: &str = r"\$\{";
const NAME: &str = "^[a-z][a-z0-9_-]{0,62}$";

/// The schema of a topology file with these kinds.
pub fn schema(kinds: Kinds) -> Json {
    let mut tables = Map::new();
    for (name, keys) in PLAIN {
        tables.insert((*name).to_owned(), object(keys.iter(), None));
    }
    for room in Room::TABLES {
        let component = match room {
            Room::Group => object(GROUP.iter().chain(kinds.group_keys(None)), None),
            Room::Query => object(QUERY.iter(), None),
            _ => by_kind(room, &kinds.of(room)),
        };
        let doc = format!("`[{}.NAME]`: {}", room.noun(), room_doc(room));
        let named = json!({
            "type": "object",
            "description": doc,
            "patternProperties": { NAME: component },
            "additionalProperties": false,
        });
        tables.insert(room.noun().to_owned(), named);
    }
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Aqueduct topology",
        "description": "Where events come from, the streams they go through, and where they end.",
        "type": "object",
        "properties": tables,
        "additionalProperties": false,
    })
}

fn room_doc(room: Room) -> &'static str {
    match room {
        Room::Source => "where events come from.",
        Room::Stream => "a named, durable, sharded log with consumer groups.",
        Room::Group => "a consumer group, and where it delivers.",
        Room::Sink | Room::SinkOrStream => "where events end.",
        Room::Query => "reading a database sink back over HTTP.",
    }
}

/// A component whose keys depend on its kind: one shape for each.
fn by_kind(room: Room, kinds: &[KindKeys]) -> Json {
    let shapes: Vec<Json> = kinds
        .iter()
        .map(|kind| object(common(room).iter().chain(kind.keys), Some((room, kind))))
        .collect();
    match shapes.is_empty() {
        true => object(common(room).iter(), None),
        false => json!({ "oneOf": shapes }),
    }
}

/// A table with these keys and no others; of a kind, where one is given.
fn object<'k>(keys: impl Iterator<Item = &'k Key>, kind: Option<(Room, &KindKeys)>) -> Json {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in keys {
        let of_kind = kind.filter(|_| key.name == "kind");
        let mut schema = match of_kind {
            Some((_, kind)) => json!({ "const": kind.name }),
            None => of(key.ty),
        };
        let doc = of_kind.map_or_else(|| described(key), |(_, kind)| kind.doc.to_owned());
        schema["description"] = Json::String(doc);
        if of_kind.is_none()
            && let Some(default) = default_of(key)
        {
            schema["default"] = default;
        }
        properties.insert(key.name.to_owned(), schema);
        // The kind that holds where none is named need not be named.
        let implied =
            of_kind.is_some_and(|(room, kind)| room == Room::Stream && kind.name == STREAM_KIND);
        if key.default == Default::Required || (of_kind.is_some() && !implied) {
            required.push(Json::from(key.name));
        }
    }
    let mut schema = json!({ "type": "object" });
    if let Some((_, kind)) = kind {
        schema["title"] = Json::from(kind.name);
        schema["description"] = Json::from(kind.doc);
    }
    schema["properties"] = Json::Object(properties);
    if !required.is_empty() {
        schema["required"] = Json::Array(required);
    }
    schema["additionalProperties"] = Json::Bool(false);
    schema
}

/// The doc of a key, what it accepts, and what holds without it where that is no plain value.
fn described(key: &Key) -> String {
    let default = match key.default {
        Default::Derived(what) => format!(" Default: {what}."),
        _ => String::new(),
    };
    redact(&format!("{} Accepts {}.{default}", key.doc, key.ty.allowed()))
}

fn default_of(key: &Key) -> Option<Json> {
    let Default::Toml(text) = key.default else { return None };
    let table: toml::Table = toml::from_str(&format!("value = {text}")).ok()?;
    serde_json::to_value(table.get("value")?).ok()
}

/// A string of this form, or one with a variable in it.
fn text(form: &str) -> Json {
    json!({ "type": "string", "pattern": format!("{form}|{VARIABLE}") })
}

fn any_text() -> Json {
    json!({ "type": "string", "minLength": 1 })
}

/// What a type accepts.
fn of(ty: Ty) -> Json {
    const DURATION: &str = "^[0-9]+(ms|s|m|h|d)$";
    match ty {
        Ty::Str | Ty::Path => any_text(),
        Ty::Pointer => text("^(/.*)?$"),
        Ty::Bool => json!({ "anyOf": [{ "type": "boolean" }, text("^(true|false)$")] }),
        Ty::Int(min, i64::MAX) => {
            json!({ "anyOf": [{ "type": "integer", "minimum": min }, text("^-?[0-9]+$")] })
        }
        Ty::Int(min, max) => {
            let number = json!({ "type": "integer", "minimum": min, "maximum": max });
            json!({ "anyOf": [number, text("^-?[0-9]+$")] })
        }
        Ty::Duration => text(DURATION),
        Ty::Size => {
            let number = json!({ "type": "integer", "minimum": 1 });
            json!({ "anyOf": [text("^[0-9]+(B|KiB|MiB|GiB|TiB)?$"), number] })
        }
        Ty::Rate => text("^[0-9]+/s$"),
        Ty::Range => text("^[0-9]+\\.\\.[0-9]+$"),
        Ty::Choice(words) => json!({ "anyOf": [{ "enum": words }, text(VARIABLE)] }),
        Ty::Ref(_) | Ty::Name => text(NAME),
        Ty::Route => text("^/[A-Za-z0-9_.~/-]*$"),
        Ty::Listen => text("^.+:[0-9]+$"),
        Ty::Metric => text("^[A-Za-z_:][A-Za-z0-9_:]*$"),
        Ty::Url(schemes) => text(&format!("^({})://", schemes.join("|"))),
        Ty::UrlOrNone(schemes) => text(&format!("^(({})://|$)", schemes.join("|"))),
        Ty::Urls(schemes) => {
            let one = of(Ty::Url(schemes));
            json!({ "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }] })
        }
        Ty::Secrets | Ty::Strs => {
            let list = json!({ "type": "array", "items": any_text(), "minItems": 1 });
            json!({ "anyOf": [any_text(), list] })
        }
        Ty::Table(keys) => object(keys.iter(), None),
        Ty::Columns => columns(),
        Ty::Body => json!({ "anyOf": [{ "type": "string" }, { "type": "object" }] }),
        Ty::Retain => {
            let form = format!("{}|{VARIABLE}", DURATION);
            let words = json!({ "enum": ["acked", "forever"] });
            json!({ "anyOf": [words, { "type": "string", "pattern": form }] })
        }
        Ty::Sample => {
            let ratio = json!({ "type": "number", "minimum": 0, "maximum": 1 });
            let form = "^([0-9]+/s|all|none|[0-9]+(\\.[0-9]+)?)$";
            json!({ "anyOf": [text(form), ratio] })
        }
    }
}

fn columns() -> Json {
    let named: Vec<&str> = Selector::NAMED.iter().map(|(name, _)| *name).collect();
    let selector = json!({ "anyOf": [
        { "enum": named },
        { "type": "string", "pattern": format!("^[^@.][^.]*(\\.[^.]+)*$|{VARIABLE}") },
    ] });
    let typed = json!({
        "type": "object",
        "properties": { "from": selector, "type": any_text() },
        "required": ["from"],
        "additionalProperties": false,
    });
    json!({
        "type": "object",
        "minProperties": 1,
        "additionalProperties": { "anyOf": [selector, typed] },
    })
}
