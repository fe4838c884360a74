//! One stream in a database: what its rows are known by, and its transactions.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::Mutex as StdMutex;
use std::time::Instant;

use anyhow::{Context, Result};
use futures_util::future::BoxFuture;

use super::shards::{self, May, Opener};
use super::{Database, Mode, Sql, Stale, Statement, args, first, lock, statement};
use crate::spec::Site;
use crate::stream::StreamSpec;

/// How often a transaction is begun anew because the database has become another one meanwhile.
const TRIES: usize = 5;

const FIND_STREAM: Statement = statement!("SELECT id FROM streams WHERE name = $1");
const ADD_STREAM: Statement =
    statement!("INSERT INTO streams (id, name) VALUES ($1, $2) ON CONFLICT DO NOTHING");
const ADD_GROUP: Statement =
    statement!("INSERT INTO groups (id, stream, name) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING");
const START_AT_THE_END: Statement = statement!(
    "INSERT INTO cursors (grp, shard, next) SELECT g.id, o.shard, o.next FROM groups g
     JOIN offsets o ON o.stream = g.stream AND o.shard < o.shards
     WHERE g.stream = $1 AND g.name = $2"
);
/// Every group has a cursor in every shard, also where somebody else made the one or the other; a
/// missing one starts at the oldest event retained.
const START_AT_THE_BEGINNING: Statement = statement!(
    "INSERT INTO cursors (grp, shard, next, ordered)
     SELECT g.id, o.shard, COALESCE((SELECT MIN(first) FROM messages m
         WHERE m.stream = o.stream AND m.shard = o.shard), o.next),
       COALESCE((SELECT MAX(c.ordered) FROM cursors c WHERE c.grp = g.id), 0)
     FROM groups g JOIN offsets o ON o.stream = g.stream AND o.shard < o.shards
     WHERE g.stream = $1 ON CONFLICT DO NOTHING"
);
/// Of a group that is new.
const IN_ORDER: Statement = statement!(
    "UPDATE cursors SET ordered = 1
     WHERE grp = (SELECT id FROM groups WHERE stream = $1 AND name = $2)"
);
const GROUPS: Statement = statement!("SELECT name, id FROM groups WHERE stream = $1");

/// What the rows of a stream are known by, in one opening of the database.
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
    /// Which opening of the database.
    pub generation: u64,
    /// Events it had not acked.
    pub events: u64,
    /// Events ever appended by then.
    pub appended: u64,
    /// When.
    pub at: Instant,
}

/// A stream that is open.
pub(super) struct Stream<D> {
    /// The database it is in.
    pub db: Arc<D>,
    /// As the topology file has it.
    pub spec: StreamSpec,
    /// This process.
    site: Site,
    ids: StdMutex<Option<Arc<Ids>>>,
    /// What is known of the slowest group.
    pub backlog: StdMutex<Option<Backlog>>,
}

impl<D: Database> Stream<D> {
    /// The stream in `db`. It is created there, with its groups.
    pub async fn open(db: Arc<D>, spec: StreamSpec, site: &Site) -> Result<Arc<Self>> {
        let (ids, backlog) = (StdMutex::default(), StdMutex::default());
        let stream = Arc::new(Self { db, spec, site: site.clone(), ids, backlog });
        stream.declare().await?;
        Ok(stream)
    }

    /// Runs `work` in a transaction. The stream and its groups exist in it, whatever was done to
    /// the database. `work` may be run again, and asks for that itself where it does not find
    /// what must be there, by an error that is [`Stale`].
    pub async fn transact<T, W>(self: &Arc<Self>, mode: Mode, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'t> Fn(&'t mut dyn Sql, Arc<Ids>) -> BoxFuture<'t, Result<T>>
            + Send
            + Sync
            + 'static,
    {
        let work = Arc::new(work);
        for _ in 1..TRIES {
            match self.try_transact(mode, work.clone()).await {
                Err(error) if error.is::<Stale>() => self.declare().await?,
                result => return result,
            }
        }
        self.try_transact(mode, work).await
    }

