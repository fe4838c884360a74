//! A transaction on a PostgreSQL connection.

use std::time::Instant;

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use sqlx::postgres::{PgArguments, PgRow};
use sqlx::{AssertSqlSafe, Row as _, TypeInfo, ValueRef};

use crate::client::postgres::{Session, quote_text};
use crate::stream::sql::local::Outbox;
use crate::stream::sql::{Arg, Cell, Mode, Row, Sql, Statement};

/// A transaction. Dropped unfinished, it takes its connection with it, and the server undoes it.
pub(super) struct Tx {
    session: Session,
    generation: u64,
    /// The server's clock when it began, in microseconds since 1970 UTC.
    began_us: i64,
    began: Instant,
    /// What is to happen once it is committed.
    pub outbox: Outbox,
}

impl Tx {
    /// Begins one, in one round trip with a look at the server's clock.
    pub async fn begin(mut session: Session, generation: u64, mode: Mode) -> Result<Self> {
        let begin = match mode {
            Mode::Read => "BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY",
            Mode::Loose => {
                "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL synchronous_commit = off"
            }
            Mode::Kept | Mode::Durable => "BEGIN ISOLATION LEVEL READ COMMITTED",
        };
        let clock = "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint";
        let began = Instant::now();
        let row = sqlx::raw_sql(AssertSqlSafe(format!("{begin}; {clock}")))
            .fetch_all(&mut *session)
            .await?;
        let began_us = row.first().context("the server tells no time")?.try_get(0)?;
        Ok(Self { session, generation, began_us, began, outbox: Outbox::default() })
    }

    /// Commits it, and with it tells the processes that listen on `channel` whom to wake; `own` is
    /// what this process knows its own words by.
    pub async fn commit(mut self, channel: &str, own: u64) -> Result<(Session, Outbox)> {
        let mut end = String::new();
        for (stream, group) in self.outbox.wakes() {
            let group = group.as_deref().unwrap_or_default();
            let text = quote_text(&format!("{own:016x} {stream} {group}"));
            end.push_str(&format!("NOTIFY {channel}, {text}; "));
        }
        end.push_str("COMMIT");
        sqlx::raw_sql(AssertSqlSafe(end)).execute(&mut *self.session).await?;
        Ok((self.session, self.outbox))
    }

    /// Undoes it.
    pub async fn roll_back(mut self) -> sqlx::Result<Session> {
        sqlx::raw_sql("ROLLBACK").execute(&mut *self.session).await?;
        Ok(self.session)
    }

    /// The server's process behind it.
    pub fn pid(&self) -> i32 {
        self.session.pid()
    }

    fn server_us(&self) -> i64 {
        self.began_us + i64::try_from(self.began.elapsed().as_micros()).unwrap_or_default()
    }
}

type Query = sqlx::query::Query<'static, sqlx::Postgres, PgArguments>;

fn query(statement: Statement, args: &[Arg<'_>]) -> Query {
    args.iter().fold(sqlx::query(statement.postgres), |query, arg| match *arg {
        Arg::Int(number) => query.bind(number),
        // The one character that PostgreSQL's text cannot hold.
        Arg::Text(text) if text.contains('\0') => query.bind(text.replace('\0', "\u{fffd}")),
        Arg::Text(text) => query.bind(text),
        Arg::Blob(bytes) => query.bind(bytes),
    })
}

fn row(row: &PgRow) -> Result<Row> {
    let cells = (0..row.len()).map(|column| {
        let value = row.try_get_raw(column)?;
        if value.is_null() {
            return Ok(Cell::Null);
        }
        let cell = match value.type_info().name() {
            "INT8" => Cell::Int(row.try_get(column)?),
            "INT4" => Cell::Int(row.try_get::<i32, _>(column)?.into()),
            "BOOL" => Cell::Int(row.try_get::<bool, _>(column)?.into()),
            "TEXT" => Cell::Text(row.try_get(column)?),
            "BYTEA" => Cell::Blob(row.try_get(column)?),
            other => bail!("column {column} of an answer is of type {other}"),
        };
        Ok(cell)
    });
    Ok(Row(cells.collect::<Result<_>>()?))
}

#[async_trait]
impl Sql for Tx {
    async fn rows(&mut self, statement: Statement, args: &[Arg<'_>]) -> Result<Vec<Row>> {
        let rows = query(statement, args).fetch_all(&mut *self.session).await?;
        rows.iter().map(row).collect()
    }

    async fn run(&mut self, statement: Statement, args: &[Arg<'_>]) -> Result<u64> {
        Ok(query(statement, args).execute(&mut *self.session).await?.rows_affected())
    }

    fn now_ms(&self) -> i64 {
        self.server_us() / 1000
    }

    fn time_us(&self) -> i64 {
        self.server_us()
    }

    fn generation(&self) -> u64 {
        self.generation
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }
}
