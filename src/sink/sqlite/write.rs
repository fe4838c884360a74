//! Rows into the table: a batch is one transaction, and an event that the database will not take
//! is found by halving.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use sqlx::sqlite::{Sqlite, SqliteArguments};
use sqlx::{Arguments, AssertSqlSafe, Transaction};

use super::Table;
use super::plan::{Known, Plan};
use crate::event::{Delivery, EventId, Refusal, now_us};
use crate::sink::columns::{Datum, Mapping, time_text};
use crate::sink::database::{Database, add, code, primary, says, statement, trouble};
use crate::sink::table::Config;

/// The events of a batch that fit the columns, as rows.
pub(super) struct Rows<'a> {
    width: usize,
    /// Which event of the batch each row is.
    pub(super) index: Vec<usize>,
    ids: Vec<EventId>,
    values: Vec<Datum<'a>>,
}

/// How a transaction ended.
pub(super) enum End<T = Vec<Refusal>> {
    /// It is durable; these events are not in it.
    Committed(T),
    /// The database undid all of it, for this reason: a row's fault, but nobody knows which.
    Undone(String),
}

pub(super) async fn store(table: &mut Table, batch: &[&Delivery]) -> Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    let rows = read(&table.plan, batch, &mut refusals);
    let all: Vec<usize> = (0..rows.index.len()).collect();
    match transact(table, &rows, &all).await? {
        End::Committed(refused) => refusals.extend(refused),
        End::Undone(_) => refusals.extend(singly(table, &rows, &all).await?),
    }
    refusals.sort_by_key(|refusal| refusal.index);
    Ok(refusals)
}

/// A transaction a row, for what cannot be taken back any other way: a trigger or constraint that
/// rolls back, and a foreign key that is looked at on commit.
async fn singly(table: &mut Table, rows: &Rows<'_>, which: &[usize]) -> Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    for &row in which {
        table.reconnect().await?;
        match transact(table, rows, &[row]).await? {
            End::Committed(refused) => refusals.extend(refused),
            End::Undone(reason) => refusals.push(Refusal { index: rows.index[row], reason }),
        }
    }
    table.reconnect().await?;
    Ok(refusals)
}

impl Table {
    /// A connection that knows of no transaction.
    pub(super) async fn reconnect(&mut self) -> Result<()> {
        let path = self.database.path().to_owned();
        self.database = Database::open(&path).await?;
        Ok(())
    }
}

pub(super) fn read<'a>(
    plan: &Plan,
    batch: &[&'a Delivery],
    refusals: &mut Vec<Refusal>,
) -> Rows<'a> {
    let width = plan.mapping.columns().len();
    let mut rows = Rows {
        width,
        index: Vec::with_capacity(batch.len()),
        ids: Vec::with_capacity(batch.len()),
        values: Vec::with_capacity(batch.len() * width),
    };
    let mut found = Vec::new();
    for (index, delivery) in batch.iter().enumerate() {
        let start = rows.values.len();
        let mut read = plan.mapping.read(delivery, &mut found, &mut rows.values);
        let missing =
            plan.key.iter().find(|at| rows.values.get(start + **at) == Some(&Datum::Null));
        if let (Ok(()), Some(at)) = (&read, missing) {
            let name = &plan.mapping.columns()[*at].name;
            read = Err(Mapping::complain_no_key(name));
            rows.values.truncate(start);
        }
        match read {
            Ok(()) => {
                rows.index.push(index);
                rows.ids.push(delivery.event.id);
            }
            Err(reason) => refusals.push(Refusal { index, reason }),
        }
    }
    rows
}

/// Stores these rows in one transaction, without those that the database refuses.
async fn transact(table: &mut Table, rows: &Rows<'_>, which: &[usize]) -> Result<End> {
    let Table { config, plan, database, .. } = table;
    let path = database.path().to_owned();
    let mut refusals = Vec::new();
    let mut transaction = database.begin().await?;
    let hand = &mut Hand { config, plan, rows, path: &path, transaction: &mut transaction };
    let which = match plan.known {
        Known::ByColumn => which.to_vec(),
        Known::BySeen => hand.unseen(which).await?,
    };
    let mut todo: Vec<Range<usize>> = std::iter::once(0..which.len()).collect();
    while let Some(range) = todo.pop() {
        if range.is_empty() {
            continue;
        }
        let block = range.start..range.start + plan.block(range.len());
        todo.push(block.end..range.end);
        let Some(reason) = hand.insert(&which[block.clone()]).await? else { continue };
        if !hand.step_back().await {
            return Ok(End::Undone(reason));
        }
        match halves(block.clone()) {
            Some((first, second)) => todo.extend([second, first]),
            None => refusals.push(Refusal { index: rows.index[which[block.start]], reason }),
        }
    }
    if plan.known == Known::BySeen {
        hand.forget_expired(which.len()).await?;
    }
    match transaction.commit().await {
        Ok(()) => Ok(End::Committed(refusals)),
        Err(error) if primary(&error) == Some(code::CONSTRAINT) => {
            Ok(End::Undone(refused(config, &error)))
        }
        Err(error) => Err(trouble(&path, error)),
    }
}

pub(super) fn halves(range: Range<usize>) -> Option<(Range<usize>, Range<usize>)> {
    let middle = range.start + range.len() / 2;
    (range.len() > 1).then_some((range.start..middle, middle..range.end))
}

pub(super) fn refused(config: &Config, error: &sqlx::Error) -> String {
    format!("table `{}` refuses the row: {}", config.table, says(error))
}

