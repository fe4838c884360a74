//! The model of a stream in a SQL database, written once: [`embedded`](super::embedded) keeps it
//! in SQLite, [`postgres`](super::postgres) in PostgreSQL. This is no kind of its own: a kind
//! brings a [`Database`], and what is particular to it stays with it.
//!
//! - [`schema`]: the tables: messages (a chunk of events a row), offsets, cursors, leases.
//! - [`state`]: one stream in a database; [`backend`]: it as the actors see it.
//! - [`append`] and [`fetch`]: the way of the events in and out; [`lease`] and [`member`]: who
//!   holds them meanwhile, and [`own`] who owns the shards of an ordered group; [`dead`]: where
//!   they go when nobody wants them.
//! - [`mode`]: whether a group is an ordered one, which all its members are to agree on.
//! - [`cursor`]: where groups stand, and how they are put elsewhere.
//! - [`shards`]: how many there are, and when that may change.
//! - [`local`]: what a process keeps beside the database: chunks, and who waits.
//! - [`tend`]: what is deleted, and what is taken over from processes that are gone.
//!
//! SQLite runs one transaction that writes at a time. PostgreSQL runs many, and shows each
//! statement what was committed before it (`READ COMMITTED`): so whatever is changed on the
//! ground of what was read is locked by the reading (`FOR UPDATE`), always in the order offsets,
//! members, owners, leases, cursors, dead letters, and rows of one table by their keys. (A fetch
//! does not wait for a cursor, but passes over one that is locked: so [`cursor`] may lock it before
//! the leases.) Who trims a stream, moves a cursor in it or changes the number of its shards locks
//! its row in `streams` before all else, so that none misses what another does; and who opens a
//! member, its group's row in `groups`.

mod append;
pub(super) mod backend;
mod cursor;
mod dead;
mod fetch;
pub(super) mod lease;
pub(super) mod local;
mod member;
mod mode;
mod own;
pub(super) mod schema;
mod shards;
mod state;
mod status;
pub(super) mod tend;

use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use async_trait::async_trait;
use futures_util::future::BoxFuture;

use self::local::{Local, Outbox};

/// A statement in the words of both databases. Parameters are `$1`, `$2`, …
#[derive(Clone, Copy, Debug)]
pub(super) struct Statement {
    /// As SQLite wants it.
    pub sqlite: &'static str,
    /// As PostgreSQL wants it.
    pub postgres: &'static str,
}

/// A [`Statement`]: the same for both, with a lock of the rows that PostgreSQL takes, or in two
/// versions.
macro_rules! statement {
    ($text:literal) => {
        $crate::stream::sql::Statement { sqlite: $text, postgres: $text }
    };
    ($text:literal, lock $lock:literal) => {
        $crate::stream::sql::Statement { sqlite: $text, postgres: concat!($text, " ", $lock) }
    };
    (sqlite $sqlite:literal, postgres $postgres:literal) => {
        $crate::stream::sql::Statement { sqlite: $sqlite, postgres: $postgres }
    };
}

/// The arguments of a statement.
macro_rules! args {
    ($($arg:expr),* $(,)?) => { &[$($crate::stream::sql::Arg::from($arg)),*] };
}

pub(super) use {args, statement};

/// An argument of a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Arg<'a> {
    /// A number. One without a sign is stored as the signed number of the same 64 bits.
    Int(i64),
    /// Text.
    Text(&'a str),
    /// Bytes.
    Blob(&'a [u8]),
}

macro_rules! int_args {
    ($($ty:ty),*) => {
        $(impl From<$ty> for Arg<'_> {
            fn from(number: $ty) -> Self {
                Self::Int(number as i64)
            }
        })*
    };
}

int_args!(i64, u64, u32, usize);

impl<'a> From<&'a str> for Arg<'a> {
    fn from(text: &'a str) -> Self {
        Self::Text(text)
    }
}

impl<'a> From<&'a [u8]> for Arg<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Blob(bytes)
    }
}

/// A value that a statement answers with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cell {
    /// Nothing.
    Null,
    /// A number, or 0 or 1 for a condition.
    Int(i64),
    /// Text.
    Text(String),
    /// Bytes.
    Blob(Vec<u8>),
}

/// A row that a statement answers with.
#[derive(Debug)]
pub(super) struct Row(pub Vec<Cell>);

impl Row {
    fn take(&mut self, column: usize) -> Cell {
        self.0.get_mut(column).map_or(Cell::Null, |cell| std::mem::replace(cell, Cell::Null))
    }

    /// A number.
    pub fn int(&self, column: usize) -> Result<i64> {
        match self.0.get(column) {
            Some(Cell::Int(number)) => Ok(*number),
            other => odd(column, "a number", other),
        }
    }

