//! `sqlite`: rows of a table in a SQLite database, each event once.

mod layout;
mod ordered;
mod plan;
mod query;
mod write;

use std::path::{Component, Path, PathBuf};

use anyhow::{Result, bail};
use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::columns::Type;
use super::database::{Database, trouble};
use super::table::{self, Config, Dialect, Layout};
use super::{Capabilities, Kind, Sink, SinkSpec, fence};
use crate::event::{Delivery, Refusal, Stored};
use crate::spec::{Complaint, Default, Key, Site, Ty, Values};
use plan::Plan;

/// The kind.
pub static KIND: Kind = Kind {
    name: "sqlite",
    doc: "Rows of a table in a SQLite database, each event exactly once.",
    system: Some("sqlite"),
    keys: KEYS,
    capabilities: Capabilities { idempotent: Ok(()), fencing: true },
    check,
    claims: |values| {
        let path = plain(Path::new(values.str("path")));
        Some(format!("table \"{}\" in {}", values.str("table").to_lowercase(), path.display()))
    },
    place: |values| format!("table \"{}\" in {}", values.str("table"), values.str("path")),
    look: |values| {
        let (path, table) = (values.str("path"), values.str("table").replace('"', "\"\""));
        Some(format!("sqlite3 {path} 'SELECT * FROM \"{table}\" ORDER BY rowid DESC LIMIT 5'"))
    },
    writers: |_| 1,
    open,
    reader: Some(query::open),
};

static KEYS: &[Key] = &[
    Key {
        name: "path",
        ty: Ty::Path,
        default: Default::Required,
        doc: "The database file. It and its directory are created if they are missing. \
              Other programs may read and write it at the same time.",
    },
    Key { name: "table", ty: Ty::Str, default: Default::Required, doc: table::TABLE_DOC },
    Key {
        name: "columns",
        ty: Ty::Columns,
        default: Default::Derived(
            "`event_id`, `data` (the body as JSON text; a body that is not JSON as a JSON string, \
             one that is not UTF-8 as a BLOB) and `inserted_at`",
        ),
        doc: "What goes into which column: a member of the JSON body (`number = \"number\"`, \
              dotted for nested ones), or `@body @id @time @source @stream @key @type @trace`; \
              `{ from = \"number\", type = \"bigint\" }` names the type. A member without a type \
              is kept as it is, times as RFC 3339 text. A missing member is NULL.",
    },
    table::CREATE,
    table::ID_COLUMN,
    table::MODE,
    table::KEY,
    table::SEEN,
];

static DIALECT: Dialect = Dialect {
    same: |a, b| a.eq_ignore_ascii_case(b),
    quote: plan::quote,
    has_type: |_| false,
    declare: plan::declared,
    holds_id: |ty| !matches!(ty, Type::Int(_) | Type::Float | Type::Bool),
    id_type: "TEXT",
    body_type: "json",
    inserted_at: "TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))",
};

fn check(values: &Values) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let table = values.str("table").to_lowercase();
    if table.starts_with("sqlite_") || is_ours(&table) {
        let message = format!("`{table}` is a table of {}'s own (name another)", owner(&table));
        complaints.push(Complaint { key: "table", message });
    }
    complaints.extend(table::check(values, &DIALECT));
    complaints
}

fn owner(table: &str) -> &'static str {
    if is_ours(table) { "aqueduct" } else { "SQLite" }
}

fn is_ours(table: &str) -> bool {
    table == "aqueduct_seen" || table == fence::TABLE
}

/// The path without `.` in it, so that two ways to write it compare equal.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

fn open(spec: SinkSpec, _site: Site) -> BoxFuture<'static, Result<Box<dyn Sink>>> {
    Box::pin(async move {
        let path = spec.values.opt_path("path").unwrap_or_default();
        let config = Config::new(&spec.values, &DIALECT);
        Ok(Box::new(Table::open(&path, config).await?) as _)
    })
}

/// A table, open for writing.
struct Table {
    config: Config,
    plan: Plan,
    database: Database,
    /// The table of fences is there.
    fences: bool,
}

#[async_trait]
impl Sink for Table {
    async fn store(&mut self, batch: &[&Delivery]) -> Result<Vec<Refusal>> {
        self.database.check_there()?;
        write::store(self, batch).await
    }

    async fn store_ordered(&mut self, batch: &[&Delivery]) -> Result<Stored> {
        self.database.check_there()?;
        if !self.fences {
            execute(&mut self.database, ordered::FENCES).await?;
            self.fences = true;
        }
        ordered::store(self, batch).await
    }
}

impl Table {
    async fn open(path: &Path, config: Config) -> Result<Self> {
        let mut database = Database::open(path).await?;
        let found = layout::read(&mut database.connection, path, &config.table).await?;
        let found = match found {
            Some(found) => found,
            None if config.create => create(&mut database, &config).await?,
            None => bail!(
                "there is no table `{}` in {} (create it, or set `create = true`)",
                config.table,
                path.display()
            ),
        };
        let plan = Plan::new(&config, &found, path)?;
        if plan.known == plan::Known::BySeen {
            execute(&mut database, SEEN).await?;
        }
        Ok(Self { config, plan, database, fences: false })
    }
}

/// The ids that were seen, for tables that cannot tell by themselves.
const SEEN: &str = "
    CREATE TABLE IF NOT EXISTS aqueduct_seen (
        table_name TEXT NOT NULL,
        event_id BLOB NOT NULL,
        expires_us INTEGER NOT NULL,
        PRIMARY KEY (table_name, event_id)
    ) WITHOUT ROWID;
    CREATE INDEX IF NOT EXISTS aqueduct_seen_expires ON aqueduct_seen (expires_us)";

async fn create(database: &mut Database, config: &Config) -> Result<Layout> {
    execute(database, &plan::create(config)).await?;
    let path = database.path().to_owned();
    match layout::read(&mut database.connection, &path, &config.table).await? {
        Some(layout) => Ok(layout),
        None => bail!("table `{}` in {} is gone again", config.table, path.display()),
    }
}

/// Runs statements of ours, all or none.
async fn execute(database: &mut Database, sql: &str) -> Result<()> {
    let path = database.path().to_owned();
    let mut transaction = database.begin().await?;
    let done = sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut *transaction).await;
    done.map_err(|error| trouble(&path, error))?;
    transaction.commit().await.map_err(|error| trouble(&path, error))
}