/// One transaction's view.
pub(super) struct Hand<'h, 't, 'a> {
    pub(super) config: &'h Config,
    pub(super) plan: &'h Plan,
    pub(super) rows: &'h Rows<'a>,
    pub(super) path: &'h Path,
    pub(super) transaction: &'h mut Transaction<'t, Sqlite>,
}

impl Hand<'_, '_, '_> {
    /// Inserts a block of rows. Answers why not, when a row of it is at fault.
    pub(super) async fn insert(&mut self, which: &[usize]) -> Result<Option<String>> {
        let sql = self.plan.statement(which.len());
        let arguments = self.arguments(which)?;
        match statement(sql, arguments).execute(&mut **self.transaction).await {
            Ok(_) => Ok(None),
            Err(error) if self.is_the_rows_fault(&error).await => {
                Ok(Some(refused(self.config, &error)))
            }
            Err(error) => Err(trouble(self.path, error)),
        }
    }

    fn arguments(&self, which: &[usize]) -> Result<SqliteArguments> {
        let Rows { width, ids, values, .. } = self.rows;
        let mut arguments = SqliteArguments::default();
        arguments.reserve(which.len() * (width + 2), 0);
        if self.plan.known == Known::BySeen {
            let expires_us = now_us().saturating_add(self.config.seen.as_micros() as i64);
            for &row in which {
                add(&mut arguments, ids[row].to_bytes().to_vec())?;
                add(&mut arguments, expires_us)?;
            }
        }
        for &row in which {
            for value in &values[row * width..(row + 1) * width] {
                add_datum(&mut arguments, value)?;
            }
        }
        Ok(arguments)
    }

    /// Whether an error is about what a row holds, and would be gone without the row.
    async fn is_the_rows_fault(&mut self, error: &sqlx::Error) -> bool {
        match primary(error) {
            Some(code::CONSTRAINT | code::MISMATCH | code::TOOBIG) => true,
            // A function in a trigger, an index or a CHECK failed on a value (`malformed JSON`),
            // unless the statement itself makes no sense: then the table has changed.
            Some(code::ERROR) => {
                let explain = sqlx::raw_sql(AssertSqlSafe(self.plan.explain()));
                explain.execute(&mut **self.transaction).await.is_ok()
            }
            _ => false,
        }
    }

    /// Back to before the block that failed. `false`: the whole transaction is gone.
    pub(super) async fn step_back(&mut self) -> bool {
        let back = sqlx::raw_sql("ROLLBACK TO block; RELEASE block");
        back.execute(&mut **self.transaction).await.is_ok()
    }

    /// Those of `which` that were not stored before; of an id that is there twice, the first.
    pub(super) async fn unseen(&mut self, which: &[usize]) -> Result<Vec<usize>> {
        let mut seen: HashSet<EventId> = HashSet::new();
        let mut rest = which;
        while !rest.is_empty() {
            let (block, after) = rest.split_at(self.plan.block(rest.len()));
            rest = after;
            let marks = vec!["?"; block.len()].join(",");
            let table = &self.plan.table_text;
            let sql = format!(
                "SELECT event_id FROM aqueduct_seen
                 WHERE table_name = {table} AND event_id IN ({marks})"
            );
            let mut arguments = SqliteArguments::default();
            for &row in block {
                add(&mut arguments, self.rows.ids[row].to_bytes().to_vec())?;
            }
            let query = sqlx::query_scalar_with::<_, Vec<u8>, _>(AssertSqlSafe(sql), arguments);
            let found = query.fetch_all(&mut **self.transaction).await;
            let found = found.map_err(|error| trouble(self.path, error))?;
            let ids = found.into_iter().filter_map(|id| id.try_into().ok());
            seen.extend(ids.map(EventId::from_bytes));
        }
        Ok(which.iter().copied().filter(|row| seen.insert(self.rows.ids[*row])).collect())
    }

    /// Drops ids past their time: more than were added, so that they get fewer.
    pub(super) async fn forget_expired(&mut self, added: usize) -> Result<()> {
        let mut arguments = SqliteArguments::default();
        add(&mut arguments, now_us())?;
        add(&mut arguments, 100 + 2 * added as i64)?;
        let forget = statement(
            "DELETE FROM aqueduct_seen WHERE (table_name, event_id) IN
             (SELECT table_name, event_id FROM aqueduct_seen WHERE expires_us < ? LIMIT ?)",
            arguments,
        );
        let done = forget.execute(&mut **self.transaction).await;
        done.map(|_| ()).map_err(|error| trouble(self.path, error))
    }
}

fn add_datum(arguments: &mut SqliteArguments, value: &Datum<'_>) -> Result<()> {
    type Shared = std::sync::Arc<str>;
    match value {
        Datum::Null => add(arguments, None::<i64>),
        Datum::Bool(it) => add(arguments, i64::from(*it)),
        Datum::Int(it) => add(arguments, *it),
        Datum::Float(it) => add(arguments, *it),
        Datum::Numeric(it) | Datum::Text(it) | Datum::Json(it) => {
            add(arguments, Shared::from(&**it))
        }
        Datum::Name(it) => add(arguments, Shared::clone(it)),
        Datum::Time(it) => add(arguments, Shared::from(time_text(*it))),
        Datum::Uuid(it) => {
            let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
            add(arguments, Shared::from(&*it.hyphenated().encode_lower(&mut text)))
        }
        Datum::Bytes(it) => add(arguments, it.to_vec()),
    }
}
