//! What a stream holds, and how far its groups are.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::{Row, SqliteConnection};

use super::clock;
use super::state::Stream;
use crate::event::Event;
use crate::stream::{ConsumerStatus, GroupStatus, StreamStatus, chunk};

/// The numbers of `/streams`.
pub(super) async fn status(stream: &Arc<Stream>) -> Result<StreamStatus> {
    let (mut read, ids) = stream.read().await?;
    let sql = read.sql()?;
    let mut status = StreamStatus {
        stream: stream.spec.name.to_string(),
        length: Some(length(sql, ids.stream).await.map_err(|error| stream.explain(error))?),
        groups: Vec::new(),
    };
    // One statement for all groups, so that no event is in neither number on its way from lag to
    // pending.
    let rows = sqlx::query(
        "SELECT g.id, g.name,
           (SELECT COALESCE(SUM(o.next - c.next), 0) FROM cursors c
              JOIN offsets o ON o.stream = g.stream AND o.shard = c.shard WHERE c.grp = g.id),
           (SELECT COALESCE(SUM(last - first + 1), 0) FROM leases WHERE grp = g.id AND owner = ''),
           (SELECT COALESCE(SUM(last - first + 1), 0) FROM leases WHERE grp = g.id AND owner <> '')
         FROM groups g WHERE g.stream = ? ORDER BY g.name",
    )
    .bind(ids.stream)
    .fetch_all(&mut *sql)
    .await
    .map_err(|error| stream.explain(error))?;
    let count = |number: i64| Some(number.max(0) as u64);
    for row in rows {
        let consumers = consumers(sql, row.try_get(0)?).await;
        status.groups.push(GroupStatus {
            name: row.try_get(1)?,
            lag: count(row.try_get::<i64, _>(2)? + row.try_get::<i64, _>(3)?),
            pending: count(row.try_get(4)?),
            consumers: consumers.map_err(|error| stream.explain(error))?,
        });
    }
    Ok(status)
}

async fn length(sql: &mut SqliteConnection, stream: i64) -> Result<u64> {
    let row = sqlx::query(
        "SELECT COALESCE(SUM(o.next - COALESCE((SELECT MIN(first) FROM messages m
           WHERE m.stream = o.stream AND m.shard = o.shard), o.next)), 0)
         FROM offsets o WHERE o.stream = ?",
    )
    .bind(stream)
    .fetch_one(sql)
    .await?;
    Ok(row.try_get::<i64, _>(0)?.max(0) as u64)
}

async fn consumers(sql: &mut SqliteConnection, group: i64) -> Result<Vec<ConsumerStatus>> {
    let rows = sqlx::query(
        "SELECT name, seen, 0 FROM members WHERE grp = ?1
         UNION ALL
         SELECT owner, NULL, SUM(last - first + 1) FROM leases WHERE grp = ?1 AND owner <> ''
         GROUP BY owner",
    )
    .bind(group)
    .fetch_all(sql)
    .await?;
    let now = clock::now_ms();
    let mut consumers: BTreeMap<String, ConsumerStatus> = BTreeMap::new();
    for row in rows {
        let name: String = row.try_get(0)?;
        let consumer = consumers.entry(name.clone()).or_default();
        consumer.name = name;
        if let Some(seen) = row.try_get::<Option<i64>, _>(1)? {
            consumer.idle_ms = Some((now - seen).max(0) as u64);
        }
        *consumer.pending.get_or_insert(0) += row.try_get::<i64, _>(2)?.max(0) as u64;
    }
    Ok(consumers.into_values().collect())
}

/// The newest `count` events of all shards, oldest first.
pub(super) async fn peek(stream: &Arc<Stream>, count: usize) -> Result<Vec<Event>> {
    let (mut read, ids) = stream.read().await?;
    let sql = read.sql()?;
    let explain = |error: sqlx::Error| stream.explain(error);
    let shards = sqlx::query("SELECT shard FROM offsets WHERE stream = ? ORDER BY shard")
        .bind(ids.stream)
        .fetch_all(&mut *sql)
        .await
        .map_err(explain)?;
    let mut newest: Vec<Event> = Vec::new();
    for shard in shards {
        // Newest first, until there are enough of this shard.
        let mut rows = sqlx::query(
            "SELECT first, data FROM messages WHERE stream = ? AND shard = ? ORDER BY first DESC",
        )
        .bind(ids.stream)
        .bind(shard.try_get::<i64, _>(0)?)
        .fetch(&mut *sql);
        let mut found: Vec<Event> = Vec::new();
        while found.len() < count
            && let Some(row) = rows.try_next().await.map_err(explain)?
        {
            let first: i64 = row.try_get(0)?;
            let events = chunk::decode(&Bytes::from(row.try_get::<Vec<u8>, _>(1)?))
                .with_context(|| format!("failed to read what is stored at {first}"))
                .map_err(|error| stream.explain(error))?;
            let left = count - found.len();
            found.extend(events.into_iter().rev().take(left));
        }
        newest.extend(found.into_iter().rev());
    }
    newest.sort_by_key(|event| event.time_us);
    newest.drain(..newest.len().saturating_sub(count));
    Ok(newest)
}
