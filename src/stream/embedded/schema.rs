//! The tables of a database of streams.

use anyhow::{Result, bail};
use sqlx::{Row, SqliteConnection};

use super::clock;

/// `PRAGMA user_version` of the tables below.
pub(super) const VERSION: i64 = 1;
/// `PRAGMA application_id`: "Aqud".
const APPLICATION: i64 = 0x4171_7564;

/// Offsets of a shard ascend by one without a gap, and rows of `messages` follow each other
/// without one, so lengths and lags are differences. Numbers without a sign (offsets, tokens,
/// orders) are stored as the signed number of the same 64 bits.
const TABLES: &str = "
CREATE TABLE streams (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
-- A chunk of events, packed; `time` is when it was appended, in microseconds since 1970.
CREATE TABLE messages (
  stream INTEGER NOT NULL, shard INTEGER NOT NULL, first INTEGER NOT NULL,
  count INTEGER NOT NULL, time INTEGER NOT NULL, data BLOB NOT NULL,
  PRIMARY KEY (stream, shard, first));
-- What the next event of a shard gets.
CREATE TABLE offsets (
  stream INTEGER NOT NULL, shard INTEGER NOT NULL, next INTEGER NOT NULL,
  PRIMARY KEY (stream, shard)) WITHOUT ROWID;
CREATE TABLE checkpoints (
  stream INTEGER NOT NULL, origin TEXT NOT NULL, slot TEXT NOT NULL,
  ord INTEGER NOT NULL, note TEXT NOT NULL,
  PRIMARY KEY (stream, origin, slot)) WITHOUT ROWID;
CREATE TABLE groups (
  id INTEGER PRIMARY KEY AUTOINCREMENT, stream INTEGER NOT NULL, name TEXT NOT NULL,
  UNIQUE (stream, name));
-- What a group was given up to, in each shard.
CREATE TABLE cursors (
  grp INTEGER NOT NULL, shard INTEGER NOT NULL, next INTEGER NOT NULL,
  PRIMARY KEY (grp, shard)) WITHOUT ROWID;
-- Of what it was given, what it has not acked. `deadline` in milliseconds since the boot that
-- `meta` names; 0: free for the next member. `owner` is empty where it was handed back.
CREATE TABLE leases (
  id INTEGER PRIMARY KEY, grp INTEGER NOT NULL, shard INTEGER NOT NULL,
  first INTEGER NOT NULL, last INTEGER NOT NULL, owner TEXT NOT NULL, token INTEGER NOT NULL,
  deadline INTEGER NOT NULL, deliveries INTEGER NOT NULL, attempts INTEGER NOT NULL,
  UNIQUE (grp, shard, first));
-- Members, and when they were last seen, in the time of `leases`.
CREATE TABLE members (
  grp INTEGER NOT NULL, name TEXT NOT NULL, seen INTEGER NOT NULL,
  PRIMARY KEY (grp, name)) WITHOUT ROWID;
-- Dead letters; `event` is a chunk of one.
CREATE TABLE dead (
  id INTEGER PRIMARY KEY, stream INTEGER NOT NULL, name TEXT NOT NULL, grp TEXT NOT NULL,
  event_id BLOB NOT NULL, reason TEXT NOT NULL, attempts INTEGER NOT NULL,
  time INTEGER NOT NULL, event BLOB NOT NULL, UNIQUE (stream, event_id, grp));
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
";

/// Refuses what is not ours, and says whether the tables are there.
pub(super) async fn check(conn: &mut SqliteConnection) -> Result<bool> {
    let version = pragma(conn, "PRAGMA user_version").await?;
    let application = pragma(conn, "PRAGMA application_id").await?;
    if application != APPLICATION {
        let tables = pragma(conn, "SELECT COUNT(*) FROM sqlite_master").await?;
        if tables > 0 || application != 0 || version != 0 {
            bail!("it is a database of something else (give the stream a `path` of its own)");
        }
        return Ok(false);
    }
    if version != VERSION {
        bail!(
            "its tables are of version {version}, and this program knows version {VERSION} \
             (run the program that wrote it, or a newer one)"
        );
    }
    Ok(true)
}

/// Creates what is missing, and gives back the leases of an earlier boot of the machine, whose
/// time has no meaning any more. Runs in a transaction of the caller's.
pub(super) async fn prepare(conn: &mut SqliteConnection) -> Result<()> {
    if !check(conn).await? {
        sqlx::raw_sql(TABLES).execute(&mut *conn).await?;
        sqlx::raw_sql("PRAGMA user_version = 1; PRAGMA application_id = 1097954660")
            .execute(&mut *conn)
            .await?;
    }
    let boot = clock::boot();
    let known =
        sqlx::query("SELECT value FROM meta WHERE key = 'boot'").fetch_optional(&mut *conn).await?;
    if known.map(|row| row.try_get::<String, _>(0)).transpose()?.as_ref() != Some(&boot) {
        sqlx::query("UPDATE leases SET deadline = 0").execute(&mut *conn).await?;
        sqlx::query("DELETE FROM members").execute(&mut *conn).await?;
        sqlx::query("INSERT OR REPLACE INTO meta VALUES ('boot', ?)")
            .bind(boot)
            .execute(&mut *conn)
            .await?;
    }
    Ok(())
}

async fn pragma(conn: &mut SqliteConnection, sql: &'static str) -> Result<i64> {
    Ok(sqlx::query(sql).persistent(false).fetch_one(conn).await?.try_get(0)?)
}
