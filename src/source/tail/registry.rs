//! What a tail must never decide again, in `<data_dir>/sources.db`: which generations there were,
//! where each began, and whether the first look is over. Several processes may share the file.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteRow, SqliteSynchronous};
use sqlx::{Connection, Row, SqliteConnection};

use super::identity::Birth;

const SCHEMA: &str = "
    CREATE TABLE IF NOT EXISTS tail_sources (
        origin TEXT PRIMARY KEY
    ) WITHOUT ROWID;
    CREATE TABLE IF NOT EXISTS tail_generations (
        origin TEXT NOT NULL,
        uid INTEGER NOT NULL,
        home TEXT NOT NULL,
        inode INTEGER NOT NULL,
        first INTEGER NOT NULL,
        ordinal INTEGER NOT NULL,
        start INTEGER NOT NULL,
        start_tail INTEGER NOT NULL,
        since_ms INTEGER NOT NULL,
        seen_ms INTEGER NOT NULL,
        gone INTEGER NOT NULL DEFAULT 0,
        PRIMARY KEY (origin, uid)
    ) WITHOUT ROWID;";

/// What is to be written down, in one transaction.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// Generations seen for the first time.
    pub born: Vec<Birth>,
    /// Generations whose content is nowhere any more.
    pub gone: Vec<u64>,
    /// Generations that were seen now.
    pub seen: Vec<u64>,
    /// Generations to forget.
    pub forget: Vec<u64>,
    /// The first look is over.
    pub looked: bool,
}

impl Changes {
    /// Nothing to write.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A generation as it was written down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What is settled about it.
    pub birth: Birth,
    /// When it was last seen, in milliseconds since 1970.
    pub seen_ms: i64,
    /// Its content is nowhere any more.
    pub gone: bool,
}

/// Everything that was written down for one origin.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// The generations, by id.
    pub entries: HashMap<u64, Entry>,
    /// The first look is over.
    pub looked: bool,
}

/// The open file. Each [`Registry::record`] is synced when it returns.
pub struct Registry {
    connection: SqliteConnection,
    origin: String,
}

