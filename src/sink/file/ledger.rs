//! The ledger beside the file: which events are written, and the lines that are being written. It
//! is a SQLite database, so that both change in one durable step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Result, bail};
use sqlx::sqlite::{Sqlite, SqliteArguments};
use sqlx::{AssertSqlSafe, Row, Transaction};

use super::spans::{Place, Span, Spans};
use crate::event::{EventId, Origin, Sequence, now_us};
use crate::sink::database::{Database, add, statement, trouble};

/// Single ids in one statement, at most.
const IDS_MAX: usize = 256;

/// The version of the tables below.
const VERSION: i64 = 1;

const TABLES: &str = "
    -- Events of one origin whose sequences follow each other without a gap.
    CREATE TABLE IF NOT EXISTS spans (
        origin INTEGER NOT NULL,
        start INTEGER NOT NULL,
        last INTEGER NOT NULL,
        guard INTEGER NOT NULL,
        next INTEGER NOT NULL,
        PRIMARY KEY (origin, start)
    ) WITHOUT ROWID;
    -- Events that follow nothing.
    CREATE TABLE IF NOT EXISTS singles (
        id BLOB PRIMARY KEY NOT NULL,
        expires_us INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS singles_expires ON singles (expires_us);
    -- The lines being written, one row: they are in the file in full, or will be.
    CREATE TABLE IF NOT EXISTS intent (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        stamp INTEGER NOT NULL,
        inode INTEGER NOT NULL,
        length INTEGER NOT NULL,
        fresh INTEGER NOT NULL,
        payload BLOB NOT NULL
    );
    PRAGMA user_version = 1";

/// The lines that are being written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Intent {
    /// Names this intent; the lock file repeats it once the lines are in the file.
    pub(super) stamp: i64,
    /// The inode of the file they go to.
    pub(super) inode: u64,
    /// The file's length before.
    pub(super) length: u64,
    /// The payload starts with a newline of its own, behind somebody's unfinished line.
    pub(super) fresh: bool,
    /// What is appended.
    pub(super) payload: Vec<u8>,
}

/// An event as the ledger knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry {
    /// The event's id.
    pub(super) id: EventId,
    /// The length of its body.
    pub(super) length: usize,
}

impl Entry {
    /// The sequence that goes on from this event, where its origin counts.
    fn next(self) -> Option<u64> {
        match self.id.origin().counts() {
            Sequence::Hashed => None,
            Sequence::Bytes => Some(self.id.sequence() + self.length as u64 + 1),
            Sequence::Count => Some(self.id.sequence() + 1),
        }
    }
}

/// Opens the ledger at `path`, and makes its tables.
pub(super) async fn open(path: &Path) -> Result<Database> {
    let mut database = Database::open(path).await?;
    let mut transaction = database.begin().await?;
    let version = sqlx::query_scalar::<_, i64>("PRAGMA user_version");
    let version = version.fetch_one(&mut *transaction).await;
    match version.map_err(|error| trouble(path, error))? {
        0 | VERSION => {}
        other => bail!(
            "{} is of another aqueduct (version {other}; this one writes {VERSION})",
            path.display()
        ),
    }
    let made = sqlx::raw_sql(TABLES).execute(&mut *transaction).await;
    made.map_err(|error| trouble(path, error))?;
    transaction.commit().await.map_err(|error| trouble(path, error))?;
    Ok(database)
}

/// A transaction on the ledger.
pub(super) struct Turn<'t> {
    transaction: Transaction<'t, Sqlite>,
    path: &'t Path,
}

impl<'t> Turn<'t> {
    /// Starts one. `path` is the ledger's, for errors.
    pub(super) async fn begin(database: &'t mut Database, path: &'t Path) -> Result<Self> {
        Ok(Self { transaction: database.begin().await?, path })
    }

    /// The last intent's stamp; 0 when there never was one.
    pub(super) async fn stamp(&mut self) -> Result<i64> {
        let query = sqlx::query_scalar::<_, i64>("SELECT stamp FROM intent");
        let stamp = query.fetch_optional(&mut *self.transaction).await;
        Ok(stamp.map_err(|error| trouble(self.path, error))?.unwrap_or_default())
    }

