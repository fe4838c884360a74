//! What a member does with what it holds, or believes to.

use anyhow::Result;
use futures_util::future::try_join_all;
use redis::Value;

use super::entry::{bytes, entry_id, put_entry_id};
use super::state::{FREE, SCRIPTS, Stream};
use crate::client::redis::odd;
use crate::event::Ticket;
use crate::stream::{GroupSpec, modes};

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
    /// it since, or changed the group's mode, nothing that the member holds is its own any more.
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
    cmd.arg(&cursors[shard]);
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

/// Begins a life: hands back what a member of this name held in an earlier one. Errs while members
/// of the other mode live.
pub(super) async fn begin(stream: &Stream, name: Name, group: &GroupSpec) -> Result<Life> {
    let all = 0..stream.shards.len();
    // Where one shard will refuse it, none is changed.
    try_join_all(all.clone().map(|shard| join(stream, &name, group, shard, "look"))).await?;
    let mut cursors = Vec::new();
    for shard in all {
        // One after the other: of two modes at once, the first shard lets one in.
        cursors.push(join(stream, &name, group, shard, "join").await?);
    }
    stream.known.handed_back.notify_waiters();
    Ok(Life { name, cursors })
}

/// Begins it in one shard, or looks whether it could. Answers what the cursor is known by.
async fn join(
    stream: &Stream,
    name: &Name,
    group: &GroupSpec,
    shard: usize,
    what: &str,
) -> Result<String> {
    let keys = &stream.shards[shard];
    let (owner, living) = (keys.owner(&name.group), keys.living(&name.group));
    let cursor = keys.cursor(&name.group);
    let keys = [&*keys.stream, &*owner, &*living, &*cursor];
    // Who goes by no order says so where its lanes begin.
    let says = group.ordered || shard == 0 || stream.redis.is_cluster();
    let answer = loop {
        let answer = stream.redis.run(&SCRIPTS.join, &keys, |cmd| {
            cmd.arg(what).arg(&name.group).arg(&name.member);
            cmd.arg(if group.ordered { ".ordered" } else { "" });
            cmd.arg(group.lease.as_millis().max(1) as u64).arg(FREE);
            cmd.arg(format!("{:016x}", fastrand::u64(..))).arg(u8::from(says));
        });
        // The group was not there: it is now.
        if let Some(answer) = stream.of_group(answer.await).await? {
            break answer;
        }
    };
    let Value::Array(answer) = answer else { return Err(odd("a beginning")) };
    let mut answer = answer.into_iter();
    let (Some(Value::Int(joined)), Some(text)) = (answer.next(), answer.next()) else {
        return Err(odd("a beginning"));
    };
    let text = String::from_utf8(bytes(text))?;
    match joined {
        1 => Ok(text),
        _ => Err(modes::refusal(&stream.spec, group, &text)),
    }
}
