//! Cursors: where a group stands, and how it is put elsewhere.
//!
//! A move deletes all leases of the shard and puts the cursor to its new place in one transaction.
//! What members hold of it they know by tokens that are gone then, so they can neither ack, renew,
//! hand back nor bury anything of it; they go on fetching from the new place. In an ordered group
//! the shard has no owner afterwards, so that the next one has a greater epoch.
//!
//! Nobody makes a lease but a fetch, with the cursor or the lease that it takes over locked, and
//! who cuts one in two, with that one locked: so once the cursor is locked and no lease is to be
//! seen any more, none can come.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::state::{Ids, Stream};
use super::{Database, Mode, Row, Sql, Stale, Statement, args, first, own, statement};
use crate::stream::cursor::{CursorMove, Dropped, Moved, Offset, Refused, ShardCursor, To};

/// How long a process that was killed may count as running: whoever looks needs to see twice that
/// it is gone.
const GONE: Duration = Duration::from_millis(1500);
/// How often it is looked at meanwhile.
const LOOK: Duration = Duration::from_millis(150);
/// How old the last sign of life of a member that runs may be, where its lease is shorter: it gives
/// one every two seconds. What is left of a process that is gone is freed before anybody looks.
const SEEN_MS: i64 = 5_000;
/// Where clocks go back, how many events before the place that was found may be of that time, too.
const NEAR: u64 = 100_000;

/// Held by who trims the stream, and by who moves a cursor in it.
const LOCK_STREAM: Statement =
    statement!("SELECT id FROM streams WHERE id = $1", lock "FOR UPDATE");
const GROUP: Statement = statement!("SELECT id FROM groups WHERE stream = $1 AND name = $2");
const LOCK_CURSORS: Statement =
    statement!("SELECT shard FROM cursors WHERE grp = $1 ORDER BY shard", lock "FOR UPDATE");
const RUNNING: Statement = statement!(
    "SELECT name FROM members WHERE grp = $1 AND seen > $2
     UNION SELECT owner FROM leases WHERE grp = $1 AND owner <> '' AND deadline > $3
     UNION SELECT member FROM owners WHERE grp = $1 AND member <> '' AND until > $3
     ORDER BY 1"
);
/// In one statement, as events go from beyond a cursor to a lease.
const SHARDS: Statement = statement!(
    "SELECT o.shard,
       COALESCE((SELECT MIN(m.first) FROM messages m
         WHERE m.stream = o.stream AND m.shard = o.shard), o.next),
       c.next, o.next,
       (SELECT MIN(l.first) FROM leases l WHERE l.grp = c.grp AND l.shard = c.shard),
       CAST((SELECT COALESCE(SUM(l.last - l.first + 1), 0) FROM leases l
         WHERE l.grp = c.grp AND l.shard = c.shard) AS BIGINT)
     FROM cursors c JOIN offsets o ON o.stream = $1 AND o.shard = c.shard
     WHERE c.grp = $2 ORDER BY o.shard"
);
/// The chunk that holds an offset, or the last one before it.
const CHUNK_AT: Statement = statement!(
    "SELECT first, count, time FROM messages WHERE stream = $1 AND shard = $2 AND first <= $3
     ORDER BY first DESC LIMIT 1"
);
const FIRST_NEAR: Statement = statement!(
    "SELECT MIN(first) FROM messages
     WHERE stream = $1 AND shard = $2 AND first >= $3 AND first < $4 AND time >= $5"
);
const LEASES: Statement =
    statement!("SELECT first, last FROM leases WHERE grp = $1 AND shard = $2 ORDER BY first");
const IS_LEASED: Statement =
    statement!("SELECT 1 FROM leases WHERE grp = $1 AND shard = $2 LIMIT 1");
const DROP_LEASES: Statement = statement!("DELETE FROM leases WHERE grp = $1 AND shard = $2");
const SET_CURSOR: Statement =
    statement!("UPDATE cursors SET next = $1 WHERE grp = $2 AND shard = $3");

