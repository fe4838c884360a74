//! The keys of a component and their values, as a user would write them, without secrets.

use crate::sink::SinkSpec;
use crate::source::SourceSpec;
use crate::spec::text::redact;
use crate::spec::units::{duration_text, range_text, size_text};
use crate::spec::{Column, Key, Selector, Ty, Value, Values};
use crate::stream::{GroupSpec, Retain, StreamSpec};
use crate::topology::QuerySpec;

/// Keys and values, in the order in which they are documented.
pub(super) type Settings = Vec<(String, String)>;

/// Characters of a value, at most.
const VALUE_MAX: usize = 400;

fn set(settings: &mut Settings, key: &str, value: impl Into<String>) {
    let mut value = redact(&value.into());
    if let Some((cut, _)) = value.char_indices().nth(VALUE_MAX) {
        value.truncate(cut);
        value.push('…');
    }
    settings.push((key.to_owned(), value));
}

pub(super) fn source(spec: &SourceSpec) -> Settings {
    let mut all = Vec::new();
    set(&mut all, "kind", spec.kind.name);
    set(&mut all, "to", &*spec.to);
    values(&mut all, "", &spec.values, spec.kind.keys);
    if let Some(key) = &spec.key {
        set(&mut all, "key", &**key);
    }
    set(&mut all, "origin", &*spec.origin);
    if let Some(counter) = &spec.counter {
        set(&mut all, "counter", &**counter);
    }
    all
}

pub(super) fn stream(spec: &StreamSpec) -> Settings {
    let mut all = Vec::new();
    set(&mut all, "kind", spec.kind.name);
    values(&mut all, "", &spec.values, spec.kind.keys);
    set(&mut all, "shards", spec.shards.to_string());
    let retain = match spec.retain {
        Retain::Acked => "acked".to_owned(),
        Retain::Forever => "forever".to_owned(),
        Retain::Age(age) => duration_text(age),
    };
    set(&mut all, "retain", retain);
    set(&mut all, "max_backlog", spec.max_backlog.to_string());
    all
}

pub(super) fn group(spec: &GroupSpec, keys: &[Key]) -> Settings {
    let mut all = Vec::new();
    set(&mut all, "from", &*spec.from);
    set(&mut all, "to", &*spec.to);
    set(&mut all, "members", spec.members.to_string());
    set(&mut all, "start", if spec.latest { "latest" } else { "earliest" });
    set(&mut all, "batch", spec.batch.to_string());
    set(&mut all, "lease", duration_text(spec.lease));
    set(&mut all, "attempts", spec.attempts.to_string());
    set(&mut all, "dead", &*spec.dead);
    set(&mut all, "ordered", spec.ordered.to_string());
    if let Some(counter) = &spec.counter {
        set(&mut all, "counter", &**counter);
    }
    values(&mut all, "", &spec.values, keys);
    all
}

pub(super) fn sink(spec: &SinkSpec) -> Settings {
    let mut all = Vec::new();
    set(&mut all, "kind", spec.kind.name);
    values(&mut all, "", &spec.values, spec.kind.keys);
    all
}

pub(super) fn query(spec: &QuerySpec) -> Settings {
    let mut all = Vec::new();
    set(&mut all, "path", &*spec.path);
    set(&mut all, "sink", &*spec.sink);
    if let Some(order) = &spec.order {
        set(&mut all, "order", &**order);
    }
    if let Some(cache) = &spec.cache {
        set(&mut all, "cache.url", &*cache.url);
        set(&mut all, "cache.ttl", duration_text(cache.ttl));
    }
    set(&mut all, "timeout", duration_text(spec.timeout));
    all
}

fn values(all: &mut Settings, prefix: &str, values: &Values, keys: &[Key]) {
    for (name, value) in values.iter() {
        let ty = keys.iter().find(|key| key.name == name).map(|key| key.ty);
        set(all, &format!("{prefix}{name}"), shown(value, ty));
    }
}

/// A value; hidden where its key says that it is a secret.
fn shown(value: &Value, ty: Option<Ty>) -> String {
    match (value, ty) {
        (_, Some(Ty::Secrets)) => "•••".to_owned(),
        (Value::Int(bytes), Some(Ty::Size)) => size_text((*bytes).max(0) as u64),
        (Value::Float(rate), Some(Ty::Rate)) => format!("{rate}/s"),
        (Value::Bool(on), _) => on.to_string(),
        (Value::Int(number), _) => number.to_string(),
        (Value::Float(number), _) => number.to_string(),
        (Value::Str(text), _) => text.clone(),
        (Value::Duration(duration), _) => duration_text(*duration),
        (Value::Range(first, last), _) => range_text(*first, *last),
        (Value::List(list), _) => {
            list.iter().map(|item| redact(item)).collect::<Vec<_>>().join(", ")
        }
        (Value::Table(table), ty) => {
            let mut inner = Vec::new();
            let keys = if let Some(Ty::Table(keys)) = ty { keys } else { &[] };
            values(&mut inner, "", table, keys);
            let pairs: Vec<String> =
                inner.iter().map(|(key, value)| format!("{key} = {value}")).collect();
            pairs.join(", ")
        }
        (Value::Json(json), _) => json.to_string(),
        (Value::Columns(columns), _) => columns.iter().map(column).collect::<Vec<_>>().join(", "),
    }
}

fn column(column: &Column) -> String {
    let from = match &column.from {
        Selector::Member(names) => names.join("."),
        named => {
            let known = Selector::NAMED.iter().find(|(_, selector)| selector == named);
            known.map_or_else(String::new, |(name, _)| (*name).to_owned())
        }
    };
    let ty = column.ty.as_ref().map(|ty| format!(" ({ty})")).unwrap_or_default();
    format!("{} ← {from}{ty}", column.name)
}
