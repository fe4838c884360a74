//! One open database file of this process, shared by all streams in it: a connection to write
//! with, one to read with, and the watch over whether the file is still the one that was opened.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex as StdMutex, Weak};
use std::time::Duration;

use anyhow::{Context, Error, Result, anyhow};
use futures_util::future::BoxFuture;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection, Row};
use tokio::sync::{Mutex, OwnedMutexGuard};

use super::files::{Directory, Files, Turns, beside};
use super::tx::Tx;
use super::{alive, schema};
use crate::client::said::Telling;
use crate::stream::sql::local::Local;
use crate::stream::sql::{Database, Mode, Sql, lease, lock};

/// How long a call waits for another process that holds the database locked.
const BUSY: Duration = Duration::from_secs(15);
/// How long closing the database waits for another process that is just opening it.
const CLOSING: Duration = Duration::from_secs(1);
/// Bytes written to the log until it is copied into the database.
const CHECKPOINT_BYTES: u64 = 8 * 1024 * 1024;
/// What a transaction writes beside its events, about.
const TRANSACTION_BYTES: u64 = 24 * 1024;

/// How often in a row a database may be replaced while it is being opened.
const OPENINGS_MAX: u32 = 5;

/// The open files of this process, so that all who use one share its connections.
static OPEN: LazyLock<Mutex<HashMap<PathBuf, Weak<Db>>>> = LazyLock::new(Mutex::default);

/// One open database file.
pub(super) struct Db {
    path: PathBuf,
    wal: PathBuf,
    /// Locks beside the database.
    pub directory: Arc<Directory>,
    writer: Arc<Mutex<Conn>>,
    reader: Arc<Mutex<Conn>>,
    opened: StdMutex<Opened>,
    local: Local,
    /// The instances that this process marks as alive, each with the lock that says so.
    pub instances: StdMutex<HashMap<String, std::fs::File>>,
    /// Held while one is added.
    pub holding: Mutex<()>,
    /// Tells other processes that this one has the file open.
    user: StdMutex<Option<std::fs::File>>,
    /// What was said of a log that could not be shortened.
    shortened: Telling,
}

/// What is open: it changes each time the file is opened anew.
#[derive(Clone, Copy, Default)]
struct Opened {
    files: Option<Files>,
    generation: u64,
}

/// A connection. Both of a file are locked in the order writer, reader.
#[derive(Default)]
struct Conn {
    sql: Option<SqliteConnection>,
    /// Whether a commit waits for the disk.
    durable: Option<bool>,
    /// Bytes in the log, about.
    logged: u64,
    /// The right to write, among processes.
    turns: Option<Arc<Turns>>,
}

impl Db {
    /// The file at `path`, opened unless this process has it open.
    pub async fn open(path: &Path) -> Result<Arc<Self>> {
        let path = resolve(path)?;
        let mut open = OPEN.lock().await;
        open.retain(|_, db| db.strong_count() > 0);
        let db = match open.get(&path).and_then(Weak::upgrade) {
            Some(db) => db,
            None => {
                let db = Arc::new(Self::new(path.clone()));
                open.insert(path, Arc::downgrade(&db));
                db
            }
        };
        drop(open);
        let mut conn = db.writer.clone().lock_owned().await;
        db.ready(&mut conn).await.map_err(|error| db.explain(error))?;
        Ok(db)
    }

    fn new(path: PathBuf) -> Self {
        let wal = beside(&path, "-wal");
        Self {
            directory: Arc::new(Directory::of(&path)),
            writer: Arc::default(),
            reader: Arc::default(),
            opened: StdMutex::default(),
            local: Local::beside(&path.to_string_lossy()),
            instances: StdMutex::default(),
            holding: Mutex::default(),
            user: StdMutex::default(),
            shortened: Telling::default(),
            path,
            wal,
        }
    }

