//! Rows into the table. A `COPY` is one transaction; where a row is at fault the others go without
//! it: the server names its line, or it is found by halving.

use std::time::Duration;

use anyhow::Result;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::Table;
use super::plan::Plan;
use super::rows::{self, Buffer, Rows};
use super::seen::{self, Pruning};
use crate::client::postgres::{
    Server, Session, code, database_error, is_conflict, is_trouble, says,
};
use crate::event::{Delivery, Refusal};

/// For how many batches without a duplicate the ids are looked up first, after one with.
const WARY_BATCHES: u32 = 16;
/// How often a transaction is tried again that was in conflict with another.
pub(super) const CONFLICTS_MAX: u32 = 5;
/// The wait before the first of these; it grows by itself.
const CONFLICT_WAIT: Duration = Duration::from_millis(20);
/// Bytes handed to the socket at once.
const CHUNK_BYTES: usize = 256 * 1024;
const UNIQUE_VIOLATION: &str = "23505";

/// What earlier batches taught.
#[derive(Default)]
pub(super) struct Caution {
    /// For how many batches duplicates are expected.
    pub(super) wary: u32,
    pruning: Pruning,
}

impl Table {
    /// The connection, to be put back when all is well.
    pub(super) async fn live(&mut self) -> Result<Session> {
        let Self { server, plan, session, .. } = self;
        match session.take() {
            Some(mut live) => {
                live.refresh(server).await?;
                Ok(live)
            }
            None => {
                let mut live = server.connect().await?;
                plan.equip(server, &mut live).await?;
                Ok(live)
            }
        }
    }
}

pub(super) async fn store(table: &mut Table, batch: &[&Delivery]) -> Result<Vec<Refusal>> {
    let mut live = table.live().await?;
    let Table { server, plan, session, buffer, caution, .. } = table;
    let mut refusals = Vec::new();
    let rows = rows::read(plan, batch, buffer, &mut refusals, false);
    let pid = live.pid();
    let mut writer = Writer::new(server, plan, &mut live, buffer, &rows, caution, &mut refusals);
    server.watch(pid, writer.write()).await??;
    *session = Some(live);
    for (twin, first) in &rows.twins {
        if let Some(refused) = refusals.iter().find(|refusal| refusal.index == *first) {
            refusals.push(Refusal { index: *twin, reason: refused.reason.clone() });
        }
    }
    refusals.sort_by_key(|refusal| refusal.index);
    Ok(refusals)
}

/// Why some rows are not stored. Nothing is, then.
pub(super) enum Fault {
    /// Some are stored already: these are not, as far as is known.
    Duplicates(Vec<usize>),
    /// One will not do: the one at this place, if that is known.
    Row(Option<usize>, String),
    /// Another transaction was in the way.
    Conflict(sqlx::Error),
    /// It is no row's fault.
    Trouble(anyhow::Error),
}

/// Rows that go by one statement.
pub(super) struct Part {
    pub(super) mask: u64,
    pub(super) rows: Vec<usize>,
    /// Their ids are looked up first.
    pub(super) wary: bool,
}

/// One batch on its way.
pub(super) struct Writer<'w> {
    pub(super) server: &'w Server,
    pub(super) plan: &'w Plan,
    pub(super) session: &'w mut Session,
    pub(super) buffer: &'w mut Buffer,
    pub(super) rows: &'w Rows,
    pub(super) caution: &'w mut Caution,
    pub(super) duplicates: bool,
    refusals: &'w mut Vec<Refusal>,
}

impl<'w> Writer<'w> {
    pub(super) fn new(
        server: &'w Server,
        plan: &'w Plan,
        session: &'w mut Session,
        buffer: &'w mut Buffer,
        rows: &'w Rows,
        caution: &'w mut Caution,
        refusals: &'w mut Vec<Refusal>,
    ) -> Self {
        Self { server, plan, session, buffer, rows, caution, duplicates: false, refusals }
    }
}

/// The wait before a transaction is tried once more.
pub(super) async fn conflict_wait(conflicts: u32) {
    tokio::time::sleep(CONFLICT_WAIT.mul_f64(f64::from(conflicts) * fastrand::f64())).await;
}

