//! How rows get into the table: which columns, which way, which statements.

use anyhow::Result;
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};

use super::catalogue::{self, Table};
use super::wire::Wire;
use super::{DIALECT, Name, write};
use crate::client::postgres::{Server, quote};
use crate::sink::columns::{Mapping, Type};
use crate::sink::table::{self, Config, Fitted};
use crate::spec::{Selector, text};

/// The table that keeps the ids which a table cannot.
pub(super) const SEEN: &str = "aqueduct_seen";
/// Where a batch is put together that cannot go straight into its table.
const STAGE: &str = "pg_temp.aqueduct_batch";
/// Columns of which a row can say that it leaves them to their defaults.
const DEFAULTING_MAX: usize = 64;

/// How rows get into the table.
pub(super) struct Plan {
    pub(super) mapping: Mapping,
    pub(super) wires: Vec<Wire>,
    /// Rows travel in `COPY`'s binary format, otherwise as text.
    pub(super) binary: bool,
    /// Where in a row the unique id is. `None`: ids are kept in `aqueduct_seen`.
    pub(super) id: Option<usize>,
    /// Where in a row the columns of `key` are.
    pub(super) key: Vec<usize>,
    /// The columns whose default is taken in place of NULL, by their place in a row's mask.
    pub(super) defaulting: Vec<usize>,
    /// Rows go through a temporary table: what `COPY` cannot do is done from there.
    pub(super) staged: bool,
    /// How long `aqueduct_seen` knows an id.
    pub(super) seen_s: f64,
    /// The table, with its schema.
    pub(super) name: Name,
    /// As the user calls it.
    pub(super) shown: String,
}

impl Plan {
    /// A plan for this table, or why there can be none.
    pub(super) fn new(
        config: &Config,
        name: &Name,
        found: &Table,
        server: &Server,
    ) -> Result<Self> {
        let place =
            format!("table `{}` in {}/{}", config.table, server.address(), server.database());
        let at = |name: &str| found.layout.columns.iter().position(|column| column.name == name);
        let wire = |name: &str| at(name).map_or(Wire::Other, |at| found.wires[at].clone());
        let read_as = |found: &table::Found, _: Option<&str>| {
            (wire(&found.name).reads(), found.declared.clone())
        };
        let Fitted { columns, id, key } =
            table::fit(config, &found.layout, &DIALECT, (&place, &name.sql()), read_as)?;
        let wires: Vec<_> = columns.iter().map(|column| wire(&column.name)).collect();
        let defaults = |column: &str| at(column).is_some_and(|at| found.defaulting[at]);
        let defaulting = (0..columns.len()).filter(|at| defaults(&columns[*at].name));
        Ok(Self {
            binary: !wires.iter().any(Wire::is_text_only),
            defaulting: defaulting.take(DEFAULTING_MAX).collect(),
            staged: found.guarded || !key.is_empty(),
            seen_s: config.seen.as_secs_f64(),
            name: found.name.clone(),
            shown: config.table.clone(),
            mapping: Mapping::new(columns),
            wires,
            id,
            key,
        })
    }

    /// The names of the columns that rows with this mask fill, as SQL has them.
    fn names(&self, mask: u64) -> Vec<String> {
        let columns = self.mapping.columns().iter().enumerate();
        columns
            .filter(|(at, _)| !self.is_left_out(*at, mask))
            .map(|(_, it)| quote(&it.name))
            .collect()
    }

    /// Whether rows with this mask leave the column to its default.
    pub(super) fn is_left_out(&self, column: usize, mask: u64) -> bool {
        mask != 0
            && self
                .defaulting
                .iter()
                .position(|at| *at == column)
                .is_some_and(|bit| mask >> bit & 1 == 1)
    }

    /// The `COPY` that rows with this mask go by, and the name its errors call the table.
    pub(super) fn copy(&self, mask: u64) -> (String, &str) {
        let format = if self.binary { " (FORMAT binary)" } else { "" };
        let mut names = self.names(mask);
        let (table, called) = match self.staged {
            true => {
                names.insert(0, "aqueduct_row".into());
                (STAGE.into(), "aqueduct_batch")
            }
            false => (self.name.sql(), &*self.name.table),
        };
        (format!("COPY {table} ({}) FROM STDIN{format}", names.join(", ")), called)
    }

    /// What brings such rows from the temporary table into their own.
    pub(super) fn settle(&self, mask: u64) -> String {
        let columns = self.mapping.columns();
        let names = self.names(mask);
        let list = names.join(", ");
        let quoted = |at: &[usize]| -> Vec<String> {
            at.iter().map(|at| quote(&columns[*at].name)).collect()
        };
        let key = quoted(&self.key).join(", ");
        let sets: Vec<_> = (0..columns.len())
            .filter(|at| !self.key.contains(at))
            .map(|at| quote(&columns[at].name))
            .map(|name| format!("{name} = excluded.{name}"))
            .collect();
        let (rows, conflict) = match self.id {
            _ if !self.key.is_empty() => (
                // Of one key, the last.
                format!(
                    "SELECT DISTINCT ON ({key}) {list} FROM {STAGE} ORDER BY {key}, aqueduct_row DESC"
                ),
                match sets.is_empty() {
                    true => format!("ON CONFLICT ({key}) DO NOTHING"),
                    false => format!("ON CONFLICT ({key}) DO UPDATE SET {}", sets.join(", ")),
                },
            ),
            Some(id) => (
                format!("SELECT {list} FROM {STAGE} ORDER BY aqueduct_row"),
                // invariant: stored-once
                format!("ON CONFLICT ({}) DO NOTHING", quote(&columns[id].name)),
            ),
            None => (format!("SELECT {list} FROM {STAGE} ORDER BY aqueduct_row"), String::new()),
        };
        format!("INSERT INTO {} ({list}) {rows} {conflict}", self.name.sql())
    }

