//! Compare and append.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Error, Result};
use async_trait::async_trait;

use super::local::Chunk;
use super::state::{Backlog, Ids, Stream};
use super::{Database, Mode, Row, Sql, Stale, Statement, args, first, lock, shards, statement};
use crate::event::Event;
use crate::source::{Move, Position, Slot};
use crate::stream::{Append, Appended, Writer, chunk, shard_for};

/// How long what is known of the slowest group is believed: another process may add a group.
const BACKLOG_KNOWN: Duration = Duration::from_secs(1);

const SLOTS: Statement =
    statement!("SELECT slot, ord, note FROM checkpoints WHERE stream = $1 AND origin = $2");
const SLOT: Statement =
    statement!("SELECT ord, note FROM checkpoints WHERE stream = $1 AND origin = $2 AND slot = $3");
const SET_SLOT: Statement = statement!(
    "INSERT INTO checkpoints (stream, origin, slot, ord, note) VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (stream, origin, slot) DO UPDATE SET ord = excluded.ord, note = excluded.note"
);
const FORGET_SLOT: Statement =
    statement!("DELETE FROM checkpoints WHERE stream = $1 AND origin = $2 AND slot = $3");
/// Locked until the commit: who appends to a stream does so alone, so that no reader passes an
/// offset that is yet to be filled, and what is compared stays as it is.
const HEADS: Statement = statement!(
    "SELECT shard, next, shards FROM offsets WHERE stream = $1 ORDER BY shard",
    lock "FOR UPDATE"
);
const SET_HEAD: Statement =
    statement!("UPDATE offsets SET next = $1 WHERE stream = $2 AND shard = $3");
const STORE: Statement = statement!(
    "INSERT INTO messages (stream, shard, first, count, time, data)
     VALUES ($1, $2, $3, $4, $5, $6)"
);
/// Events that the slowest group has not acked.
const BACKLOG: Statement = statement!(
    "SELECT CAST(MAX(
       (SELECT COALESCE(SUM(o.next - c.next), 0) FROM cursors c
          JOIN offsets o ON o.stream = g.stream AND o.shard = c.shard WHERE c.grp = g.id)
       + (SELECT COALESCE(SUM(l.last - l.first + 1), 0) FROM leases l WHERE l.grp = g.id))
     AS BIGINT) FROM groups g WHERE g.stream = $1"
);

/// A hand to write with.
pub(super) struct StreamWriter<D> {
    stream: Arc<Stream<D>>,
    /// Events without a key go to one shard a batch, in turn.
    turn: u32,
}

impl<D> StreamWriter<D> {
    /// A hand on `stream`.
    pub fn new(stream: Arc<Stream<D>>) -> Self {
        Self { stream, turn: 0 }
    }
}

#[async_trait]
impl<D: Database> Writer for StreamWriter<D> {
    async fn slots(&mut self, origin: &str) -> Result<Vec<Slot>> {
        let origin: Arc<str> = origin.into();
        let slots = self.stream.transact(Mode::Read, move |tx, ids| {
            let origin = origin.clone();
            Box::pin(async move {
                let mut rows = tx.rows(SLOTS, args![ids.stream, &*origin]).await?;
                let slot = |row: &mut Row| {
                    Ok((row.text(0)?, Position { order: row.uint(1)?, note: row.text(2)? }))
                };
                rows.iter_mut().map(slot).collect()
            })
        });
        slots.await
    }

    async fn append(&mut self, appends: &[Append]) -> Result<Vec<Appended>> {
        self.stream.tend();
        let steps = appends.iter().map(|append| Step {
            origin: append.origin.clone(),
            moves: append.moves.clone(),
            events: append.events.len() as u64,
        });
        let packed = pack(spread(appends, self.stream.spec.shards.max(1), &mut self.turn))?;
        let call = Arc::new(Call { stream: self.stream.clone(), steps: steps.collect(), packed });
        self.stream
            .transact(Mode::Durable, move |tx, ids| {
                let call = call.clone();
                Box::pin(async move { call.store(tx, &ids).await })
            })
            .await
    }
}

/// An [`Append`] without its events.
struct Step {
    origin: Arc<str>,
    moves: Vec<Move>,
    events: u64,
}

/// Events of one shard, in order, and the [`Append`] that each came with.
struct Spread {
    shard: u32,
    events: Vec<Event>,
    of: Vec<usize>,
}

