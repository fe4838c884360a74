//! Cursors: where a group stands, and how it is put elsewhere.
//!
//! A member knows what it holds by the entries' ids, and an entry that is delivered again has the
//! same id. So a key beside the shard names the group's cursor (`Shard::cursor`), by another name
//! after each move: every script that acts on what a member holds compares it with the name that
//! the member's life began with (`held::Life`), and a read looks at it before it hands anything
//! out. The move itself is one script (`lua/move.lua`), which empties the pending list.

use anyhow::{Context, Result};
use redis::Value;

use super::entry::{EntryId, bytes, entry_id};
use super::state::{FREE, SCRIPTS, Stream};
use crate::client::redis::odd;
use crate::event::now_us;
use crate::stream::cursor::{
    COUNTED_MAX, CursorMove, Dropped, Moved, Offset, Refused, ShardCursor, To,
};

/// How often a move is tried anew because something was delivered or dropped meanwhile.
const TRIES: usize = 5;

/// A group in a shard, at one moment.
struct Seen {
    cursor: ShardCursor,
    /// The last entry that was delivered.
    at: EntryId,
    /// The newest entry that there ever was.
    newest: EntryId,
    length: u64,
    /// Entries ever added, where the server counts them.
    added: Option<u64>,
}

/// Where the group stands in each shard.
pub(super) async fn show(stream: &Stream, group: &str) -> Result<Vec<ShardCursor>> {
    let mut shards = Vec::with_capacity(stream.shards.len());
    for shard in 0..stream.shards.len() {
        let seen = look(stream, shard, group).await?;
        shards.push(seen.ok_or_else(|| Refused::no_group(&stream.spec.name, group))?.cursor);
    }
    Ok(shards)
}

async fn look(stream: &Stream, shard: usize, group: &str) -> Result<Option<Seen>> {
    let key = &stream.shards[shard].stream;
    let answer = stream.redis.run(&SCRIPTS.cursor, &[key], |cmd| _ = cmd.arg(group)).await?;
    match answer {
        Value::Nil => Ok(None),
        answer => read(shard, answer).ok_or_else(|| odd("a cursor")).map(Some),
    }
}

fn read(shard: usize, answer: Value) -> Option<Seen> {
    let Value::Array(answer) = answer else { return None };
    let [oldest, newest, at, next, pending, first_pending, lag, length, added] =
        answer.try_into().ok()?;
    let (newest, at) = (id(newest)?, id(at)?);
    let end = after(newest);
    let delivered = id(next).unwrap_or(end);
    let position = id(first_pending).map_or(delivered, |first| first.min(delivered));
    let cursor = ShardCursor {
        shard: shard as u32,
        oldest: offset(id(oldest).unwrap_or(end)),
        position: offset(position),
        delivered: offset(delivered),
        end: offset(end),
        pending: number(&pending)?,
        lag: number(&lag),
    };
    Some(Seen { cursor, at, newest, length: number(&length)?, added: number(&added) })
}

fn offset((ms, seq): EntryId) -> Offset {
    Offset::Entry { ms, seq }
}

fn entry(offset: Offset) -> EntryId {
    if let Offset::Entry { ms, seq } = offset { (ms, seq) } else { (0, 0) }
}

fn id(value: Value) -> Option<EntryId> {
    entry_id(&bytes(value))
}

fn number(value: &Value) -> Option<u64> {
    if let Value::Int(number) = value { u64::try_from(*number).ok() } else { None }
}

/// The id right behind one.
fn after((ms, seq): EntryId) -> EntryId {
    seq.checked_add(1).map_or((ms.saturating_add(1), 0), |seq| (ms, seq))
}

/// The id right before one.
fn before((ms, seq): EntryId) -> EntryId {
    match (ms, seq) {
        (0, 0) => (0, 0),
        (ms, 0) => (ms - 1, u64::MAX),
        (ms, seq) => (ms, seq - 1),
    }
}

