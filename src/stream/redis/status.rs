//! What a stream holds, and how far its groups are.

use std::collections::BTreeMap;

use anyhow::Result;
use futures_util::future::try_join_all;
use redis::{Cmd, Value};

use super::entry::{Names, bytes};
use super::lanes::parts;
use super::state::{FREE, SCRIPTS, Stream};
use crate::client::redis::odd;
use crate::event::Event;
use crate::stream::{ConsumerStatus, GroupStatus, Retain, StreamStatus};

/// One shard, at one moment.
struct Shard {
    length: u64,
    groups: Vec<Group>,
}

/// One group in one shard.
struct Group {
    name: String,
    pending: u64,
    lag: Option<u64>,
    /// Name, pending and idle milliseconds.
    consumers: Vec<(String, u64, u64)>,
    /// When the oldest entry that is not acked was added.
    oldest_us: Option<i64>,
}

async fn shards(stream: &Stream, what: &str) -> Result<Vec<Shard>> {
    let shards = stream.shards.iter().map(|shard| async move {
        let keys = [&*shard.stream];
        let put = |cmd: &mut Cmd| {
            cmd.arg(what);
        };
        let answer = stream.redis.run(&SCRIPTS.status, &keys, put).await?;
        read(answer).ok_or_else(|| odd("its status"))
    });
    try_join_all(shards).await
}

fn read(answer: Value) -> Option<Shard> {
    let [length, groups] = list(answer)?.try_into().ok()?;
    let groups = list(groups)?.into_iter().map(|group| {
        let [name, pending, lag, consumers, oldest] = list(group)?.try_into().ok()?;
        let consumers = list(consumers)?.into_iter().map(|consumer| {
            let [name, pending, idle] = list(consumer)?.try_into().ok()?;
            Some((text(name), number(&pending)?, number(&idle)?))
        });
        Some(Group {
            name: text(name),
            pending: number(&pending)?,
            lag: number(&lag),
            consumers: consumers.collect::<Option<_>>()?,
            oldest_us: added_us(oldest),
        })
    });
    Some(Shard { length: number(&length)?, groups: groups.collect::<Option<_>>()? })
}

fn list(value: Value) -> Option<Vec<Value>> {
    if let Value::Array(list) = value { Some(list) } else { None }
}

fn number(value: &Value) -> Option<u64> {
    if let Value::Int(number) = value { Some((*number).max(0) as u64) } else { None }
}

fn text(value: Value) -> String {
    String::from_utf8_lossy(&bytes(value)).into_owned()
}

/// When an entry was added, as far as its id tells.
fn added_us(id: Value) -> Option<i64> {
    if matches!(id, Value::Nil | Value::Boolean(_)) {
        return None;
    }
    let id = text(id);
    id.split_once('-')?.0.parse::<i64>().ok()?.checked_mul(1000)
}

/// The numbers of `/streams`.
pub(super) async fn status(stream: &Stream) -> Result<StreamStatus> {
    let shards = shards(stream, "consumers").await?;
    let lengths: Vec<u64> = shards.iter().map(|shard| shard.length).collect();
    let mut groups: BTreeMap<String, GroupStatus> = BTreeMap::new();
    for group in shards.into_iter().flat_map(|shard| shard.groups) {
        let first = || GroupStatus {
            name: group.name.clone(),
            lag: Some(0),
            pending: Some(0),
            consumers: Vec::new(),
            oldest_us: None,
        };
        let all = groups.entry(group.name.clone()).or_insert_with(first);
        all.oldest_us = all.oldest_us.into_iter().chain(group.oldest_us).min();
        // What was handed back waits for a member, like what is new.
        let free = group.consumers.iter().find(|(name, ..)| name == FREE).map_or(0, |it| it.1);
        all.lag = all.lag.zip(group.lag).map(|(all, lag)| all + lag + free);
        all.pending = all.pending.map(|all| all + group.pending.saturating_sub(free));
        for (name, pending, idle_ms) in group.consumers.into_iter().filter(|it| it.0 != FREE) {
            match all.consumers.iter_mut().find(|consumer| consumer.name == name) {
                Some(consumer) => {
                    consumer.pending = consumer.pending.map(|before| before + pending);
                    consumer.idle_ms = consumer.idle_ms.map(|before| before.min(idle_ms));
                }
                None => all.consumers.push(ConsumerStatus {
                    name,
                    pending: Some(pending),
                    idle_ms: Some(idle_ms),
                }),
            }
        }
    }
    let mut groups: Vec<GroupStatus> = groups.into_values().collect();
    for group in &mut groups {
        group.consumers.sort_by(|one, other| one.name.cmp(&other.name));
    }
    let length = Some(lengths.iter().sum());
    Ok(StreamStatus { stream: stream.spec.name.to_string(), length, groups, shards: lengths })
}

/// Events that the slowest group has not acked; `None` without a group. Where Redis cannot tell
/// (before version 7, or with a gap in what a group has yet to read), it is what the stream holds
/// if that is dropped once acked, and else what members hold.
pub(super) async fn backlog(stream: &Stream) -> Result<Option<u64>> {
    let mut groups: BTreeMap<String, u64> = BTreeMap::new();
    for shard in shards(stream, "groups").await? {
        for group in shard.groups {
            let behind = match group.lag {
                Some(lag) => lag + group.pending,
                None if stream.spec.retain == Retain::Acked => shard.length,
                None => group.pending,
            };
            *groups.entry(group.name).or_default() += behind;
        }
    }
    Ok(groups.into_values().max())
}

/// The newest `count` events of all shards, oldest first.
pub(super) async fn peek(stream: &Stream, count: usize) -> Result<Vec<Event>> {
    let mut newest: Vec<Event> = Vec::new();
    if count == 0 {
        return Ok(newest);
    }
    for shard in &stream.shards {
        let mut cmd = redis::cmd("XREVRANGE");
        cmd.arg(&shard.stream).arg("+").arg("-").arg("COUNT").arg(count);
        let entries = list(stream.redis.ask(&shard.stream, &cmd).await?);
        let mut names = Names::default();
        let found = entries.unwrap_or_default().into_iter().rev().filter_map(parts);
        newest.extend(found.map(|(id, fields)| stream.format.event(id, fields, &mut names)));
    }
    newest.sort_by_key(|event| event.time_us);
    newest.drain(..newest.len().saturating_sub(count));
    Ok(newest)
}
