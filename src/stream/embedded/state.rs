//! One stream in a database: what its rows are known by, and its transactions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::AtomicI64;

use anyhow::{Context, Error, Result};
use futures_util::future::BoxFuture;
use sqlx::{Row, SqliteConnection};

use super::db::{Commit, Db, Read, Tx, lock};
use crate::stream::StreamSpec;

/// What the rows of a stream are known by, in one opening of the file.
#[derive(Debug)]
pub(super) struct Ids {
    generation: u64,
    /// The stream's.
    pub stream: i64,
    groups: HashMap<String, i64>,
}

impl Ids {
    /// The names of all groups of the stream.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// The id of a group. Errs where the stream has none of that name.
    pub fn group(&self, name: &str) -> Result<i64> {
        self.groups
            .get(name)
            .copied()
            .with_context(|| format!("the stream has no group {name:?} (open it with the group)"))
    }
}

/// How far the slowest group was behind, and when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backlog {
    /// Which opening of the file.
    pub generation: u64,
    /// Events it had not acked.
    pub events: u64,
    /// Events ever appended by then.
    pub appended: u64,
    /// When, by the clock of leases.
    pub at_ms: i64,
}

/// A stream that is open.
pub(super) struct Stream {
    /// The file it is in.
    pub db: Arc<Db>,
    /// As the topology file has it.
    pub spec: StreamSpec,
    ids: StdMutex<Option<Arc<Ids>>>,
    /// What is known of the slowest group.
    pub backlog: StdMutex<Option<Backlog>>,
    /// When it was last tended, by the clock of leases.
    pub tended_ms: AtomicI64,
}

impl Stream {
    /// A stream in `db`; nothing is created yet.
    pub fn new(db: Arc<Db>, spec: StreamSpec) -> Self {
        let (ids, backlog) = (StdMutex::default(), StdMutex::default());
        Self { db, spec, ids, backlog, tended_ms: AtomicI64::new(0) }
    }

    /// Runs `work` in a transaction that writes. The stream and its groups exist in it, whatever
    /// was done to the file.
    pub async fn write<T, W>(self: &Arc<Self>, commit: Commit, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'t> FnOnce(&'t mut Tx, Arc<Ids>) -> BoxFuture<'t, Result<T>> + Send + 'static,
    {
        let stream = self.clone();
        let (value, ids) = self
            .db
            .write(commit, move |tx| {
                Box::pin(async move {
                    let known = lock(&stream.ids).clone();
                    let ids = match known {
                        Some(ids) if ids.generation == tx.generation => ids,
                        // The file is another one than before: its groups may be missing
                        // events that came while they were, so `latest` does not count.
                        known => Arc::new(declare(tx, &stream.spec, known.is_some()).await?),
                    };
                    Ok((work(tx, ids.clone()).await?, ids))
                })
            })
            .await?;
        let mut known = lock(&self.ids);
        if known.as_ref().is_none_or(|known| known.generation <= ids.generation) {
            *known = Some(ids);
        }
        Ok(value)
    }

    /// The connection to read with.
    pub async fn read(self: &Arc<Self>) -> Result<(Read, Arc<Ids>)> {
        loop {
            let read = self.db.read().await?;
            let known = lock(&self.ids).clone();
            if let Some(ids) = known.filter(|ids| ids.generation == read.generation) {
                return Ok((read, ids));
            }
            drop(read);
            self.write(Commit::Quick, |_, _| Box::pin(async { Ok(()) })).await?;
        }
    }

    /// A group was dropped under us: the next transaction creates it as opening the stream would.
    pub fn forget_ids(&self) {
        *lock(&self.ids) = None;
    }

    /// Says which file it was.
    pub fn explain(&self, error: impl Into<Error>) -> Error {
        self.db.explain(error.into())
    }
}

/// Creates what is missing of the stream, its shards and its groups.
async fn declare(tx: &mut Tx, spec: &StreamSpec, earliest: bool) -> Result<Ids> {
    let sql = &mut tx.sql;
    sqlx::query("INSERT INTO streams (name) VALUES (?) ON CONFLICT DO NOTHING")
        .bind(&*spec.name)
        .execute(&mut *sql)
        .await?;
    let stream: i64 = sqlx::query("SELECT id FROM streams WHERE name = ?")
        .bind(&*spec.name)
        .fetch_one(&mut *sql)
        .await?
        .try_get(0)?;
    for shard in 0..spec.shards.max(1) {
        sqlx::query("INSERT INTO offsets VALUES (?, ?, 0) ON CONFLICT DO NOTHING")
            .bind(stream)
            .bind(shard)
            .execute(&mut *sql)
            .await?;
    }
    for group in &spec.groups {
        create_group(sql, stream, &group.name, group.latest && !earliest).await?;
    }
    // Every group has a cursor in every shard, also where somebody else made the one or the
    // other; a missing one starts at the oldest event retained.
    sqlx::query(
        "INSERT INTO cursors SELECT g.id, o.shard, COALESCE((SELECT MIN(first) FROM messages m
           WHERE m.stream = o.stream AND m.shard = o.shard), o.next)
         FROM groups g JOIN offsets o ON o.stream = g.stream WHERE g.stream = ?
         ON CONFLICT DO NOTHING",
    )
    .bind(stream)
    .execute(&mut *sql)
    .await?;
    let rows = sqlx::query("SELECT name, id FROM groups WHERE stream = ?")
        .bind(stream)
        .fetch_all(&mut *sql)
        .await?;
    let groups = rows.iter().map(|row| Ok((row.try_get(0)?, row.try_get(1)?)));
    Ok(Ids { generation: tx.generation, stream, groups: groups.collect::<Result<_>>()? })
}

async fn create_group(
    sql: &mut SqliteConnection,
    stream: i64,
    name: &str,
    latest: bool,
) -> Result<()> {
    let made =
        sqlx::query("INSERT INTO groups (stream, name) VALUES (?, ?) ON CONFLICT DO NOTHING")
            .bind(stream)
            .bind(name)
            .execute(&mut *sql)
            .await?;
    if latest && made.rows_affected() > 0 {
        sqlx::query(
            "INSERT INTO cursors SELECT g.id, o.shard, o.next FROM groups g
             JOIN offsets o ON o.stream = g.stream WHERE g.stream = ? AND g.name = ?",
        )
        .bind(stream)
        .bind(name)
        .execute(sql)
        .await?;
    }
    Ok(())
}
