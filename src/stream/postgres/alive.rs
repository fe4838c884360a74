//! Which processes live: the connection of each that listens holds a lock of its instance's name,
//! which the server drops with the connection.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::db::Db;
use crate::stream::sql::{Database, Mode, Statement, args, first, lock, statement, tend};

/// How long another process may have an instance's name in hand before it counts as running.
const CLAIM: Duration = Duration::from_secs(2);
/// How long a process may be without its lock before it counts as dead: it may be connecting anew.
const DEAD: Duration = Duration::from_millis(900);

/// Whether nobody holds the lock of an instance, nor takes it before this transaction ends. After
/// a start of the server everybody needs a moment to come back.
const IS_FREE: Statement = statement!(
    sqlite "",
    postgres "SELECT pg_postmaster_start_time() < clock_timestamp() - interval '3 seconds'
       AND pg_try_advisory_xact_lock_shared($1)"
);

/// Marks an instance of this process as alive. Whatever an earlier process of that name left
/// behind is free.
pub(super) async fn hold(db: &Arc<Db>, instance: &str) -> Result<()> {
    // One at a time, so that what is freed is not a second member's already.
    let _one = db.holding.lock().await;
    if db.ear.holds(instance) {
        return Ok(());
    }
    let (start, key) = (Instant::now(), db.lock_of(instance));
    while !db.ear.claim(key).await.map_err(|error| db.explain(error))? {
        // It may be somebody who is just freeing what the one before us left behind.
        ensure!(
            start.elapsed() < CLAIM,
            "another running process calls itself {instance:?} (give each its own \
             `runtime.instance`)"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left = tend::owners(db).await?.remove(instance).unwrap_or_default();
    free(db, left).await?;
    db.ear.hold(instance, key);
    Ok(())
}

async fn free(db: &Arc<Db>, owners: Vec<String>) -> Result<()> {
    let owners: Arc<[String]> = owners.into();
    if owners.is_empty() {
        return Ok(());
    }
    db.transact(Mode::Loose, move |tx| {
        let owners = owners.clone();
        Box::pin(async move { tend::free(tx, &owners).await })
    })
    .await
}

/// Frees what members of processes held that have been without their lock for a while.
pub(super) async fn free_dead(db: &Arc<Db>) -> Result<()> {
    let others = tend::owners(db).await?.into_iter();
    let others: Vec<_> = others.filter(|(instance, _)| !db.ear.holds(instance)).collect();
    lock(&db.suspects).retain(|suspect, _| others.iter().any(|(other, _)| other == suspect));
    for (instance, owners) in others {
        if is_dead(db, instance, owners.into()).await? {
            db.local().wake_all();
        }
    }
    Ok(())
}

/// Frees what these members of an instance held, if it is dead.
async fn is_dead(db: &Arc<Db>, instance: String, owners: Arc<[String]>) -> Result<bool> {
    let of = db.clone();
    db.transact(Mode::Loose, move |tx| {
        let (db, instance, owners) = (of.clone(), instance.clone(), owners.clone());
        Box::pin(async move {
            let row = first(tx, IS_FREE, args![db.lock_of(&instance)]).await?;
            if row.map_or(Ok(0), |row| row.int(0))? == 0 {
                lock(&db.suspects).remove(&instance);
                return Ok(false);
            }
            let since = *lock(&db.suspects).entry(instance).or_insert_with(Instant::now);
            let dead = since.elapsed() >= DEAD;
            if dead {
                tend::free(tx, &owners).await?;
            }
            Ok(dead)
        })
    })
    .await
}