    /// Which of the ids `$1`, in text with commas between, the table has: their places, from 1.
    pub(super) fn ask(&self, id: usize) -> String {
        let name = quote(&self.mapping.columns()[id].name);
        let given = match self.wires[id] {
            Wire::Bytes => "decode(replace(u.id, '-', ''), 'hex')",
            Wire::Uuid => "u.id::uuid",
            _ => "u.id",
        };
        format!(
            "SELECT u.place::int8 FROM unnest(string_to_array($1, ',')) WITH ORDINALITY u (id, place)
             WHERE EXISTS (SELECT FROM {} t WHERE t.{name} = {given})",
            self.name.sql()
        )
    }

    /// `aqueduct_seen`, as SQL calls it.
    pub(super) fn seen(&self) -> String {
        self.name.beside(SEEN)
    }

    /// Makes what a connection needs for itself.
    pub(super) async fn equip(&self, server: &Server, connection: &mut PgConnection) -> Result<()> {
        if !self.staged {
            return Ok(());
        }
        let sql = format!(
            "CREATE TEMP TABLE IF NOT EXISTS aqueduct_batch ON COMMIT DELETE ROWS
             AS SELECT 0::int4 AS aqueduct_row, {} FROM {} WITH NO DATA",
            self.names(0).join(", "),
            self.name.sql()
        );
        catalogue::execute(server, connection, sql).await
    }

    /// Makes what is missing, and tries whether all statements make sense to the server.
    pub(super) async fn prepare(
        &self,
        server: &Server,
        connection: &mut PgConnection,
    ) -> Result<()> {
        self.equip(server, connection).await?;
        if self.id.is_none() {
            self.create_seen(server, connection).await?;
        }
        let tried = self.try_all(connection).await;
        let back = sqlx::raw_sql("ROLLBACK").execute(connection).await;
        tried.and(back.map(|_| ())).map_err(|error| server.explain(&error))
    }

    async fn create_seen(&self, server: &Server, connection: &mut PgConnection) -> Result<()> {
        let columns = "(
                table_name text NOT NULL,
                event_id uuid NOT NULL,
                seen_at timestamptz NOT NULL DEFAULT now(),
                PRIMARY KEY (table_name, event_id)
            )";
        let seen = self.seen();
        let index =
            format!("CREATE INDEX IF NOT EXISTS aqueduct_seen_at ON {seen} (table_name, seen_at)");
        self.create_beside(server, connection, &seen, columns, &index).await
    }

    /// Creates a table of our own, unless it is there.
    pub(super) async fn create_beside(
        &self,
        server: &Server,
        connection: &mut PgConnection,
        table: &str,
        columns: &str,
        index: &str,
    ) -> Result<()> {
        // Who may not create tables may use the one that is there.
        let there = sqlx::query("SELECT to_regclass($1) IS NOT NULL").persistent(false).bind(table);
        let there = there.fetch_one(&mut *connection).await.and_then(|row| row.try_get(0));
        if there.map_err(|error| server.explain(&error))? {
            return Ok(());
        }
        let create = format!("CREATE TABLE IF NOT EXISTS {table} {columns}; {index}");
        catalogue::execute(server, connection, create).await
    }

    /// Every statement, with nothing to store.
    async fn try_all(&self, connection: &mut PgConnection) -> sqlx::Result<()> {
        sqlx::raw_sql("BEGIN").execute(&mut *connection).await?;
        write::copy_nothing(connection, &self.copy(0).0, self.binary).await?;
        if self.staged {
            sqlx::raw_sql(AssertSqlSafe(self.settle(0))).execute(&mut *connection).await?;
        }
        match self.id {
            Some(id) if !self.staged => {
                let ask = sqlx::query(AssertSqlSafe(self.ask(id))).bind("").persistent(false);
                ask.fetch_all(&mut *connection).await?;
            }
            Some(_) => {}
            None => write::copy_nothing(connection, &self.copy_seen(), true).await?,
        }
        Ok(())
    }

    /// The `COPY` that ids go by.
    pub(super) fn copy_seen(&self) -> String {
        format!("COPY {} (table_name, event_id) FROM STDIN (FORMAT binary)", self.seen())
    }
}

/// What a column is declared as: the type asked for, by PostgreSQL's name for it.
pub(super) fn declare(from: &Selector, ty: Option<&str>) -> String {
    let Some(asked) = ty else {
        return match from {
            Selector::Id => "uuid",
            Selector::Time => "timestamptz",
            _ => "text",
        }
        .into();
    };
    match asked {
        "blob" => "bytea",
        "datetime" => "timestamptz",
        "double" => "double precision",
        _ => asked,
    }
    .into()
}

/// Whether PostgreSQL may have a type of this name: it has very many, and users make their own.
pub(super) fn may_be_type(name: &str) -> bool {
    const MORE: &[&str] = &["date", "time", "timetz", "interval", "inet", "cidr", "name", "money"];
    let element = name.trim_end_matches("[]").trim_end().to_lowercase();
    let known = Type::NAMES.iter().map(|(known, _)| *known);
    Type::parse(&element).is_some()
        || MORE.contains(&&*element)
        || text::near(&element, known).is_none()
            && element.chars().all(|c| c.is_alphanumeric() || " _.\"(),".contains(c))
}
