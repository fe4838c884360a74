//! A SQLite database as the sinks use it: durable commits, patient with other processes, and
//! errors that name the file and the way out.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnectOptions, SqliteConnection};
use sqlx::{Arguments, AssertSqlSafe, ConnectOptions, Connection, Transaction};

/// How long a statement waits for another process's lock before it is an error.
const BUSY: Duration = Duration::from_secs(10);

/// An open database.
pub(super) struct Database {
    /// Its connection.
    pub(super) connection: SqliteConnection,
    path: PathBuf,
    /// Device and inode: what `path` named when it was opened.
    identity: (u64, u64),
}

impl Database {
    /// Opens the database, and creates the file and its directory if they are not there.
    pub(super) async fn open(path: &Path) -> Result<Self> {
        make_directory(path)?;
        // Not `:memory:` nor a `file:` URI, whatever the path looks like.
        let plain = std::path::absolute(path)
            .with_context(|| format!("no such place as {}", path.display()))?;
        let mut connection = SqliteConnectOptions::new()
            .filename(plain)
            .create_if_missing(true)
            .busy_timeout(BUSY)
            .pragma("synchronous", "FULL")
            .disable_statement_logging()
            .connect()
            .await
            .map_err(|error| trouble(path, error))?;
        // Faster, and readers do not wait for us. Where another process will not let go of the
        // database, or the file system cannot, what is committed is as durable the old way.
        let wal = sqlx::raw_sql("PRAGMA journal_mode = WAL").execute(&mut connection).await;
        match wal {
            Err(error) if primary(&error) != Some(code::BUSY) => return Err(trouble(path, error)),
            _ => {}
        }
        Ok(Self { connection, path: path.to_owned(), identity: identity(path)? })
    }

    /// Errs when the path names another file by now: what is written would be lost with this one.
    pub(super) fn check_there(&self) -> Result<()> {
        if identity(&self.path).ok() != Some(self.identity) {
            bail!("{} was removed or replaced while it was open", self.path.display());
        }
        Ok(())
    }

    /// Starts a transaction that is alone in writing.
    pub(super) async fn begin(&mut self) -> Result<Transaction<'_, Sqlite>> {
        let begun = self.connection.begin_with("BEGIN IMMEDIATE").await;
        begun.map_err(|error| trouble(&self.path, error))
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

pub(super) fn identity(path: &Path) -> Result<(u64, u64)> {
    let found = path.metadata().with_context(|| format!("no database at {}", path.display()))?;
    Ok((found.dev(), found.ino()))
}

/// Creates the directory that `path` is in, if it is not there.
pub(super) fn make_directory(path: &Path) -> Result<()> {
    let directory = directory_of(path);
    let remedy = || {
        format!(
            "cannot write {}: there is no directory {}, and it cannot be created (let this user \
             create it, or change `path`)",
            path.display(),
            directory.display()
        )
    };
    std::fs::create_dir_all(directory).with_context(remedy)
}

/// Errs, with the remedy, when the directory that `path` is to be in is not there.
pub(super) fn check_directory(path: &Path) -> Result<()> {
    let directory = directory_of(path);
    if directory.is_dir() {
        return Ok(());
    }
    bail!(
        "cannot write {}: there is no directory {} (create it, or change `path`)",
        path.display(),
        directory.display()
    )
}

/// The directory that `path` is in.
pub(super) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// A statement of ours: made of configuration and placeholders, never of what events hold.
pub(super) fn statement<'q>(
    sql: impl Into<std::sync::Arc<str>>,
    arguments: SqliteArguments,
) -> sqlx::query::Query<'q, Sqlite, SqliteArguments> {
    sqlx::query_with(AssertSqlSafe(sql.into()), arguments).persistent(true)
}

/// Adds a value for the next placeholder.
pub(super) fn add<'q, T>(arguments: &mut SqliteArguments, value: T) -> Result<()>
where
    T: sqlx::Encode<'q, Sqlite> + sqlx::Type<Sqlite>,
{
    arguments.add(value).map_err(anyhow::Error::from_boxed)
}

/// SQLite's primary result codes that are told apart.
pub(super) mod code {
    /// Whatever has no code of its own.
    pub const ERROR: i32 = 1;
    /// Another connection holds the lock.
    pub const BUSY: i32 = 5;
    /// The file or its directory cannot be written.
    pub const READONLY: i32 = 8;
    /// It was told to stop.
    pub const INTERRUPT: i32 = 9;
    /// The disk does not work.
    pub const IOERR: i32 = 10;
    /// The file is damaged.
    pub const CORRUPT: i32 = 11;
    /// No room.
    pub const FULL: i32 = 13;
    /// The file cannot be opened.
    pub const CANTOPEN: i32 = 14;
    /// A value is larger than SQLite takes.
    pub const TOOBIG: i32 = 18;
    /// A constraint does not hold.
    pub const CONSTRAINT: i32 = 19;
    /// A value is of the wrong type.
    pub const MISMATCH: i32 = 20;
    /// Something else is in the file.
    pub const NOTADB: i32 = 26;
}

/// The primary result code of an error, if SQLite gave one.
pub(super) fn primary(error: &sqlx::Error) -> Option<i32> {
    let code = error.as_database_error()?.code()?.parse::<i32>().ok()?;
    Some(code & 0xff)
}

/// What SQLite says of an error, without the frame around it.
pub(super) fn says(error: &sqlx::Error) -> String {
    match error.as_database_error() {
        Some(error) => error.message().to_owned(),
        None => error.to_string(),
    }
}

/// An error of the surroundings: which file, what is wrong, and the way out where there is one.
pub(super) fn trouble(path: &Path, error: sqlx::Error) -> anyhow::Error {
    let remedy = match primary(&error) {
        Some(code::BUSY) => " (another process has held its lock for 10 s)",
        Some(code::READONLY) => " (let this user write the file and its directory)",
        Some(code::IOERR) => " (look at the disk's room and health)",
        Some(code::CORRUPT) => " (put a backup back, or run `.recover` of the sqlite3 shell)",
        Some(code::FULL) => " (make room on its file system)",
        Some(code::CANTOPEN) => " (let this user write the file and its directory)",
        Some(code::NOTADB) => " (it is no SQLite database: change `path`)",
        _ => "",
    };
    let says = says(&error);
    anyhow!(error).context(format!("sqlite database {}: {says}{remedy}", path.display()))
}