    /// Runs `work` in a transaction that writes.
    async fn write<T, W>(
        &self,
        mut conn: OwnedMutexGuard<Conn>,
        durable: bool,
        work: W,
    ) -> Result<T>
    where
        W: for<'t> Fn(&'t mut dyn Sql) -> BoxFuture<'t, Result<T>>,
    {
        let turn = loop {
            self.ready(&mut conn).await?;
            let turns = conn.turns.clone().context("the connection is gone")?;
            let turn = turns.take(BUSY).await;
            // Others may have had long turns.
            if self.stands(&lock(&self.opened)) {
                break turn;
            }
        };
        let generation = lock(&self.opened).generation;
        let sql = conn.sql.take().context("the connection is gone")?;
        let mut tx = Tx::new(sql, generation);
        if conn.durable != Some(durable) {
            let pragma =
                if durable { "PRAGMA synchronous = FULL" } else { "PRAGMA synchronous = NORMAL" };
            sqlx::raw_sql(pragma).execute(&mut tx.sql).await?;
            conn.durable = Some(durable);
        }
        let result = run(&mut tx, work).await;
        if result.is_err() && !roll_back(&mut tx.sql).await {
            return result;
        }
        conn.logged += TRANSACTION_BYTES + tx.written;
        conn.sql = Some(tx.sql);
        if conn.logged >= CHECKPOINT_BYTES {
            self.checkpoint(&mut conn).await;
        }
        drop(turn);
        if result.is_ok() {
            self.local.deliver(generation, tx.outbox);
        }
        result
    }

    /// Runs `work` on the connection to read with. Statements on it see what was committed before
    /// each.
    async fn read<T, W>(&self, work: W) -> Result<T>
    where
        W: for<'t> Fn(&'t mut dyn Sql) -> BoxFuture<'t, Result<T>>,
    {
        loop {
            let mut conn = self.reader.clone().lock_owned().await;
            let opened = *lock(&self.opened);
            if self.stands(&opened)
                && let Some(sql) = conn.sql.take()
            {
                let mut tx = Tx::new(sql, opened.generation);
                let result = work(&mut tx).await;
                conn.sql = Some(tx.sql);
                return result;
            }
            drop(conn);
            let mut writer = self.writer.clone().lock_owned().await;
            self.ready(&mut writer).await?;
        }
    }

    fn stands(&self, opened: &Opened) -> bool {
        opened.files.is_some_and(|files| files.stand(&self.path, &self.wal))
    }

    /// Makes sure that what is open is what stands at the path.
    async fn ready(&self, conn: &mut Conn) -> Result<()> {
        let opened = *lock(&self.opened);
        if conn.sql.is_some() && self.stands(&opened) {
            return Ok(());
        }
        let mut reader = self.reader.clone().lock_owned().await;
        let (directory, path) = (self.directory.clone(), self.path.clone());
        let way = move || directory.make_way(&path, opened.files);
        let way = tokio::task::spawn_blocking(way).await??;
        lock(&self.opened).files = None;
        for conn in [&mut *conn, &mut *reader] {
            if let Some(sql) = conn.sql.take() {
                // A connection that cannot even be closed is gone all the same.
                let _ = sql.close().await;
            }
        }
        // Where an attempt to open it failed, nothing is known of what was there before.
        let mut replaced = way.replaced || (opened.files.is_none() && opened.generation > 0);
        let mut attempts = 1;
        let files = loop {
            if let Some(files) = self.connect(conn, &mut reader, replaced).await? {
                break files;
            }
            anyhow::ensure!(attempts < OPENINGS_MAX, "it is replaced again and again");
            (replaced, attempts) = (true, attempts + 1);
        };
        self.directory.note_opened(&files)?;
        (conn.durable, conn.logged, conn.turns) = (None, 0, Some(self.directory.turns()?));
        *lock(&self.user) = Some(way.user);
        drop(way.lock);
        let generation = opened.generation + 1;
        self.local.clear(generation);
        *lock(&self.opened) = Opened { files: Some(files), generation };
        Ok(())
    }

    /// Opens both connections; answers which files they have open, or nothing where these were
    /// replaced meanwhile.
    async fn connect(
        &self,
        writer: &mut Conn,
        reader: &mut Conn,
        replaced: bool,
    ) -> Result<Option<Files>> {
        let before = Files::at(&self.path);
        let mut sql = connect_writer(&self.path).await?;
        // Not after the reader: it would make a new log should this one just have been removed.
        let files = Files::at(&self.path).opened_after(&before);
        let other = connect_reader(&self.path).await;
        if !files.stand(&self.path, &self.wal) {
            // Whichever of the old and new files these have open: closed, they would write what
            // they know of the one into the other.
            std::mem::forget((sql, other));
            let path = self.path.clone();
            tokio::task::spawn_blocking(move || files.take_over(&path)).await??;
            return Ok(None);
        }
        reader.sql = Some(other?);
        if replaced {
            // Of what a copy says that our members hold, they know nothing.
            let instances: Vec<String> = lock(&self.instances).keys().cloned().collect();
            let mut tx = Tx::new(sql, 0);
            for instance in instances {
                lease::release_instance(&mut tx, &instance).await?;
            }
            sql = tx.sql;
        }
        writer.sql = Some(sql);
        Ok(Some(files))
    }

    /// Copies the log into the database, and lets it start anew.
    async fn checkpoint(&self, conn: &mut Conn) {
        let opened = *lock(&self.opened);
        let Some(sql) = conn.sql.as_mut().filter(|_| self.stands(&opened)) else { return };
        conn.logged = 0;
        // What was committed is safe in the log; it is copied with the next checkpoint.
        let path = self.path.display();
        match sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(sql).await {
            Ok(_) => _ = self.shortened.works(),
            Err(error) => {
                if let Some(line) = self.shortened.failed(&error.to_string()) {
                    let so_far = line.so_far();
                    tracing::warn!(%path, "could not shorten the log: {error}{so_far}");
                }
            }
        }
    }

    /// Says which file it was, and what may help.
    fn explain(&self, error: Error) -> Error {
        let code = error.chain().find_map(|cause| match cause.downcast_ref::<sqlx::Error>()? {
            sqlx::Error::Database(error) => error.code()?.parse::<i32>().ok(),
            _ => None,
        });
        let remedy = match code.map(|code| code & 0xff) {
            Some(5 | 6) => " is locked by another process (close what keeps it open)",
            Some(3 | 8 | 14 | 23) => {
                " cannot be written (its folder and file must be writable by this user)"
            }
            Some(13) => " cannot grow: the disk is full (free some space)",
            Some(10) => " cannot be read or written: the disk reports an error or is full",
            Some(11) => " is damaged (put back a copy, without -wal and -shm beside it)",
            Some(26) => " is not a database (give the stream another `path`)",
            _ => "",
        };
        error.context(format!("stream database {}{remedy}", self.path.display()))
    }
}

