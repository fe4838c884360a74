//! How rows get into the table: which columns, which key, which statements.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::{Result, bail};

use super::Config;
use super::layout::{Found, Layout};
use crate::sink::columns::{Mapped, Mapping, Type};
use crate::spec::Selector;

/// SQLite's limit on the placeholders of one statement.
const PLACEHOLDERS_MAX: usize = 32_766;
/// Rows in one statement, at most: more are not faster.
const ROWS_MAX: usize = 512;

/// How an event that comes again is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Its id is in the table's id column, which is unique.
    ByColumn,
    /// Its id is in `aqueduct_seen`.
    BySeen,
}

/// How rows get into the table.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) mapping: Mapping,
    pub(super) known: Known,
    /// Where in a row the columns of `key` are.
    pub(super) key: Vec<usize>,
    /// The table's name as `aqueduct_seen` has it: a string literal, lower case.
    pub(super) table_text: String,
    /// `INSERT INTO t (a, b) VALUES `
    insert: String,
    /// What follows the rows.
    conflict: String,
    /// The statement for each count of rows that is a power of two.
    statements: [OnceLock<Arc<str>>; ROWS_MAX.ilog2() as usize + 1],
}

impl Plan {
    /// A plan for this table, or why there can be none.
    pub(super) fn new(config: &Config, layout: &Layout, path: &Path) -> Result<Self> {
        let place = format!("table `{}` in {}", config.table, path.display());
        let columns = config.columns.iter().map(|it| mapped(it, layout, &place));
        let mut columns = columns.collect::<Result<Vec<_>>>()?;
        let id_column = id_column(config, layout, &mut columns, &place)?;
        refuse_unfilled(layout, &columns, &place)?;
        let known = match (&id_column, config.key.is_empty()) {
            (Some(_), true) => Known::ByColumn,
            _ => Known::BySeen,
        };
        let mut key = Vec::new();
        for name in &config.key {
            match columns.iter().position(|column| column.name.eq_ignore_ascii_case(name)) {
                Some(at) => key.push(at),
                None => bail!("{place}: `key` names `{name}`, which `columns` does not"),
            }
        }
        let keys: Vec<&str> = config.key.iter().map(String::as_str).collect();
        if !keys.is_empty() && !layout.is_unique(&keys) {
            let list = keys.join(", ");
            bail!(
                "{place}: `key` ({list}) is neither its primary key nor unique (CREATE UNIQUE \
                 INDEX … ON {} ({list}))",
                quote(&config.table)
            );
        }
        let conflict = match (&id_column, key.is_empty()) {
            (_, false) => on_key(&columns, &key),
            (Some(id), true) => format!(" ON CONFLICT ({}) DO NOTHING", quote(id)),
            (None, true) => String::new(),
        };
        let names: Vec<_> = columns.iter().map(|column| quote(&column.name)).collect();
        Ok(Self {
            insert: format!("INSERT INTO {} ({}) VALUES ", quote(&config.table), names.join(", ")),
            conflict,
            mapping: Mapping::new(columns),
            known,
            key,
            table_text: format!("'{}'", config.table.to_lowercase().replace('\'', "''")),
            statements: Default::default(),
        })
    }

    /// How many of `rows` rows the next statement takes: a power of two.
    pub(super) fn block(&self, rows: usize) -> usize {
        let width = self.mapping.columns().len() + 2;
        let most = rows.min(ROWS_MAX).min(PLACEHOLDERS_MAX / width).max(1);
        1 << most.ilog2()
    }

    /// The statement that stores `rows` rows, a power of two. It takes (id, expiry) of each where
    /// ids are kept in `aqueduct_seen`, and then the rows. Where it fails, the savepoint `block`
    /// is left open.
    pub(super) fn statement(&self, rows: usize) -> Arc<str> {
        let make = || -> Arc<str> {
            let row = vec!["?"; self.mapping.columns().len()].join(",");
            let values = vec![format!("({row})"); rows].join(",");
            let seen = match self.known {
                Known::ByColumn => String::new(),
                Known::BySeen => {
                    let values = vec![format!("({},?,?)", self.table_text); rows].join(",");
                    format!("INSERT INTO aqueduct_seen VALUES {values};")
                }
            };
            let Self { insert, conflict, .. } = self;
            format!("SAVEPOINT block;{seen}{insert}{values}{conflict};RELEASE block").into()
        };
        self.statements[rows.ilog2() as usize].get_or_init(make).clone()
    }

    /// The row's insertion alone, for a look at whether it makes sense to the database.
    pub(super) fn explain(&self) -> String {
        let row = vec!["?"; self.mapping.columns().len()].join(",");
        format!("EXPLAIN {}({row}){}", self.insert, self.conflict)
    }
}

/// `DO UPDATE` of every column that is not of the key.
fn on_key(columns: &[Mapped], key: &[usize]) -> String {
    let names: Vec<_> = key.iter().map(|at| quote(&columns[*at].name)).collect();
    let sets: Vec<_> = (0..columns.len())
        .filter(|at| !key.contains(at))
        .map(|at| quote(&columns[at].name))
        .map(|name| format!("{name} = excluded.{name}"))
        .collect();
    match sets.is_empty() {
        true => format!(" ON CONFLICT ({}) DO NOTHING", names.join(", ")),
        false => format!(" ON CONFLICT ({}) DO UPDATE SET {}", names.join(", "), sets.join(", ")),
    }
}

