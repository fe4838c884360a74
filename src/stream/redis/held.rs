//! What a member does with what it holds, or believes to.

use anyhow::Result;
use futures_util::future::try_join_all;
use redis::Value;

use super::entry::{bytes, entry_id, put_entry_id};
use super::state::{FREE, SCRIPTS, Stream};
use crate::event::Ticket;

/// Entries that one command is about, at most.
const AT_ONCE: usize = 2000;

/// A member's name in its group.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Name {
    /// The group.
    pub group: String,
    /// The consumer.
    pub member: String,
}

/// A life of a member.
#[derive(Clone, Debug)]
pub(super) struct Life {
    /// Whose.
    pub name: Name,
    /// What the group's cursor in each shard was known by when it began. Where somebody has moved
    /// it since, nothing that the member holds is its own any more.
    pub cursors: Vec<String>,
}

/// Tickets of one shard, ascending.
pub(super) fn by_shard(stream: &Stream, tickets: &[Ticket]) -> Vec<(usize, Vec<Ticket>)> {
    let mut sorted: Vec<Ticket> = tickets.to_vec();
    // Nearly always it is sorted already.
    sorted.sort_unstable();
    sorted.dedup();
    sorted.retain(|ticket| (ticket.shard as usize) < stream.shards.len());
    let parts = sorted.chunk_by(|one, next| one.shard == next.shard);
    parts
        .flat_map(|part| part.chunks(AT_ONCE))
        .map(|part| (part[0].shard as usize, part.to_vec()))
        .collect()
}

/// Acks what is certainly this member's.
pub(super) async fn ack(stream: &Stream, life: &Life, tickets: &[Ticket]) -> Result<()> {
    let parts = by_shard(stream, tickets);
    let acked = parts.iter().map(|(shard, tickets)| {
        let (group, keys) = (&life.name.group, &stream.shards[*shard]);
        let (key, cursor) = (&keys.stream, keys.cursor(group));
        let mut cmd =
            SCRIPTS.ack.call_sized(&[key, &cursor], tickets.len() + 2, tickets.len() * 24 + 128);
        cmd.arg(group).arg(&life.cursors[*shard]);
        tickets.iter().for_each(|ticket| put_entry_id((ticket.hold, ticket.offset), &mut cmd));
        async move { stream.of_group(stream.redis.run_cmd(&SCRIPTS.ack, key, &cmd).await).await }
    });
    try_join_all(acked).await?;
    Ok(())
}

/// What became of tickets.
#[derive(Debug, Default)]
pub(super) struct Looked {
    /// They are not this member's.
    pub lost: Vec<Ticket>,
    /// They were this member's, and are not in the stream any more.
    pub deleted: Vec<Ticket>,
}

/// Acks what is still this member's.
pub(super) async fn ack_own(stream: &Stream, life: &Life, tickets: &[Ticket]) -> Result<()> {
    look(stream, life, tickets, "ack").await?;
    Ok(())
}

/// Renews what is still this member's.
pub(super) async fn renew(stream: &Stream, life: &Life, tickets: &[Ticket]) -> Result<Looked> {
    look(stream, life, tickets, "renew").await
}

/// Hands back what is still this member's, uncounted.
pub(super) async fn release(stream: &Stream, life: &Life, tickets: &[Ticket]) -> Result<()> {
    look(stream, life, tickets, "release").await?;
    stream.known.handed_back.notify_waiters();
    Ok(())
}

async fn look(stream: &Stream, life: &Life, tickets: &[Ticket], what: &str) -> Result<Looked> {
    let parts = by_shard(stream, tickets);
    let answers = parts.iter().map(|(shard, tickets)| async move {
        let answer = run(stream, life, *shard, what, FREE, tickets).await?;
        anyhow::Ok((*shard, tickets, answer))
    });
    let mut looked = Looked::default();
    for (shard, tickets, answer) in try_join_all(answers).await? {
        match answer {
            Some(Value::Array(answer)) => {
                let mut lists = answer.into_iter().map(|list| ids(shard, list));
                looked.lost.extend(lists.next().unwrap_or_default());
                looked.deleted.extend(lists.next().unwrap_or_default());
            }
            Some(_) => {}
            // The group was not there: it holds nothing.
            None => looked.lost.extend(tickets),
        }
    }
    Ok(looked)
}

fn ids(shard: usize, list: Value) -> Vec<Ticket> {
    let Value::Array(list) = list else { return Vec::new() };
    let ids = list.into_iter().filter_map(|id| entry_id(&bytes(id)));
    ids.map(|(hold, offset)| Ticket { shard: shard as u32, hold, offset }).collect()
}

async fn run(
    stream: &Stream,
    Life { name, cursors }: &Life,
    shard: usize,
    what: &str,
    more: &str,
    tickets: &[Ticket],
) -> Result<Option<Value>> {
    let (key, cursor) = (&stream.shards[shard].stream, stream.shards[shard].cursor(&name.group));
    let (args, bytes) = (tickets.len() + 5, tickets.len() * 24 + 256);
    let mut cmd = SCRIPTS.held.call_sized(&[key, &cursor], args, bytes);
    cmd.arg(what).arg(&name.group).arg(&name.member).arg(more);
    cmd.arg(cursors.get(shard).map_or("", String::as_str));
    tickets.iter().for_each(|ticket| put_entry_id((ticket.hold, ticket.offset), &mut cmd));
    stream.of_group(stream.redis.run_cmd(&SCRIPTS.held, key, &cmd).await).await
}

/// Adds to the attempts of an event, or takes one back. Answers how many there are, or `None`
/// where it is not this member's.
pub(super) async fn charge(
    stream: &Stream,
    life: &Life,
    ticket: Ticket,
    more: &str,
) -> Result<Option<u32>> {
    if ticket.shard as usize >= stream.shards.len() {
        return Ok(None);
    }
    match run(stream, life, ticket.shard as usize, "charge", more, &[ticket]).await? {
        Some(Value::Int(attempts)) => Ok(Some(u32::try_from(attempts).unwrap_or(u32::MAX))),
        _ => Ok(None),
    }
}

/// Begins a life: hands back what a member of this name held in an earlier one.
pub(super) async fn begin(stream: &Stream, name: Name) -> Result<Life> {
    let mut life = Life { name, cursors: Vec::new() };
    for shard in 0..stream.shards.len() {
        let cursor = loop {
            // The group was not there: it is now.
            if let Some(cursor) = run(stream, &life, shard, "forget", FREE, &[]).await? {
                break cursor;
            }
        };
        life.cursors.push(String::from_utf8(bytes(cursor))?);
    }
    stream.known.handed_back.notify_waiters();
    Ok(life)
}