impl Database for Db {
    const LOOK: Duration = Duration::from_millis(150);
    const TEND: Duration = Duration::from_millis(500);
    const CACHE_IS_SURE: bool = true;

    fn local(&self) -> &Local {
        &self.local
    }

    async fn transact<T, W>(self: &Arc<Self>, mode: Mode, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'t> Fn(&'t mut dyn Sql) -> BoxFuture<'t, Result<T>> + Send + Sync + 'static,
    {
        if mode == Mode::Read {
            return self.read(work).await.map_err(|error| self.explain(error));
        }
        let conn = self.writer.clone().lock_owned().await;
        let db = self.clone();
        // In a task of its own: a caller that goes away leaves neither half a transaction nor a
        // wrong cache behind.
        tokio::spawn(async move { db.write(conn, mode == Mode::Durable, work).await })
            .await
            .unwrap_or_else(|error| Err(anyhow!(error).context("a transaction was cut off")))
            .map_err(|error| self.explain(error))
    }

    async fn hold(self: &Arc<Self>, instance: &str) -> Result<()> {
        alive::hold(self, instance).await
    }

    async fn free_dead(self: &Arc<Self>) -> Result<()> {
        alive::free_dead(self).await
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        for instance in lock(&self.instances).keys() {
            self.directory.forget(instance);
        }
        let conns = [&self.reader, &self.writer];
        let conns = conns.map(|conn| conn.try_lock().ok().and_then(|mut conn| conn.sql.take()));
        let conns: Vec<SqliteConnection> = conns.into_iter().flatten().collect();
        // The last connection to close writes the log into the database. When a copy has just
        // been written into that very file, that would ruin it, so better never close.
        let opened = *lock(&self.opened);
        if !self.stands(&opened)
            && opened.files.is_some_and(|files| files.same_database(&Files::at(&self.path)))
        {
            std::mem::forget(conns);
            return;
        }
        // One after the other: of two that close at once, each sees the other, and neither is
        // the last. Off this thread, which may be a runtime's; it takes as long as a checkpoint.
        let (directory, user) = (self.directory.clone(), lock(&self.user).take());
        let closing = std::thread::spawn(move || {
            // Who opens it meanwhile is to see it either open or closed.
            let _lock = directory.lock_for(CLOSING);
            let _user = user;
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            for conn in conns {
                // Whatever it was, the log is read when the file is opened next.
                let _ = runtime.block_on(conn.close());
            }
            Ok::<_, Error>(())
        });
        let _ = closing.join();
    }
}