/// The column that keeps the id, mapped in if it was not. `None`: the table has none.
fn id_column(
    config: &Config,
    layout: &Layout,
    columns: &mut Vec<Mapped>,
    place: &str,
) -> Result<Option<String>> {
    let name = match columns.iter().find(|column| column.from == Selector::Id) {
        Some(column) => column.name.clone(),
        None => match layout.column(&config.id_column) {
            Some(found) => {
                let column = (found.name.clone(), Selector::Id, None);
                columns.insert(0, mapped(&column, layout, place)?);
                found.name.clone()
            }
            None if config.id_column_asked => bail!(
                "{place} has no column `{}`{} (add it, unique; or leave `id_column` out, and the \
                 ids seen are kept beside the table)",
                config.id_column,
                did_you_mean(&config.id_column, layout)
            ),
            None => return Ok(None),
        },
    };
    if config.key.is_empty() && !layout.is_unique(&[&name]) {
        bail!(
            "{place}: its id column `{name}` is neither its primary key nor unique, so an event \
             could be stored twice (CREATE UNIQUE INDEX … ON {} ({}))",
            quote(&config.table),
            quote(&name)
        );
    }
    Ok(Some(name))
}

/// Every row would be refused when a column that must have a value gets none.
fn refuse_unfilled(layout: &Layout, columns: &[Mapped], place: &str) -> Result<()> {
    let filled =
        |found: &&Found| columns.iter().any(|column| column.name.eq_ignore_ascii_case(&found.name));
    match layout.columns.iter().find(|found| found.needed && !found.generated && !filled(found)) {
        Some(found) => bail!(
            "{place}: column `{}` is NOT NULL without a default, and nothing goes into it (name \
             it in `columns`)",
            found.name
        ),
        None => Ok(()),
    }
}

/// A mapped column, checked against the table.
fn mapped(
    (name, from, ty): &(String, Selector, Option<String>),
    layout: &Layout,
    place: &str,
) -> Result<Mapped> {
    let Some(found) = layout.column(name) else {
        let known: Vec<_> = layout.columns.iter().map(|it| format!("`{}`", it.name)).collect();
        bail!(
            "{place} has no column `{name}`{} (it has {}; change `columns`, or add the column)",
            did_you_mean(name, layout),
            known.join(", ")
        );
    };
    if found.generated {
        bail!("{place}: column `{name}` is generated and cannot be written (leave it out)");
    }
    let ty_name = ty.as_deref().unwrap_or(&found.declared).to_lowercase();
    let ty = of_declared(&ty_name);
    if *from == Selector::Id && matches!(ty, Type::Int(_) | Type::Float | Type::Bool) {
        bail!("{place}: column `{name}` is {ty_name}, which an event's id is not (TEXT is right)");
    }
    Ok(Mapped { name: found.name.clone(), from: from.clone(), ty, ty_name })
}

/// The type of a declared name: by its usual meaning, else by SQLite's rules of affinity. Whole
/// numbers have 64 bits here, whatever they are called.
fn of_declared(declared: &str) -> Type {
    let has = |words: &[&str]| words.iter().any(|word| declared.contains(word));
    match Type::parse(declared) {
        Some(Type::Int(_)) => Type::Int(64),
        Some(ty) => ty,
        None if has(&["int"]) => Type::Int(64),
        None if has(&["char", "clob", "text"]) => Type::Text,
        None if has(&["real", "floa", "doub"]) => Type::Float,
        None => Type::Any,
    }
}

fn did_you_mean(name: &str, layout: &Layout) -> String {
    let near = layout
        .columns
        .iter()
        .map(|column| (strsim::damerau_levenshtein(&column.name, name), &column.name))
        .min()
        .filter(|(distance, known)| *distance <= 1 + known.len() / 4);
    near.map(|(_, known)| format!(", did you mean `{known}`?")).unwrap_or_default()
}

/// An identifier of SQL, whatever it holds.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The statements that create the missing table.
pub(super) fn create(config: &Config) -> String {
    let mut lines = Vec::new();
    let id_mapped = config.columns.iter().any(|(_, from, _)| *from == Selector::Id);
    if !id_mapped {
        lines.push(id_line(config, &config.id_column));
    }
    for (name, from, ty) in &config.columns {
        lines.push(match from {
            Selector::Id => id_line(config, name),
            _ => format!("{} {}", quote(name), declared(from, ty.as_deref())),
        });
    }
    if config.default_columns {
        lines.push(
            "\"inserted_at\" TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))".into(),
        );
    }
    if !config.key.is_empty() {
        let names: Vec<_> = config.key.iter().map(|name| quote(name)).collect();
        lines.push(format!("PRIMARY KEY ({})", names.join(", ")));
    }
    format!("CREATE TABLE IF NOT EXISTS {} (\n  {}\n)", quote(&config.table), lines.join(",\n  "))
}

/// With a `key`, a row's id is that of the event which wrote it last.
fn id_line(config: &Config, name: &str) -> String {
    let key = if config.key.is_empty() { " PRIMARY KEY" } else { "" };
    format!("{} TEXT{key} NOT NULL", quote(name))
}

/// What a column is declared as. Its affinity must not change what is stored: JSON and times are
/// text to SQLite, and a member without a type stays what it is.
fn declared(from: &Selector, ty: Option<&str>) -> &'static str {
    match (ty.and_then(Type::parse), from) {
        (None, Selector::Member(_)) | (Some(Type::Any), _) => "",
        (Some(Type::Int(_)), _) => "INTEGER",
        (Some(Type::Bool), _) => "BOOLEAN",
        (Some(Type::Float), _) => "REAL",
        (Some(Type::Numeric), _) => "NUMERIC",
        (Some(Type::Bytes), _) => "BLOB",
        _ => "TEXT",
    }
}
