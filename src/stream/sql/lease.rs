//! Leases: ranges of offsets that a member holds. A fetch makes a row a run of events; what
//! happens to a part of a run cuts the row.
//!
//! Only the member that holds a token cuts its rows, one call after the other (`member`), and
//! whoever takes over what ran out locks them: so rows found by a token are all there are.

use anyhow::Result;

use super::{Sql, Statement, args, first, own, statement};
use crate::event::Ticket;

const HELD: Statement = statement!(
    "SELECT id, first, last FROM leases
     WHERE grp = $1 AND shard = $2 AND first <= $3 AND last >= $4 AND token = $5 ORDER BY first",
    lock "FOR UPDATE"
);
const SHRINK: Statement = statement!("UPDATE leases SET first = $1, last = $2 WHERE id = $3");
const COPY: Statement = statement!(
    "INSERT INTO leases (grp, shard, first, last, owner, token, deadline, deliveries, attempts)
     SELECT grp, shard, $1, $2, owner, token, deadline, deliveries, attempts
     FROM leases WHERE id = $3"
);
const REMOVE_WHOLE: Statement = statement!(
    "DELETE FROM leases WHERE grp = $1 AND shard = $2 AND first = $3 AND last = $4 AND token = $5"
);
const REMOVE: Statement = statement!("DELETE FROM leases WHERE id = $1");
const RENEW_WHOLE: Statement = statement!(
    "UPDATE leases SET deadline = $6
     WHERE grp = $1 AND shard = $2 AND first = $3 AND last = $4 AND token = $5"
);
const RENEW: Statement = statement!("UPDATE leases SET deadline = $1 WHERE id = $2");
const RELEASE: Statement = statement!(
    "UPDATE leases SET deadline = 0, owner = '', token = $1, deliveries = deliveries - 1
     WHERE id = $2"
);
const RELEASE_MEMBER: Statement = statement!(
    "UPDATE leases SET deadline = 0, owner = '', token = $1, deliveries = deliveries - 1
     WHERE grp = $2 AND owner = $3"
);
const RELEASE_INSTANCE: Statement = statement!(
    "UPDATE leases SET deadline = 0, owner = '', token = $1, deliveries = deliveries - 1
     WHERE substr(owner, 1, length($2) + 1) = $2 || '/'"
);
const CHARGE: Statement = statement!(
    "UPDATE leases SET attempts = CASE WHEN attempts + $1 > 0 THEN attempts + $1 ELSE 0 END
     WHERE id = $2 RETURNING attempts"
);
const FREE: Statement =
    statement!("UPDATE leases SET deadline = 0, token = $1 WHERE owner = $2 AND deadline > 0");

/// Offsets `first..=last` of a shard, held under one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The shard.
    pub shard: u32,
    /// The lease's token: what a member holds of an earlier lease never matches it.
    pub token: u64,
    /// The first offset.
    pub first: u64,
    /// The last offset.
    pub last: u64,
}

/// Joins tickets into ranges.
pub(super) fn ranges(tickets: &[Ticket]) -> Vec<Range> {
    let mut sorted = tickets.to_vec();
    sorted.sort_unstable();
    let mut ranges: Vec<Range> = Vec::new();
    for Ticket { shard, hold, offset } in sorted {
        match ranges.last_mut() {
            Some(range)
                if (range.shard, range.token) == (shard, hold) && offset <= range.last + 1 =>
            {
                range.last = offset;
            }
            _ => ranges.push(Range { shard, token: hold, first: offset, last: offset }),
        }
    }
    ranges
}

/// A row of `leases`, all of it inside the range asked for.
#[derive(Debug)]
pub(super) struct Held {
    /// The row.
    pub id: i64,
    /// The first offset.
    pub first: u64,
    /// The last offset.
    pub last: u64,
}

/// The rows that hold `range` or parts of it, cut so that they hold nothing else.
async fn carve(tx: &mut dyn Sql, group: i64, range: &Range) -> Result<Vec<Held>> {
    let Range { shard, token, first, last } = *range;
    let rows = tx.rows(HELD, args![group, shard, last, first, token]).await?;
    let mut held = Vec::with_capacity(rows.len());
    for row in rows {
        let was = Held { id: row.int(0)?, first: row.uint(1)?, last: row.uint(2)? };
        let now = Held { id: was.id, first: was.first.max(first), last: was.last.min(last) };
        if (now.first, now.last) != (was.first, was.last) {
            tx.run(SHRINK, args![now.first, now.last, now.id]).await?;
            if was.first < now.first {
                tx.run(COPY, args![was.first, now.first - 1, was.id]).await?;
            }
            if now.last < was.last {
                tx.run(COPY, args![now.last + 1, was.last, was.id]).await?;
            }
        }
        held.push(now);
    }
    Ok(held)
}

