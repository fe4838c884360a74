//! The indexes that queries of a table of ours need. They are made beside the work that goes on,
//! as they may take a while in a large table.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use sqlx::AssertSqlSafe;

use super::view::{Looks, View};
use crate::client::postgres::{Server, Session, quote};
use crate::client::said::Telling;
use crate::event::hash_parts;
use crate::sink::postgres::Name;

/// After this, what could not be made is tried again.
const AGAIN: Duration = Duration::from_secs(60);
/// Bytes of a table's name that are part of an index's.
const NAME_BYTES_MAX: usize = 32;

/// Who makes them.
pub(super) struct Indexes {
    server: Arc<Server>,
    /// A missing table may be created, and so may they.
    wanted: bool,
    /// They are being made, or were tried a moment ago.
    busy: Arc<AtomicBool>,
    /// What was said of those that could not be made.
    said: Arc<Telling>,
}

/// An index.
struct Index {
    name: String,
    /// What follows `ON`.
    on: String,
}

impl Indexes {
    pub(super) fn new(server: Arc<Server>, wanted: bool) -> Self {
        Self { server, wanted, busy: Arc::default(), said: Arc::default() }
    }

    /// Sees to it that a table of ours has what a query in this order needs: without waiting for
    /// it, and without an error where it cannot be.
    pub(super) fn see_to(&self, view: &View, order: Option<&str>) {
        let wanted = self.wanted && view.ours;
        if !wanted || self.busy.load(Ordering::Relaxed) {
            return;
        }
        let wanted = missing(view, order);
        if wanted.is_empty() || self.busy.swap(true, Ordering::Relaxed) {
            return;
        }
        let (server, busy, table) = (self.server.clone(), self.busy.clone(), view.name.clone());
        let said = self.said.clone();
        tokio::spawn(async move {
            if let Err(error) = make(&server, &table, &wanted).await {
                let (table, cause) = (&table.table, format!("{error:#}"));
                if let Some(line) = said.failed(&cause) {
                    let so_far = line.so_far();
                    tracing::warn!("queries of table `{table}` lack an index: {cause}{so_far}");
                }
                tokio::time::sleep(AGAIN).await;
            }
            busy.store(false, Ordering::Relaxed);
        });
    }
}

/// Those that the table does not have.
fn missing(view: &View, order: Option<&str>) -> Vec<Index> {
    let table = view.name.sql();
    let named = |what: &str, on: String| {
        let end = (0..=NAME_BYTES_MAX).rev().find(|end| view.name.table.is_char_boundary(*end));
        let start = view.name.table.get(..end.unwrap_or(0)).unwrap_or(&view.name.table);
        let sign = hash_parts(&[table.as_bytes(), on.as_bytes()]) as u32;
        Index { name: format!("{start}_{what}_{sign:08x}"), on: format!("{table} {on}") }
    };
    let mut wanted = Vec::new();
    if let Some(column) = view.members().filter(|column| column.looks == Looks::Jsonb) {
        wanted
            .push(named("members", format!("USING gin ({} jsonb_path_ops)", quote(&column.name))));
    }
    if let Ok(order) = view.order(order)
        && order.indexable
        && order.names.len() > 1
    {
        wanted.push(named("newest", format!("({})", order.sql(""))));
    }
    wanted.retain(|index| !view.indexes.contains(&index.name));
    wanted
}

async fn make(server: &Server, table: &Name, wanted: &[Index]) -> Result<()> {
    let mut session = server.connect().await?;
    let pid = session.pid();
    server.watch(pid, make_all(server, &mut session, table, wanted)).await?
}

async fn make_all(
    server: &Server,
    session: &mut Session,
    table: &Name,
    wanted: &[Index],
) -> Result<()> {
    let explain = |error: sqlx::Error| server.explain(&error);
    // One at a time: another process may be at it. The lock goes with the connection.
    let key = hash_parts(&[b"aqueduct indexes", table.sql().as_bytes()]) as i64;
    let mine: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1)")
        .persistent(false)
        .bind(key)
        .fetch_one(&mut **session)
        .await
        .map_err(explain)?;
    if !mine {
        return Ok(());
    }
    for Index { name, on } in wanted {
        let there = table.beside(name);
        let valid: Option<bool> = sqlx::query_scalar(
            "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass($1)",
        )
        .persistent(false)
        .bind(&there)
        .fetch_optional(&mut **session)
        .await
        .map_err(explain)?;
        let mut statements = Vec::new();
        match valid {
            Some(true) => continue,
            // Whoever made it was stopped half-way.
            Some(false) => statements.push(format!("DROP INDEX CONCURRENTLY {there}")),
            None => {}
        }
        statements.push(format!("CREATE INDEX CONCURRENTLY {} ON {on}", quote(name)));
        for statement in statements {
            let made = sqlx::raw_sql(AssertSqlSafe(statement)).execute(&mut **session).await;
            made.map_err(explain)?;
        }
        tracing::info!("created index `{name}` for queries of table `{}`", table.table);
    }
    Ok(())
}
