//! How a kind declares its keys, once: parsing, checking, `aqueduct schema` and the reference in
//! the documentation all come from these tables.

mod fields;
pub mod parse;
pub mod text;
pub mod units;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// One key of a table in the topology file.
#[derive(Debug)]
pub struct Key {
    /// As the user writes it.
    pub name: &'static str,
    /// What it accepts.
    pub ty: Ty,
    /// What holds when it is absent, written as the user would write it.
    pub default: Default,
    /// One sentence for the schema and the reference.
    pub doc: &'static str,
}

/// What holds when a key is absent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Default {
    /// Its absence is a fault.
    Required,
    /// Absent means absent.
    Absent,
    /// This value, in TOML (`"\"5s\""`, `"1000"`).
    Toml(&'static str),
    /// Something that depends on the rest of the file; the text tells the user what.
    Derived(&'static str),
}

/// What a key accepts. Each parses to the [`Value`] of the same shape.
#[derive(Clone, Copy, Debug)]
pub enum Ty {
    /// Any string, not empty.
    Str,
    /// `true` or `false`.
    Bool,
    /// A whole number from the first to the second, both included.
    Int(i64, i64),
    /// `"250ms" "5s" "2m" "1h" "7d"` → [`Value::Duration`].
    Duration,
    /// `"64KiB" "1MiB"`, or a number of bytes → [`Value::Int`].
    Size,
    /// `"1000/s"`; `"0/s"` is no limit → [`Value::Float`], events a second.
    Rate,
    /// `"1..50"`, both included → [`Value::Range`].
    Range,
    /// One of these words → [`Value::Str`].
    Choice(&'static [&'static str]),
    /// The name of a component of this file → [`Value::Str`].
    Ref(Room),
    /// A plain name by the rules of names.
    Name,
    /// A JSON pointer: empty, or starting with `/`.
    Pointer,
    /// A path in the file system, relative to the working directory.
    Path,
    /// A path served over HTTP: it starts with `/`.
    Route,
    /// `host:port` to listen on.
    Listen,
    /// The name of a Prometheus metric.
    Metric,
    /// A URL with one of these schemes. Its password is never printed → [`Value::Str`].
    Url(&'static [&'static str]),
    /// The same, or nothing at all: what a variable can turn off → [`Value::Str`].
    UrlOrNone(&'static [&'static str]),
    /// A URL with one of these schemes, or a list of such. No password is ever printed →
    /// [`Value::List`].
    Urls(&'static [&'static str]),
    /// A secret string, or a list of them → [`Value::List`].
    Secrets,
    /// A list of strings → [`Value::List`].
    Strs,
    /// A table with these keys → [`Value::Table`].
    Table(&'static [Key]),
    /// The columns of a database sink → [`Value::Columns`].
    Columns,
    /// A string, or a table sent as a JSON object → [`Value::Str`] or [`Value::Json`].
    Body,
    /// `"acked"`, `"forever"` or a duration → [`Value::Str`] or [`Value::Duration`].
    Retain,
    /// `"10/s"`, a ratio from 0 to 1, `"all"` or `"none"` → [`Value::Str`], [`Value::Float`].
    Sample,
}

/// A table of named components.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Room {
    /// `[source.NAME]`
    Source,
    /// `[stream.NAME]`
    Stream,
    /// `[group.NAME]`
    Group,
    /// `[sink.NAME]`
    Sink,
    /// `[query.NAME]`
    Query,
    /// Where a group delivers: a sink or a stream.
    SinkOrStream,
}

impl Room {
    /// The tables of the topology file, in the order in which events meet them.
    pub const TABLES: [Room; 5] =
        [Room::Source, Room::Stream, Room::Group, Room::Sink, Room::Query];

    /// The name of the table, and what one of its components is called.
    pub fn noun(self) -> &'static str {
        match self {
            Room::Source => "source",
            Room::Stream => "stream",
            Room::Group => "group",
            Room::Sink => "sink",
            Room::Query => "query",
            Room::SinkOrStream => "sink or stream",
        }
    }
}

/// A checked value. Its `Debug` shows no secret: no URL's password and no list.
#[derive(Clone, PartialEq)]
pub enum Value {
    /// `true` or `false`.
    Bool(bool),
    /// A whole number, or a size in bytes.
    Int(i64),
    /// A fraction, or a rate in events a second.
    Float(f64),
    /// Text.
    Str(String),
    /// A span of time.
    Duration(Duration),
    /// From the first to the last, both included.
    Range(u64, u64),
    /// Several strings.
    List(Vec<String>),
    /// A table whose keys were declared.
    Table(Values),
    /// A table of the user's own, as JSON, in the order written.
    Json(serde_json::Value),
    /// A database sink's columns, in the order written.
    Columns(Vec<Column>),
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(on) => write!(f, "{on}"),
            Value::Int(number) => write!(f, "{number}"),
            Value::Float(number) => write!(f, "{number}"),
            Value::Str(text) => write!(f, "{:?}", text::redact(text)),
            Value::Duration(duration) => f.write_str(&units::duration_text(*duration)),
            Value::Range(first, last) => f.write_str(&units::range_text(*first, *last)),
            Value::List(list) => write!(f, "[{} strings]", list.len()),
            Value::Table(values) => values.fmt(f),
            Value::Json(json) => f.write_str(&text::redact(&json.to_string())),
            Value::Columns(columns) => columns.fmt(f),
        }
    }
}

