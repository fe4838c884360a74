//! What a stream holds, and how far its groups are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;

use super::state::Stream;
use super::{Database, Mode, Sql, Statement, args, statement};
use crate::event::Event;
use crate::stream::{ConsumerStatus, GroupStatus, StreamStatus, chunk};

const LENGTHS: Statement = statement!(
    "SELECT o.next - COALESCE((SELECT MIN(first) FROM messages m
       WHERE m.stream = o.stream AND m.shard = o.shard), o.next)
     FROM offsets o WHERE o.stream = $1 AND o.shard < o.shards ORDER BY o.shard"
);
/// One statement for all groups, so that no event is in neither number on its way from lag to
/// pending.
const GROUPS: Statement = statement!(
    "SELECT g.id, g.name,
       CAST((SELECT COALESCE(SUM(o.next - c.next), 0) FROM cursors c
          JOIN offsets o ON o.stream = g.stream AND o.shard = c.shard WHERE c.grp = g.id)
         + (SELECT COALESCE(SUM(last - first + 1), 0) FROM leases WHERE grp = g.id AND owner = '')
         AS BIGINT),
       CAST((SELECT COALESCE(SUM(last - first + 1), 0) FROM leases
          WHERE grp = g.id AND owner <> '') AS BIGINT)
     FROM groups g WHERE g.stream = $1"
);
const CONSUMERS: Statement = statement!(
    "SELECT name, seen, 0 FROM members WHERE grp = $1
     UNION ALL
     SELECT owner, NULL, CAST(SUM(last - first + 1) AS BIGINT) FROM leases
       WHERE grp = $1 AND owner <> '' GROUP BY owner"
);
/// For each group that has not acked everything: when the chunk was appended that holds the first
/// event of these.
const OLDEST: Statement = statement!(
    "SELECT w.grp, MIN((SELECT m.time FROM messages m WHERE m.stream = $1 AND m.shard = w.shard
       AND m.first <= w.first ORDER BY m.first DESC LIMIT 1))
     FROM (
       SELECT c.grp AS grp, c.shard AS shard, c.next AS first FROM groups g
         JOIN cursors c ON c.grp = g.id
         JOIN offsets o ON o.stream = g.stream AND o.shard = c.shard
         WHERE g.stream = $1 AND c.next < o.next
       UNION ALL
       SELECT l.grp, l.shard, MIN(l.first) FROM groups g JOIN leases l ON l.grp = g.id
         WHERE g.stream = $1 GROUP BY l.grp, l.shard) w
     GROUP BY w.grp"
);
const SHARDS: Statement = statement!("SELECT shard FROM offsets WHERE stream = $1");
const NEWEST: Statement = statement!(
    "SELECT first, data FROM messages WHERE stream = $1 AND shard = $2 AND first < $3
     ORDER BY first DESC LIMIT $4"
);
/// Chunks that one statement reads, at most.
const CHUNKS_MAX: usize = 64;

/// The numbers of `/streams`.
pub(super) async fn status<D: Database>(stream: &Arc<Stream<D>>) -> Result<StreamStatus> {
    let name = stream.spec.name.clone();
    stream
        .transact(Mode::Read, move |tx, ids| {
            let name = name.to_string();
            Box::pin(async move { numbers(tx, ids.stream, name).await })
        })
        .await
}

async fn numbers(tx: &mut dyn Sql, stream: i64, name: String) -> Result<StreamStatus> {
    let count = |number: i64| Some(number.max(0) as u64);
    let mut shards = Vec::new();
    for row in tx.rows(LENGTHS, args![stream]).await? {
        shards.push(row.int(0)?.max(0) as u64);
    }
    let mut oldest = HashMap::new();
    for row in tx.rows(OLDEST, args![stream]).await? {
        oldest.insert(row.int(0)?, row.opt_int(1)?);
    }
    let mut groups = Vec::new();
    for mut row in tx.rows(GROUPS, args![stream]).await? {
        groups.push(GroupStatus {
            name: row.text(1)?,
            lag: count(row.int(2)?),
            pending: count(row.int(3)?),
            consumers: consumers(tx, row.int(0)?).await?,
            oldest_us: oldest.get(&row.int(0)?).copied().flatten(),
        });
    }
    groups.sort_by(|one, other| one.name.cmp(&other.name));
    let length = Some(shards.iter().sum());
    Ok(StreamStatus { stream: name, length, groups, shards })
}

async fn consumers(tx: &mut dyn Sql, group: i64) -> Result<Vec<ConsumerStatus>> {
    let now = tx.now_ms();
    let mut consumers: BTreeMap<String, ConsumerStatus> = BTreeMap::new();
    for mut row in tx.rows(CONSUMERS, args![group]).await? {
        let name = row.text(0)?;
        let consumer = consumers.entry(name.clone()).or_default();
        consumer.name = name;
        if let Some(seen) = row.opt_int(1)? {
            consumer.idle_ms = Some((now - seen).max(0) as u64);
        }
        *consumer.pending.get_or_insert(0) += row.int(2)?.max(0) as u64;
    }
    Ok(consumers.into_values().collect())
}

/// The newest `count` events of all shards, oldest first.
pub(super) async fn peek<D: Database>(stream: &Arc<Stream<D>>, count: usize) -> Result<Vec<Event>> {
    stream
        .transact(Mode::Read, move |tx, ids| {
            Box::pin(async move {
                let mut newest: Vec<Event> = Vec::new();
                for shard in tx.rows(SHARDS, args![ids.stream]).await? {
                    let mut found = newest_of(tx, ids.stream, shard.small(0)?, count).await?;
                    newest.append(&mut found);
                }
                newest.sort_by_key(|event| event.time_us);
                newest.drain(..newest.len().saturating_sub(count));
                Ok(newest)
            })
        })
        .await
}

/// The newest events of a shard, oldest first.
async fn newest_of(tx: &mut dyn Sql, stream: i64, shard: u32, count: usize) -> Result<Vec<Event>> {
    let mut found: Vec<Event> = Vec::new();
    let (mut before, mut limit) = (i64::MAX, 1);
    loop {
        let rows = tx.rows(NEWEST, args![stream, shard, before, limit]).await?;
        let last = rows.len() < limit;
        for mut row in rows {
            before = row.int(0)?;
            let events = chunk::decode(&Bytes::from(row.blob(1)?.unwrap_or_default()))
                .with_context(|| format!("failed to read shard {shard} at {before}"))?;
            let left = count - found.len();
            found.extend(events.into_iter().rev().take(left));
        }
        if last || found.len() >= count {
            found.reverse();
            return Ok(found);
        }
        limit = CHUNKS_MAX.min(limit * 2);
    }
}
