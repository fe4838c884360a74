//! How a schema's tables are created, and told from those of another version.

use anyhow::{Context, Result, bail};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row};

use crate::client::postgres::{code, quote};
use crate::event::hash_parts;
use crate::stream::sql::schema::{VERSION, postgres, postgres_since_1};

/// What the server is to know of the tables beside their columns: chunks are not worth packing
/// once more, and rows that change with each transaction have room to do so in their page.
const STORAGE: &str = "
    ALTER TABLE messages ALTER COLUMN data SET STORAGE EXTERNAL;
    ALTER TABLE offsets SET (fillfactor = 20);
    ALTER TABLE cursors SET (fillfactor = 20);
    ALTER TABLE members SET (fillfactor = 20);
    ALTER TABLE checkpoints SET (fillfactor = 50);";
/// The same, of what version 2 has more than version 1.
const STORAGE_SINCE_1: &str = "ALTER TABLE owners SET (fillfactor = 20)";

/// Creates what is missing in the schema that the connection's search path names. Errs where the
/// tables are somebody else's or of a newer version.
pub(super) async fn prepare(conn: &mut PgConnection, schema: &str) -> Result<()> {
    if version(conn, schema).await? == Some(VERSION) {
        return Ok(());
    }
    let mut tx = conn.begin().await?;
    // Of two programs that come at once, the second finds what the first has made.
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(hash_parts(&[b"aqueduct schema", schema.as_bytes()]) as i64)
        .execute(&mut *tx)
        .await?;
    match version(&mut tx, schema).await? {
        None => create(&mut tx, schema).await?,
        Some(VERSION) => {}
        Some(_) => {
            let known = format!("UPDATE meta SET value = '{VERSION}' WHERE key = 'version'");
            for statements in [postgres_since_1(), STORAGE_SINCE_1.to_owned(), known] {
                let made = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *tx).await;
                made.with_context(|| format!("failed to renew the tables of schema `{schema}`"))?;
            }
        }
    }
    tx.commit().await?;
    Ok(())
}

/// Creates the schema, where it is missing, and its tables.
async fn create(conn: &mut PgConnection, schema: &str) -> Result<()> {
    let known = sqlx::query("SELECT 1 FROM pg_namespace WHERE nspname = $1").bind(schema);
    if known.fetch_optional(&mut *conn).await?.is_none() {
        let create = AssertSqlSafe(format!("CREATE SCHEMA {}", quote(schema)));
        sqlx::raw_sql(create).execute(&mut *conn).await.with_context(|| {
            format!(
                "failed to create schema `{schema}` (have it created for this user: CREATE SCHEMA \
                 … AUTHORIZATION …)"
            )
        })?;
    }
    let version = format!("INSERT INTO meta (key, value) VALUES ('version', '{VERSION}')");
    for statements in [postgres(), STORAGE.to_owned(), STORAGE_SINCE_1.to_owned(), version] {
        let made = sqlx::raw_sql(AssertSqlSafe(statements)).execute(&mut *conn).await;
        made.map_err(|error| match code(&error) {
            Some("42P07") => anyhow::Error::new(error)
                .context(format!("schema `{schema}` holds somebody else's tables (name another)")),
            _ => anyhow::Error::new(error)
                .context(format!("failed to create the tables of schema `{schema}`")),
        })?;
    }
    Ok(())
}

/// The version of the tables, where they are there. Errs where they are not ours.
async fn version(conn: &mut PgConnection, schema: &str) -> Result<Option<i64>> {
    let found = sqlx::query(
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
         WHERE nspname = $1 AND relname = 'meta'",
    )
    .bind(schema);
    if found.fetch_optional(&mut *conn).await?.is_none() {
        return Ok(None);
    }
    let row = sqlx::query("SELECT value FROM meta WHERE key = 'version'")
        .persistent(false)
        .fetch_optional(conn)
        .await
        .with_context(|| format!("schema `{schema}`"))?;
    let version = row.map(|row| row.try_get::<String, _>(0)).transpose()?.unwrap_or_default();
    match version.parse() {
        Ok(version @ 1..=VERSION) => Ok(Some(version)),
        _ => bail!(
            "the tables of schema `{schema}` are of version {version:?}, and this program knows \
             version {VERSION} (run the program that made them, or a newer one)"
        ),
    }
}
