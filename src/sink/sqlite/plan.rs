//! How rows get into the table: which columns, which key, which statements.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use anyhow::Result;

use super::DIALECT;
use crate::sink::columns::{Mapped, Mapping, Type};
use crate::sink::table::{self, Config, Fitted, Found, Layout};
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
        let table = quote(&config.table);
        let Fitted { columns, id, key } =
            table::fit(config, layout, &DIALECT, (&place, &table), read_as)?;
        let known = if id.is_some() { Known::ByColumn } else { Known::BySeen };
        let conflict = match id {
            _ if !key.is_empty() => on_key(&columns, &key),
            // invariant: stored-once
            Some(id) => format!(" ON CONFLICT ({}) DO NOTHING", quote(&columns[id].name)),
            None => String::new(),
        };
        let names: Vec<_> = columns.iter().map(|column| quote(&column.name)).collect();
        Ok(Self {
            insert: format!("INSERT INTO {table} ({}) VALUES ", names.join(", ")),
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

/// What the values of a column are read as: the type asked for, else the one it has.
fn read_as(found: &Found, asked: Option<&str>) -> (Type, String) {
    let name = asked.unwrap_or(&found.declared).to_lowercase();
    (of_declared(&name), name)
}

/// The type of a declared name: by its usual meaning, else by SQLite's rules of affinity. Whole
/// numbers have 64 bits here, whatever they are called.
pub(super) fn of_declared(declared: &str) -> Type {
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

/// An identifier of SQL, whatever it holds.
pub(super) fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// The statement that creates the missing table.
pub(super) fn create(config: &Config) -> String {
    let lines = config.declarations(&DIALECT);
    format!("CREATE TABLE IF NOT EXISTS {} {lines}", quote(&config.table))
}

/// What a column is declared as. Its affinity must not change what is stored: JSON and times are
/// text to SQLite, and a member without a type stays what it is.
pub(super) fn declared(from: &Selector, ty: Option<&str>) -> String {
    let declared = match (ty.and_then(Type::parse), from) {
        (None, Selector::Member(_)) | (Some(Type::Any), _) => "",
        (Some(Type::Int(_)), _) => "INTEGER",
        (Some(Type::Bool), _) => "BOOLEAN",
        (Some(Type::Float), _) => "REAL",
        (Some(Type::Numeric), _) => "NUMERIC",
        (Some(Type::Bytes), _) => "BLOB",
        _ => "TEXT",
    };
    declared.into()
}
