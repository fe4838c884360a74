//! Each table on its own: known tables and keys, names, kinds, and values of the right type.

use config::ValueKind;

use super::{Draft, Findings, Part};
use crate::spec::parse::{self, NAMES, RawTable, Table, is_name};
use crate::spec::text::{did_you_mean, listed, near, shown};
use crate::spec::{Complaint, Default, Key, Room, Ty, Value, Values};
use crate::topology::tables::{self, Kinds, PLAIN, STREAM_KIND};
use crate::{sink, source, stream};

/// `kind`, whose absence and whose words are checked here and not by its type.
static KIND: Key = Key { name: "kind", ty: Ty::Str, default: Default::Absent, doc: "" };

/// What the kinds of sources, streams and sinks have in common.
trait Kind {
    fn name(&self) -> &'static str;
    fn keys(&self) -> &'static [Key];
    fn complaints(&self, values: &Values) -> Vec<Complaint>;
}

macro_rules! kinds {
    ($($kind:ty),+) => {$(
        impl Kind for $kind {
            fn name(&self) -> &'static str {
                self.name
            }
            fn keys(&self) -> &'static [Key] {
                self.keys
            }
            fn complaints(&self, values: &Values) -> Vec<Complaint> {
                (self.check)(values)
            }
        }
    )+};
}
kinds!(source::Kind, stream::Kind, sink::Kind);

/// Reads every table of the file.
pub(super) fn draft(root: &RawTable, kinds: Kinds, findings: &mut Findings) -> Draft {
    let unknown = unknown_tables(root, findings);
    let streams = room(root, Room::Stream, kinds.streams, Some(STREAM_KIND), findings);
    let draft = Draft {
        kinds,
        runtime: plain(root, "runtime", findings).unwrap_or_else(|| defaults("runtime")),
        http: plain(root, "http", findings),
        tracing: plain(root, "tracing", findings),
        sources: room(root, Room::Source, kinds.sources, None, findings),
        groups: groups(root, &streams, kinds, findings),
        streams,
        sinks: room(root, Room::Sink, kinds.sinks, None, findings),
        queries: queries(root, findings),
    };
    let tables = [Room::Source, Room::Stream, Room::Group, Room::Query];
    if !unknown && tables.iter().all(|room| !root.contains_key(room.noun())) {
        let message = "nothing to do: the file has no source, no stream and no group (a start: a \
                       `[source.NAME]` that writes `to` a `[stream.NAME]`, and a `[group.NAME]` \
                       that carries `from` it `to` a `[sink.NAME]`)";
        findings.fault(&[], message.to_owned());
    }
    draft
}

fn unknown_tables(root: &RawTable, findings: &mut Findings) -> bool {
    let known = || {
        let plain = PLAIN.iter().map(|(name, _)| *name);
        plain.chain(Room::TABLES.iter().map(|room| room.noun()))
    };
    let mut any = false;
    for (name, _) in root.iter().filter(|(name, _)| !known().any(|known| known == *name)) {
        any = true;
        let message = format!(
            "unknown table `{}` (tables: {}){}",
            shown(name),
            listed(known(), "and"),
            did_you_mean(name, known())
        );
        findings.fault_at_key(&[name], message);
    }
    any
}

/// What a value is, for messages.
fn noun(value: &config::Value) -> &'static str {
    match value.kind {
        ValueKind::Nil | ValueKind::String(_) => "a string",
        ValueKind::Boolean(_) => "a boolean",
        ValueKind::Table(_) => "a table",
        ValueKind::Array(_) => "a list",
        _ => "a number",
    }
}

/// A table without components; `None` where the file does not have it.
fn plain(root: &RawTable, name: &str, findings: &mut Findings) -> Option<Values> {
    let raw = root.get(name)?;
    let ValueKind::Table(table) = &raw.kind else {
        findings.fault(&[name], format!("`{name}` is {} (a table: `[{name}]`)", noun(raw)));
        return Some(defaults(name));
    };
    let keys = PLAIN.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, keys)| *keys);
    let (values, problems) = Table::new(name, keys.iter()).read(table);
    report(&[name], problems, findings);
    Some(values)
}