/// Gives each event its shard.
fn spread(appends: &[Append], shards: u32, turn: &mut u32) -> Vec<Spread> {
    let mut spread: Vec<Spread> =
        (0..shards).map(|shard| Spread { shard, events: Vec::new(), of: Vec::new() }).collect();
    for (index, append) in appends.iter().enumerate() {
        let unkeyed = *turn % shards;
        *turn = turn.wrapping_add(1);
        for event in &append.events {
            let shard = shard_for(event, shards).unwrap_or(unkeyed);
            let to = &mut spread[shard as usize];
            to.events.push(event.clone());
            to.of.push(index);
        }
    }
    spread.retain(|spread| !spread.events.is_empty());
    spread
}

/// A row of `messages` to be.
pub(super) struct Packed {
    shard: u32,
    events: Arc<[Event]>,
    of: Vec<usize>,
    data: Vec<u8>,
}

fn pack(spread: Vec<Spread>) -> Result<Vec<Packed>> {
    let mut packed = Vec::new();
    for Spread { shard, events, of } in spread {
        let all: Vec<&Event> = events.iter().collect();
        for run in chunk::runs(&all) {
            packed.push(Packed {
                shard,
                data: chunk::encode(&all[run.clone()])?,
                events: events[run.clone()].into(),
                of: of[run].to_vec(),
            });
        }
    }
    Ok(packed)
}

/// What of `packed` came with an append that was let in.
fn only(packed: &[Packed], answers: &[Appended]) -> Result<Vec<Packed>> {
    let into = |index: &usize| answers[*index] == Appended::Durable;
    let left = packed.iter().map(|packed| {
        let kept = packed.of.iter().zip(packed.events.iter()).filter(|(of, _)| into(of));
        let (of, events) = kept.map(|(of, event)| (*of, event.clone())).unzip();
        Spread { shard: packed.shard, of, events }
    });
    pack(left.filter(|spread| !spread.events.is_empty()).collect())
}

/// Packs events that belong to no source, and gives each its shard.
pub(super) fn pack_events(events: Vec<Event>, shards: u32) -> Result<Vec<Packed>> {
    let append = Append { origin: "".into(), moves: Vec::new(), events };
    pack(spread(&[append], shards, &mut 0))
}

/// One call of [`Writer::append`].
struct Call<D> {
    stream: Arc<Stream<D>>,
    steps: Vec<Step>,
    packed: Vec<Packed>,
}

impl<D: Database> Call<D> {
    async fn store(&self, tx: &mut dyn Sql, ids: &Ids) -> Result<Vec<Appended>> {
        let mut heads = heads(tx, ids, &self.stream).await?;
        let mut room = Room { stream: &*self.stream, appended: heads.values().sum(), let_in: 0 };
        let mut slots = Slots::default();
        let mut answers = Vec::with_capacity(self.steps.len());
        for step in &self.steps {
            let answer = match slots.compare(tx, ids, step).await? {
                None => Appended::Rewound,
                Some(after) => match room.admit(tx, ids, step.events).await? {
                    Some(backlog) => Appended::Full(backlog),
                    None => {
                        slots.set(after);
                        Appended::Durable
                    }
                },
            };
            answers.push(answer);
        }
        if answers.iter().all(|answer| *answer == Appended::Durable) {
            insert(tx, ids, &self.stream, &mut heads, &self.packed).await?;
        } else {
            let left = only(&self.packed, &answers)?;
            insert(tx, ids, &self.stream, &mut heads, &left).await?;
        }
        slots.save(tx, ids).await?;
        Ok(answers)
    }
}

/// The next offset of each shard, which nobody else changes until the commit.
pub(super) async fn heads<D: Database>(
    tx: &mut dyn Sql,
    ids: &Ids,
    stream: &Stream<D>,
) -> Result<HashMap<u32, u64>> {
    let (rows, shards) = (tx.rows(HEADS, args![ids.stream]).await?, stream.spec.shards.max(1));
    let Some(row) = rows.first() else { return Err(Stale.into()) };
    shards::compare(row, 2, &stream.spec)?;
    if rows.len() < shards as usize {
        return Err(Stale.into());
    }
    rows.iter().take(shards as usize).map(|row| Ok((row.small(0)?, row.uint(1)?))).collect()
}