    /// A number, where there is one.
    pub fn opt_int(&self, column: usize) -> Result<Option<i64>> {
        match self.0.get(column) {
            Some(Cell::Null) => Ok(None),
            _ => self.int(column).map(Some),
        }
    }

    /// A number without a sign.
    pub fn uint(&self, column: usize) -> Result<u64> {
        Ok(self.int(column)? as u64)
    }

    /// A number of 32 bits.
    pub fn small(&self, column: usize) -> Result<u32> {
        Ok(u32::try_from(self.int(column)?)?)
    }

    /// Text, which is gone from the row then.
    pub fn text(&mut self, column: usize) -> Result<String> {
        match self.take(column) {
            Cell::Text(text) => Ok(text),
            other => odd(column, "text", Some(&other)),
        }
    }

    /// Bytes, which are gone from the row then; `None` for nothing.
    pub fn blob(&mut self, column: usize) -> Result<Option<Vec<u8>>> {
        match self.take(column) {
            Cell::Blob(bytes) => Ok(Some(bytes)),
            Cell::Null => Ok(None),
            other => odd(column, "bytes", Some(&other)),
        }
    }
}

fn odd<T>(column: usize, wanted: &str, found: Option<&Cell>) -> Result<T> {
    bail!("column {column} of an answer is {found:?}, not {wanted}")
}

/// A transaction, or a connection that only reads.
#[async_trait]
pub(super) trait Sql: Send {
    /// Runs a statement; all the rows that it answers with.
    async fn rows(&mut self, statement: Statement, args: &[Arg<'_>]) -> Result<Vec<Row>>;

    /// Runs a statement; how many rows it changed.
    async fn run(&mut self, statement: Statement, args: &[Arg<'_>]) -> Result<u64>;

    /// Milliseconds by the clock that leases are counted in.
    fn now_ms(&self) -> i64;

    /// Microseconds since 1970 UTC.
    fn time_us(&self) -> i64;

    /// Which opening of the database this is: another number where it may be another one.
    fn generation(&self) -> u64;

    /// Whether others write at the same time, so that rows are to be locked.
    fn is_shared(&self) -> bool;

    /// What is to happen once it is committed.
    fn outbox(&mut self) -> &mut Outbox;
}

/// Runs a statement; the first row that it answers with.
pub(super) async fn first(
    tx: &mut dyn Sql,
    statement: Statement,
    args: &[Arg<'_>],
) -> Result<Option<Row>> {
    Ok(tx.rows(statement, args).await?.into_iter().next())
}

/// What a transaction is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// It only reads.
    Read,
    /// Losing it, together with all after it, means that events are delivered again, no more.
    Loose,
    /// It outlives the end of any process, the database's too.
    Kept,
    /// It outlives a power cut.
    Durable,
}

/// Where streams are kept. One value stands for one database in this process, whatever number of
/// streams and members use it.
pub(super) trait Database: Sized + Send + Sync + 'static {
    /// How often a waiting member looks by itself for what nobody told it.
    const LOOK: Duration;
    /// How often a stream is tended, at most.
    const TEND: Duration;
    /// Whether a chunk in the cache is what the database holds, as long as the generation is the
    /// same.
    const CACHE_IS_SURE: bool;

    /// What this process keeps beside it.
    fn local(&self) -> &Local;

    /// Runs `work` in a transaction, to its end also where the caller goes away. `work` may be run
    /// again where the transaction fell victim to another one. Errors say which database it was
    /// and what may help.
    fn transact<T, W>(
        self: &Arc<Self>,
        mode: Mode,
        work: W,
    ) -> impl Future<Output = Result<T>> + Send
    where
        T: Send + 'static,
        W: for<'t> Fn(&'t mut dyn Sql) -> BoxFuture<'t, Result<T>> + Send + Sync + 'static;

    /// Marks an instance of this process as alive. Whatever an earlier process of that name left
    /// behind is free. Errs where another living process has the name.
    fn hold(self: &Arc<Self>, instance: &str) -> impl Future<Output = Result<()>> + Send;

    /// Frees what the members of dead processes held.
    fn free_dead(self: &Arc<Self>) -> impl Future<Output = Result<()>> + Send;
}

/// A lock that outlives a panic elsewhere: what it guards is whole between any two statements.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The database is not the one it was, or somebody dropped what the stream has in it: what is
/// missing is to be created.
#[derive(Debug)]
pub(super) struct Stale;

impl fmt::Display for Stale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the stream is not in the database any more")
    }
}

impl std::error::Error for Stale {}
