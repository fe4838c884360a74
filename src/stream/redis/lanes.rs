//! The connections that a member waits on. A read that waits holds up its connection, and one
//! command reads several shards only where they are of one slot: so there is one lane for all
//! shards of a single server, and one for each shard of a Redis Cluster.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use redis::aio::MultiplexedConnection;
use redis::{Pipeline, Value};
use tokio::sync::Mutex;

use super::entry::{EntryId, Names, bytes, entry_id};
use super::held::{self, Life, Name};
use super::state::{FREE, SCRIPTS, Stream, is_group_missing, moved};
use crate::client::redis::odd;
use crate::event::{Delivery, Ticket};

/// How long one command waits, at most. A fetch that is given up holds what comes within that
/// time, so it is short.
pub(super) const BLOCK_MAX: Duration = Duration::from_millis(250);

/// What a delivery count is made of: attempts times this, plus deliveries.
const ATTEMPT: u64 = 1000;

/// One connection, and the shards it is for.
pub(super) struct Lane {
    shards: Vec<usize>,
    connection: Mutex<Option<MultiplexedConnection>>,
    /// A read for new events is under way.
    pub reading: AtomicBool,
    /// Shards that had events in the last read.
    pub busy: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: Names,
    /// Where the search for what nobody renews goes on, for each shard.
    cursors: Vec<String>,
}

/// What came of a read.
#[derive(Default)]
pub(super) struct Found {
    /// Events for this member.
    pub deliveries: Vec<Delivery>,
    /// Events for another group.
    pub not_ours: Vec<Ticket>,
    /// The search has not come to its end.
    pub more: bool,
}

/// The lanes of a stream.
pub(super) fn lanes(stream: &Stream) -> Vec<Lane> {
    let all: Vec<usize> = (0..stream.shards.len()).collect();
    match stream.redis.is_cluster() {
        true => all.into_iter().map(|shard| Lane::new(vec![shard])).collect(),
        false => vec![Lane::new(all)],
    }
}

impl Lane {
    fn new(shards: Vec<usize>) -> Self {
        let cursors = vec!["0-0".to_owned(); shards.len()];
        let state = Mutex::new(State { names: Names::default(), cursors });
        Self {
            shards,
            connection: Mutex::default(),
            reading: AtomicBool::new(false),
            busy: AtomicUsize::new(0),
            state,
        }
    }

    /// Claims the right to read; `false` where a read is under way.
    pub fn claim(&self) -> bool {
        !self.reading.swap(true, Ordering::AcqRel)
    }

    /// New events: up to `count` of each shard, and as soon as there are some, within `block`.
    pub async fn read(
        &self,
        stream: &Stream,
        life: &Life,
        count: usize,
        block: Duration,
    ) -> Result<Found> {
        let name = &life.name;
        let mut cmd = redis::cmd("XREADGROUP");
        cmd.arg("GROUP").arg(&name.group).arg(&name.member).arg("COUNT").arg(count);
        if !block.is_zero() {
            // 0 would be for ever.
            cmd.arg("BLOCK").arg(block.min(BLOCK_MAX).as_millis().max(1) as u64);
        }
        cmd.arg("STREAMS");
        for shard in &self.shards {
            cmd.arg(&stream.shards[*shard].stream);
        }
        for _ in &self.shards {
            cmd.arg(">");
        }
        let mut cursors = redis::cmd("MGET");
        for shard in &self.shards {
            cursors.arg(stream.shards[*shard].cursor(&name.group));
        }
        let mut both = redis::pipe();
        both.add_command(cmd).add_command(cursors);
        let answer = match self.ask(stream, &both).await {
            Err(error) if is_group_missing(&error) => {
                stream.create_groups(true).await?;
                return Ok(Found::default());
            }
            answer => answer?,
        };
        let Value::Array(answer) = answer else { return Err(odd("XREADGROUP")) };
        let mut answer = answer.into_iter();
        let streams = match answer.next() {
            Some(Value::Array(streams)) => streams,
            Some(Value::Nil) => Vec::new(),
            _ => return Err(odd("XREADGROUP")),
        };
        let Some(Value::Array(cursors)) = answer.next() else { return Err(odd("MGET")) };
        self.busy.store(streams.len(), Ordering::Relaxed);
        let mut state = self.state.lock().await;
        let mut found = Found::default();
        for part in streams {
            let Value::Array(part) = part else { continue };
            let mut part = part.into_iter();
            let (Some(key), Some(Value::Array(entries))) = (part.next(), part.next()) else {
                continue;
            };
            let key = bytes(key);
            let is = |shard: &&usize| stream.shards[**shard].stream.as_bytes() == key;
            let Some(shard) = self.shards.iter().find(is) else { continue };
            found.deliveries.reserve(entries.len());
            for entry in entries {
                found.add(stream, name, *shard, entry, 1, &mut state.names);
            }
        }
        drop(state);
        self.check(stream, life, cursors, &found).await?;
        Ok(found)
    }

