//! What a table looks like, read from the database's catalogue.

use anyhow::{Result, bail};
use futures_util::future::BoxFuture;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::wire::Wire;
use super::{DIALECT, Name};
use crate::client::postgres::{Server, code, quote_text};
use crate::sink::table::{self, Config, Layout};

/// The comment on a table that we created: its indexes are ours to make.
pub(super) const OURS: &str = "created by aqueduct";

/// An existing table.
pub(super) struct Table {
    /// With its schema.
    pub(super) name: Name,
    pub(super) layout: Layout,
    /// How each column's values travel.
    pub(super) wires: Vec<Wire>,
    /// Which columns have a default in place of the NULL that they cannot hold.
    pub(super) defaulting: Vec<bool>,
    /// Row-level security holds for us, so that `COPY` is not allowed.
    pub(super) guarded: bool,
}

/// The table as it is, or `None` when there is none.
pub(super) async fn read(
    server: &Server,
    connection: &mut PgConnection,
    name: &Name,
) -> Result<Option<Table>> {
    let found: Option<(i64, String, String, String, bool)> = sqlx::query_as(
        "SELECT c.oid::int8, c.relkind::text, n.nspname::text, c.relname::text,
                row_security_active(c.oid)
         FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.oid = to_regclass($1)",
    )
    .persistent(false)
    .bind(name.sql())
    .fetch_optional(&mut *connection)
    .await
    .map_err(|error| server.explain(&error))?;
    let Some((oid, kind, schema, table, guarded)) = found else { return Ok(None) };
    let what = match kind.as_str() {
        "r" | "p" => None,
        "v" | "m" => Some("a view"),
        "f" => Some("a foreign table, which is not written in one transaction with this server"),
        "S" => Some("a sequence"),
        _ => Some("no table"),
    };
    if let Some(what) = what {
        bail!("`{table}` in {} is {what} (name a table)", place(server));
    }
    let name = Name { schema: Some(schema), table };
    let parts = read_parts(connection, oid, name, guarded).await;
    parts.map(Some).map_err(|error| server.explain(&error))
}

async fn read_parts(
    connection: &mut PgConnection,
    oid: i64,
    name: Name,
    guarded: bool,
) -> sqlx::Result<Table> {
    let columns: Vec<(String, String, i64, bool, bool, bool)> = sqlx::query_as(
        "SELECT attname::text, format_type(atttypid, atttypmod), atttypid::int8, attnotnull,
                atthasdef AND attgenerated = '' OR attidentity = 'd',
                attgenerated <> '' OR attidentity = 'a'
         FROM pg_attribute WHERE attrelid = $1::int8::oid AND attnum > 0 AND NOT attisdropped
         ORDER BY attnum",
    )
    .persistent(false)
    .bind(oid)
    .fetch_all(&mut *connection)
    .await?;
    let mut found = Table {
        name,
        layout: Layout { columns: Vec::new(), unique: Vec::new() },
        wires: Vec::new(),
        defaulting: Vec::new(),
        guarded,
    };
    for (name, declared, ty, not_null, has_default, generated) in columns {
        let ty = read_type(connection, ty).await?;
        let (not_null, has_default) = (not_null || ty.not_null, has_default || ty.has_default);
        let needed = not_null && !has_default;
        found.layout.columns.push(table::Found { name, declared, needed, generated });
        found.wires.push(ty.wire);
        found.defaulting.push(not_null && has_default);
    }
    // A deferrable one is looked at too late to decide by.
    let unique: Vec<(i64, String)> = sqlx::query_as(
        "SELECT i.indexrelid::int8, a.attname::text
         FROM pg_index i CROSS JOIN generate_series(0, i.indnkeyatts - 1) place
              JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[place]
         WHERE i.indrelid = $1::int8::oid AND i.indisunique AND i.indisvalid AND i.indimmediate
               AND i.indpred IS NULL AND i.indexprs IS NULL
         ORDER BY i.indexrelid, place",
    )
    .persistent(false)
    .bind(oid)
    .fetch_all(connection)
    .await?;
    let mut last = None;
    for (index, column) in unique {
        match found.layout.unique.last_mut() {
            Some(set) if last == Some(index) => set.push(column),
            _ => found.layout.unique.push(vec![column]),
        }
        last = Some(index);
    }
    Ok(found)
}

/// A type, seen through the domains it is made of.
struct Described {
    wire: Wire,
    not_null: bool,
    has_default: bool,
}

fn read_type(connection: &mut PgConnection, oid: i64) -> BoxFuture<'_, sqlx::Result<Described>> {
    Box::pin(async move {
        let (base, element, receiver, not_null, has_default): (i64, i64, String, bool, bool) =
            sqlx::query_as(
                "SELECT typbasetype::int8, typelem::int8, coalesce(proname::text, ''), typnotnull,
                        typdefault IS NOT NULL
                 FROM pg_type t LEFT JOIN pg_proc p ON p.oid = t.typreceive
                 WHERE t.oid = $1::int8::oid",
            )
            .persistent(false)
            .bind(oid)
            .fetch_one(&mut *connection)
            .await?;
        let wire = match receiver.as_str() {
            "domain_recv" => {
                let base = read_type(connection, base).await?;
                return Ok(Described {
                    wire: base.wire,
                    not_null: not_null || base.not_null,
                    has_default: has_default || base.has_default,
                });
            }
            "array_recv" => {
                let oid = u32::try_from(element).unwrap_or_default();
                Wire::Array(Box::new(read_type(connection, element).await?.wire), oid)
            }
            receiver => Wire::of_receiver(receiver),
        };
        Ok(Described { wire, not_null, has_default })
    })
}

/// The missing table: created where that is wanted. Another process may do the same.
pub(super) async fn create(
    server: &Server,
    connection: &mut PgConnection,
    config: &Config,
    name: &Name,
) -> Result<Table> {
    let columns = config.declarations(&DIALECT);
    if !config.create {
        let columns = columns.split_whitespace().collect::<Vec<_>>().join(" ");
        bail!(
            "there is no table `{}` in {} (set `create = true`, or: CREATE TABLE {} {columns})",
            config.table,
            place(server),
            name.sql()
        );
    }
    let table = name.sql();
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {table} {columns}; COMMENT ON TABLE {table} IS {}",
        quote_text(OURS)
    );
    execute(server, connection, create).await?;
    match read(server, connection, name).await? {
        Some(found) => Ok(found),
        None => bail!(
            "table `{}` in {} is not found in the search path (name its schema)",
            config.table,
            place(server)
        ),
    }
}

/// Creates something. That another process did it at the same time is as good.
pub(super) async fn execute(
    server: &Server,
    connection: &mut PgConnection,
    sql: String,
) -> Result<()> {
    match sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await {
        Ok(_) => Ok(()),
        Err(error) if matches!(code(&error), Some("42P07" | "42710" | "23505")) => Ok(()),
        Err(error) => Err(server.explain(&error)),
    }
}

fn place(server: &Server) -> String {
    format!("{}/{}", server.address(), server.database())
}