fn defaults(name: &str) -> Values {
    let keys = PLAIN.iter().find(|(known, _)| *known == name).map_or(&[][..], |(_, keys)| *keys);
    Table::new(name, keys.iter()).read(&RawTable::new()).0
}

fn report(path: &[&str], problems: Vec<parse::Problem>, findings: &mut Findings) {
    let path: Vec<String> = path.iter().map(|name| (*name).to_owned()).collect();
    for problem in problems {
        let fault = findings.places.problem(&path, problem);
        findings.faults.push(fault);
    }
}

/// The components of a table, each with its name checked.
fn components<'a>(
    root: &'a RawTable,
    room: Room,
    findings: &mut Findings,
) -> Vec<(&'a str, &'a RawTable)> {
    let noun_of = room.noun();
    let Some(raw) = root.get(noun_of) else { return Vec::new() };
    let ValueKind::Table(table) = &raw.kind else {
        let message =
            format!("`{noun_of}` is {} (tables with a name: `[{noun_of}.NAME]`)", noun(raw));
        findings.fault(&[noun_of], message);
        return Vec::new();
    };
    if table.is_empty() {
        let message = format!("`[{noun_of}]` has no name (`[{noun_of}.NAME]`)");
        findings.fault(&[noun_of], message);
    }
    let mut out = Vec::with_capacity(table.len());
    for (name, raw) in table {
        let ValueKind::Table(component) = &raw.kind else {
            let message = format!(
                "`{}` stands in `[{noun_of}]` itself (a {noun_of} is a table with a name: \
                 `[{noun_of}.NAME]`)",
                shown(name)
            );
            findings.fault_at_key(&[noun_of, name], message);
            continue;
        };
        if !is_name(name) {
            let lower = name.to_lowercase().replace([' ', '.'], "-");
            let hint =
                if is_name(&lower) { format!(", did you mean `{lower}`?") } else { String::new() };
            let message = format!("`{}` cannot name a {noun_of} ({NAMES}){hint}", quoted(name));
            findings.fault_at_key(&[noun_of, name], message);
        }
        out.push((name.as_str(), component));
    }
    out
}

/// Sources, streams or sinks.
fn room<K: Kind>(
    root: &RawTable,
    room: Room,
    kinds: &'static [&'static K],
    default: Option<&str>,
    findings: &mut Findings,
) -> Vec<Part<K>> {
    let mut parts = Vec::new();
    for (name, raw) in components(root, room, findings) {
        let kind = kind_of(room, name, raw, kinds, default, findings);
        let common = || tables::common(room).iter();
        let keys = common().map(|key| if key.name == KIND.name { &KIND } else { key });
        let own: &'static [Key] = kind.map_or(&[], Kind::keys);
        let owner = format!("{}.{}", room.noun(), shown(name));
        let of = kind.map(|kind| format!("a `{}`", kind.name()));
        let unknown_kind = kind.is_none();
        // Where the kind is a variable, so is what only some kinds have; the others are given none.
        let varies = |key: &str| findings.places.holds_variable(&[room.noun(), name, key]);
        let kind_varies = varies(KIND.name);
        let is_none = |key: &str| {
            if !kind_varies && !varies(key) {
                return false;
            }
            let empty = |raw: &config::Value| matches!(&raw.kind, ValueKind::String(text) if text.is_empty());
            let known = || kinds.iter().flat_map(|kind| kind.keys());
            raw.get(key).is_some_and(empty) && known().any(|known| known.name == key)
        };
        let table = Table {
            owner: &owner,
            of: of.as_deref(),
            keys: keys.chain(own),
            ignores: &|key| unknown_kind || is_none(key),
        };
        let (mut values, mut problems) = table.read(raw);
        problems.retain(|problem| problem.path != [KIND.name]);
        let of_kind = |problem: &parse::Problem| {
            problem.path.first().is_none_or(|key| own.iter().any(|own| own.name == key))
        };
        let sound = !problems.iter().any(of_kind);
        if let Some(kind) = kind {
            values.set(KIND.name, Value::Str(kind.name().to_owned()));
            // A rule between keys is asked only where each of them could be read.
            if sound {
                for Complaint { key, message } in kind.complaints(&values) {
                    findings.fault(&[room.noun(), name, key], message);
                }
            }
        }
        report(&[room.noun(), name], problems, findings);
        parts.push(Part { name: name.to_owned(), kind, values, sound });
    }
    parts
}