/// One column of a database sink.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The column's name in the table.
    pub name: String,
    /// What goes into it.
    pub from: Selector,
    /// The SQL type asked for, lower case, as the user wrote it.
    pub ty: Option<String>,
}

/// What goes into a column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// `@body`: the whole body.
    Body,
    /// `@id`: the event's id.
    Id,
    /// `@time`: when it was accepted.
    Time,
    /// `@source`: the source that made it.
    Source,
    /// `@stream`: the stream it came through.
    Stream,
    /// `@key`: its key.
    Key,
    /// `@type`: its type.
    Kind,
    /// `@trace`: its trace id.
    Trace,
    /// A member of the JSON body: the names on the way down (`"user.name"`).
    Member(Vec<String>),
}

impl Selector {
    /// The selectors that start with `@`, as a user writes them.
    pub const NAMED: &'static [(&'static str, Selector)] = &[
        ("@body", Selector::Body),
        ("@id", Selector::Id),
        ("@time", Selector::Time),
        ("@source", Selector::Source),
        ("@stream", Selector::Stream),
        ("@key", Selector::Key),
        ("@type", Selector::Kind),
        ("@trace", Selector::Trace),
    ];
}

/// The checked values of one table, defaults filled in, in the order of their declaration.
#[derive(Clone, Debug, PartialEq, std::default::Default)]
pub struct Values(Vec<(&'static str, Value)>);

impl Values {
    /// Sets a key.
    pub fn set(&mut self, name: &'static str, value: Value) {
        match self.0.iter_mut().find(|(known, _)| *known == name) {
            Some((_, old)) => *old = value,
            None => self.0.push((name, value)),
        }
    }

    /// The value of a key, where it is given or has a default.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }

    /// A string; the empty string where it is absent.
    pub fn str(&self, name: &str) -> &str {
        self.opt_str(name).unwrap_or_default()
    }

    /// A string, if given.
    pub fn opt_str(&self, name: &str) -> Option<&str> {
        match self.get(name) {
            Some(Value::Str(text)) => Some(text),
            _ => None,
        }
    }

    /// A table with declared keys, if given.
    pub fn opt_table(&self, name: &str) -> Option<&Values> {
        match self.get(name) {
            Some(Value::Table(values)) => Some(values),
            _ => None,
        }
    }

    /// A path, if given.
    pub fn opt_path(&self, name: &str) -> Option<PathBuf> {
        self.opt_str(name).map(PathBuf::from)
    }

    /// A number that cannot be negative; 0 where it is absent.
    pub fn uint(&self, name: &str) -> u64 {
        match self.get(name) {
            Some(Value::Int(number)) => u64::try_from(*number).unwrap_or_default(),
            _ => 0,
        }
    }

    /// `false` where it is absent.
    pub fn bool(&self, name: &str) -> bool {
        matches!(self.get(name), Some(Value::Bool(true)))
    }

    /// A duration, if given.
    pub fn opt_duration(&self, name: &str) -> Option<Duration> {
        match self.get(name) {
            Some(Value::Duration(duration)) => Some(*duration),
            _ => None,
        }
    }

    /// A fraction or rate, if given.
    pub fn opt_float(&self, name: &str) -> Option<f64> {
        match self.get(name) {
            Some(Value::Float(number)) => Some(*number),
            _ => None,
        }
    }

    /// A range, if given.
    pub fn opt_range(&self, name: &str) -> Option<(u64, u64)> {
        match self.get(name) {
            Some(Value::Range(first, last)) => Some((*first, *last)),
            _ => None,
        }
    }

    /// Several strings; none where it is absent.
    pub fn list(&self, name: &str) -> &[String] {
        match self.get(name) {
            Some(Value::List(list)) => list,
            _ => &[],
        }
    }

    /// A sink's columns, if given.
    pub fn opt_columns(&self, name: &str) -> Option<&[Column]> {
        match self.get(name) {
            Some(Value::Columns(columns)) => Some(columns),
            _ => None,
        }
    }
}

/// A rule between the keys of one kind that no single type can tell: the key it is about (the
/// place), and what is wrong (what is allowed).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Complaint {
    /// The key whose place is shown.
    pub key: &'static str,
    /// A lower-case fragment: what is wrong, and in parentheses what is allowed.
    pub message: String,
}

/// What a plug-in may know of the process it runs in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// `runtime.data_dir`
    pub data_dir: PathBuf,
    /// `runtime.instance`: unique to this process.
    pub instance: String,
    /// `--until-idle` was asked for.
    pub until_idle: bool,
    /// What is opened is to run. A command or a page only looks, and changes no setting of a
    /// stream.
    pub runs: bool,
}