/// Puts the group's cursor elsewhere, unless somebody needs it where it is. Each shard is moved at
/// once, one after the other, and none before all may be.
pub(super) async fn set(
    stream: &Stream,
    order: &CursorMove,
) -> Result<Result<Vec<Moved>, Refused>> {
    let shards = match order.shards(stream.shards.len() as u32) {
        Ok(shards) => shards,
        Err(refused) => return Ok(Err(refused)),
    };
    // Who reads all shards says in the first one that it lives.
    if shards.start > 0
        && !order.force
        && let Some(running) = running(stream, order).await?
    {
        return Ok(Err(running));
    }
    for shard in shards.clone() {
        if let Err(refused) = one(stream, shard as usize, order, "check").await? {
            return Ok(Err(refused));
        }
    }
    let first = shards.start;
    let mut moved = Vec::new();
    for shard in shards {
        match one(stream, shard as usize, order, "move").await {
            Ok(Ok(one)) => moved.push(one),
            failed if moved.is_empty() => return failed.map(|refused| refused.map(|_| moved)),
            failed => {
                let done = format!("shards {first} to {} are moved, {shard} is not", shard - 1);
                failed.and_then(|refused| Ok(refused?)).context(done)?;
            }
        }
    }
    stream.known.handed_back.notify_waiters();
    Ok(Ok(moved))
}

/// Which members live, as the first shard says.
async fn running(stream: &Stream, order: &CursorMove) -> Result<Option<Refused>> {
    // Whether there is such a place there is not asked.
    let place = Ask { to: (0, 0), read_by: None, expected: None };
    let mut answer = ask(stream, 0, order, "check", place).await?.into_iter();
    match (answer.next().map(bytes).unwrap_or_default().as_slice(), answer.next()) {
        (b"runs", Some(Value::Array(names))) => members(names).map(Some),
        _ => Ok(None),
    }
}

fn members(names: Vec<Value>) -> Result<Refused> {
    let names = names.into_iter().map(|it| String::from_utf8(bytes(it)));
    Ok(Refused::Running(names.collect::<Result<_, _>>()?))
}

/// Moves the cursor in one shard, or checks whether that may be.
async fn one(
    stream: &Stream,
    shard: usize,
    order: &CursorMove,
    what: &str,
) -> Result<Result<Moved, Refused>> {
    let mut tries = 0;
    loop {
        let Some(seen) = look(stream, shard, &order.group).await? else {
            return Ok(Err(Refused::no_group(&stream.spec.name, &order.group)));
        };
        let to = match find(stream, &seen, order.to) {
            Ok(to) => to,
            Err(refused) => return Ok(Err(refused)),
        };
        let between = match what {
            "move" => between(stream, shard, &seen, to).await?,
            _ => Some(0),
        };
        // Where members never rest, what is counted is as of a moment ago.
        let expected = (tries < TRIES).then_some(seen.at);
        let answer =
            ask(stream, shard, order, what, Ask::new(&seen, to, between, expected)).await?;
        let mut answer = answer.into_iter();
        let word = answer.next().map(bytes).unwrap_or_default();
        match (&*word, answer.next()) {
            (b"done", Some(Value::Int(pending_before))) => {
                let before = pending_before.max(0) as u64;
                return Ok(Ok(Moved::new(&seen.cursor, offset(to), before, between)));
            }
            (b"runs", Some(Value::Array(names))) => return Ok(Err(members(names)?)),
            (b"none", _) => return Ok(Err(Refused::no_group(&stream.spec.name, &order.group))),
            (b"gone" | b"other", _) => {}
            _ => return Err(odd("a move")),
        }
        tries += 1;
        if tries > TRIES {
            let why = format!("shard {shard} is just being trimmed (try it again)");
            return Ok(Err(Refused::Wrong(why)));
        }
    }
}

/// What the script is told of the place.
struct Ask {
    to: EntryId,
    /// Entries there were up to that, where that is known.
    read_by: Option<u64>,
    expected: Option<EntryId>,
}

impl Ask {
    fn new(seen: &Seen, to: EntryId, between: Option<u64>, expected: Option<EntryId>) -> Self {
        let ShardCursor { oldest, delivered, end, lag, .. } = seen.cursor;
        // Entries from there to the end.
        let left = match offset(to) {
            it if it == end => Some(0),
            it if it == oldest => Some(seen.length),
            it if it <= delivered => lag.zip(between).map(|(lag, between)| lag + between),
            _ => lag.zip(between).map(|(lag, between)| lag.saturating_sub(between)),
        };
        let read_by = seen.added.zip(left).and_then(|(added, left)| added.checked_sub(left));
        Self { to, read_by, expected }
    }
}

