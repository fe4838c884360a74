//! How many shards a stream has.
//!
//! The number stands in each row of `offsets`, which are what an append locks: so whoever appends
//! by another number is told so in the transaction that would have stored the events, and no key is
//! in two shards. It changes only while the stream's events are all done with, and then whoever
//! still runs with the old number neither appends nor fetches any more.

use anyhow::{Context, Result};

use super::{Row, Sql, Statement, args, cursor, first, own, statement};
use crate::stream::shards::{self, Held};
use crate::stream::{Retain, StreamSpec};

const RECORDED: Statement =
    statement!("SELECT shards FROM offsets WHERE stream = $1 ORDER BY shard");
const LOCKED: Statement =
    statement!("SELECT shards FROM offsets WHERE stream = $1 ORDER BY shard", lock "FOR UPDATE");
const ADD: Statement = statement!(
    "INSERT INTO offsets (stream, shard, next, shards) VALUES ($1, $2, 0, $3)
     ON CONFLICT DO NOTHING"
);
const SET: Statement = statement!("UPDATE offsets SET shards = $1 WHERE stream = $2");
/// The group that is the furthest behind. In one statement, as events go from beyond a cursor to
/// a lease.
const BEHIND: Statement = statement!(
    "SELECT g.name, CAST(
       (SELECT COALESCE(SUM(o.next - c.next), 0) FROM cursors c
          JOIN offsets o ON o.stream = g.stream AND o.shard = c.shard WHERE c.grp = g.id)
       + (SELECT COALESCE(SUM(l.last - l.first + 1), 0) FROM leases l WHERE l.grp = g.id)
     AS BIGINT) AS behind FROM groups g WHERE g.stream = $1 ORDER BY behind DESC, g.name LIMIT 1"
);
const KEPT: Statement =
    statement!("SELECT CAST(COALESCE(SUM(count), 0) AS BIGINT) FROM messages WHERE stream = $1");
const LIVING: Statement = statement!(
    "SELECT m.name FROM members m JOIN groups g ON g.id = m.grp
     WHERE g.stream = $1 AND m.seen > $2 AND substr(m.name, 1, length($3) + 1) <> $3 || '/'
     ORDER BY m.name LIMIT 1"
);
/// How long a member that says nothing may still be at work.
const LIVING_MS: i64 = 10_000;
const FORGET_MESSAGES: Statement = statement!("DELETE FROM messages WHERE stream = $1");
/// Above what it ever was of any shard: one that goes and comes back begins there.
const FREE_OWNERS: Statement = statement!(
    "UPDATE owners SET member = '', until = 0,
       epoch = (SELECT MAX(w.epoch) FROM owners w WHERE w.grp = owners.grp)
     WHERE grp IN (SELECT id FROM groups WHERE stream = $1)"
);
const FORGET_OWNERS: Statement = statement!(
    "DELETE FROM owners WHERE shard >= $2 AND grp IN (SELECT id FROM groups WHERE stream = $1)"
);
const FORGET_CURSORS: Statement = statement!(
    "DELETE FROM cursors WHERE shard >= $2 AND grp IN (SELECT id FROM groups WHERE stream = $1)"
);

/// Who opens a stream.
#[derive(Clone, Copy)]
pub(super) struct Opener<'a> {
    /// This process, which opens the stream before it has members.
    pub instance: &'a str,
    /// What it may do about another number.
    pub may: May,
}

/// What is to happen where the stream has another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum May {
    /// It is changed, if nothing is left that went by it.
    Change,
    /// Nothing, as whoever opens it only looks.
    Look,
    /// Nothing, as this process had agreed with the stream on its own number.
    GoOn,
}

/// Records the number of the spec, or sees to it that it is the one recorded. Answers what it was
/// before, where it was another one.
pub(super) async fn agree(
    tx: &mut dyn Sql,
    stream: i64,
    spec: &StreamSpec,
    opener: Opener<'_>,
) -> Result<Option<u32>> {
    let wanted = spec.shards.max(1);
    let rows = tx.rows(RECORDED, args![stream]).await?;
    let recorded = rows.first().map(|row| row.small(0)).transpose()?;
    if recorded == Some(wanted) && rows.len() >= wanted as usize {
        // Nothing is added, as a conflict with a row waits for whoever is just writing it.
        return Ok(None);
    }
    // What is looked at below must not be trimmed, nor a cursor put back, before the number is set.
    cursor::lock_stream(tx, stream).await?;
    // Of two that create it at once, the second waits here for the first.
    tx.run(ADD, args![stream, 0_u32, wanted]).await?;
    let locked = first(tx, LOCKED, args![stream]).await?;
    let found = locked.context("the stream has no shard")?.small(0)?;
    if found != wanted {
        change(tx, stream, spec, opener, found).await?;
    }
    for shard in 1..wanted {
        tx.run(ADD, args![stream, shard, wanted]).await?;
    }
    Ok(Some(found).filter(|found| *found != wanted))
}

// invariant: one-number-of-shards
/// Errs where the number that a row of `offsets` has in `column` is not the spec's.
pub(super) fn compare(row: &Row, column: usize, spec: &StreamSpec) -> Result<()> {
    let recorded = row.small(column)?;
    match recorded == spec.shards.max(1) {
        true => Ok(()),
        false => Err(shards::changed_meanwhile(spec, recorded)),
    }
}

/// Changes the number, if no event is left that went by the old one. Nobody appends meanwhile.
async fn change(
    tx: &mut dyn Sql,
    stream: i64,
    spec: &StreamSpec,
    opener: Opener<'_>,
    recorded: u32,
) -> Result<()> {
    // Two programs with two numbers would change it by turns.
    if opener.may == May::GoOn {
        return Err(shards::changed_meanwhile(spec, recorded));
    }
    let refuse = |held| Err(shards::refusal(spec, recorded, &held));
    // invariant: one-number-of-shards
    let kept = first(tx, KEPT, args![stream]).await?.map_or(Ok(0), |row| row.uint(0))?;
    match first(tx, BEHIND, args![stream]).await? {
        Some(mut group) if group.int(1)? > 0 => {
            return refuse(Held::Unacked { events: group.uint(1)?, group: group.text(0)? });
        }
        None if kept > 0 => return refuse(Held::Unread(kept)),
        _ if kept > 0 && spec.retain != Retain::Acked => return refuse(Held::History(kept)),
        _ => {}
    }
    let since = tx.now_ms() - LIVING_MS;
    if let Some(mut living) = first(tx, LIVING, args![stream, since, opener.instance]).await? {
        return refuse(Held::Member(living.text(0)?));
    }
    if opener.may == May::Look {
        return Err(shards::only_looks(spec, recorded));
    }
    tx.run(FORGET_MESSAGES, args![stream]).await?;
    tx.run(SET, args![spec.shards.max(1), stream]).await?;
    own::lock_stream(tx, stream).await?;
    tx.run(FREE_OWNERS, args![stream]).await?;
    tx.run(FORGET_OWNERS, args![stream, spec.shards.max(1)]).await?;
    tx.run(FORGET_CURSORS, args![stream, spec.shards.max(1)]).await?;
    Ok(())
}