impl Registry {
    /// Opens the file for one origin, and creates it and its directory where they are missing.
    pub async fn open(data_dir: &Path, origin: &str) -> Result<Self> {
        let path = data_dir.join("sources.db");
        let what = || format!("open what tails remember in {}", path.display());
        std::fs::create_dir_all(data_dir).with_context(what)?;
        let options = SqliteConnectOptions::new()
            .filename(&path)
            .create_if_missing(true)
            .busy_timeout(Duration::from_secs(10))
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        // Two processes that create it at once meet a lock that SQLite does not wait for.
        let mut tries = 0;
        let mut connection = loop {
            match SqliteConnection::connect_with(&options).await {
                Ok(connection) => break connection,
                Err(_) if tries < 50 => tries += 1,
                Err(error) => return Err(error).with_context(what),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let mut create = connection.begin_with("BEGIN IMMEDIATE").await.with_context(what)?;
        sqlx::raw_sql(SCHEMA).execute(&mut *create).await.with_context(what)?;
        create.commit().await.with_context(what)?;
        Ok(Self { connection, origin: origin.to_owned() })
    }

    /// All that is written down for the origin.
    pub async fn load(&mut self) -> Result<Known> {
        let rows = sqlx::query("SELECT * FROM tail_generations WHERE origin = ?")
            .bind(&self.origin)
            .fetch_all(&mut self.connection)
            .await
            .context("read what tails remember")?;
        let entries = rows.iter().map(entry).collect::<sqlx::Result<_>>()?;
        let looked = sqlx::query("SELECT 1 FROM tail_sources WHERE origin = ?")
            .bind(&self.origin)
            .fetch_optional(&mut self.connection)
            .await?
            .is_some();
        Ok(Known { entries, looked })
    }

    /// Writes the changes down, and answers the generations of [`Changes::born`] as they stand
    /// now: where another process wrote one first, what that decided holds.
    pub async fn record(&mut self, changes: &Changes, now_ms: i64) -> Result<Vec<Birth>> {
        self.write(changes, now_ms).await.context("write down what a tail must remember")
    }

    async fn write(&mut self, changes: &Changes, now_ms: i64) -> Result<Vec<Birth>> {
        let origin = &self.origin;
        let mut write = self.connection.begin_with("BEGIN IMMEDIATE").await?;
        // Old rows first: a generation may be forgotten and come back in one step.
        for uid in &changes.forget {
            sqlx::query("DELETE FROM tail_generations WHERE origin = ? AND uid = ?")
                .bind(origin)
                .bind(uid.cast_signed())
                .execute(&mut *write)
                .await?;
        }
        for uid in &changes.gone {
            sqlx::query("UPDATE tail_generations SET gone = 1 WHERE origin = ? AND uid = ?")
                .bind(origin)
                .bind(uid.cast_signed())
                .execute(&mut *write)
                .await?;
        }
        for uid in &changes.seen {
            sqlx::query("UPDATE tail_generations SET seen_ms = ? WHERE origin = ? AND uid = ?")
                .bind(now_ms)
                .bind(origin)
                .bind(uid.cast_signed())
                .execute(&mut *write)
                .await?;
        }
        let mut births = Vec::with_capacity(changes.born.len());
        for birth in &changes.born {
            // The update changes nothing; it makes the row that is there come back.
            let row = sqlx::query(
                "INSERT INTO tail_generations
                 (origin, uid, home, inode, first, ordinal, start, start_tail, since_ms, seen_ms)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET seen_ms = excluded.seen_ms RETURNING *",
            )
            .bind(origin)
            .bind(birth.uid().cast_signed())
            .bind(&birth.home)
            .bind(birth.inode.cast_signed())
            .bind(birth.first.cast_signed())
            .bind(birth.ordinal)
            .bind(birth.start.cast_signed())
            .bind(birth.start_tail.cast_signed())
            .bind(birth.since_ms)
            .bind(now_ms)
            .fetch_one(&mut *write)
            .await?;
            births.push(entry(&row)?.1.birth);
        }
        if changes.looked {
            sqlx::query("INSERT INTO tail_sources VALUES (?) ON CONFLICT DO NOTHING")
                .bind(origin)
                .execute(&mut *write)
                .await?;
        }
        write.commit().await?;
        Ok(births)
    }
}

fn entry(row: &SqliteRow) -> sqlx::Result<(u64, Entry)> {
    let number = |column: &str| row.try_get::<i64, _>(column).map(i64::cast_unsigned);
    let birth = Birth {
        home: row.try_get("home")?,
        inode: number("inode")?,
        first: number("first")?,
        ordinal: row.try_get("ordinal")?,
        start: number("start")?,
        start_tail: number("start_tail")?,
        since_ms: row.try_get("since_ms")?,
    };
    Ok((
        number("uid")?,
        Entry { birth, seen_ms: row.try_get("seen_ms")?, gone: row.try_get("gone")? },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn birth(ordinal: u32, start: u64) -> Birth {
        let home = "log".to_owned();
        Birth { home, inode: u64::MAX, first: 1 << 63, ordinal, start, start_tail: 7, since_ms: 5 }
    }

    #[tokio::test]
    async fn what_was_settled_first_holds_for_every_process() {
        let dir = tempfile::tempdir().unwrap();
        let mut one = Registry::open(&dir.path().join("data"), "app").await.unwrap();
        let mut two = Registry::open(&dir.path().join("data"), "app").await.unwrap();
        let mut other = Registry::open(&dir.path().join("data"), "other").await.unwrap();
        let born = |birth| Changes { born: vec![birth], looked: true, ..Changes::default() };
        assert_eq!(one.record(&born(birth(0, 100)), 1).await.unwrap(), [birth(0, 100)]);
        assert_eq!(two.record(&born(birth(0, 300)), 2).await.unwrap(), [birth(0, 100)]);
        two.record(&born(birth(1, 0)), 2).await.unwrap();
        let uid = birth(0, 0).uid();
        let gone = Changes { gone: vec![uid], seen: vec![uid], ..Changes::default() };
        one.record(&gone, 9).await.unwrap();
        let known = two.load().await.unwrap();
        let expected = Entry { birth: birth(0, 100), seen_ms: 9, gone: true };
        assert_eq!((known.entries.len(), &known.entries[&uid]), (2, &expected));
        assert!(known.looked);
        one.record(&Changes { forget: vec![uid], ..Changes::default() }, 9).await.unwrap();
        assert_eq!(one.load().await.unwrap().entries.len(), 1);
        let known = other.load().await.unwrap();
        assert!(known.entries.is_empty() && !known.looked);
    }
}
