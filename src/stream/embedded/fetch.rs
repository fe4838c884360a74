//! What a fetch takes, in one transaction: first what others left behind, then new events.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures_util::TryStreamExt;
use sqlx::Row;

use super::cache::Chunk;
use super::clock;
use super::db::{Tx, lock};
use super::state::{Ids, Stream};
use crate::event::{Delivery, Ticket};
use crate::stream::chunk;

/// Events that one fetch looks at, at most, where few of them are for its group.
const LOOK_MAX: u64 = 20_000;

/// Who takes, and how much.
pub(super) struct Order {
    /// The group's name.
    pub group: Arc<str>,
    /// The member's name.
    pub member: String,
    /// How long it may be silent.
    pub lease_ms: i64,
    /// Which shard comes first, modulo their number.
    pub turn: usize,
    /// Events, at most.
    pub events: usize,
    /// Bytes, at most, beyond the first event.
    pub bytes: usize,
}

/// What was taken.
#[derive(Default)]
pub(super) struct Taken {
    /// The events.
    pub deliveries: Vec<Delivery>,
    /// There may be more right now.
    pub more: bool,
    /// The group is not there any more: it was dropped.
    pub gone: bool,
}

/// A fetch under way.
struct Fetch<'a> {
    tx: &'a mut Tx,
    ids: &'a Ids,
    stream: &'a Stream,
    group: i64,
    basket: Basket<'a>,
}

/// Takes what there is, up to the order's limits.
pub(super) async fn fetch(tx: &mut Tx, ids: &Ids, stream: &Stream, order: &Order) -> Result<Taken> {
    let group = ids.group(&order.group)?;
    let basket = Basket {
        order,
        stream: &stream.spec.name,
        token: fastrand::u64(..),
        taken: Taken::default(),
        bytes: 0,
        looked: 0,
    };
    let mut fetch = Fetch { tx, ids, stream, group, basket };
    fetch.reclaim().await?;
    fetch.advance().await?;
    Ok(fetch.basket.taken)
}

impl Fetch<'_> {
    /// Takes over leases that ran out or were handed back, the longest free first.
    async fn reclaim(&mut self) -> Result<()> {
        let rows = sqlx::query(
            "SELECT id, shard, first, last, deliveries, attempts FROM leases
             WHERE grp = ? AND deadline <= ? ORDER BY deadline, shard, first LIMIT ?",
        )
        .bind(self.group)
        .bind(clock::now_ms())
        .bind(self.basket.order.events as i64 + 1)
        .fetch_all(&mut self.tx.sql)
        .await?;
        for row in rows {
            if self.basket.full() {
                self.basket.taken.more = true;
                return Ok(());
            }
            let (id, shard): (i64, u32) = (row.try_get(0)?, row.try_get(1)?);
            let (first, last) =
                (row.try_get::<i64, _>(2)? as u64, row.try_get::<i64, _>(3)? as u64);
            let counts = (row.try_get::<u32, _>(4)? + 1, row.try_get(5)?);
            let run = self.take(shard, first, last + 1, counts).await?;
            if run.next > last {
                sqlx::query("DELETE FROM leases WHERE id = ?").bind(id)
            } else {
                self.basket.taken.more = true;
                sqlx::query("UPDATE leases SET first = ? WHERE id = ?")
                    .bind(run.next as i64)
                    .bind(id)
            }
            .execute(&mut self.tx.sql)
            .await?;
            self.lease(shard, &run, counts).await?;
        }
        Ok(())
    }

    /// Takes new events, from each shard in turn.
    async fn advance(&mut self) -> Result<()> {
        let rows = sqlx::query(
            "SELECT c.shard, c.next, o.next FROM cursors c
             JOIN offsets o ON o.stream = ? AND o.shard = c.shard WHERE c.grp = ? ORDER BY c.shard",
        )
        .bind(self.ids.stream)
        .bind(self.group)
        .fetch_all(&mut self.tx.sql)
        .await?;
        self.basket.taken.gone = rows.is_empty();
        for index in 0..rows.len() {
            let row = &rows[(index + self.basket.order.turn) % rows.len()];
            let shard = row.try_get(0)?;
            let (next, end) = (row.try_get::<i64, _>(1)? as u64, row.try_get::<i64, _>(2)? as u64);
            if next >= end {
                continue;
            }
            if self.basket.full() {
                self.basket.taken.more = true;
                break;
            }
            let run = self.take(shard, next, end, (1, 0)).await?;
            self.lease(shard, &run, (1, 0)).await?;
            sqlx::query("UPDATE cursors SET next = ? WHERE grp = ? AND shard = ?")
                .bind(run.next as i64)
                .bind(self.group)
                .bind(shard)
                .execute(&mut self.tx.sql)
                .await?;
            self.basket.taken.more |= run.next < end;
        }
        Ok(())
    }

    /// Gives the run's events to the member.
    async fn lease(&mut self, shard: u32, run: &Run, (deliveries, attempts): Counts) -> Result<()> {
        let order = self.basket.order;
        for (first, last) in &run.ranges {
            sqlx::query(
                "INSERT INTO leases
                   (grp, shard, first, last, owner, token, deadline, deliveries, attempts)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )
            .bind(self.group)
            .bind(shard)
            .bind(*first as i64)
            .bind(*last as i64)
            .bind(order.member.clone())
            .bind(self.basket.token as i64)
            .bind(clock::now_ms() + order.lease_ms)
            .bind(deliveries)
            .bind(attempts)
            .execute(&mut self.tx.sql)
            .await?;
        }
        Ok(())
    }

    /// Takes the events from `first` to before `end`, as far as they fit: from the cache, and
    /// from where that ends, from the file.
    async fn take(&mut self, shard: u32, first: u64, end: u64, counts: Counts) -> Result<Run> {
        let mut run = Run { shard, counts, end, next: first, ranges: Vec::new() };
        while run.next < end && !self.basket.full() {
            let cached = lock(&self.stream.db.cache).get(self.ids.stream, shard, run.next);
            match cached {
                Some(chunk) => self.basket.take(&chunk, &mut run),
                None => {
                    self.take_stored(&mut run).await?;
                    break;
                }
            }
        }
        Ok(run)
    }

    async fn take_stored(&mut self, run: &mut Run) -> Result<()> {
        let mut rows = sqlx::query(
            "SELECT first, data FROM messages WHERE stream = ?1 AND shard = ?2 AND first >=
               COALESCE((SELECT MAX(first) FROM messages
                         WHERE stream = ?1 AND shard = ?2 AND first <= ?3), ?3)
             ORDER BY first",
        )
        .bind(self.ids.stream)
        .bind(run.shard)
        .bind(run.next as i64)
        .fetch(&mut self.tx.sql);
        while let Some(row) = rows.try_next().await? {
            let first = row.try_get::<i64, _>(0)? as u64;
            let events = chunk::decode(&Bytes::from(row.try_get::<Vec<u8>, _>(1)?))
                .with_context(|| format!("failed to read shard {} at {first}", run.shard))?;
            let chunk = Chunk { first, events: events.into() };
            self.basket.take(&chunk, run);
            let mut cache = lock(&self.stream.db.cache);
            cache.put(self.tx.generation, self.ids.stream, run.shard, chunk);
            if run.next >= run.end || self.basket.full() {
                return Ok(());
            }
        }
        // Nothing is stored from here on: there is nothing to wait for either.
        run.next = run.end;
        Ok(())
    }
}