/// Stores chunks at the heads of their shards, and wakes who waits for them.
pub(super) async fn insert<D: Database>(
    tx: &mut dyn Sql,
    ids: &Ids,
    stream: &Stream<D>,
    heads: &mut HashMap<u32, u64>,
    packed: &[Packed],
) -> Result<()> {
    let mut moved: Vec<u32> = Vec::new();
    for Packed { shard, events, data, .. } in packed {
        let next = heads.entry(*shard).or_default();
        let row = args![ids.stream, *shard, *next, events.len(), tx.time_us(), &**data];
        tx.run(STORE, row).await?;
        let chunk = Chunk { first: *next, events: events.clone(), sum: chunk::sum(data) };
        *next = chunk.end();
        tx.outbox().store(ids.stream, *shard, chunk);
        if moved.last() != Some(shard) {
            moved.push(*shard);
        }
    }
    for shard in &moved {
        tx.run(SET_HEAD, args![heads[shard], ids.stream, *shard]).await?;
    }
    if !moved.is_empty() {
        tx.outbox().wake(&stream.spec.name, None);
    }
    Ok(())
}

/// Whether the stream takes more.
struct Room<'a, D> {
    stream: &'a Stream<D>,
    /// Events ever appended.
    appended: u64,
    /// Events of this transaction.
    let_in: u64,
}

impl<D: Database> Room<'_, D> {
    /// Lets `events` in, or says how many the slowest group has before it.
    async fn admit(&mut self, tx: &mut dyn Sql, ids: &Ids, events: u64) -> Result<Option<u64>> {
        let limit = self.stream.spec.max_backlog;
        let known = (*lock(&self.stream.backlog)).filter(|known| {
            known.generation == tx.generation() && known.at.elapsed() < BACKLOG_KNOWN
        });
        // Groups catch up, so what was known and what came since is the most there is. A cursor
        // that was put back counts once this is not believed any more.
        let most = known.map(|known| known.events + self.appended.saturating_sub(known.appended));
        if events > 0 && most.is_none_or(|most| most + self.let_in + events > limit) {
            let exact = first(tx, BACKLOG, args![ids.stream]).await?;
            let exact = exact.map(|row| row.opt_int(0)).transpose()?.flatten();
            let exact = exact.map(|events| events.max(0) as u64);
            *lock(&self.stream.backlog) = exact.map(|events| Backlog {
                generation: tx.generation(),
                events,
                appended: self.appended,
                at: Instant::now(),
            });
            // Into an empty stream even an append beyond the limit must get in some time.
            let before = exact.map_or(0, |exact| exact + self.let_in);
            if before > 0 && before + events > limit {
                return Ok(Some(before));
            }
        }
        self.let_in += events;
        Ok(None)
    }
}

type SlotKey = (Arc<str>, String);

/// The checkpoints that a transaction touches: as stored, and as they are to be.
#[derive(Default)]
struct Slots(HashMap<SlotKey, (Option<Position>, Option<Position>)>);

impl Slots {
    /// Where the step's slots stand afterwards; `None` where one is not where the step starts.
    async fn compare(
        &mut self,
        tx: &mut dyn Sql,
        ids: &Ids,
        step: &Step,
    ) -> Result<Option<HashMap<SlotKey, Option<Position>>>> {
        let mut after: HashMap<SlotKey, Option<Position>> = HashMap::new();
        for Move { slot, from, to } in &step.moves {
            let key = (step.origin.clone(), slot.clone());
            if !self.0.contains_key(&key) {
                let stored = first(tx, SLOT, args![ids.stream, &*step.origin, &**slot]).await?;
                let stored = stored
                    .map(|mut row| {
                        Ok::<_, Error>(Position { order: row.uint(0)?, note: row.text(1)? })
                    })
                    .transpose()?;
                self.0.insert(key.clone(), (stored.clone(), stored));
            }
            let now = after.get(&key).or_else(|| self.0.get(&key).map(|(_, now)| now));
            if now != Some(from) {
                return Ok(None);
            }
            after.insert(key, to.clone());
        }
        Ok(Some(after))
    }

    fn set(&mut self, after: HashMap<SlotKey, Option<Position>>) {
        for (key, to) in after {
            if let Some((_, now)) = self.0.get_mut(&key) {
                *now = to;
            }
        }
    }

    async fn save(self, tx: &mut dyn Sql, ids: &Ids) -> Result<()> {
        for ((origin, slot), (stored, now)) in self.0 {
            match now {
                now if now == stored => {}
                Some(Position { order, note }) => {
                    let row = args![ids.stream, &*origin, &*slot, order, &*note];
                    tx.run(SET_SLOT, row).await?;
                }
                None => {
                    tx.run(FORGET_SLOT, args![ids.stream, &*origin, &*slot]).await?;
                }
            }
        }
        Ok(())
    }
}
