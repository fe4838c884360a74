//! Dead letters.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;

use super::append::{heads, insert, pack_events};
use super::state::{Ids, Stream};
use super::{Database, Mode, Row, Sql, Statement, args, first, lease, statement};
use crate::event::{Delivery, Event, EventId, Ticket};
use crate::fault;
use crate::source::Dead;
use crate::stream::{DeadLetter, GroupSpec, chunk};

/// Dead letters that one transaction puts back, at most.
const REPLAY_MAX: usize = 500;

/// Whose a dead letter is where the stream has no group. No group can have this name.
const NOBODY: &str = "-";

const BURY: Statement = statement!(
    "INSERT INTO dead (stream, name, grp, event_id, reason, attempts, time, event)
     SELECT $1, $2, $3, $4, $5, attempts, $6, $7 FROM leases WHERE id = $8
     ON CONFLICT (stream, event_id, grp) DO UPDATE SET
       reason = excluded.reason, attempts = excluded.attempts, time = excluded.time"
);
const FILE: Statement = statement!(
    "INSERT INTO dead (stream, name, grp, event_id, reason, attempts, time, event)
     VALUES ($1, $2, $3, $4, $5, 0, $6, $7) ON CONFLICT (stream, event_id, grp) DO NOTHING"
);
const LIST: Statement = statement!(
    "SELECT id, grp, event, reason, attempts, time FROM dead WHERE stream = $1 ORDER BY id"
);
const IDS: Statement = statement!("SELECT id, event_id FROM dead WHERE stream = $1 ORDER BY id");
const TAKE: Statement =
    statement!("DELETE FROM dead WHERE id = $1 RETURNING id, grp, event, reason, attempts, time");
const FORGET: Statement = statement!("DELETE FROM dead WHERE id = $1");

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
    pub async fn bury(&self, tx: &mut dyn Sql, ids: &Ids, ticket: Ticket) -> Result<()> {
        let Some(held) = lease::one(tx, ids.group(&self.group)?, ticket).await? else {
            return Ok(());
        };
        let id = self.event_id.to_bytes();
        let row = args![
            ids.stream,
            &*self.name,
            &*self.group,
            &id[..],
            &*self.reason,
            tx.time_us(),
            &*self.event,
            held.id,
        ];
        tx.run(BURY, row).await?;
        lease::remove(tx, &held).await
    }
}

/// Files what never was in the stream as a dead letter of each of its groups.
pub(super) async fn file<D: Database>(stream: &Arc<Stream<D>>, dead: &[Dead]) -> Result<()> {
    let (dead, of): (Arc<[Dead]>, _) = (dead.into(), stream.clone());
    stream
        .transact(Mode::Durable, move |tx, ids| {
            let (dead, stream) = (dead.clone(), of.clone());
            Box::pin(async move {
                let spec = &stream.spec;
                let mut groups: Vec<&str> = ids.groups().collect();
                if groups.is_empty() {
                    groups.push(NOBODY);
                }
                for group in groups {
                    let declared = spec.groups.iter().find(|declared| *declared.name == *group);
                    let name = declared
                        .map_or_else(|| format!("{}.dead", spec.name), |it| it.dead.clone());
                    for letter in &*dead {
                        file_one(tx, ids.stream, group, &name, letter).await?;
                    }
                }
                Ok(())
            })
        })
        .await
}

async fn file_one(
    tx: &mut dyn Sql,
    stream: i64,
    group: &str,
    name: &str,
    Dead { event, reason }: &Dead,
) -> Result<()> {
    let (data, id) = (chunk::encode(&[event])?, event.id.to_bytes());
    let row = args![stream, name, group, &id[..], &**reason, tx.time_us(), &*data];
    tx.run(FILE, row).await?;
    Ok(())
}

/// All dead letters of a stream, oldest first.
pub(super) async fn list<D: Database>(stream: &Arc<Stream<D>>) -> Result<Vec<DeadLetter>> {
    stream
        .transact(Mode::Read, |tx, ids| {
            Box::pin(async move {
                tx.rows(LIST, args![ids.stream]).await?.iter_mut().map(letter).collect()
            })
        })
        .await
}

fn letter(row: &mut Row) -> Result<DeadLetter> {
    let id = row.int(0)?;
    let mut events = chunk::decode(&Bytes::from(row.blob(2)?.unwrap_or_default()))
        .with_context(|| format!("failed to read dead letter {id}"))?;
    Ok(DeadLetter {
        event: events.pop().with_context(|| format!("dead letter {id} is empty"))?,
        group: row.text(1)?,
        reason: row.text(3)?,
        attempts: row.small(4)?,
        time_us: row.int(5)?,
    })
}

/// The rows of these dead letters (all, where `ids` is empty), oldest first.
async fn rows<D: Database>(stream: &Arc<Stream<D>>, wanted: &[EventId]) -> Result<Vec<i64>> {
    let wanted: Arc<HashSet<[u8; 16]>> = Arc::new(wanted.iter().map(|id| id.to_bytes()).collect());
    stream
        .transact(Mode::Read, move |tx, ids| {
            let wanted = wanted.clone();
            Box::pin(async move {
                let mut found = Vec::new();
                for mut row in tx.rows(IDS, args![ids.stream]).await? {
                    let id = <[u8; 16]>::try_from(row.blob(1)?.unwrap_or_default());
                    if wanted.is_empty() || id.is_ok_and(|id| wanted.contains(&id)) {
                        found.push(row.int(0)?);
                    }
                }
                Ok(found)
            })
        })
        .await
}

/// Puts dead letters into the stream again, each for its group alone.
pub(super) async fn replay<D: Database>(
    stream: &Arc<Stream<D>>,
    wanted: &[EventId],
) -> Result<u64> {
    let mut count = 0;
    for rows in rows(stream, wanted).await?.chunks(REPLAY_MAX) {
        let (rows, of): (Arc<[i64]>, _) = (rows.into(), stream.clone());
        let replayed = stream
            .transact(Mode::Durable, move |tx, ids| {
                let (rows, stream) = (rows.clone(), of.clone());
                Box::pin(async move {
                    let mut heads = heads(tx, &ids, &stream).await?;
                    let events = take(tx, &ids, &rows).await?;
                    fault::point("replay.before", events.iter());
                    let packed = pack_events(events.clone(), stream.spec.shards.max(1))?;
                    insert(tx, &ids, &stream, &mut heads, &packed).await?;
                    fault::point("replay.within", events.iter());
                    Ok(events)
                })
            })
            .await?;
        fault::point("replay.after", replayed.iter());
        count += replayed.len() as u64;
    }
    Ok(count)
}

/// Takes letters out of the table.
async fn take(tx: &mut dyn Sql, ids: &Ids, rows: &[i64]) -> Result<Vec<Event>> {
    let mut events = Vec::with_capacity(rows.len());
    for id in rows {
        let row = first(tx, TAKE, args![*id]).await?;
        // Somebody else may have replayed it meanwhile.
        let Some(letter) = row.map(|mut row| letter(&mut row)).transpose()? else { continue };
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
pub(super) async fn forget<D: Database>(
    stream: &Arc<Stream<D>>,
    wanted: &[EventId],
) -> Result<u64> {
    let rows: Arc<[i64]> = rows(stream, wanted).await?.into();
    stream
        .transact(Mode::Durable, move |tx, _| {
            let rows = rows.clone();
            Box::pin(async move {
                let mut count = 0;
                for id in &*rows {
                    count += tx.run(FORGET, args![*id]).await?;
                }
                Ok(count)
            })
        })
        .await
}
