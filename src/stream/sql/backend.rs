//! A stream in a database, as the actors see it.

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;

use super::append::StreamWriter;
use super::member::Member;
use super::state::Stream;
use super::{
    Database, Mode, Sql, Statement, args, cursor, dead, first, own, statement, status, tend,
};
use crate::event::{Event, EventId};
use crate::source::Dead;
use crate::spec::Site;
use crate::stream::cursor::{CursorMove, Moved, Refused, ShardCursor};
use crate::stream::{Backend, DeadLetter, Reader, ReaderSpec, StreamSpec, StreamStatus, Writer};

const DROP_GROUP: Statement =
    statement!("DELETE FROM groups WHERE stream = $1 AND name = $2 RETURNING id");
const DROP_LEASES: Statement = statement!("DELETE FROM leases WHERE grp = $1");
const DROP_CURSORS: Statement = statement!("DELETE FROM cursors WHERE grp = $1");
const DROP_OWNERS: Statement = statement!("DELETE FROM owners WHERE grp = $1");
const DROP_MEMBERS: Statement = statement!("DELETE FROM members WHERE grp = $1");

const ERASE_OWNERS: Statement =
    statement!("DELETE FROM owners WHERE grp IN (SELECT id FROM groups WHERE stream = $1)");
const ERASE_LEASES: Statement =
    statement!("DELETE FROM leases WHERE grp IN (SELECT id FROM groups WHERE stream = $1)");
const ERASE_CURSORS: Statement =
    statement!("DELETE FROM cursors WHERE grp IN (SELECT id FROM groups WHERE stream = $1)");
const ERASE_MEMBERS: Statement =
    statement!("DELETE FROM members WHERE grp IN (SELECT id FROM groups WHERE stream = $1)");
const ERASE_GROUPS: Statement = statement!("DELETE FROM groups WHERE stream = $1");
const ERASE_DEAD: Statement = statement!("DELETE FROM dead WHERE stream = $1");
const ERASE_MESSAGES: Statement = statement!("DELETE FROM messages WHERE stream = $1");
const ERASE_CHECKPOINTS: Statement = statement!("DELETE FROM checkpoints WHERE stream = $1");
const ERASE_OFFSETS: Statement = statement!("DELETE FROM offsets WHERE stream = $1");
const ERASE_STREAM: Statement = statement!("DELETE FROM streams WHERE id = $1");
/// In the order in which rows are locked everywhere, but for the stream's own, which is locked
/// first and goes last; groups after what is found by them.
const ERASE: [Statement; 10] = [
    ERASE_OFFSETS,
    ERASE_MEMBERS,
    ERASE_OWNERS,
    ERASE_LEASES,
    ERASE_CURSORS,
    ERASE_DEAD,
    ERASE_GROUPS,
    ERASE_MESSAGES,
    ERASE_CHECKPOINTS,
    ERASE_STREAM,
];

/// Opens a stream in `db`, and creates every group of the spec that it does not have.
pub(in crate::stream) async fn open<D: Database>(
    db: Arc<D>,
    spec: StreamSpec,
    site: &Site,
) -> Result<Arc<dyn Backend>> {
    db.free_dead().await?;
    Ok(Arc::new(SqlBackend { stream: Stream::open(db, spec, site).await? }))
}

/// A stream in a database.
struct SqlBackend<D> {
    stream: Arc<Stream<D>>,
}

#[async_trait]
impl<D: Database> Backend for SqlBackend<D> {
    async fn writer(&self) -> Result<Box<dyn Writer>> {
        Ok(Box::new(StreamWriter::new(self.stream.clone())))
    }

    async fn reader(&self, spec: ReaderSpec) -> Result<Arc<dyn Reader>> {
        self.stream.db.hold(tend::instance_of(&spec.member)).await?;
        Ok(Arc::new(Member::open(self.stream.clone(), spec).await?))
    }

    async fn status(&self) -> Result<StreamStatus> {
        self.stream.tend();
        status::status(&self.stream).await
    }

    async fn peek(&self, count: usize) -> Result<Vec<Event>> {
        status::peek(&self.stream, count).await
    }

    async fn drop_group(&self, group: &str) -> Result<bool> {
        let group: Arc<str> = group.into();
        self.stream
            .transact(Mode::Durable, move |tx, ids| {
                let group = group.clone();
                Box::pin(async move { drop_group(tx, ids.stream, &group).await })
            })
            .await
    }

    async fn cursor(&self, group: &str) -> Result<Vec<ShardCursor>> {
        cursor::show(&self.stream, group).await
    }

    async fn move_cursor(&self, order: &CursorMove) -> Result<Result<Vec<Moved>, Refused>> {
        cursor::set(&self.stream, order).await
    }

    async fn erase(&self) -> Result<()> {
        let erase = self.stream.transact(Mode::Durable, |tx, ids| {
            Box::pin(async move {
                cursor::lock_stream(tx, ids.stream).await?;
                for statement in ERASE {
                    tx.run(statement, args![ids.stream]).await?;
                }
                Ok(())
            })
        });
        erase.await?;
        self.stream.db.local().set_shards(&self.stream.spec.name, None);
        Ok(())
    }

    async fn dead(&self) -> Result<Vec<DeadLetter>> {
        dead::list(&self.stream).await
    }

    async fn file_dead(&self, dead: &[Dead]) -> Result<()> {
        dead::file(&self.stream, dead).await
    }

    async fn replay_dead(&self, ids: &[EventId]) -> Result<u64> {
        dead::replay(&self.stream, ids).await
    }

    async fn drop_dead(&self, ids: &[EventId]) -> Result<u64> {
        dead::forget(&self.stream, ids).await
    }
}

async fn drop_group(tx: &mut dyn Sql, stream: i64, name: &str) -> Result<bool> {
    let Some(row) = first(tx, DROP_GROUP, args![stream, name]).await? else { return Ok(false) };
    let group = row.int(0)?;
    tx.run(DROP_MEMBERS, args![group]).await?;
    own::lock(tx, group).await?;
    for statement in [DROP_OWNERS, DROP_LEASES, DROP_CURSORS] {
        tx.run(statement, args![group]).await?;
    }
    Ok(true)
}