async fn ask(
    stream: &Stream,
    shard: usize,
    order: &CursorMove,
    what: &str,
    Ask { to, read_by, expected }: Ask,
) -> Result<Vec<Value>> {
    let (keys, group) = (&stream.shards[shard], &order.group);
    let (owner, living, cursor) = (keys.owner(group), keys.living(group), keys.cursor(group));
    let keys = [&*keys.stream, &*owner, &*living, &*cursor];
    let answer = stream.redis.run(&SCRIPTS.move_cursor, &keys, |cmd| {
        cmd.arg(what).arg(group).arg(if order.force { "force" } else { "" });
        cmd.arg(order.lease.as_millis().max(1) as u64).arg(FREE);
        cmd.arg(offset(to).to_string()).arg(offset(before(to)).to_string());
        cmd.arg(read_by.map(|it| it.to_string()).unwrap_or_default());
        cmd.arg(expected.map(|at| offset(at).to_string()).unwrap_or_default());
        cmd.arg(format!("{:016x}", fastrand::u64(..)));
    });
    match answer.await? {
        Value::Array(answer) => Ok(answer),
        _ => Err(odd("a move")),
    }
}

/// Where in this shard the cursor is to go.
fn find(stream: &Stream, seen: &Seen, to: To) -> Result<EntryId, Refused> {
    let ShardCursor { shard, oldest, end, .. } = seen.cursor;
    if let To::At(Offset::Number(number)) = to {
        return Err(Refused::Wrong(format!(
            "{number} is no offset in Redis (an entry's id is, such as {end}; shard {shard} holds \
             {oldest} to {end})"
        )));
    }
    let (To::Time(time), is_empty) = (to, oldest == end) else {
        return seen.cursor.find(to, end, &Dropped::default()).map(entry);
    };
    let us = |(ms, _): EntryId| i64::try_from(ms).unwrap_or(i64::MAX).saturating_mul(1000);
    // An id has whole milliseconds: an entry of this one may have come later in it.
    let wanted = (u64::try_from(time).unwrap_or(0) / 1000, 0);
    // All that ever was is older than what comes next.
    let ever = is_empty.then(|| us(seen.newest) + 1000);
    let dropped = Dropped {
        any: seen.added.is_none_or(|added| added != seen.length),
        oldest_us: (!is_empty).then(|| us(entry(oldest))),
        before_us: Dropped::by(stream.spec.retain, now_us()).into_iter().chain(ever).min(),
    };
    seen.cursor.find(to, offset(wanted).max(oldest).min(end), &dropped).map(entry)
}

/// Entries between a place and what was delivered; `None` where there are more than are counted.
async fn between(stream: &Stream, shard: usize, seen: &Seen, to: EntryId) -> Result<Option<u64>> {
    let ShardCursor { oldest, delivered, end, lag, .. } = seen.cursor;
    let to = offset(to);
    match lag {
        Some(lag) if to == end => return Ok(Some(lag)),
        Some(lag) if to == oldest => return Ok(Some(seen.length.saturating_sub(lag))),
        _ => {}
    }
    let (from, until) = (to.min(delivered).to_string(), to.max(delivered).to_string());
    let keys = [stream.shards[shard].stream.as_str()];
    let (mut from, mut count) = (from, 0);
    loop {
        let most = COUNTED_MAX + 1 - count;
        let answer = stream.redis.run(&SCRIPTS.count, &keys, |cmd| {
            cmd.arg(&from).arg(&until).arg(most);
        });
        let Value::Array(answer) = answer.await? else { return Err(odd("a count")) };
        let mut answer = answer.into_iter();
        let (Some(Value::Int(some)), Some(next)) = (answer.next(), answer.next()) else {
            return Err(odd("a count"));
        };
        count += some as u64;
        from = String::from_utf8(bytes(next)).context("an entry's id is no text")?;
        if count > COUNTED_MAX {
            return Ok(None);
        }
        if from.is_empty() {
            return Ok(Some(count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_each_other() {
        for id in [(0, 1), (5, 0), (5, 7), (5, u64::MAX), (0, u64::MAX)] {
            assert_eq!(before(after(id)), id);
            assert_eq!(after(before(id)), id);
        }
        assert_eq!(before((0, 0)), (0, 0));
    }
}
