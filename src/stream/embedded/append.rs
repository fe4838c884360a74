//! Compare and append.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use sqlx::{Row, SqliteConnection};

use super::cache::Chunk;
use super::clock;
use super::db::{Commit, Tx, lock};
use super::state::{Backlog, Ids, Stream};
use crate::event::{Event, now_us};
use crate::source::{Move, Position, Slot};
use crate::stream::{Append, Appended, Writer, chunk, shard_of};

/// How long what is known of the slowest group is believed: another process may add a group.
const BACKLOG_KNOWN_MS: i64 = 1000;

/// A hand to write with.
pub(super) struct StreamWriter {
    stream: Arc<Stream>,
    /// Events without a key go to one shard a batch, in turn.
    turn: u32,
}

impl StreamWriter {
    /// A hand on `stream`.
    pub fn new(stream: Arc<Stream>) -> Self {
        Self { stream, turn: 0 }
    }
}

#[async_trait]
impl Writer for StreamWriter {
    async fn slots(&mut self, origin: &str) -> Result<Vec<Slot>> {
        let (mut read, ids) = self.stream.read().await?;
        let rows = sqlx::query(
            "SELECT slot, ord, note FROM checkpoints WHERE stream = ? AND origin = ? ORDER BY slot",
        )
        .bind(ids.stream)
        .bind(origin)
        .fetch_all(read.sql()?)
        .await
        .map_err(|error| self.stream.explain(error))?;
        rows.iter()
            .map(|row| {
                let (order, note) = (row.try_get::<i64, _>(1)? as u64, row.try_get(2)?);
                Ok((row.try_get(0)?, Position { order, note }))
            })
            .collect()
    }