    async fn try_transact<T, W>(self: &Arc<Self>, mode: Mode, work: Arc<W>) -> Result<T>
    where
        T: Send + 'static,
        W: for<'t> Fn(&'t mut dyn Sql, Arc<Ids>) -> BoxFuture<'t, Result<T>>
            + Send
            + Sync
            + 'static,
    {
        let known = lock(&self.ids).clone();
        self.db
            .transact(mode, move |tx| {
                match known.clone().filter(|ids| ids.generation == tx.generation()) {
                    Some(ids) => work(tx, ids),
                    None => Box::pin(async { Err(Stale.into()) }),
                }
            })
            .await
    }

    /// What it may do where the stream has another number of shards. Who ran with this one does not
    /// change it back: whoever changed it runs with the other.
    fn may(&self) -> May {
        let known = self.db.local().shards(&self.spec.name) == Some(self.spec.shards.max(1));
        match (known || lock(&self.ids).is_some(), self.site.runs) {
            (true, _) => May::GoOn,
            (false, true) => May::Change,
            (false, false) => May::Look,
        }
    }

    /// Creates what is missing of the stream, its shards and its groups.
    async fn declare(self: &Arc<Self>) -> Result<()> {
        let stream = self.clone();
        let may = self.may();
        let (ids, shards_before) = self
            .db
            .transact(Mode::Durable, move |tx| {
                let before = lock(&stream.ids).clone();
                let stream = stream.clone();
                Box::pin(async move {
                    let opener = Opener { instance: &stream.site.instance, may };
                    declare(tx, &stream.spec, opener, before.as_deref()).await
                })
            })
            .await?;
        if let Some(before) = shards_before {
            let (stream, shards) = (&self.spec.name, self.spec.shards);
            tracing::info!(%stream, "the stream was read to its end: {before} shards are {shards}");
        }
        if self.site.runs {
            self.db.local().set_shards(&self.spec.name, Some(self.spec.shards.max(1)));
        }
        let mut known = lock(&self.ids);
        if known.as_ref().is_none_or(|known| known.generation <= ids.generation) {
            *known = Some(Arc::new(ids));
        }
        Ok(())
    }
}

/// Creates what is missing. Answers also how many shards there were, where that has changed.
async fn declare(
    tx: &mut dyn Sql,
    spec: &StreamSpec,
    opener: Opener<'_>,
    before: Option<&Ids>,
) -> Result<(Ids, Option<u32>)> {
    tx.run(ADD_STREAM, args![new_id(), &*spec.name]).await?;
    let found = first(tx, FIND_STREAM, args![&*spec.name]).await?;
    let stream = found.context("the stream was not created")?.int(0)?;
    // Where the database is another one than before, its groups may be missing events that came
    // while they were, so `latest` does not count.
    let earliest = before
        .is_some_and(|before| before.generation != tx.generation() || before.stream != stream);
    let shards_before = shards::agree(tx, stream, spec, opener).await?;
    let mut in_order = Vec::new();
    for group in &spec.groups {
        let made = tx.run(ADD_GROUP, args![new_id(), stream, &*group.name]).await?;
        if made > 0 && group.latest && !earliest {
            tx.run(START_AT_THE_END, args![stream, &*group.name]).await?;
        }
        if made > 0 && group.ordered {
            in_order.push(&*group.name);
        }
    }
    tx.run(START_AT_THE_BEGINNING, args![stream]).await?;
    for group in in_order {
        tx.run(IN_ORDER, args![stream, group]).await?;
    }
    let mut rows = tx.rows(GROUPS, args![stream]).await?;
    let groups = rows.iter_mut().map(|row| Ok((row.text(0)?, row.int(1)?)));
    let groups = groups.collect::<Result<_>>()?;
    Ok((Ids { generation: tx.generation(), stream, groups }, shards_before))
}

fn new_id() -> i64 {
    fastrand::i64(1..)
}