    /// Hands back what was read where the group's cursor was moved before: it is for the life that
    /// begins then.
    async fn check(
        &self,
        stream: &Stream,
        life: &Life,
        cursors: Vec<Value>,
        found: &Found,
    ) -> Result<()> {
        let mut cursors = self.shards.iter().zip(cursors.into_iter().map(bytes));
        let is_moved =
            |(shard, cursor): &(&usize, Vec<u8>)| *cursor != life.cursors[**shard].as_bytes();
        let Some(first) = cursors.find(is_moved) else { return Ok(()) };
        let mut now = life.clone();
        for (shard, cursor) in std::iter::once(first).chain(cursors) {
            now.cursors[*shard] = String::from_utf8(cursor)?;
        }
        let read = found.deliveries.iter().map(|delivery| delivery.ticket);
        let read: Vec<Ticket> = read.chain(found.not_ours.iter().copied()).collect();
        held::release(stream, &now, &read).await?;
        Err(moved())
    }

    async fn ask(&self, stream: &Stream, both: &Pipeline) -> Result<Value> {
        let mut own = self.connection.lock().await;
        let node = stream.redis.node(&stream.shards[self.shards[0]].stream).await?;
        let connection = match &mut *own {
            Some(connection) => connection,
            None => own.insert(node.connect(BLOCK_MAX).await?),
        };
        match both.query_async(connection).await {
            Ok(answer) => Ok(answer),
            Err(error) => {
                let error = node.explain(error);
                if !is_group_missing(&error) {
                    *own = None;
                    stream.redis.failed(&error).await;
                }
                Err(error)
            }
        }
    }

    /// What others left behind: what was handed back, and with `search`, what nobody renewed for
    /// a lease; with that the member says that it lives. Up to `count` of each shard.
    pub async fn left(
        &self,
        stream: &Stream,
        life: &Life,
        count: usize,
        lease: Duration,
        search: bool,
    ) -> Result<Found> {
        let (mut state, name) = (self.state.lock().await, &life.name);
        let mut keys = vec![self.living(stream, &name.group)];
        for shard in &self.shards {
            keys.push(stream.shards[*shard].stream.clone());
            keys.push(stream.shards[*shard].cursor(&name.group));
        }
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        let mut cmd = SCRIPTS.left.call(&keys);
        cmd.arg(&name.group).arg(&name.member).arg(FREE).arg(count);
        cmd.arg(lease.as_millis().max(1) as u64).arg(if search { "all" } else { "" });
        for (shard, cursor) in self.shards.iter().zip(&state.cursors) {
            cmd.arg(cursor).arg(&life.cursors[*shard]);
        }
        let answer = stream.redis.run_cmd(&SCRIPTS.left, keys[0], &cmd).await;
        let Some(answer) = stream.of_group(answer).await? else { return Ok(Found::default()) };
        let Value::Array(parts) = answer else { return Err(odd("a search")) };
        let mut found = Found::default();
        let State { names, cursors } = &mut *state;
        for ((shard, part), kept) in self.shards.iter().zip(parts).zip(cursors) {
            let Value::Array(part) = part else { return Err(odd("a search")) };
            let mut part = part.into_iter();
            let (Some(Value::Array(entries)), Some(Value::Array(counts)), Some(cursor)) =
                (part.next(), part.next(), part.next())
            else {
                return Err(odd("a search"));
            };
            for (entry, count) in entries.into_iter().zip(counts) {
                let Value::Int(count) = count else { return Err(odd("a search")) };
                found.add(stream, name, *shard, entry, count.max(1) as u64, names);
            }
            *kept = String::from_utf8(bytes(cursor))?;
            found.more |= search && *kept != "0-0";
        }
        Ok(found)
    }

    /// The member does not live any more.
    pub async fn leave(&self, stream: &Stream, name: &Name) -> Result<()> {
        let living = self.living(stream, &name.group);
        let mut cmd = redis::cmd("ZREM");
        stream.redis.ask(&living, cmd.arg(&living).arg(&name.member)).await?;
        Ok(())
    }

    /// Where a member says that it lives.
    fn living(&self, stream: &Stream, group: &str) -> String {
        stream.shards[self.shards[0]].living(group)
    }
}

impl Found {
    /// Adds an entry that was delivered, with its count.
    pub fn add(
        &mut self,
        stream: &Stream,
        name: &Name,
        shard: usize,
        entry: Value,
        count: u64,
        names: &mut Names,
    ) {
        let Some((id, fields)) = parts(entry) else { return };
        let ticket = Ticket { shard: shard as u32, hold: id.0, offset: id.1 };
        let event = stream.format.event(id, fields, names);
        if event.only_group.as_ref().is_some_and(|group| **group != *name.group) {
            self.not_ours.push(ticket);
            return;
        }
        self.deliveries.push(Delivery {
            event,
            stream: stream.spec.name.clone(),
            ticket,
            deliveries: (count % ATTEMPT).max(1) as u32,
            attempts: u32::try_from(count / ATTEMPT).unwrap_or(u32::MAX),
            fence: None,
        });
    }
}

/// The id and the fields of an entry; `None` of one that was deleted.
pub(super) fn parts(entry: Value) -> Option<(EntryId, Vec<Value>)> {
    let Value::Array(entry) = entry else { return None };
    let mut entry = entry.into_iter();
    let (Some(id), Some(Value::Array(fields))) = (entry.next(), entry.next()) else { return None };
    Some((entry_id(&bytes(id))?, fields))
}