/// How often events were delivered, this time included, and charged.
type Counts = (u32, u32);

/// What became of some offsets.
struct Run {
    shard: u32,
    counts: Counts,
    /// The offset before which they end.
    end: u64,
    /// The offset from which on nothing was looked at.
    next: u64,
    /// First and last of the ranges for this group.
    ranges: Vec<(u64, u64)>,
}

/// The events taken so far.
struct Basket<'a> {
    order: &'a Order,
    stream: &'a Arc<str>,
    token: u64,
    taken: Taken,
    bytes: usize,
    looked: u64,
}

impl Basket<'_> {
    fn full(&self) -> bool {
        self.taken.deliveries.len() >= self.order.events
            || self.bytes >= self.order.bytes
            || self.looked >= LOOK_MAX
    }

    /// Takes what fits of a chunk, and passes over what a replay sent to another group.
    fn take(&mut self, chunk: &Chunk, run: &mut Run) {
        // Offsets that are not stored any more are passed over.
        run.next = run.next.max(chunk.first);
        while run.next < run.end.min(chunk.end()) && !self.full() {
            let event = &chunk.events[(run.next - chunk.first) as usize];
            let mine = event.only_group.as_ref().is_none_or(|group| *group == self.order.group);
            if mine {
                let size = event.size();
                if !self.taken.deliveries.is_empty() && self.bytes + size > self.order.bytes {
                    self.bytes = self.order.bytes;
                    return;
                }
                self.bytes += size;
                let ticket = Ticket { shard: run.shard, hold: self.token, offset: run.next };
                self.taken.deliveries.push(Delivery {
                    event: event.clone(),
                    stream: self.stream.clone(),
                    ticket,
                    deliveries: run.counts.0,
                    attempts: run.counts.1,
                });
                match run.ranges.last_mut() {
                    Some((_, last)) if *last + 1 == run.next => *last = run.next,
                    _ => run.ranges.push((run.next, run.next)),
                }
            }
            self.looked += 1;
            run.next += 1;
        }
    }
}
