//! Which processes live: each holds a lock on a file of its instance's name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::db::Db;
use crate::stream::sql::{Database, Mode, lock, tend};

/// How long another process may have an instance's name in hand before it counts as running.
const CLAIM: Duration = Duration::from_secs(2);

/// Marks an instance of this process as alive. Whatever an earlier process of that name left
/// behind is free.
pub(super) async fn hold(db: &Arc<Db>, instance: &str) -> Result<()> {
    // One at a time, so that what is freed is not a second member's already.
    let _one = db.holding.lock().await;
    let start = Instant::now();
    let claim = loop {
        if lock(&db.instances).contains_key(instance) {
            return Ok(());
        }
        if let Some(claim) = db.directory.claim(instance)? {
            break claim;
        }
        // It may be somebody who is just freeing what the one before us left behind.
        ensure!(
            start.elapsed() < CLAIM,
            "another running process calls itself {instance:?} (give each its own \
             `runtime.instance`)"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let left = tend::owners(db).await?.remove(instance).unwrap_or_default();
    free(db, left).await?;
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
    for (instance, owners) in tend::owners(db).await? {
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

async fn free(db: &Arc<Db>, owners: Vec<String>) -> Result<()> {
    if owners.is_empty() {
        return Ok(());
    }
    let owners: Arc<[String]> = owners.into();
    db.transact(Mode::Loose, move |tx| {
        let owners = owners.clone();
        Box::pin(async move { tend::free(tx, &owners).await })
    })
    .await
}
