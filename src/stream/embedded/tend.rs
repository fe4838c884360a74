//! What is done beside the calls, in small steps: events that are done with are deleted, and what
//! dead processes held is freed. Every call on a stream sees to it that it happens; nothing runs
//! for a stream that nobody uses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Result, ensure};
use sqlx::{Row, SqliteConnection};

use super::clock;
use super::db::{Commit, Db, lock};
use super::lease;
use super::state::Stream;
use crate::event::now_us;
use crate::stream::Retain;

/// How often a stream is tended, at most.
const EVERY_MS: i64 = 500;
/// Chunks that one transaction deletes, at most.
const DELETE_MAX: i64 = 64;
/// How long a member that holds nothing and says nothing is still shown.
const FORGOTTEN_MS: i64 = 60_000;
/// How long another process may have an instance's name in hand before it counts as running.
const CLAIM_MS: i64 = 2_000;

impl Stream {
    /// Tends the stream in the background, if it is time.
    pub fn tend(self: &Arc<Self>) {
        let (now, last) = (clock::now_ms(), self.tended_ms.load(Ordering::Relaxed));
        let order = Ordering::Relaxed;
        if now - last < EVERY_MS
            || self.tended_ms.compare_exchange(last, i64::MAX / 2, order, order).is_err()
        {
            return;
        }
        let done = Done(self.clone());
        tokio::spawn(async move {
            if let Err(error) = done.0.tend_now().await {
                tracing::warn!(stream = %done.0.spec.name, "failed to tidy up: {error:#}");
            }
        });
    }

    async fn tend_now(self: &Arc<Self>) -> Result<()> {
        free_dead(&self.db).await?;
        forget_members(&self.db).await?;
        while delete_some(self).await? {}
        Ok(())
    }
}

/// Lets the stream be tended again, however the task ends.
struct Done(Arc<Stream>);

impl Drop for Done {
    fn drop(&mut self) {
        self.0.tended_ms.store(clock::now_ms(), Ordering::Relaxed);
    }
}

/// The instance of a member: `INSTANCE/GROUP/NUMBER`.
fn instance_of(member: &str) -> &str {
    member.rsplitn(3, '/').nth(2).unwrap_or(member)
}