    /// The last intent; empty when there never was one.
    pub(super) async fn intent(&mut self) -> Result<Intent> {
        let query = sqlx::query("SELECT stamp, inode, length, fresh, payload FROM intent");
        let row = query.fetch_optional(&mut *self.transaction).await;
        let read = row.and_then(|row| {
            let Some(row) = row else { return Ok(Intent::default()) };
            Ok(Intent {
                stamp: row.try_get(0)?,
                inode: row.try_get::<i64, _>(1)? as u64,
                length: row.try_get::<i64, _>(2)? as u64,
                fresh: row.try_get(3)?,
                payload: row.try_get(4)?,
            })
        });
        read.map_err(|error| trouble(self.path, error))
    }

    /// Which of `entries` are not written yet, in their order. They count as written from here on.
    pub(super) async fn admit(&mut self, entries: &[Entry], expires_us: i64) -> Result<Vec<bool>> {
        let mut pages = self.load(entries).await?;
        let hashed = entries.iter().filter(|entry| entry.next().is_none()).map(|entry| entry.id);
        let mut singles = self.known(hashed).await?;
        let mut new_singles = Vec::new();
        let mut admitted = Vec::with_capacity(entries.len());
        for entry in entries {
            let Some(next) = entry.next() else {
                let new = singles.insert(entry.id);
                new_singles.extend(new.then_some(entry.id));
                admitted.push(new);
                continue;
            };
            let (origin, sequence) = (entry.id.origin(), entry.id.sequence());
            let page = pages.entry(origin).or_default();
            let mut place = page.now.place(sequence, entry.id.guard());
            if let Place::Other(guard) = place {
                let known = singles.contains(&entry.id)
                    || !self.known([entry.id].into_iter()).await?.is_empty();
                if known {
                    place = Place::Written;
                } else {
                    let other = EventId::new(origin, sequence, guard.into());
                    singles.insert(other);
                    new_singles.push(other);
                }
            }
            admitted.push(place != Place::Written);
            if place != Place::Written {
                page.now.add(sequence, entry.id.guard(), next);
            }
        }
        self.save(pages).await?;
        self.keep(&new_singles, expires_us).await?;
        Ok(admitted)
    }

    /// Puts an intent in the place of the last one, and makes everything durable.
    pub(super) async fn commit(mut self, intent: Intent) -> Result<()> {
        let mut arguments = SqliteArguments::default();
        add(&mut arguments, intent.stamp)?;
        add(&mut arguments, intent.inode as i64)?;
        add(&mut arguments, intent.length as i64)?;
        add(&mut arguments, intent.fresh)?;
        add(&mut arguments, intent.payload)?;
        let sql = "INSERT INTO intent VALUES (1, ?, ?, ?, ?, ?) ON CONFLICT (one) DO UPDATE SET
                   stamp = excluded.stamp, inode = excluded.inode, length = excluded.length,
                   fresh = excluded.fresh, payload = excluded.payload";
        self.execute(sql, arguments).await?;
        self.transaction.commit().await.map_err(|error| trouble(self.path, error))
    }

    /// The spans that the entries can touch.
    async fn load(&mut self, entries: &[Entry]) -> Result<HashMap<Origin, Page>> {
        let mut ranges: HashMap<Origin, (u64, u64)> = HashMap::new();
        for entry in entries {
            let Some(next) = entry.next() else { continue };
            let sequence = entry.id.sequence();
            let range = ranges.entry(entry.id.origin()).or_insert((sequence, next));
            *range = (range.0.min(sequence), range.1.max(next));
        }
        let mut pages = HashMap::with_capacity(ranges.len());
        for (origin, (low, high)) in ranges {
            let mut arguments = SqliteArguments::default();
            for value in [origin.bits(), high, low] {
                add(&mut arguments, value as i64)?;
            }
            // From the span that starts at or before the lowest, to where the highest ends.
            let sql = "SELECT start, last, guard, next FROM spans
                       WHERE origin = ?1 AND start <= ?2 AND start >= coalesce(
                       (SELECT max(start) FROM spans WHERE origin = ?1 AND start <= ?3), 0)";
            let rows = statement(sql, arguments).fetch_all(&mut *self.transaction).await;
            let mut spans = BTreeMap::new();
            for row in rows.map_err(|error| trouble(self.path, error))? {
                let number = |at: usize| row.try_get::<i64, _>(at).map(|it| it as u64);
                let span = (|| {
                    let span =
                        Span { last: number(1)?, guard: number(2)? as u32, next: number(3)? };
                    Ok((number(0)?, span))
                })();
                spans.extend([span.map_err(|error| trouble(self.path, error))?]);
            }
            pages.insert(origin, Page { before: Spans(spans.clone()), now: Spans(spans) });
        }
        Ok(pages)
    }

