//! The ids that were seen, for tables that cannot tell by themselves.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::plan::Plan;
use crate::event::EventId;

/// How often ids past their time are dropped, and after how many new ones at the latest.
const PRUNE_EVERY: Duration = Duration::from_secs(10);
const PRUNE_IDS: usize = 20_000;

/// Adds those of the ids, in text with commas between, that are new. Answers these.
pub(super) async fn add(
    connection: &mut PgConnection,
    plan: &Plan,
    ids: &str,
) -> sqlx::Result<HashSet<EventId>> {
    let sql = format!(
        "INSERT INTO {} (table_name, event_id)
         SELECT $1, id FROM unnest(string_to_array($2, ',')::uuid[]) id ORDER BY id
         ON CONFLICT DO NOTHING RETURNING event_id::text",
        plan.seen()
    );
    let add = sqlx::query_scalar::<_, String>(AssertSqlSafe(sql)).bind(&plan.name.table).bind(ids);
    let added = add.fetch_all(connection).await?;
    Ok(added.iter().filter_map(|id| id.parse().ok()).collect())
}

/// When ids were dropped last, and how many were added since.
#[derive(Default)]
pub(super) struct Pruning {
    last: Option<Instant>,
    added: usize,
}

impl Pruning {
    /// Drops ids past their time, now and then: more than were added, so that they get fewer, and
    /// none that another process is dropping.
    pub(super) async fn prune(
        &mut self,
        connection: &mut PgConnection,
        plan: &Plan,
        added: usize,
    ) -> sqlx::Result<()> {
        self.added += added;
        let waits = self.last.is_some_and(|last| last.elapsed() < PRUNE_EVERY);
        if waits && self.added < PRUNE_IDS {
            return Ok(());
        }
        let seen = plan.seen();
        let sql = format!(
            "DELETE FROM {seen} WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM {seen}
                WHERE table_name = $1 AND seen_at < now() - make_interval(secs => $2)
                ORDER BY seen_at LIMIT $3 FOR UPDATE SKIP LOCKED))"
        );
        let most = 1_000 + 2 * self.added as i64;
        let prune =
            sqlx::query(AssertSqlSafe(sql)).bind(&plan.name.table).bind(plan.seen_s).bind(most);
        prune.execute(connection).await?;
        *self = Self { last: Some(Instant::now()), added: 0 };
        Ok(())
    }
}
