//! What the sinks that write tables share: their keys, the rules between these, and how what was
//! asked for fits the table that is there.

mod layout;

use std::time::Duration;

pub(super) use layout::{Dialect, Fitted, Found, Layout, fit};

use super::columns;
use crate::spec::{Column, Complaint, Default, Key, Selector, Ty, Values};

pub(super) const TABLE_DOC: &str = "The table that gets a row for each event.";

pub(super) const CREATE: Key = Key {
    name: "create",
    ty: Ty::Bool,
    default: Default::Toml("true"),
    doc: "A missing table is created, with these columns and the id column as its key.",
};

pub(super) const ID_COLUMN: Key = Key {
    name: "id_column",
    ty: Ty::Str,
    default: Default::Derived("the column mapped to `@id`, else `event_id`"),
    doc: "The column that keeps the event's id. It must be unique; where an existing table \
          has none, the ids seen are kept in the table `aqueduct_seen` beside it.",
};

pub(super) const MODE: Key = Key {
    name: "mode",
    ty: Ty::Choice(&["insert", "upsert"]),
    default: Default::Toml("\"insert\""),
    doc: "`insert`: one row per event, whatever is delivered again. `upsert`: one row per \
          `key`, which the last event with it fills.",
};

pub(super) const KEY: Key = Key {
    name: "key",
    ty: Ty::Strs,
    default: Default::Absent,
    doc: "With `mode = \"upsert\"`: the columns that make a row the same one. They must be \
          the primary key, or unique.",
};

pub(super) const SEEN: Key = Key {
    name: "seen",
    ty: Ty::Duration,
    default: Default::Toml("\"30d\""),
    doc: "How long `aqueduct_seen` knows an event that comes again, where the table itself \
          cannot tell (`upsert`, or a table without an id column).",
};

/// These keys, read.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) table: String,
    pub(super) columns: Vec<Column>,
    pub(super) default_columns: bool,
    pub(super) create: bool,
    pub(super) id_column: String,
    pub(super) id_column_asked: bool,
    /// Empty: every event is a row.
    pub(super) key: Vec<String>,
    pub(super) seen: Duration,
}

impl Config {
    pub(super) fn new(values: &Values, dialect: &Dialect) -> Self {
        let given = values.opt_columns("columns");
        let default = || Column {
            name: "data".into(),
            from: Selector::Body,
            ty: Some(dialect.body_type.into()),
        };
        Self {
            table: values.str("table").into(),
            columns: given.map_or_else(|| vec![default()], <[_]>::to_vec),
            default_columns: given.is_none(),
            create: values.bool("create"),
            id_column: values.opt_str("id_column").unwrap_or("event_id").into(),
            id_column_asked: values.opt_str("id_column").is_some(),
            key: match values.str("mode") {
                "upsert" => values.list("key").to_vec(),
                _ => Vec::new(),
            },
            seen: values.opt_duration("seen").unwrap_or(Duration::from_secs(30 * 86_400)),
        }
    }

    /// The lines of a `CREATE TABLE` for these columns.
    pub(super) fn declarations(&self, dialect: &Dialect) -> String {
        let quote = dialect.quote;
        // With a `key`, a row's id is that of the event which wrote it last.
        let id_line = |name: &str| {
            let key = if self.key.is_empty() { " PRIMARY KEY" } else { "" };
            format!("{} {}{key} NOT NULL", quote(name), dialect.id_type)
        };
        let mut lines = Vec::new();
        if !self.columns.iter().any(|column| column.from == Selector::Id) {
            lines.push(id_line(&self.id_column));
        }
        for Column { name, from, ty } in &self.columns {
            lines.push(match from {
                Selector::Id => id_line(name),
                _ => format!("{} {}", quote(name), (dialect.declare)(from, ty.as_deref())),
            });
        }
        if self.default_columns {
            lines.push(format!("\"inserted_at\" {}", dialect.inserted_at));
        }
        if !self.key.is_empty() {
            let names: Vec<_> = self.key.iter().map(|name| quote(name)).collect();
            lines.push(format!("PRIMARY KEY ({})", names.join(", ")));
        }
        format!("(\n  {}\n)", lines.join(",\n  "))
    }
}

/// What is wrong with these keys whatever the table is.
pub(super) fn check(values: &Values, dialect: &Dialect) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut complain = |key, message: String| complaints.push(Complaint { key, message });
    let same = dialect.same;
    let columns = values.opt_columns("columns");
    let key = values.list("key");
    match (values.str("mode"), key) {
        ("upsert", []) => {
            let message = "`mode = \"upsert\"` needs `key` (the columns that make a row the same)";
            complain("mode", message.into());
        }
        ("upsert", _) if columns.is_none() => {
            complain("mode", "`mode = \"upsert\"` needs `columns` (its `key` is of them)".into());
        }
        ("upsert", _) => {}
        (_, []) => {}
        _ => complain("key", "`key` means nothing here (it goes with `mode = \"upsert\"`)".into()),
    }
    let Some(columns) = columns else { return complaints };
    for name in key {
        if !columns.iter().any(|column| same(&column.name, name)) {
            let known: Vec<_> = columns.iter().map(|it| format!("`{}`", it.name)).collect();
            let message =
                format!("`{name}` is none of the columns (they are {})", known.join(", "));
            complain("key", message);
        }
    }
    let ids: Vec<_> = columns.iter().filter(|column| column.from == Selector::Id).collect();
    if let [_, second, ..] = ids[..] {
        let message = format!("`{}` is a second column for `@id` (one is enough)", second.name);
        complain("columns", message);
    }
    if let Some(asked) = values.opt_str("id_column")
        && let Some(other) = ids.iter().find(|column| !same(&column.name, asked))
    {
        let message = format!("`@id` goes into `{}` already (leave one of them out)", other.name);
        complain("id_column", message);
    }
    let id_column = values.opt_str("id_column").unwrap_or("event_id");
    let taken = columns.iter().find(|column| same(&column.name, id_column));
    if let Some(taken) = taken.filter(|column| ids.is_empty() && column.from != Selector::Id) {
        let message = format!(
            "`{}` is the id column and takes `@id` (map it to that, or set `id_column`)",
            taken.name
        );
        complain("columns", message);
    }
    complaints.extend(columns::check(columns, dialect.same, dialect.has_type));
    complaints
}
