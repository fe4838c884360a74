//! How far sources have come, in `<data_dir>/rabbitmq-STREAM.db`: the broker has no transaction
//! that could hold it. It moves only once the broker has confirmed the events, so a crash between
//! the two sends them again, with the same ids.
//!
//! A broker that comes back empty has lost what was queued. Then the checkpoint is worth nothing
//! either: it belongs to one life of the broker, which an exchange with a name of its own stands
//! for, and is forgotten with it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use lapin::types::ShortString;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous};
use sqlx::{Connection, Row, Sqlite, SqliteConnection, Transaction};

use super::declare;
use super::link::Link;
use super::names::short;
use crate::source::{Move, Position, Slot};

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS checkpoints (
        origin TEXT NOT NULL,
        slot TEXT NOT NULL,
        ord INTEGER NOT NULL,
        note TEXT NOT NULL,
        PRIMARY KEY (origin, slot)
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS broker (life TEXT PRIMARY KEY) WITHOUT ROWID;";

/// How long another process may hold it: as long as a batch takes to be confirmed.
const BUSY: Duration = Duration::from_secs(30);

/// The open file.
pub(super) struct Checkpoint {
    connection: SqliteConnection,
    path: PathBuf,
}

/// The checkpoint in the hands of one append: no other moves it meanwhile.
pub(super) struct Turn<'a> {
    tx: Transaction<'a, Sqlite>,
    /// What was looked at, as it will be.
    slots: HashMap<(String, String), Option<Position>>,
    moved: bool,
}

impl Checkpoint {
    /// Opens the file of `stream`.
    pub async fn open(data_dir: &Path, stream: &str) -> Result<Self> {
        let path = data_dir.join(format!("rabbitmq-{stream}.db"));
        let connection = create(data_dir, &path).await;
        let connection = connection
            .with_context(|| format!("failed to open the checkpoint {}", path.display()))?;
        Ok(Self { connection, path })
    }

    /// Forgets what belongs to another life of the broker.
    pub async fn attach(&mut self, link: &Link, exchange: &str) -> Result<()> {
        let what = format!("failed to use the checkpoint {}", self.path.display());
        let mut tx = self.connection.begin_with("BEGIN IMMEDIATE").await.context(what.clone())?;
        let row = sqlx::query("SELECT life FROM broker")
            .fetch_optional(&mut *tx)
            .await
            .context(what.clone())?;
        let life: Option<String> = row.map(|row| row.try_get(0)).transpose()?;
        if let Some(life) = &life
            && declare::has_exchange(link, &short(life)?).await?
        {
            return Ok(());
        }
        let lost = life.is_some();
        let life = format!("{exchange}.checkpoint.{:016x}", fastrand::u64(..));
        declare::mark(link, &short(&life)?).await?;
        for statement in ["DELETE FROM checkpoints", "DELETE FROM broker"] {
            sqlx::query(statement).execute(&mut *tx).await.context(what.clone())?;
        }
        sqlx::query("INSERT INTO broker VALUES (?)")
            .bind(life)
            .execute(&mut *tx)
            .await
            .context(what.clone())?;
        tx.commit().await.context(what)?;
        if lost {
            tracing::warn!(
                exchange,
                "the broker has lost what it held: sources send all of theirs again"
            );
        }
        Ok(())
    }

    /// The exchange that stands for the broker's life.
    pub async fn life(&mut self) -> Result<Option<ShortString>> {
        let row = sqlx::query("SELECT life FROM broker")
            .fetch_optional(&mut self.connection)
            .await
            .with_context(|| format!("failed to read {}", self.path.display()))?;
        row.map(|row| short(&row.try_get::<String, _>(0)?)).transpose()
    }

    /// Every slot of `origin`.
    pub async fn slots(&mut self, origin: &str) -> Result<Vec<Slot>> {
        let rows =
            sqlx::query("SELECT slot, ord, note FROM checkpoints WHERE origin = ? ORDER BY slot")
                .bind(origin)
                .fetch_all(&mut self.connection)
                .await
                .with_context(|| format!("failed to read {}", self.path.display()))?;
        rows.iter()
            .map(|row| {
                let (order, note) = (row.try_get::<i64, _>(1)? as u64, row.try_get(2)?);
                Ok((row.try_get(0)?, Position { order, note }))
            })
            .collect()
    }

    /// Takes it in hand.
    pub async fn turn(&mut self) -> Result<Turn<'_>> {
        let tx = self.connection.begin_with("BEGIN IMMEDIATE").await;
        let tx = tx.with_context(|| format!("failed to lock {}", self.path.display()))?;
        Ok(Turn { tx, slots: HashMap::new(), moved: false })
    }
}

async fn create(data_dir: &Path, path: &Path) -> Result<SqliteConnection> {
    std::fs::create_dir_all(data_dir)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .busy_timeout(BUSY)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    // Two processes that create it at once meet a lock that SQLite does not wait for.
    let mut tries = 0;
    let mut connection = loop {
        match SqliteConnection::connect_with(&options).await {
            Ok(connection) => break connection,
            Err(_) if tries < 50 => tries += 1,
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut tx = connection.begin_with("BEGIN IMMEDIATE").await?;
    sqlx::raw_sql(SCHEMA).execute(&mut *tx).await?;
    tx.commit().await?;
    Ok(connection)
}

impl Turn<'_> {
    /// Makes these steps, if the checkpoint is where each of them starts; otherwise none.
    pub async fn step(&mut self, origin: &str, moves: &[Move]) -> Result<bool> {
        let mut made = Vec::with_capacity(moves.len());
        for step in moves {
            let key = (origin.to_owned(), step.slot.clone());
            let stands = match made.iter().rfind(|(known, _)| *known == key) {
                Some((_, stands)) => *stands,
                None => self.stands(&key).await?.as_ref(),
            };
            if stands != step.from.as_ref() {
                return Ok(false);
            }
            made.push((key, step.to.as_ref()));
        }
        for (key, to) in made {
            self.slots.insert(key, to.cloned());
            self.moved = true;
        }
        Ok(true)
    }

    async fn stands(&mut self, key: &(String, String)) -> Result<&Option<Position>> {
        if !self.slots.contains_key(key) {
            let row =
                sqlx::query("SELECT ord, note FROM checkpoints WHERE origin = ? AND slot = ?")
                    .bind(key.0.clone())
                    .bind(key.1.clone())
                    .fetch_optional(&mut *self.tx)
                    .await?;
            let found = row.map(|row| -> Result<Position> {
                Ok(Position { order: row.try_get::<i64, _>(0)? as u64, note: row.try_get(1)? })
            });
            self.slots.insert(key.clone(), found.transpose()?);
        }
        Ok(&self.slots[key])
    }

    /// Writes the steps down, synced.
    pub async fn commit(mut self) -> Result<()> {
        if !self.moved {
            return Ok(());
        }
        for ((origin, slot), to) in self.slots {
            let query = match to {
                Some(to) => sqlx::query("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)")
                    .bind(origin)
                    .bind(slot)
                    .bind(to.order as i64)
                    .bind(to.note),
                None => sqlx::query("DELETE FROM checkpoints WHERE origin = ? AND slot = ?")
                    .bind(origin)
                    .bind(slot),
            };
            query.execute(&mut *self.tx).await.context("failed to write the checkpoint")?;
        }
        self.tx.commit().await.context("failed to write the checkpoint")
    }
}