impl Writer<'_> {
    async fn write(&mut self) -> Result<()> {
        let mut todo = self.parts();
        let mut conflicts = 0;
        while let Some(mut part) = todo.pop() {
            if part.rows.is_empty() {
                continue;
            }
            match self.store(&part).await {
                Ok(()) => {}
                Err(Fault::Duplicates(rest)) => {
                    self.duplicates = true;
                    part.wary = true;
                    part.rows = rest;
                    todo.push(part);
                }
                Err(Fault::Row(at, reason)) => self.split(part, at, reason, &mut todo),
                Err(Fault::Conflict(error)) if conflicts == CONFLICTS_MAX => {
                    return Err(self.server.explain(&error));
                }
                Err(Fault::Conflict(_)) => {
                    conflicts += 1;
                    conflict_wait(conflicts).await;
                    todo.push(part);
                }
                Err(Fault::Trouble(error)) => return Err(error),
            }
        }
        self.learn().await
    }

    /// What the batch teaches for the next ones; and what it made room for is dropped.
    pub(super) async fn learn(&mut self) -> Result<()> {
        self.caution.wary = match self.duplicates {
            true => WARY_BATCHES,
            false => self.caution.wary.saturating_sub(1),
        };
        if self.plan.id.is_none() {
            let added = self.rows.index.len();
            let pruned = self.caution.pruning.prune(self.session, self.plan, added).await;
            match pruned {
                Err(error) if !is_conflict(&error) => return Err(self.server.explain(&error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The batch by the columns that its rows fill, the last part first.
    fn parts(&self) -> Vec<Part> {
        let masks = &self.rows.masks;
        let wary = self.caution.wary > 0;
        let mut kinds = masks.clone();
        kinds.sort_unstable();
        kinds.dedup();
        let of = |mask: u64| (0..masks.len()).filter(move |row| masks[*row] == mask).collect();
        kinds.into_iter().rev().map(|mask| Part { mask, rows: of(mask), wary }).collect()
    }

    /// Leaves the row at fault out, or looks for it in each half.
    fn split(&mut self, part: Part, at: Option<usize>, reason: String, todo: &mut Vec<Part>) {
        let Part { mask, rows, wary } = part;
        let piece = |rows: &[usize]| Part { mask, rows: rows.to_vec(), wary };
        let at = if rows.len() == 1 { Some(0) } else { at };
        let (first, second) = match at {
            Some(at) => {
                let index = self.rows.index[rows[at]];
                self.refusals.push(Refusal { index, reason });
                (&rows[..at], &rows[at + 1..])
            }
            None => rows.split_at(rows.len() / 2),
        };
        todo.extend([piece(second), piece(first)]);
    }

    async fn store(&mut self, part: &Part) -> Result<(), Fault> {
        match self.plan.id {
            Some(id) if !self.plan.staged => self.store_by_id(part, id).await,
            _ => {
                self.run("BEGIN").await?;
                let stored = match self.store_within(part).await {
                    Ok(()) => self.run("COMMIT").await,
                    Err(fault) => Err(fault),
                };
                // After trouble the connection is not used again.
                if !matches!(stored, Ok(()) | Err(Fault::Trouble(_))) {
                    self.run("ROLLBACK").await?;
                }
                stored
            }
        }
    }

    /// Straight into the table, which knows its ids.
    async fn store_by_id(&mut self, part: &Part, id: usize) -> Result<(), Fault> {
        let rest;
        let mut which = &part.rows;
        if part.wary {
            rest = self.unstored(which, id).await?;
            self.duplicates |= rest.len() < which.len();
            which = &rest;
            if which.is_empty() {
                return Ok(());
            }
        }
        let Err(error) = self.copy(part.mask, which).await? else { return Ok(()) };
        if code(&error) == Some(UNIQUE_VIOLATION) {
            // Of the id column or another? If an id is there, the row is stored, and nothing else
            // counts.
            let rest = self.unstored(which, id).await?;
            if rest.len() < which.len() {
                return Err(Fault::Duplicates(rest));
            }
        }
        Err(self.fault(error, part, which))
    }

    /// Those of the rows whose ids the table does not have.
    pub(super) async fn unstored(
        &mut self,
        which: &[usize],
        id: usize,
    ) -> Result<Vec<usize>, Fault> {
        let ids = self.rows.ids_text(which);
        let ask = sqlx::query_scalar::<_, i64>(AssertSqlSafe(self.plan.ask(id))).bind(ids);
        let found =
            ask.fetch_all(&mut **self.session).await.map_err(|error| self.trouble(error))?;
        let mut stored = vec![false; which.len()];
        for place in found {
            if let Some(stored) = stored.get_mut(place as usize - 1) {
                *stored = true;
            }
        }
        let rest = which.iter().zip(stored).filter(|(_, stored)| !stored);
        Ok(rest.map(|(row, _)| *row).collect())
    }

    /// Within a transaction: the ids that are kept beside the table, and the rows that are new.
    pub(super) async fn store_within(&mut self, part: &Part) -> Result<(), Fault> {
        let rest;
        let mut which = &part.rows;
        if self.plan.id.is_none() {
            rest = self.unseen(part).await?;
            which = &rest;
        }
        if which.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.copy(part.mask, which).await? {
            return Err(self.fault(error, part, which));
        }
        if !self.plan.staged {
            return Ok(());
        }
        let settle = sqlx::raw_sql(AssertSqlSafe(self.plan.settle(part.mask)));
        match settle.execute(&mut **self.session).await {
            Ok(_) => Ok(()),
            // It does not make sense any more: the table has changed.
            Err(error) if code(&error).is_some_and(|code| code.starts_with("42")) => {
                match is_row_security(&error) {
                    true => Err(self.fault(error, part, which)),
                    false => Err(self.trouble(error)),
                }
            }
            Err(error) => Err(self.fault(error, part, which)),
        }
    }

    /// Adds the rows' ids to those seen. Answers the rows whose ids were not.
    async fn unseen(&mut self, part: &Part) -> Result<Vec<usize>, Fault> {
        let (plan, which) = (self.plan, &part.rows);
        if part.wary {
            let ids = self.rows.ids_text(which);
            let new = seen::add(self.session, plan, &ids).await;
            let new = new.map_err(|error| self.trouble(error))?;
            self.duplicates |= new.len() < which.len();
            return Ok(which
                .iter()
                .copied()
                .filter(|row| new.contains(&self.rows.ids[*row]))
                .collect());
        }
        let data = self.rows.ids_data(which, &plan.name.table, self.buffer);
        match copy(self.session, &plan.copy_seen(), data).await {
            Ok(Ok(())) => Ok(which.clone()),
            Ok(Err(error)) if code(&error) == Some(UNIQUE_VIOLATION) => {
                Err(Fault::Duplicates(which.clone()))
            }
            Ok(Err(error)) | Err(error) => Err(self.trouble(error)),
        }
    }

    /// Sends rows. The inner error is the server's, of what they hold.
    pub(super) async fn copy(
        &mut self,
        mask: u64,
        which: &[usize],
    ) -> Result<sqlx::Result<()>, Fault> {
        let data = self.rows.data(which, self.plan.binary, self.buffer);
        match copy(self.session, &self.plan.copy(mask).0, data).await {
            Ok(done) => Ok(done),
            Err(error) => Err(self.trouble(error)),
        }
    }

    pub(super) async fn run(&mut self, sql: &'static str) -> Result<(), Fault> {
        match sqlx::raw_sql(sql).execute(&mut **self.session).await {
            Ok(_) => Ok(()),
            // What is looked at only on commit.
            Err(error) if sql == "COMMIT" && !is_trouble(&error) => {
                Err(Fault::Row(None, self.refused(&error)))
            }
            Err(error) => Err(self.trouble(error)),
        }
    }

    /// What an error means for the rows that were sent.
    pub(super) fn fault(&self, error: sqlx::Error, part: &Part, which: &[usize]) -> Fault {
        if is_trouble(&error) {
            return self.trouble(error);
        }
        let row = line(&error, self.plan.copy(part.mask).1).and_then(|line| which.get(line - 1));
        let at = row.and_then(|row| part.rows.binary_search(row).ok());
        Fault::Row(at, self.refused(&error))
    }

    pub(super) fn trouble(&self, error: sqlx::Error) -> Fault {
        match is_conflict(&error) {
            true => Fault::Conflict(error),
            false => Fault::Trouble(self.server.explain(&error)),
        }
    }

    fn refused(&self, error: &sqlx::Error) -> String {
        format!("table `{}` refuses the row: {}", self.plan.shown, says(error))
    }
}

/// Row-level security speaks of a row.
fn is_row_security(error: &sqlx::Error) -> bool {
    !is_trouble(error) && code(error) == Some("42501")
}

/// The line of the `COPY` into `table` that an error speaks of, from 1. It may be told in another
/// language, and then is not known.
fn line(error: &sqlx::Error, table: &str) -> Option<usize> {
    let outermost = database_error(error)?.r#where()?.lines().last()?;
    let rest = outermost.strip_prefix("COPY ")?.strip_prefix(table)?.strip_prefix(", line ")?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    rest[..digits].parse().ok().filter(|line| *line > 0)
}

/// A `COPY`. The outer error is of the statement, or of the connection; the inner one comes from
/// the server when it has the rows.
async fn copy(
    connection: &mut PgConnection,
    statement: &str,
    data: &[u8],
) -> sqlx::Result<sqlx::Result<()>> {
    let mut copy = connection.copy_in_raw(statement).await?;
    for chunk in data.chunks(CHUNK_BYTES) {
        copy.send(chunk).await?;
    }
    match copy.finish().await {
        Ok(_) => Ok(Ok(())),
        Err(error @ sqlx::Error::Database(_)) => Ok(Err(error)),
        Err(error) => Err(error),
    }
}

/// A `COPY` of no rows: does it make sense to the server?
pub(super) async fn copy_nothing(
    connection: &mut PgConnection,
    statement: &str,
    binary: bool,
) -> sqlx::Result<()> {
    copy(connection, statement, &rows::nothing(binary)).await?
}