async fn run<T, W>(tx: &mut Tx, work: W) -> Result<T>
where
    W: for<'t> Fn(&'t mut dyn Sql) -> BoxFuture<'t, Result<T>>,
{
    // At once, so that no one else's commit can come between a look and a write.
    sqlx::query("BEGIN IMMEDIATE").execute(&mut tx.sql).await?;
    let value = work(tx).await?;
    sqlx::query("COMMIT").execute(&mut tx.sql).await?;
    Ok(value)
}

/// Ends a transaction that failed; `false` where the connection is of no use any more.
async fn roll_back(sql: &mut SqliteConnection) -> bool {
    match sqlx::query("ROLLBACK").execute(sql).await {
        Ok(_) => true,
        // A full disk has rolled it back already.
        Err(sqlx::Error::Database(error)) => error.message().contains("no transaction is active"),
        Err(_) => false,
    }
}

/// The path by which all who open the same file know it.
fn resolve(path: &Path) -> Result<PathBuf> {
    if let Ok(path) = path.canonicalize() {
        return Ok(path);
    }
    let name = path.file_name().with_context(|| {
        format!("stream database {} is no file's name (give `path` a file)", path.display())
    })?;
    let folder = match path.parent() {
        Some(folder) if folder != Path::new("") => folder,
        _ => Path::new("."),
    };
    std::fs::create_dir_all(folder)
        .and_then(|()| folder.canonicalize())
        .with_context(|| format!("failed to create the folder of {}", path.display()))
        .map(|folder| folder.join(name))
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .busy_timeout(BUSY)
        .pragma("wal_autocheckpoint", "0")
        .pragma("cache_size", "-2048")
        .pragma("journal_size_limit", "33554432")
        // A stream of chunks is often left early: read no more rows ahead than that.
        .row_buffer_size(4)
        .disable_statement_logging()
}

async fn connect_writer(path: &Path) -> Result<SqliteConnection> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut sql = options(path).create_if_missing(true).connect().await?;
    schema::check(&mut sql).await?;
    // Asked for only where it is not on already: it needs the file alone.
    let asked = |sql| sqlx::raw_sql(sql);
    let mode: String = asked("PRAGMA journal_mode").fetch_one(&mut sql).await?.try_get(0)?;
    if mode != "wal" {
        let mode: String =
            asked("PRAGMA journal_mode = WAL").fetch_one(&mut sql).await?.try_get(0)?;
        anyhow::ensure!(mode == "wal", "no write-ahead log is possible here (use a local disk)");
    }
    sqlx::query("BEGIN IMMEDIATE").execute(&mut sql).await?;
    schema::prepare(&mut sql).await?;
    sqlx::query("COMMIT").execute(&mut sql).await?;
    Ok(sql)
}

async fn connect_reader(path: &Path) -> Result<SqliteConnection> {
    let mut sql = options(path).pragma("query_only", "ON").connect().await?;
    // SQLite opens the log only when it first reads.
    sqlx::query("SELECT COUNT(*) FROM meta").fetch_one(&mut sql).await?;
    Ok(sql)
}
