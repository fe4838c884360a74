//! Dead letters.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use sqlx::Row;
use sqlx::sqlite::SqliteRow;

use super::append::{heads, insert, pack_events};
use super::db::{Commit, Tx};
use super::lease;
use super::state::{Ids, Stream};
use crate::event::{Delivery, Event, EventId, Ticket, now_us};
use crate::source::Dead;
use crate::stream::{DeadLetter, GroupSpec, chunk};

/// Dead letters that one transaction puts back, at most.
const REPLAY_MAX: usize = 500;

/// Whose a dead letter is where the stream has no group. No group can have this name.
const NOBODY: &str = "-";

/// An event on its way to the dead letters.
pub(super) struct Letter {
    group: String,
    name: String,
    event_id: EventId,
    event: Vec<u8>,
    reason: String,
}

impl Letter {
    /// What `group` gives up.
    pub fn new(delivery: &Delivery, group: &GroupSpec, reason: &str) -> Result<Self> {
        // A replay is for its group anyway; the letter is the same as the first time.
        let event = Event { only_group: None, ..delivery.event.clone() };
        Ok(Self {
            group: group.name.to_string(),
            name: group.dead.clone(),
            event_id: event.id,
            event: chunk::encode(&[&event])?,
            reason: reason.to_owned(),
        })
    }

    /// Files it and acks its event, unless that is not this member's any more.
    pub async fn bury(self, tx: &mut Tx, ids: &Ids, ticket: Ticket) -> Result<()> {
        let sql = &mut tx.sql;
        let Some(held) = lease::one(sql, ids.group(&self.group)?, ticket).await? else {
            return Ok(());
        };
        tx.written += self.event.len() as u64;
        sqlx::query(
            "INSERT INTO dead (stream, name, grp, event_id, reason, attempts, time, event)
             SELECT ?, ?, ?, ?, ?, attempts, ?, ? FROM leases WHERE id = ?
             ON CONFLICT (stream, event_id, grp) DO UPDATE SET
               reason = excluded.reason, attempts = excluded.attempts, time = excluded.time",
        )
        .bind(ids.stream)
        .bind(self.name)
        .bind(self.group)
        .bind(self.event_id.to_bytes().to_vec())
        .bind(self.reason)
        .bind(now_us())
        .bind(self.event)
        .bind(held.id())
        .execute(&mut *sql)
        .await?;
        lease::remove(sql, &held).await
    }
}

/// Files what never was in the stream as a dead letter of each of its groups.
pub(super) async fn file(stream: &Arc<Stream>, dead: &[Dead]) -> Result<()> {
    let dead = dead.to_vec();
    let spec = stream.spec.clone();
    stream
        .write(Commit::Durable, move |tx, ids| {
            Box::pin(async move {
                let mut groups: Vec<String> = ids.groups().map(str::to_owned).collect();
                if groups.is_empty() {
                    groups.push(NOBODY.to_owned());
                }
                for group in groups {
                    let declared = spec.groups.iter().find(|declared| *declared.name == *group);
                    let name = declared
                        .map_or_else(|| format!("{}.dead", spec.name), |it| it.dead.clone());
                    for Dead { event, reason } in &dead {
                        file_one(tx, ids.stream, &group, &name, event, reason).await?;
                    }
                }
                Ok(())
            })
        })
        .await
}

async fn file_one(
    tx: &mut Tx,
    stream: i64,
    group: &str,
    name: &str,
    event: &Event,
    reason: &str,
) -> Result<()> {
    let data = chunk::encode(&[event])?;
    tx.written += data.len() as u64;
    sqlx::query(
        "INSERT INTO dead (stream, name, grp, event_id, reason, attempts, time, event)
         VALUES (?, ?, ?, ?, ?, 0, ?, ?) ON CONFLICT (stream, event_id, grp) DO NOTHING",
    )
    .bind(stream)
    .bind(name)
    .bind(group)
    .bind(event.id.to_bytes().to_vec())
    .bind(reason)
    .bind(now_us())
    .bind(data)
    .execute(&mut tx.sql)
    .await?;
    Ok(())
}