    async fn append(&mut self, appends: &[Append]) -> Result<Vec<Appended>> {
        self.stream.tend();
        let steps: Vec<Step> = appends
            .iter()
            .map(|append| Step {
                origin: append.origin.clone(),
                moves: append.moves.clone(),
                events: append.events.len() as u64,
            })
            .collect();
        let packed = pack(spread(appends, self.stream.spec.shards.max(1), &mut self.turn))?;
        let stream = self.stream.clone();
        let (answers, stored) = self
            .stream
            .write(Commit::Durable, move |tx, ids| {
                Box::pin(async move { store(tx, &ids, &stream, &steps, packed).await })
            })
            .await?;
        stored.publish(&self.stream);
        Ok(answers)
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
            let shard = event.key.as_deref().map_or(unkeyed, |key| shard_of(key, shards));
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
fn only(packed: Vec<Packed>, answers: &[Appended]) -> Result<Vec<Packed>> {
    let into = |index: &usize| answers[*index] == Appended::Durable;
    if answers.iter().all(|answer| *answer == Appended::Durable) {
        return Ok(packed);
    }
    let left = packed.into_iter().map(|packed| {
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

/// What an append put into the stream: to be told once it is committed.
pub(super) struct Stored {
    generation: u64,
    stream: i64,
    chunks: Vec<(u32, Chunk)>,
}

impl Stored {
    /// Lets members know, and have the events without reading them.
    pub fn publish(self, stream: &Stream) {
        if self.chunks.is_empty() {
            return;
        }
        let mut cache = lock(&stream.db.cache);
        for (shard, chunk) in self.chunks {
            cache.put(self.generation, self.stream, shard, chunk);
        }
        drop(cache);
        stream.db.wake(&stream.spec.name, None);
    }
}

async fn store(
    tx: &mut Tx,
    ids: &Ids,
    stream: &Stream,
    steps: &[Step],
    packed: Vec<Packed>,
) -> Result<(Vec<Appended>, Stored)> {
    let mut heads = heads(&mut tx.sql, ids.stream).await?;
    let mut room = Room { stream, appended: heads.values().sum(), let_in: 0 };
    let mut slots = Slots::default();
    let mut answers = Vec::with_capacity(steps.len());
    for step in steps {
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
    let stored = insert(tx, ids, &mut heads, only(packed, &answers)?).await?;
    slots.save(tx, ids).await?;
    Ok((answers, stored))
}

/// The next offset of each shard.
pub(super) async fn heads(sql: &mut SqliteConnection, stream: i64) -> Result<HashMap<u32, u64>> {
    let rows = sqlx::query("SELECT shard, next FROM offsets WHERE stream = ?")
        .bind(stream)
        .fetch_all(sql)
        .await?;
    rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get::<i64, _>(1)? as u64))).collect()
}

/// Stores chunks at the heads of their shards.
pub(super) async fn insert(
    tx: &mut Tx,
    ids: &Ids,
    heads: &mut HashMap<u32, u64>,
    packed: Vec<Packed>,
) -> Result<Stored> {
    let mut stored = Stored { generation: tx.generation, stream: ids.stream, chunks: Vec::new() };
    let mut moved: Vec<u32> = Vec::new();
    for Packed { shard, events, data, .. } in packed {
        let next = heads.entry(shard).or_default();
        tx.written += data.len() as u64;
        sqlx::query("INSERT INTO messages VALUES (?, ?, ?, ?, ?, ?)")
            .bind(ids.stream)
            .bind(shard)
            .bind(*next as i64)
            .bind(events.len() as i64)
            .bind(now_us())
            .bind(data)
            .execute(&mut tx.sql)
            .await?;
        let chunk = Chunk { first: *next, events };
        *next = chunk.end();
        stored.chunks.push((shard, chunk));
        if moved.last() != Some(&shard) {
            moved.push(shard);
        }
    }
    for shard in moved {
        sqlx::query("UPDATE offsets SET next = ? WHERE stream = ? AND shard = ?")
            .bind(heads[&shard] as i64)
            .bind(ids.stream)
            .bind(shard)
            .execute(&mut tx.sql)
            .await?;
    }
    Ok(stored)
}

/// Whether the stream takes more.
struct Room<'a> {
    stream: &'a Stream,
    /// Events ever appended.
    appended: u64,
    /// Events of this transaction.
    let_in: u64,
}

impl Room<'_> {
    /// Lets `events` in, or says how many the slowest group has before it.
    async fn admit(&mut self, tx: &mut Tx, ids: &Ids, events: u64) -> Result<Option<u64>> {
        let limit = self.stream.spec.max_backlog;
        let now = clock::now_ms();
        let known = (*lock(&self.stream.backlog)).filter(|known| {
            known.generation == tx.generation && now - known.at_ms < BACKLOG_KNOWN_MS
        });
        // Groups only ever catch up, so what was known and what came since is the most there is.
        let most = known.map(|known| known.events + self.appended.saturating_sub(known.appended));
        if events > 0 && most.is_none_or(|most| most + self.let_in + events > limit) {
            let exact = backlog(&mut tx.sql, ids.stream).await?;
            *lock(&self.stream.backlog) = exact.map(|events| Backlog {
                generation: tx.generation,
                events,
                appended: self.appended,
                at_ms: now,
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

/// Events that the slowest group has not acked; `None` without a group.
async fn backlog(sql: &mut SqliteConnection, stream: i64) -> Result<Option<u64>> {
    let row = sqlx::query(
        "SELECT MAX(
           (SELECT COALESCE(SUM(o.next - c.next), 0) FROM cursors c
              JOIN offsets o ON o.stream = g.stream AND o.shard = c.shard WHERE c.grp = g.id)
           + (SELECT COALESCE(SUM(l.last - l.first + 1), 0) FROM leases l WHERE l.grp = g.id))
         FROM groups g WHERE g.stream = ?",
    )
    .bind(stream)
    .fetch_one(sql)
    .await?;
    Ok(row.try_get::<Option<i64>, _>(0)?.map(|events| events.max(0) as u64))
}

type SlotKey = (Arc<str>, String);

/// The checkpoints that a transaction touches: as stored, and as they are to be.
#[derive(Default)]
struct Slots(HashMap<SlotKey, (Option<Position>, Option<Position>)>);

impl Slots {
    /// Where the step's slots stand afterwards; `None` where one is not where the step starts.
    async fn compare(
        &mut self,
        tx: &mut Tx,
        ids: &Ids,
        step: &Step,
    ) -> Result<Option<HashMap<SlotKey, Option<Position>>>> {
        let mut after: HashMap<SlotKey, Option<Position>> = HashMap::new();
        for Move { slot, from, to } in &step.moves {
            let key = (step.origin.clone(), slot.clone());
            if !self.0.contains_key(&key) {
                let stored = self::slot(&mut tx.sql, ids.stream, &key).await?;
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

    async fn save(self, tx: &mut Tx, ids: &Ids) -> Result<()> {
        for ((origin, slot), (stored, now)) in self.0 {
            if stored == now {
                continue;
            }
            let query = match now {
                Some(now) => {
                    sqlx::query("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?)")
                        .bind(ids.stream)
                        .bind(origin.to_string())
                        .bind(slot)
                        .bind(now.order as i64)
                        .bind(now.note)
                }
                None => sqlx::query(
                    "DELETE FROM checkpoints WHERE stream = ? AND origin = ? AND slot = ?",
                )
                .bind(ids.stream)
                .bind(origin.to_string())
                .bind(slot),
            };
            query.execute(&mut tx.sql).await?;
        }
        Ok(())
    }
}

async fn slot(
    sql: &mut SqliteConnection,
    stream: i64,
    (origin, slot): &SlotKey,
) -> Result<Option<Position>> {
    let row = sqlx::query(
        "SELECT ord, note FROM checkpoints WHERE stream = ? AND origin = ? AND slot = ?",
    )
    .bind(stream)
    .bind(&**origin)
    .bind(&**slot)
    .fetch_optional(sql)
    .await?;
    row.map(|row| {
        let (order, note) = (row.try_get::<i64, _>(0)? as u64, row.try_get(1)?);
        Ok(Position { order, note })
    })
    .transpose()
}