/// Keeps others from trimming the stream and from moving cursors in it until the transaction ends.
pub(super) async fn lock_stream(tx: &mut dyn Sql, stream: i64) -> Result<()> {
    first(tx, LOCK_STREAM, args![stream]).await?;
    Ok(())
}

/// Where the group stands in each shard.
pub(super) async fn show<D: Database>(
    stream: &Arc<Stream<D>>,
    group: &str,
) -> Result<Vec<ShardCursor>> {
    let group: Arc<str> = group.into();
    let of = stream.clone();
    stream
        .transact(Mode::Read, move |tx, ids| {
            let (group, of) = (group.clone(), of.clone());
            Box::pin(async move {
                let Some(row) = first(tx, GROUP, args![ids.stream, &*group]).await? else {
                    return Err(Refused::no_group(&of.spec.name, &group).into());
                };
                shards(tx, ids.stream, row.int(0)?).await
            })
        })
        .await
}

async fn shards(tx: &mut dyn Sql, stream: i64, group: i64) -> Result<Vec<ShardCursor>> {
    let rows = tx.rows(SHARDS, args![stream, group]).await?;
    if rows.is_empty() {
        return Err(Stale.into());
    }
    rows.iter().map(shard).collect()
}

fn shard(row: &Row) -> Result<ShardCursor> {
    let (next, end) = (row.uint(2)?, row.uint(3)?);
    let leased = row.opt_int(4)?.map(|first| first as u64);
    Ok(ShardCursor {
        shard: row.small(0)?,
        oldest: Offset::Number(row.uint(1)?),
        position: Offset::Number(leased.map_or(next, |leased| leased.min(next))),
        delivered: Offset::Number(next),
        end: Offset::Number(end),
        pending: row.uint(5)?,
        lag: Some(end.saturating_sub(next)),
    })
}

/// Puts the group's cursor elsewhere, unless somebody needs it where it is.
pub(super) async fn set<D: Database>(
    stream: &Arc<Stream<D>>,
    order: &CursorMove,
) -> Result<Result<Vec<Moved>, Refused>> {
    let (start, order) = (Instant::now(), Arc::new(order.clone()));
    loop {
        stream.db.free_dead().await?;
        let (order, of) = (order.clone(), stream.clone());
        let moved = stream
            .transact(Mode::Durable, move |tx, ids| {
                let (order, of) = (order.clone(), of.clone());
                Box::pin(async move {
                    Setting { tx, ids: &ids, stream: &of, order: &order }.set().await
                })
            })
            .await?;
        match moved {
            Err(Refused::Running(_)) if start.elapsed() < GONE => tokio::time::sleep(LOOK).await,
            moved => return Ok(moved),
        }
    }
}

/// A move under way.
struct Setting<'a, D> {
    tx: &'a mut dyn Sql,
    ids: &'a Ids,
    stream: &'a Stream<D>,
    order: &'a CursorMove,
}