/// All dead letters of a stream, oldest first.
pub(super) async fn list(stream: &Arc<Stream>) -> Result<Vec<DeadLetter>> {
    let (mut read, ids) = stream.read().await?;
    let rows = sqlx::query(
        "SELECT id, grp, event, reason, attempts, time FROM dead WHERE stream = ? ORDER BY id",
    )
    .bind(ids.stream)
    .fetch_all(read.sql()?)
    .await
    .map_err(|error| stream.explain(error))?;
    rows.iter().map(letter).collect()
}

fn letter(row: &SqliteRow) -> Result<DeadLetter> {
    let id: i64 = row.try_get(0)?;
    let mut events = chunk::decode(&Bytes::from(row.try_get::<Vec<u8>, _>(2)?))
        .with_context(|| format!("failed to read dead letter {id}"))?;
    Ok(DeadLetter {
        event: events.pop().with_context(|| format!("dead letter {id} is empty"))?,
        group: row.try_get(1)?,
        reason: row.try_get(3)?,
        attempts: row.try_get(4)?,
        time_us: row.try_get(5)?,
    })
}

/// The rows of these dead letters (all, where `ids` is empty), oldest first.
async fn rows(stream: &Arc<Stream>, wanted: &[EventId]) -> Result<Vec<i64>> {
    let wanted: HashSet<[u8; 16]> = wanted.iter().map(|id| id.to_bytes()).collect();
    let (mut read, ids) = stream.read().await?;
    let rows = sqlx::query("SELECT id, event_id FROM dead WHERE stream = ? ORDER BY id")
        .bind(ids.stream)
        .fetch_all(read.sql()?)
        .await
        .map_err(|error| stream.explain(error))?;
    let mut found = Vec::new();
    for row in rows {
        let id: Vec<u8> = row.try_get(1)?;
        if wanted.is_empty() || <[u8; 16]>::try_from(id).is_ok_and(|id| wanted.contains(&id)) {
            found.push(row.try_get(0)?);
        }
    }
    Ok(found)
}

/// Puts dead letters into the stream again, each for its group alone.
pub(super) async fn replay(stream: &Arc<Stream>, wanted: &[EventId]) -> Result<u64> {
    let mut count = 0;
    for rows in rows(stream, wanted).await?.chunks(REPLAY_MAX) {
        let (rows, shards) = (rows.to_vec(), stream.spec.shards.max(1));
        let (replayed, stored) = stream
            .write(Commit::Durable, move |tx, ids| {
                Box::pin(async move {
                    let events = take(tx, &ids, &rows).await?;
                    let replayed = events.len() as u64;
                    let mut heads = heads(&mut tx.sql, ids.stream).await?;
                    let packed = pack_events(events, shards)?;
                    Ok((replayed, insert(tx, &ids, &mut heads, packed).await?))
                })
            })
            .await?;
        stored.publish(stream);
        count += replayed;
    }
    Ok(count)
}

/// Takes letters out of the table.
async fn take(tx: &mut Tx, ids: &Ids, rows: &[i64]) -> Result<Vec<Event>> {
    let mut events = Vec::with_capacity(rows.len());
    for id in rows {
        let row = sqlx::query(
            "DELETE FROM dead WHERE id = ? RETURNING id, grp, event, reason, attempts, time",
        )
        .bind(id)
        .fetch_optional(&mut tx.sql)
        .await?;
        // Somebody else may have replayed it meanwhile.
        let Some(letter) = row.as_ref().map(letter).transpose()? else { continue };
        ensure!(
            ids.group(&letter.group).is_ok(),
            "dead letter {} is of group {:?}, which the stream has no more (bring the group back, \
             or drop the letter)",
            letter.event.id,
            letter.group
        );
        events.push(Event { only_group: Some(letter.group.into()), ..letter.event });
    }
    Ok(events)
}

/// Forgets dead letters.
pub(super) async fn forget(stream: &Arc<Stream>, wanted: &[EventId]) -> Result<u64> {
    let rows = rows(stream, wanted).await?;
    stream
        .write(Commit::Durable, move |tx, _| {
            Box::pin(async move {
                let mut count = 0;
                for id in rows {
                    let gone = sqlx::query("DELETE FROM dead WHERE id = ?").bind(id);
                    count += gone.execute(&mut tx.sql).await?.rows_affected();
                }
                Ok(count)
            })
        })
        .await
}