/// The range is done with.
pub(super) async fn ack(tx: &mut dyn Sql, group: i64, range: &Range) -> Result<()> {
    let Range { shard, token, first, last } = *range;
    // invariant: only-the-holder-acks
    if tx.run(REMOVE_WHOLE, args![group, shard, first, last, token]).await? == 0 {
        for held in carve(tx, group, range).await? {
            remove(tx, &held).await?;
        }
    }
    Ok(())
}

/// Ends a lease whose events are done with.
pub(super) async fn remove(tx: &mut dyn Sql, held: &Held) -> Result<()> {
    tx.run(REMOVE, args![held.id]).await?;
    Ok(())
}

/// Puts the range's deadline off; answers which offsets of it are not held any more.
pub(super) async fn renew(
    tx: &mut dyn Sql,
    group: i64,
    range: &Range,
    deadline: i64,
) -> Result<Vec<u64>> {
    let Range { shard, token, first, last } = *range;
    if tx.run(RENEW_WHOLE, args![group, shard, first, last, token, deadline]).await? > 0 {
        return Ok(Vec::new());
    }
    let mut lost = Vec::new();
    let mut next = first;
    for held in carve(tx, group, range).await? {
        tx.run(RENEW, args![deadline, held.id]).await?;
        lost.extend(next..held.first);
        next = held.last + 1;
    }
    lost.extend(next..=last);
    Ok(lost)
}

/// Frees the range for the next member; the delivery did not happen.
pub(super) async fn release(tx: &mut dyn Sql, group: i64, range: &Range) -> Result<()> {
    for held in carve(tx, group, range).await? {
        tx.run(RELEASE, args![fastrand::u64(..), held.id]).await?;
    }
    Ok(())
}

/// Frees all that a member holds and owns, as if it had never been delivered.
pub(super) async fn release_member(tx: &mut dyn Sql, group: i64, member: &str) -> Result<()> {
    own::give_up_all(tx, group, member).await?;
    tx.run(RELEASE_MEMBER, args![fastrand::u64(..), group, member]).await?;
    Ok(())
}

/// Frees all that members of an instance hold and own, as if it had never been delivered.
pub(in crate::stream) async fn release_instance(tx: &mut dyn Sql, instance: &str) -> Result<()> {
    own::free_instance(tx, instance).await?;
    tx.run(RELEASE_INSTANCE, args![fastrand::u64(..), instance]).await?;
    Ok(())
}

/// Changes the attempts of one event, never below zero; answers how many there are now, or `None`
/// where it is not held.
pub(super) async fn charge(
    tx: &mut dyn Sql,
    group: i64,
    ticket: Ticket,
    by: i64,
) -> Result<Option<u32>> {
    let Some(held) = one(tx, group, ticket).await? else { return Ok(None) };
    first(tx, CHARGE, args![by, held.id]).await?.map(|row| row.small(0)).transpose()
}

/// The row of one event, alone.
pub(super) async fn one(tx: &mut dyn Sql, group: i64, ticket: Ticket) -> Result<Option<Held>> {
    let Ticket { shard, hold: token, offset } = ticket;
    let range = Range { shard, token, first: offset, last: offset };
    Ok(carve(tx, group, &range).await?.pop())
}

/// Frees what a member holds and owns: it is gone. The delivery counts.
pub(super) async fn free(tx: &mut dyn Sql, owner: &str) -> Result<()> {
    own::free(tx, owner).await?;
    tx.run(FREE, args![fastrand::u64(..), owner]).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tickets_join_into_ranges() {
        let ticket = |shard, hold, offset| Ticket { shard, hold, offset };
        let tickets = [
            ticket(0, 7, 3),
            ticket(1, 7, 4),
            ticket(0, 7, 1),
            ticket(0, 7, 2),
            ticket(0, 7, 2),
            ticket(0, 8, 4),
            ticket(0, 7, 6),
        ];
        let range = |shard, token, first, last| Range { shard, token, first, last };
        assert_eq!(
            ranges(&tickets),
            [range(0, 7, 1, 3), range(0, 7, 6, 6), range(0, 8, 4, 4), range(1, 7, 4, 4)]
        );
    }
}