/// Marks the instance of a member of ours as alive. Whatever an earlier process of that name
/// left behind is free.
pub(super) async fn hold(db: &Arc<Db>, member: &str) -> Result<()> {
    let instance = instance_of(member);
    // One at a time, so that what is freed is not a second member's already.
    let _one = db.holding.lock().await;
    let start = clock::now_ms();
    let claim = loop {
        if lock(&db.instances).contains_key(instance) {
            return Ok(());
        }
        if let Some(claim) = db.directory.claim(instance)? {
            break claim;
        }
        // It may be somebody who is just freeing what the one before us left behind.
        ensure!(
            clock::now_ms() - start < CLAIM_MS,
            "another running process calls itself {instance:?} (give each its own \
             `runtime.instance`)"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let owners = owners(db).await?;
    free(db, owners.into_iter().filter(|owner| instance_of(owner) == instance).collect()).await?;
    lock(&db.instances).insert(instance.to_owned(), claim);
    Ok(())
}

/// Frees what members of processes that are not alive any more held.
pub(super) async fn free_dead(db: &Arc<Db>) -> Result<()> {
    for (instance, claim) in &mut *lock(&db.instances) {
        // Somebody removed the lock's file: without it, others would take us for dead.
        if !db.directory.is_claim(instance, claim)
            && let Some(again) = db.directory.claim(instance)?
        {
            *claim = again;
        }
    }
    let mut instances: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for owner in owners(db).await? {
        instances.entry(instance_of(&owner).to_owned()).or_default().push(owner);
    }
    for (instance, owners) in instances {
        if lock(&db.instances).contains_key(&instance) {
            continue;
        }
        // Who can claim it knows that nobody else does.
        if let Some(claim) = db.directory.claim(&instance)? {
            free(db, owners).await?;
            db.directory.forget(&instance);
            drop(claim);
        }
    }
    Ok(())
}

/// Members that hold something or are shown.
async fn owners(db: &Arc<Db>) -> Result<Vec<String>> {
    let mut read = db.read().await?;
    let rows = sqlx::query(
        "SELECT owner FROM leases WHERE owner <> '' AND deadline > 0
         UNION SELECT name FROM members",
    )
    .fetch_all(read.sql()?)
    .await
    .map_err(|error| db.explain(error.into()))?;
    rows.iter().map(|row| Ok(row.try_get(0)?)).collect()
}

async fn free(db: &Arc<Db>, owners: Vec<String>) -> Result<()> {
    if owners.is_empty() {
        return Ok(());
    }
    db.write(Commit::Quick, move |tx| {
        Box::pin(async move {
            for owner in &owners {
                lease::free(&mut tx.sql, owner).await?;
                sqlx::query("DELETE FROM members WHERE name = ?")
                    .bind(owner.clone())
                    .execute(&mut tx.sql)
                    .await?;
            }
            Ok(())
        })
    })
    .await
}

/// Forgets members that were not seen for long and hold nothing.
async fn forget_members(db: &Arc<Db>) -> Result<()> {
    let before = clock::now_ms() - FORGOTTEN_MS;
    let mut read = db.read().await?;
    let row = sqlx::query("SELECT EXISTS (SELECT 1 FROM members WHERE seen < ?)")
        .bind(before)
        .fetch_one(read.sql()?)
        .await
        .map_err(|error| db.explain(error.into()))?;
    drop(read);
    if !row.try_get::<bool, _>(0)? {
        return Ok(());
    }
    db.write(Commit::Quick, move |tx| {
        Box::pin(async move {
            sqlx::query("DELETE FROM members WHERE seen < ?")
                .bind(before)
                .execute(&mut tx.sql)
                .await?;
            Ok(())
        })
    })
    .await
}

/// Deletes chunks that are done with, as many as a short transaction may; `true` where there may
/// be more.
async fn delete_some(stream: &Arc<Stream>) -> Result<bool> {
    let retain = stream.spec.retain;
    if retain == Retain::Forever {
        return Ok(false);
    }
    let (mut read, ids) = stream.read().await?;
    let found = deletable(read.sql()?, ids.stream, retain).await;
    drop(read);
    if found.map_err(|error| stream.explain(error))?.is_empty() {
        return Ok(false);
    }
    stream
        .write(Commit::Quick, move |tx, ids| {
            Box::pin(async move {
                // Looked at anew: a group may have been created since.
                let found = deletable(&mut tx.sql, ids.stream, retain).await?;
                for (shard, last) in &found {
                    sqlx::query(
                        "DELETE FROM messages WHERE stream = ? AND shard = ? AND first <= ?",
                    )
                    .bind(ids.stream)
                    .bind(shard)
                    .bind(last)
                    .execute(&mut tx.sql)
                    .await?;
                }
                Ok(!found.is_empty())
            })
        })
        .await
}

/// For each shard with something to delete, the first offset of the last chunk that may go.
async fn deletable(
    sql: &mut SqliteConnection,
    stream: i64,
    retain: Retain,
) -> Result<Vec<(u32, i64)>> {
    let since = match retain {
        Retain::Forever => return Ok(Vec::new()),
        Retain::Acked => None,
        Retain::Age(age) => Some(now_us() - i64::try_from(age.as_micros()).unwrap_or(i64::MAX / 2)),
    };
    // The lowest offset that any group still needs; a group without a cursor needs all.
    let shards = sqlx::query(
        "SELECT o.shard, (SELECT MIN(MIN(COALESCE(c.next, 0), COALESCE(
             (SELECT MIN(l.first) FROM leases l WHERE l.grp = g.id AND l.shard = o.shard),
             o.next)))
           FROM groups g LEFT JOIN cursors c ON c.grp = g.id AND c.shard = o.shard
           WHERE g.stream = o.stream)
         FROM offsets o WHERE o.stream = ?",
    )
    .bind(stream)
    .fetch_all(&mut *sql)
    .await?;
    let mut found = Vec::new();
    for shard in shards {
        let (shard, needed): (u32, Option<i64>) = (shard.try_get(0)?, shard.try_get(1)?);
        // Without a group there is nobody who could have acked, but time passes all the same.
        let Some(needed) = needed.or(since.map(|_| i64::MAX)) else { continue };
        let rows = sqlx::query(
            "SELECT first, first + count, time FROM messages WHERE stream = ? AND shard = ?
             ORDER BY first LIMIT ?",
        )
        .bind(stream)
        .bind(shard)
        .bind(DELETE_MAX)
        .fetch_all(&mut *sql)
        .await?;
        let mut last = None;
        for row in rows {
            let (end, time): (i64, i64) = (row.try_get(1)?, row.try_get(2)?);
            // Always from the front, so that what is left has no gap.
            if end > needed || since.is_some_and(|since| time >= since) {
                break;
            }
            last = Some(row.try_get(0)?);
        }
        found.extend(last.map(|last| (shard, last)));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_names_its_instance() {
        assert_eq!(instance_of("host-1-ab/writer/3"), "host-1-ab");
        assert_eq!(instance_of("odd/host/writer/3"), "odd/host");
        assert_eq!(instance_of("alone"), "alone");
    }
}
