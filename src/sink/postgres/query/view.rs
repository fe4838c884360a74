//! What a table looks like to a query.

use std::time::Instant;

use anyhow::{Result, bail};
use sqlx::postgres::PgConnection;

use crate::client::postgres::quote;
use crate::sink::postgres::{Name, catalogue};
use crate::sink::query::condition::Named;

/// How a column's values are shown and compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    /// As text that JSON holds or quotes.
    Plain,
    /// JSON as its text, which has no equality.
    Json,
    /// JSON with an index of its members.
    Jsonb,
    Bytes,
}

/// A column.
pub(super) struct Column {
    pub(super) name: String,
    /// Its type without a length, as SQL calls it.
    pub(super) ty: String,
    pub(super) looks: Looks,
    pub(super) not_null: bool,
}

impl<'c> From<&'c Column> for Named<'c> {
    fn from(column: &'c Column) -> Self {
        Self { name: &column.name, is_json: matches!(column.looks, Looks::Json | Looks::Jsonb) }
    }
}

/// What rows are put in order by.
pub(super) struct Order {
    /// Each column, quoted.
    pub(super) names: Vec<String>,
    /// Each column's type.
    pub(super) types: Vec<String>,
    /// The first may be NULL.
    pub(super) nullable: bool,
    /// All are columns, which an index can hold.
    pub(super) indexable: bool,
}

impl Order {
    /// `"a" DESC, "b" DESC`; `of` comes before each name.
    pub(super) fn sql(&self, of: &str) -> String {
        let mut parts: Vec<_> = self.names.iter().map(|name| format!("{of}{name} DESC")).collect();
        if let Some(first) = parts.first_mut().filter(|_| self.nullable) {
            first.push_str(" NULLS LAST");
        }
        parts.join(", ")
    }
}

/// A table.
pub(super) struct View {
    pub(super) read_at: Instant,
    /// With its schema.
    pub(super) name: Name,
    pub(super) columns: Vec<Column>,
    /// Where the columns are of which no two rows have the same; none: there are none.
    key: Vec<usize>,
    /// It is made of others.
    partitioned: bool,
    /// We created it.
    pub(super) ours: bool,
    /// The names of its indexes that can be used.
    pub(super) indexes: Vec<String>,
}

impl View {
    /// The table as it is, or `None` when there is none.
    pub(super) async fn read(
        connection: &mut PgConnection,
        name: &Name,
        read_at: Instant,
    ) -> sqlx::Result<Option<Self>> {
        let found: Option<(i64, String, String, bool, bool)> = sqlx::query_as(
            "SELECT c.oid::int8, n.nspname::text, c.relname::text, c.relkind = 'p',
                    coalesce(obj_description(c.oid, 'pg_class') = $2, false) AND c.relkind = 'r'
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
             WHERE c.oid = to_regclass($1) AND c.relkind IN ('r', 'p')",
        )
        .persistent(false)
        .bind(name.sql())
        .bind(catalogue::OURS)
        .fetch_optional(&mut *connection)
        .await?;
        let Some((oid, schema, table, partitioned, ours)) = found else { return Ok(None) };
        let name = Name { schema: Some(schema), table };
        let rows: Vec<(String, String, i64, bool)> = sqlx::query_as(
            "SELECT a.attname::text, format_type(a.atttypid, -1),
                    (CASE t.typtype WHEN 'd' THEN t.typbasetype ELSE t.oid END)::int8, a.attnotnull
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
             WHERE a.attrelid = $1::int8::oid AND a.attnum > 0 AND NOT a.attisdropped
             ORDER BY a.attnum",
        )
        .persistent(false)
        .bind(oid)
        .fetch_all(&mut *connection)
        .await?;
        let key: Option<Vec<String>> = sqlx::query_scalar(
            "SELECT array_agg(a.attname::text ORDER BY place)
             FROM pg_index i CROSS JOIN generate_series(0, i.indnkeyatts - 1) place
                  JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[place]
             WHERE i.indrelid = $1::int8::oid AND i.indisunique AND i.indisvalid
                   AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
             GROUP BY i.indexrelid, i.indisprimary HAVING bool_and(a.attnotnull)
             ORDER BY i.indisprimary DESC, i.indexrelid LIMIT 1",
        )
        .persistent(false)
        .bind(oid)
        .fetch_optional(&mut *connection)
        .await?;
        let indexes = sqlx::query_scalar(
            "SELECT c.relname::text FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
             WHERE i.indrelid = $1::int8::oid AND i.indisvalid",
        )
        .persistent(false)
        .bind(oid)
        .fetch_all(connection)
        .await?;
        let columns: Vec<Column> = rows
            .into_iter()
            .map(|(name, ty, oid, not_null)| Column { name, ty, looks: looks(oid), not_null })
            .collect();
        let key = key.unwrap_or_default();
        let place = |name: &String| columns.iter().position(|column| column.name == *name);
        let key = key.iter().filter_map(place).collect();
        Ok(Some(Self { read_at, name, columns, key, partitioned, ours, indexes }))
    }

    /// The order that is asked for: newest first, and no two rows in one place.
    pub(super) fn order(&self, asked: Option<&str>) -> Result<Order> {
        let wanted = asked.unwrap_or("inserted_at");
        let first = self.columns.iter().position(|column| column.name == wanted);
        if let (None, Some(asked)) = (first, asked) {
            let names: Vec<_> =
                self.columns.iter().map(|column| format!("`{}`", column.name)).collect();
            bail!(
                "table `{}` has no column `{asked}` (`order` may be {})",
                self.name.table,
                names.join(", ")
            );
        }
        let first = first.filter(|first| self.key != [*first]);
        let places = first.into_iter().chain(self.key.iter().copied());
        let columns: Vec<&Column> = places.map(|at| &self.columns[at]).collect();
        let mut order = Order {
            names: columns.iter().map(|column| quote(&column.name)).collect(),
            types: columns.iter().map(|column| column.ty.clone()).collect(),
            nullable: first.is_some_and(|first| !self.columns[first].not_null),
            indexable: true,
        };
        if self.key.is_empty() {
            if self.partitioned {
                bail!(
                    "table `{}` is partitioned and has no primary key to tell its rows by (add one)",
                    self.name.table
                );
            }
            // Rows that nobody changes stay where they are.
            order.names.push("ctid".into());
            order.types.push("tid".into());
            order.indexable = false;
        }
        Ok(order)
    }

    /// The one column whose members can be asked for.
    pub(super) fn members(&self) -> Option<&Column> {
        let mut json = self.columns.iter().filter(|column| Named::from(*column).is_json);
        json.next().filter(|_| json.next().is_none())
    }
}

fn looks(oid: i64) -> Looks {
    match oid {
        114 => Looks::Json,
        3802 => Looks::Jsonb,
        17 => Looks::Bytes,
        _ => Looks::Plain,
    }
}
