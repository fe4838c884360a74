//! A transaction on a SQLite connection, or a connection to read with.

use anyhow::{Result, bail};
use async_trait::async_trait;
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Row as _, TypeInfo, ValueRef};

use super::clock;
use crate::event::now_us;
use crate::stream::sql::local::Outbox;
use crate::stream::sql::{Arg, Cell, Row, Sql, Statement};

/// A connection, and what is done on it. Dropped unfinished, it takes the connection with it,
/// which rolls it back.
pub(super) struct Tx {
    /// The connection.
    pub sql: SqliteConnection,
    /// Which opening of the file this is.
    pub generation: u64,
    /// Bytes that it writes, about.
    pub written: u64,
    /// What is to happen once it is committed.
    pub outbox: Outbox,
}

impl Tx {
    /// A transaction on `sql` that has written nothing yet.
    pub fn new(sql: SqliteConnection, generation: u64) -> Self {
        Self { sql, generation, written: 0, outbox: Outbox::default() }
    }
}

type Query = sqlx::query::Query<'static, sqlx::Sqlite, SqliteArguments>;

fn query(statement: Statement, args: &[Arg<'_>]) -> Query {
    args.iter().fold(sqlx::query(statement.sqlite), |query, arg| match *arg {
        Arg::Int(number) => query.bind(number),
        Arg::Text(text) => query.bind(text),
        Arg::Blob(bytes) => query.bind(bytes),
    })
}

fn row(row: &SqliteRow) -> Result<Row> {
    let cells = (0..row.len()).map(|column| {
        let value = row.try_get_raw(column)?;
        if value.is_null() {
            return Ok(Cell::Null);
        }
        let cell = match value.type_info().name() {
            "INTEGER" => Cell::Int(row.try_get(column)?),
            "TEXT" => Cell::Text(row.try_get(column)?),
            "BLOB" => Cell::Blob(row.try_get(column)?),
            other => bail!("column {column} of an answer is of type {other}"),
        };
        Ok(cell)
    });
    Ok(Row(cells.collect::<Result<_>>()?))
}

#[async_trait]
impl Sql for Tx {
    async fn rows(&mut self, statement: Statement, args: &[Arg<'_>]) -> Result<Vec<Row>> {
        let rows = query(statement, args).fetch_all(&mut self.sql).await?;
        rows.iter().map(row).collect()
    }

    async fn run(&mut self, statement: Statement, args: &[Arg<'_>]) -> Result<u64> {
        for arg in args {
            if let Arg::Blob(bytes) = arg {
                self.written += bytes.len() as u64;
            }
        }
        Ok(query(statement, args).execute(&mut self.sql).await?.rows_affected())
    }

    fn now_ms(&self) -> i64 {
        clock::now_ms()
    }

    fn time_us(&self) -> i64 {
        now_us()
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn is_shared(&self) -> bool {
        false
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}