/// The kind a component names; where it names none or an unknown one, that is a fault.
fn kind_of<K: Kind>(
    room: Room,
    name: &str,
    raw: &RawTable,
    kinds: &'static [&'static K],
    default: Option<&str>,
    findings: &mut Findings,
) -> Option<&'static K> {
    let noun_of = room.noun();
    let known = || kinds.iter().map(|kind| kind.name());
    let allowed = || format!("kinds: {}", listed(known(), "and"));
    let word = match raw.get(KIND.name).map(|value| &value.kind) {
        Some(ValueKind::String(word)) => Some(word.as_str()),
        Some(ValueKind::Nil) => return None,
        Some(_) => {
            let message = format!("the `kind` of a {noun_of} is a string ({})", allowed());
            findings.fault(&[noun_of, name, KIND.name], message);
            return None;
        }
        None => default,
    };
    let Some(word) = word else {
        let hint = misspelt_kind(raw, tables::common(room));
        let message = format!("`{noun_of}.{}` has no `kind` ({}){hint}", shown(name), allowed());
        findings.fault(&[noun_of, name], message);
        return None;
    };
    let kind = kinds.iter().find(|kind| kind.name() == word).copied();
    if kind.is_none() {
        let message = format!(
            "unknown kind `{}` of a {noun_of} ({}){}",
            shown(word),
            allowed(),
            did_you_mean(word, known())
        );
        findings.fault(&[noun_of, name, KIND.name], message);
    }
    kind
}

/// `type = "tail"` and the like: a key that is close to `kind`, or what others call it.
fn misspelt_kind(raw: &RawTable, common: &[Key]) -> String {
    let unknown = |key: &&str| !common.iter().any(|known| known.name == *key);
    let close = |key: &&str| *key == "type" || near(key, [KIND.name]).is_some();
    match raw.keys().map(String::as_str).filter(unknown).find(close) {
        Some(key) => format!(", did you write `{}` for `kind`?", shown(key)),
        None => String::new(),
    }
}

/// Groups, with the keys that the kind of their stream adds.
fn groups(
    root: &RawTable,
    streams: &[Part<stream::Kind>],
    kinds: Kinds,
    findings: &mut Findings,
) -> Vec<Part<stream::Kind>> {
    let mut parts = Vec::new();
    for (name, raw) in components(root, Room::Group, findings) {
        let from = match raw.get("from").map(|value| &value.kind) {
            Some(ValueKind::String(from)) => streams.iter().find(|stream| stream.name == *from),
            _ => None,
        };
        let kind = from.and_then(|stream| stream.kind);
        let own: &'static [Key] = kind.map_or(&[], |kind| kind.group_keys);
        let owner = format!("group.{}", shown(name));
        // Of which kind the stream is, is not known: its keys cannot be told from wrong ones.
        let some_kinds =
            |key: &str| kind.is_none() && kinds.group_keys(None).any(|known| known.name == key);
        let keys = tables::GROUP.iter().chain(own);
        let table = Table { ignores: &some_kinds, ..Table::new(&owner, keys) };
        let (values, problems) = table.read(raw);
        report(&["group", name], problems, findings);
        parts.push(Part { name: name.to_owned(), kind, values, sound: true });
    }
    parts
}

fn queries(root: &RawTable, findings: &mut Findings) -> Vec<Part<()>> {
    let mut parts = Vec::new();
    for (name, raw) in components(root, Room::Query, findings) {
        let owner = format!("query.{}", shown(name));
        let (values, problems) = Table::new(&owner, tables::QUERY.iter()).read(raw);
        report(&["query", name], problems, findings);
        parts.push(Part { name: name.to_owned(), kind: None, values, sound: true });
    }
    parts
}

/// A name as a header writes it: bare, or in quotes where it is empty.
fn quoted(name: &str) -> String {
    if name.is_empty() { "\"\"".to_owned() } else { shown(name) }
}