    /// Those of the ids that are kept as single ids.
    async fn known(&mut self, ids: impl Iterator<Item = EventId>) -> Result<HashSet<EventId>> {
        let ids: Vec<EventId> = ids.collect();
        let mut known = HashSet::new();
        for block in ids.chunks(IDS_MAX) {
            let marks = vec!["?"; block.len()].join(",");
            let sql = format!("SELECT id FROM singles WHERE id IN ({marks})");
            let mut arguments = SqliteArguments::default();
            for id in block {
                add(&mut arguments, id.to_bytes().to_vec())?;
            }
            let query = sqlx::query_scalar_with::<_, Vec<u8>, _>(AssertSqlSafe(sql), arguments);
            let found = query.fetch_all(&mut *self.transaction).await;
            let found = found.map_err(|error| trouble(self.path, error))?;
            known.extend(
                found.into_iter().filter_map(|id| id.try_into().ok()).map(EventId::from_bytes),
            );
        }
        Ok(known)
    }

    /// Writes what changed in the spans.
    async fn save(&mut self, pages: HashMap<Origin, Page>) -> Result<()> {
        for (origin, Page { before, now }) in pages {
            for start in before.0.keys().filter(|start| !now.0.contains_key(start)) {
                let mut arguments = SqliteArguments::default();
                add(&mut arguments, origin.bits() as i64)?;
                add(&mut arguments, *start as i64)?;
                self.execute("DELETE FROM spans WHERE origin = ? AND start = ?", arguments).await?;
            }
            for (start, span) in now.0.iter().filter(|(start, it)| before.0.get(start) != Some(it))
            {
                let mut arguments = SqliteArguments::default();
                let values = [origin.bits(), *start, span.last, span.guard.into(), span.next];
                for value in values {
                    add(&mut arguments, value as i64)?;
                }
                let sql = "INSERT OR REPLACE INTO spans VALUES (?, ?, ?, ?, ?)";
                self.execute(sql, arguments).await?;
            }
        }
        Ok(())
    }

    /// Keeps single ids, and drops such as are past their time: more than are added, so that they
    /// get fewer.
    async fn keep(&mut self, ids: &[EventId], expires_us: i64) -> Result<()> {
        for block in ids.chunks(IDS_MAX) {
            let marks = vec!["(?,?)"; block.len()].join(",");
            let mut arguments = SqliteArguments::default();
            for id in block {
                add(&mut arguments, id.to_bytes().to_vec())?;
                add(&mut arguments, expires_us)?;
            }
            self.execute(format!("INSERT OR REPLACE INTO singles VALUES {marks}"), arguments)
                .await?;
        }
        let mut arguments = SqliteArguments::default();
        add(&mut arguments, now_us())?;
        add(&mut arguments, 100 + 2 * ids.len() as i64)?;
        let sql = "DELETE FROM singles WHERE id IN
                   (SELECT id FROM singles WHERE expires_us < ? LIMIT ?)";
        self.execute(sql, arguments).await
    }

    async fn execute(
        &mut self,
        sql: impl Into<std::sync::Arc<str>>,
        arguments: SqliteArguments,
    ) -> Result<()> {
        let done = statement(sql, arguments).execute(&mut *self.transaction).await;
        done.map(|_| ()).map_err(|error| trouble(self.path, error))
    }
}

/// What is known of an origin: in the ledger, and with the batch.
#[derive(Default)]
struct Page {
    before: Spans,
    now: Spans,
}