impl<D: Database> Setting<'_, D> {
    async fn set(mut self) -> Result<Result<Vec<Moved>, Refused>> {
        let (stream, order) = (self.ids.stream, self.order);
        lock_stream(self.tx, stream).await?;
        let Some(row) = first(self.tx, GROUP, args![stream, &*order.group]).await? else {
            return Ok(Err(Refused::no_group(&self.stream.spec.name, &order.group)));
        };
        let group = row.int(0)?;
        own::lock(self.tx, group).await?;
        self.tx.rows(LOCK_CURSORS, args![group]).await?;
        if !order.force {
            let running = self.running(group).await?;
            if !running.is_empty() {
                return Ok(Err(Refused::Running(running)));
            }
        }
        let mut all = shards(self.tx, stream, group).await?;
        match order.shards(all.len() as u32) {
            Ok(asked) => all.retain(|one| asked.contains(&one.shard)),
            Err(refused) => return Ok(Err(refused)),
        }
        let mut places = Vec::with_capacity(all.len());
        for was in all {
            match self.find(&was).await? {
                Ok(to) => places.push((was, to)),
                Err(refused) => return Ok(Err(refused)),
            }
        }
        let mut moved = Vec::with_capacity(places.len());
        for (was, to) in places {
            moved.push(self.put(group, &was, to).await?);
        }
        let name: Arc<str> = order.group.as_str().into();
        self.tx.outbox().wake(&self.stream.spec.name, Some(&name));
        Ok(Ok(moved))
    }

    async fn running(&mut self, group: i64) -> Result<Vec<String>> {
        let now = self.tx.now_ms();
        let lease = i64::try_from(self.order.lease.as_millis()).unwrap_or(i64::MAX / 4);
        let since = now - lease.max(SEEN_MS);
        let mut rows = self.tx.rows(RUNNING, args![group, since, now]).await?;
        rows.iter_mut().map(|row| row.text(0)).collect()
    }

    /// Where in this shard the cursor is to go.
    async fn find(&mut self, was: &ShardCursor) -> Result<Result<u64, Refused>> {
        let (Offset::Number(oldest), Offset::Number(end)) = (was.oldest, was.end) else {
            anyhow::bail!("shard {} counts no numbers", was.shard)
        };
        let mut dropped = Dropped { any: oldest > 0, oldest_us: None, before_us: None };
        let mut at_time = end;
        if let To::Time(time) = self.order.to {
            dropped.before_us = Dropped::by(self.stream.spec.retain, self.tx.time_us());
            if oldest < end {
                let row = args![self.ids.stream, was.shard, oldest];
                let row = first(self.tx, CHUNK_AT, row).await?;
                dropped.oldest_us = row.map(|row| row.int(2)).transpose()?;
                at_time = self.at_time(was.shard, oldest..end, time).await?;
            }
        }
        let found = was.find(self.order.to, Offset::Number(at_time), &dropped);
        Ok(found.map(|to| if let Offset::Number(to) = to { to } else { end }))
    }

    /// The first event that was appended at `time` or later. There is no index of times: they
    /// ascend with the offsets, but for clocks that go back, so the place is found by halving.
    /// Events right before it that are of that time too were appended by such a clock.
    async fn at_time(&mut self, shard: u32, all: std::ops::Range<u64>, time: i64) -> Result<u64> {
        let (mut low, mut high) = (all.start, all.end);
        while low < high {
            let middle = low + (high - low) / 2;
            let chunk = first(self.tx, CHUNK_AT, args![self.ids.stream, shard, middle]).await?;
            match chunk {
                Some(chunk) if chunk.int(2)? >= time => high = chunk.uint(0)?.max(low),
                Some(chunk) => low = (chunk.uint(0)? + chunk.uint(1)?).max(middle + 1),
                None => low = middle + 1,
            }
        }
        let near = all.start.max(low.saturating_sub(NEAR));
        let near = args![self.ids.stream, shard, near, low, time];
        let before = first(self.tx, FIRST_NEAR, near).await?;
        let before = before.map(|row| row.opt_int(0)).transpose()?.flatten();
        Ok(before.map_or(low, |first| first as u64).min(all.end))
    }

    async fn put(&mut self, group: i64, was: &ShardCursor, to: u64) -> Result<Moved> {
        let shard = was.shard;
        let mut pending_before = 0;
        for row in self.tx.rows(LEASES, args![group, shard]).await? {
            let (first, last) = (row.uint(0)?, row.uint(1)?);
            pending_before += (last + 1).min(to).saturating_sub(first);
        }
        while first(self.tx, IS_LEASED, args![group, shard]).await?.is_some() {
            self.tx.run(DROP_LEASES, args![group, shard]).await?;
        }
        self.tx.run(SET_CURSOR, args![to, group, shard]).await?;
        own::take_away(self.tx, group, shard).await?;
        let between = match was.delivered {
            Offset::Number(delivered) => delivered.abs_diff(to),
            Offset::Entry { .. } => 0,
        };
        Ok(Moved::new(was, Offset::Number(to), pending_before, Some(between)))
    }
}
