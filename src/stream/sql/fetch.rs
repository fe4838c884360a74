//! What a fetch takes, in one transaction: first what others left behind, then new events; in an
//! ordered group, that of each shard that the member owns. What a member of the other
//! [`mode`](super::mode) took comes to nothing with its transaction.

use std::sync::Arc;

use anyhow::{Context, Result};
use bytes::Bytes;

use super::local::Chunk;
use super::state::{Ids, Stream};
use super::{Database, Row, Sql, Stale, Statement, args, first, own, shards, statement};
use crate::event::{Delivery, Fence, Ticket};
use crate::stream::{chunk, modes};

/// Events that one fetch looks at, at most, where few of them are for its group.
const LOOK_MAX: u64 = 20_000;
/// Chunks that one statement reads, at most.
const CHUNKS_MAX: usize = 64;
/// Where the cache is not sure, it is asked about chunks of at least this many events: several
/// smaller ones are read at once sooner than each is asked about.
const ASKED_MIN: usize = 100;

/// Whoever is just taking over the same leases has them.
// invariant: all-is-stored-in-the-end
const FREE: Statement = statement!(
    "SELECT id, shard, first, last, deliveries, attempts FROM leases
     WHERE grp = $1 AND deadline <= $2 ORDER BY deadline, shard, first LIMIT $3",
    lock "FOR UPDATE SKIP LOCKED"
);
/// Of a shard that the member owns: what an owner before it held.
const LEFT: Statement = statement!(
    "SELECT id, first, last, deliveries, attempts FROM leases
     WHERE grp = $1 AND shard = $2 AND deadline = 0 ORDER BY first LIMIT $3",
    lock "FOR UPDATE"
);
const TAKEN_OVER: Statement = statement!("DELETE FROM leases WHERE id = $1");
const TAKEN_OVER_UP_TO: Statement = statement!("UPDATE leases SET first = $1 WHERE id = $2");
const CURSORS: Statement = statement!(
    "SELECT c.shard, c.next, o.next, o.shards, c.ordered FROM cursors c
     JOIN offsets o ON o.stream = $1 AND o.shard = c.shard WHERE c.grp = $2 ORDER BY c.shard"
);
/// No row: somebody else is just moving it.
const LOCK_CURSOR: Statement = statement!(
    "SELECT next, ordered FROM cursors WHERE grp = $1 AND shard = $2",
    lock "FOR UPDATE SKIP LOCKED"
);
const SET_CURSOR: Statement =
    statement!("UPDATE cursors SET next = $1 WHERE grp = $2 AND shard = $3");
const LEASE: Statement = statement!(
    "INSERT INTO leases (grp, shard, first, last, owner, token, deadline, deliveries, attempts)
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
);
/// Chunks from the one that holds an offset. A chunk whose checksum is known is not sent.
const CHUNKS: Statement = statement!(
    sqlite "SELECT first, data FROM messages WHERE stream = $1 AND shard = $2 AND first >=
       COALESCE((SELECT MAX(first) FROM messages
                 WHERE stream = $1 AND shard = $2 AND first <= $3), $3)
     ORDER BY first LIMIT $4",
    postgres "SELECT first,
       CASE WHEN substring(data FROM octet_length(data) - 7) = $5 THEN NULL ELSE data END
     FROM messages WHERE stream = $1 AND shard = $2 AND first >=
       COALESCE((SELECT MAX(first) FROM messages
                 WHERE stream = $1 AND shard = $2 AND first <= $3), $3)
     ORDER BY first LIMIT $4"
);

/// Who takes, and how much.
#[derive(Clone)]
pub(super) struct Order {
    /// The group's name.
    pub group: Arc<str>,
    /// The member's name.
    pub member: Arc<str>,
    /// How long it may be silent.
    pub lease_ms: i64,
    /// Only of shards that the member owns, and in order.
    pub ordered: bool,
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
    /// Somebody else is just taking where there is more.
    pub busy: bool,
}

/// A fetch under way.
struct Fetch<'a, D> {
    tx: &'a mut dyn Sql,
    ids: &'a Ids,
    stream: &'a Stream<D>,
    group: i64,
    basket: Basket<'a>,
}

/// Takes what there is, up to the order's limits.
pub(super) async fn fetch<D: Database>(
    tx: &mut dyn Sql,
    ids: &Ids,
    stream: &Stream<D>,
    order: &Order,
) -> Result<Taken> {
    let group = ids.group(&order.group)?;
    let basket = Basket {
        order,
        stream: &stream.spec.name,
        token: fastrand::u64(..),
        fence: None,
        taken: Taken::default(),
        bytes: 0,
        looked: 0,
    };
    let mut fetch = Fetch { tx, ids, stream, group, basket };
    match order.ordered {
        true => fetch.take_in_order().await?,
        false => {
            fetch.reclaim().await?;
            fetch.advance().await?;
        }
    }
    Ok(fetch.basket.taken)
}

