//! What a table looks like, read from the database's catalogue.

use std::path::Path;

use anyhow::{Result, bail};
use sqlx::Row;
use sqlx::sqlite::SqliteConnection;

use crate::sink::database::trouble;
use crate::sink::table::{Found, Layout};

/// The table as it is, or `None` when there is none.
pub(super) async fn read(
    connection: &mut SqliteConnection,
    path: &Path,
    table: &str,
) -> Result<Option<Layout>> {
    let kind: Option<String> = sqlx::query_scalar(
        "SELECT type FROM sqlite_schema WHERE type IN ('table', 'view') AND lower(name) = lower(?)",
    )
    .bind(table)
    .fetch_optional(&mut *connection)
    .await
    .map_err(|error| trouble(path, error))?;
    match kind.as_deref() {
        None => return Ok(None),
        Some("view") => bail!("`{table}` in {} is a view (name a table)", path.display()),
        Some(_) => {}
    }
    read_parts(connection, table).await.map(Some).map_err(|error| trouble(path, error))
}

async fn read_parts(connection: &mut SqliteConnection, table: &str) -> sqlx::Result<Layout> {
    let rows = sqlx::query(
        "SELECT name, type, \"notnull\" AND dflt_value IS NULL, pk, hidden
         FROM pragma_table_xinfo(?) WHERE hidden <> 1 ORDER BY cid",
    )
    .bind(table)
    .fetch_all(&mut *connection)
    .await?;
    let mut columns = Vec::new();
    let mut key = Vec::new();
    for row in &rows {
        let hidden: i64 = row.try_get(4)?;
        let column = Found {
            name: row.try_get(0)?,
            declared: row.try_get(1)?,
            needed: row.try_get(2)?,
            generated: hidden > 1,
        };
        if row.try_get::<i64, _>(3)? > 0 {
            key.push(columns.len());
        }
        columns.push(column);
    }
    let unique = sqlx::query_as::<_, (String, Option<String>)>(
        "SELECT list.name, info.name
         FROM pragma_index_list(?) list, pragma_index_info(list.name) info
         WHERE list.\"unique\" AND NOT list.partial ORDER BY list.seq, info.seqno",
    )
    .bind(table)
    .fetch_all(connection)
    .await?;
    let mut layout = Layout { columns, unique: Vec::new() };
    // The one key without an index: `INTEGER PRIMARY KEY`, which numbers itself.
    if let [at] = key[..]
        && layout.columns[at].declared.eq_ignore_ascii_case("integer")
    {
        layout.columns[at].needed = false;
        layout.unique.push(vec![layout.columns[at].name.clone()]);
    }
    let mut last = None;
    for (index, column) in unique {
        // An index on an expression has no column's name there: it is unique in no set of columns.
        let column = column.unwrap_or_default();
        match layout.unique.last_mut() {
            Some(set) if last.as_ref() == Some(&index) => set.push(column),
            _ => layout.unique.push(vec![column]),
        }
        last = Some(index);
    }
    Ok(layout)
}
