//! How a file's tables are created, and told from somebody else's.

use anyhow::{Result, bail};
use sqlx::{AssertSqlSafe, Row, SqliteConnection};

use super::clock;
use crate::stream::sql::schema::{VERSION, sqlite, sqlite_since_1};

/// `PRAGMA application_id`: "Aqud".
const APPLICATION: i64 = 0x4171_7564;

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
    if version != VERSION && version != 1 {
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
    let missing = match check(conn).await? {
        false => Some(sqlite()),
        true if pragma(conn, "PRAGMA user_version").await? == 1 => Some(sqlite_since_1()),
        true => None,
    };
    if let Some(tables) = missing {
        let known_by =
            format!("PRAGMA user_version = {VERSION}; PRAGMA application_id = {APPLICATION}");
        for statements in [tables, known_by] {
            sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *conn).await?;
        }
    }
    let boot = clock::boot();
    let known =
        sqlx::query("SELECT value FROM meta WHERE key = 'boot'").fetch_optional(&mut *conn).await?;
    if known.map(|row| row.try_get::<String, _>(0)).transpose()?.as_ref() != Some(&boot) {
        sqlx::query("UPDATE leases SET deadline = 0").execute(&mut *conn).await?;
        sqlx::query("UPDATE owners SET until = 0").execute(&mut *conn).await?;
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