impl<D: Database> Fetch<'_, D> {
    /// Takes over leases that ran out or were handed back, the longest free first.
    async fn reclaim(&mut self) -> Result<()> {
        let (now, limit) = (self.tx.now_ms(), self.basket.order.events + 1);
        for row in self.tx.rows(FREE, args![self.group, now, limit]).await? {
            if self.basket.full() {
                self.leave();
                return Ok(());
            }
            let (id, shard, last) = (row.int(0)?, row.small(1)?, row.uint(3)?);
            let counts = (row.small(4)? + 1, row.small(5)?);
            let run = self.take(shard, row.uint(2)?, last + 1, counts).await?;
            if run.next > last {
                self.tx.run(TAKEN_OVER, args![id]).await?;
            } else {
                self.leave();
                self.tx.run(TAKEN_OVER_UP_TO, args![run.next, id]).await?;
            }
            self.lease(shard, &run, counts).await?;
        }
        Ok(())
    }

    /// Of each shard that the member owns, in turn: what an owner before left, then new events.
    async fn take_in_order(&mut self) -> Result<()> {
        let Order { group: name, member, lease_ms, turn, events, .. } = self.basket.order;
        let asker = own::Asker { group: self.group, member, lease_ms: *lease_ms };
        let (owned, gave_up) = own::balance(self.tx, asker).await?;
        if gave_up {
            self.tx.outbox().wake(&self.stream.spec.name, Some(name));
        }
        let rows = self.cursors().await?;
        let group: Arc<str> = format!("{}/{name}/{:x}", self.stream.spec.name, self.group).into();
        for index in 0..owned.len() {
            let own::Owned { shard, epoch, held, left } = owned[(index + turn) % owned.len()];
            // One that waits for a refused event is not to fill the member's hand.
            if held >= 2 * *events as u64 {
                continue;
            }
            if self.basket.full() {
                self.basket.taken.more = true;
                break;
            }
            self.basket.fence = Some(Arc::new(Fence { group: group.clone(), shard, epoch }));
            if left && !self.take_left(shard).await? {
                self.basket.taken.more = true;
                break;
            }
            for row in &rows {
                if row.small(0)? == shard {
                    self.take_new(shard, row.uint(1)?, row.uint(2)?).await?;
                }
            }
        }
        Ok(())
    }

    /// Takes what an owner of the shard before left. `false`: there is more of it.
    async fn take_left(&mut self, shard: u32) -> Result<bool> {
        let limit = self.basket.order.events + 1;
        for row in self.tx.rows(LEFT, args![self.group, shard, limit]).await? {
            if self.basket.full() {
                return Ok(false);
            }
            let (id, last) = (row.int(0)?, row.uint(2)?);
            let counts = (row.small(3)? + 1, row.small(4)?);
            let run = self.take(shard, row.uint(1)?, last + 1, counts).await?;
            if run.next > last {
                self.tx.run(TAKEN_OVER, args![id]).await?;
            } else {
                self.tx.run(TAKEN_OVER_UP_TO, args![run.next, id]).await?;
            }
            self.lease(shard, &run, counts).await?;
            if run.next <= last {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// There is more for the next member, who may have found it locked.
    fn leave(&mut self) {
        self.basket.taken.more = true;
        self.tx.outbox().wake(&self.stream.spec.name, Some(&self.basket.order.group));
    }

    /// For each shard, where the group is, and where the shard ends.
    async fn cursors(&mut self) -> Result<Vec<Row>> {
        let rows = self.tx.rows(CURSORS, args![self.ids.stream, self.group]).await?;
        // Where there is none, the group was dropped, or all there was.
        let Some(row) = rows.first() else { return Err(Stale.into()) };
        shards::compare(row, 3, &self.stream.spec)?;
        for row in &rows {
            self.compare_mode(row, 4)?;
        }
        Ok(rows)
    }

    /// Errs where the group's mode, which the row has in `column`, is not the member's.
    fn compare_mode(&self, row: &Row, column: usize) -> Result<()> {
        let Order { group, ordered, .. } = self.basket.order;
        match (row.int(column)? != 0) == *ordered {
            true => Ok(()),
            false => Err(modes::changed_meanwhile(&self.stream.spec, group, *ordered)),
        }
    }

    /// Takes new events, from each shard in turn.
    async fn advance(&mut self) -> Result<()> {
        let rows = self.cursors().await?;
        for index in 0..rows.len() {
            let row = &rows[(index + self.basket.order.turn) % rows.len()];
            let (shard, next, end) = (row.small(0)?, row.uint(1)?, row.uint(2)?);
            if next >= end {
                continue;
            }
            if self.basket.full() {
                self.basket.taken.more = true;
                break;
            }
            self.take_new(shard, next, end).await?;
        }
        Ok(())
    }

    /// Takes new events of a shard, whose cursor was at `next` and which end before `end`.
    async fn take_new(&mut self, shard: u32, mut next: u64, end: u64) -> Result<()> {
        if next < end && self.tx.is_shared() {
            let cursor = args![self.group, shard];
            let Some(locked) = first(self.tx, LOCK_CURSOR, cursor).await? else {
                self.basket.taken.busy = true;
                return Ok(());
            };
            next = locked.uint(0)?;
            self.compare_mode(&locked, 1)?;
        }
        if next >= end {
            return Ok(());
        }
        let run = self.take(shard, next, end, (1, 0)).await?;
        // The cursor passes what is leased, and never anything else.
        // invariant: no-event-lost
        self.lease(shard, &run, (1, 0)).await?;
        self.tx.run(SET_CURSOR, args![run.next, self.group, shard]).await?;
        self.basket.taken.more |= run.next < end;
        Ok(())
    }

    /// Gives the run's events to the member.
    async fn lease(&mut self, shard: u32, run: &Run, (deliveries, attempts): Counts) -> Result<()> {
        let Order { member, lease_ms, .. } = self.basket.order;
        let (token, deadline) = (self.basket.token, self.tx.now_ms() + lease_ms);
        for (first, last) in &run.ranges {
            let row = args![
                self.group, shard, *first, *last, &**member, token, deadline, deliveries, attempts,
            ];
            self.tx.run(LEASE, row).await?;
        }
        Ok(())
    }

    /// Takes the events from `first` to before `end`, as far as they fit: from the cache, and
    /// where that does not have them, from the database.
    async fn take(&mut self, shard: u32, first: u64, end: u64, counts: Counts) -> Result<Run> {
        let mut run = Run { shard, counts, end, next: first, ranges: Vec::new() };
        let (mut limit, mut ask) = (1, true);
        while run.next < run.end && !self.basket.full() {
            match self.stream.db.local().chunk(self.ids.stream, shard, run.next) {
                Some(chunk) if D::CACHE_IS_SURE => self.basket.take(&chunk, &mut run),
                Some(chunk) if ask && chunk.events.len() >= ASKED_MIN => {
                    let before = run.next;
                    self.read(&mut run, 1, Some(chunk)).await?;
                    // What the cache has there may be of another database.
                    ask = run.next > before;
                }
                _ => {
                    self.read(&mut run, limit, None).await?;
                    limit = CHUNKS_MAX.min(limit * 2);
                }
            }
        }
        Ok(run)
    }

    /// Takes what fits of the next chunks in the database. The first may be what is `known`.
    async fn read(&mut self, run: &mut Run, limit: usize, known: Option<Chunk>) -> Result<()> {
        let sum = known.as_ref().map(|known| known.sum).unwrap_or_default();
        let args = args![self.ids.stream, run.shard, run.next, limit, &sum[..]];
        let rows = self.tx.rows(CHUNKS, args).await?;
        let last = rows.len() < limit;
        for mut row in rows {
            if run.next >= run.end || self.basket.full() {
                break;
            }
            let first = row.uint(0)?;
            let chunk = match (row.blob(1)?, &known) {
                (None, Some(known)) => Chunk { first, ..known.clone() },
                (data, _) => {
                    let data = data.unwrap_or_default();
                    let sum = chunk::sum(&data);
                    let events = chunk::decode(&Bytes::from(data)).with_context(|| {
                        format!("failed to read shard {} at {first}", run.shard)
                    })?;
                    let chunk = Chunk { first, events: events.into(), sum };
                    let generation = self.tx.generation();
                    let local = self.stream.db.local();
                    local.keep(generation, self.ids.stream, run.shard, chunk.clone());
                    chunk
                }
            };
            self.basket.take(&chunk, run);
        }
        if last && !self.basket.full() {
            // Nothing is stored from here on: there is nothing to wait for either.
            run.next = run.end;
        }
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
    /// By what right events are taken, in an ordered group.
    fence: Option<Arc<Fence>>,
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
                    fence: self.fence.clone(),
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
