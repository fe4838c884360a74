//! Leases: ranges of offsets that a member holds. A fetch makes a row a run of events; what
//! happens to a part of a run cuts the row.

use anyhow::Result;
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::event::Ticket;

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
    id: i64,
    /// The first offset.
    pub first: u64,
    /// The last offset.
    pub last: u64,
}

impl Held {
    /// The row.
    pub fn id(&self) -> i64 {
        self.id
    }
}

/// The rows that hold `range` or parts of it, cut so that they hold nothing else.
pub(super) async fn carve(
    sql: &mut SqliteConnection,
    group: i64,
    range: &Range,
) -> Result<Vec<Held>> {
    let rows = sqlx::query(
        "SELECT id, first, last FROM leases
         WHERE grp = ? AND shard = ? AND first <= ? AND last >= ? AND token = ? ORDER BY first",
    )
    .bind(group)
    .bind(range.shard)
    .bind(range.last as i64)
    .bind(range.first as i64)
    .bind(range.token as i64)
    .fetch_all(&mut *sql)
    .await?;
    let mut held = Vec::with_capacity(rows.len());
    for row in rows {
        let was = offsets(&row)?;
        let now =
            Held { id: was.id, first: was.first.max(range.first), last: was.last.min(range.last) };
        if (now.first, now.last) != (was.first, was.last) {
            shrink(sql, &now).await?;
            if was.first < now.first {
                copy(sql, was.id, was.first, now.first - 1).await?;
            }
            if now.last < was.last {
                copy(sql, was.id, now.last + 1, was.last).await?;
            }
        }
        held.push(now);
    }
    Ok(held)
}

fn offsets(row: &SqliteRow) -> Result<Held> {
    let offset = |column| row.try_get::<i64, _>(column).map(|offset| offset as u64);
    Ok(Held { id: row.try_get(0)?, first: offset(1)?, last: offset(2)? })
}

async fn shrink(sql: &mut SqliteConnection, to: &Held) -> Result<()> {
    sqlx::query("UPDATE leases SET first = ?, last = ? WHERE id = ?")
        .bind(to.first as i64)
        .bind(to.last as i64)
        .bind(to.id)
        .execute(sql)
        .await?;
    Ok(())
}

/// Makes a row like `id` of other offsets.
async fn copy(sql: &mut SqliteConnection, id: i64, first: u64, last: u64) -> Result<()> {
    sqlx::query(
        "INSERT INTO leases (grp, shard, first, last, owner, token, deadline, deliveries, attempts)
         SELECT grp, shard, ?, ?, owner, token, deadline, deliveries, attempts
         FROM leases WHERE id = ?",
    )
    .bind(first as i64)
    .bind(last as i64)
    .bind(id)
    .execute(sql)
    .await?;
    Ok(())
}

/// The range is done with.
pub(super) async fn ack(sql: &mut SqliteConnection, group: i64, range: &Range) -> Result<()> {
    let whole = sqlx::query(
        "DELETE FROM leases WHERE grp = ? AND shard = ? AND first = ? AND last = ? AND token = ?",
    )
    .bind(group)
    .bind(range.shard)
    .bind(range.first as i64)
    .bind(range.last as i64)
    .bind(range.token as i64)
    .execute(&mut *sql)
    .await?;
    if whole.rows_affected() == 0 {
        for held in carve(sql, group, range).await? {
            remove(sql, &held).await?;
        }
    }
    Ok(())
}

/// Ends a lease whose events are done with.
pub(super) async fn remove(sql: &mut SqliteConnection, held: &Held) -> Result<()> {
    sqlx::query("DELETE FROM leases WHERE id = ?").bind(held.id).execute(sql).await?;
    Ok(())
}

/// Puts the range's deadline off; answers which offsets of it are not held any more.
pub(super) async fn renew(
    sql: &mut SqliteConnection,
    group: i64,
    range: &Range,
    deadline: i64,
) -> Result<Vec<u64>> {
    let mut lost = Vec::new();
    let mut next = range.first;
    for held in carve(sql, group, range).await? {
        sqlx::query("UPDATE leases SET deadline = ? WHERE id = ?")
            .bind(deadline)
            .bind(held.id)
            .execute(&mut *sql)
            .await?;
        lost.extend(next..held.first);
        next = held.last + 1;
    }
    lost.extend(next..=range.last);
    Ok(lost)
}

/// Frees the range for the next member; the delivery did not happen.
pub(super) async fn release(sql: &mut SqliteConnection, group: i64, range: &Range) -> Result<()> {
    for held in carve(sql, group, range).await? {
        sqlx::query(
            "UPDATE leases SET deadline = 0, owner = '', token = random(),
               deliveries = deliveries - 1 WHERE id = ?",
        )
        .bind(held.id)
        .execute(&mut *sql)
        .await?;
    }
    Ok(())
}

/// Frees all that members of an instance hold, as if it had never been delivered.
pub(super) async fn release_all(sql: &mut SqliteConnection, instance: &str) -> Result<()> {
    sqlx::query(
        "UPDATE leases SET deadline = 0, owner = '', token = random(), deliveries = deliveries - 1
         WHERE owner > ?1 || '/' AND owner < ?1 || '0'",
    )
    .bind(instance)
    .execute(sql)
    .await?;
    Ok(())
}

/// Changes the attempts of one event, never below zero; answers how many there are now, or `None`
/// where it is not held.
pub(super) async fn charge(
    sql: &mut SqliteConnection,
    group: i64,
    ticket: Ticket,
    by: i64,
) -> Result<Option<u32>> {
    let Some(held) = one(sql, group, ticket).await? else { return Ok(None) };
    let row = sqlx::query(
        "UPDATE leases SET attempts = MAX(attempts + ?, 0) WHERE id = ? RETURNING attempts",
    )
    .bind(by)
    .bind(held.id)
    .fetch_one(sql)
    .await?;
    Ok(Some(row.try_get(0)?))
}

/// The row of one event, alone.
pub(super) async fn one(
    sql: &mut SqliteConnection,
    group: i64,
    ticket: Ticket,
) -> Result<Option<Held>> {
    let Ticket { shard, hold: token, offset } = ticket;
    let range = Range { shard, token, first: offset, last: offset };
    Ok(carve(sql, group, &range).await?.pop())
}

/// Frees what an owner holds: it is gone. The delivery counts.
pub(super) async fn free(sql: &mut SqliteConnection, owner: &str) -> Result<u64> {
    let freed = sqlx::query(
        "UPDATE leases SET deadline = 0, token = random() WHERE owner = ? AND deadline > 0",
    )
    .bind(owner)
    .execute(sql)
    .await?;
    Ok(freed.rows_affected())
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
