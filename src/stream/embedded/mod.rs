//! The stream backend that needs no server: SQLite, in one file of this machine, which any number
//! of processes may open.
//!
//! - [`db`]: one open file: its connections, its transactions, and what happens when somebody
//!   puts an older copy in its place ([`files`]).
//! - [`schema`]: the tables: messages (a chunk of events a row), offsets, cursors, leases.
//! - [`state`]: one stream in the file.
//! - [`append`] and [`fetch`]: the way of the events in and out; [`lease`] and [`member`]: who
//!   holds them meanwhile; [`dead`]: where they go when nobody wants them.
//! - [`tend`]: what is deleted, and what is taken over from processes that are gone.

mod append;
mod cache;
mod clock;
mod db;
mod dead;
mod fetch;
mod files;
mod lease;
mod member;
mod schema;
mod state;
mod status;
mod tend;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use sqlx::{Row, SqliteConnection};

use self::append::StreamWriter;
use self::db::{Commit, Db};
use self::member::Member;
use self::state::Stream;
use super::{
    Backend, Capabilities, DeadLetter, Kind, Reader, ReaderSpec, StreamSpec, StreamStatus, Writer,
};
use crate::event::{Event, EventId};
use crate::source::Dead;
use crate::spec::{Default as KeyDefault, Key, Site, Ty};

/// `kind = "embedded"`
pub static KIND: Kind = Kind {
    name: "embedded",
    doc: "A SQLite database on this machine. It needs no server; several streams and processes may \
          share a file.",
    keys: &[Key {
        name: "path",
        ty: Ty::Path,
        default: KeyDefault::Derived("streams.db in runtime.data_dir"),
        doc: "The database file. Restore an older copy of it without its -wal and -shm files.",
    }],
    group_keys: &[],
    capabilities: Capabilities {
        foreign_identity: false,
        history: true,
        shards: true,
        transactional_checkpoint: true,
        ordered: false,
    },
    check: |_| Vec::new(),
    claims: |_| None,
    open: |spec, site| Box::pin(open(spec, site)),
};

async fn open(spec: StreamSpec, site: Site) -> Result<Arc<dyn Backend>> {
    let path: PathBuf =
        spec.values.opt_path("path").unwrap_or_else(|| site.data_dir.join("streams.db"));
    let db = Db::open(&path).await?;
    tend::free_dead(&db).await?;
    let stream = Arc::new(Stream::new(db, spec));
    // Creates the stream and its groups.
    stream.write(Commit::Durable, |_, _| Box::pin(async { Ok(()) })).await?;
    Ok(Arc::new(Embedded { stream }))
}

async fn drop_group(sql: &mut SqliteConnection, stream: i64, name: &str) -> Result<bool> {
    let row = sqlx::query("DELETE FROM groups WHERE stream = ? AND name = ? RETURNING id")
        .bind(stream)
        .bind(name)
        .fetch_optional(&mut *sql)
        .await?;
    let Some(row) = row else { return Ok(false) };
    let group: i64 = row.try_get(0)?;
    for statement in [
        "DELETE FROM leases WHERE grp = ?",
        "DELETE FROM cursors WHERE grp = ?",
        "DELETE FROM members WHERE grp = ?",
    ] {
        sqlx::query(statement).bind(group).execute(&mut *sql).await?;
    }
    Ok(true)
}

/// A stream in a database file.
struct Embedded {
    stream: Arc<Stream>,
}

#[async_trait]
impl Backend for Embedded {
    async fn writer(&self) -> Result<Box<dyn Writer>> {
        Ok(Box::new(StreamWriter::new(self.stream.clone())))
    }

    async fn reader(&self, spec: ReaderSpec) -> Result<Arc<dyn Reader>> {
        tend::hold(&self.stream.db, &spec.member).await?;
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
        let group = group.to_owned();
        self.stream
            .write(Commit::Durable, move |tx, ids| {
                Box::pin(async move { drop_group(&mut tx.sql, ids.stream, &group).await })
            })
            .await
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
