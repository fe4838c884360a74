//! `sqlite`: rows of a table in a SQLite database, each event once.

mod layout;
mod plan;
mod rows;
mod write;

use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use async_trait::async_trait;
use futures_util::future::BoxFuture;

use super::columns;
use super::database::{Database, trouble};
use super::{Capabilities, Kind, Sink, SinkSpec};
use crate::event::{Delivery, Refusal};
use crate::spec::{Complaint, Default, Key, Selector, Site, Ty, Values};
use plan::Plan;

/// The kind.
pub static KIND: Kind = Kind {
    name: "sqlite",
    doc: "Rows of a table in a SQLite database, each event exactly once.",
    keys: KEYS,
    capabilities: Capabilities { idempotent: Ok(()), fencing: false },
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
    open,
    rows: Some(rows::open),
};

static KEYS: &[Key] = &[
    Key {
        name: "path",
        ty: Ty::Path,
        default: Default::Required,
        doc: "The database file. It and its directory are created if they are missing. \
              Other programs may read and write it at the same time.",
    },
    Key {
        name: "table",
        ty: Ty::Str,
        default: Default::Required,
        doc: "The table that gets a row for each event.",
    },
    Key {
        name: "columns",
        ty: Ty::Columns,
        default: Default::Derived(
            "`event_id`, `data` (the body as JSON text; a body that is not JSON as a JSON string, \
             one that is not UTF-8 as a BLOB) and `inserted_at`",
        ),
        doc: "What goes into which column: a member of the JSON body (`number = \"number\"`, \
              dotted for nested ones), or `@body @id @time @source @stream @key @trace`; \
              `{ from = \"number\", type = \"bigint\" }` names the type. A member without a type \
              is kept as it is, times as RFC 3339 text. A missing member is NULL.",
    },
    Key {
        name: "create",
        ty: Ty::Bool,
        default: Default::Toml("true"),
        doc: "A missing table is created, with these columns and the id column as its key.",
    },
    Key {
        name: "id_column",
        ty: Ty::Str,
        default: Default::Derived("the column mapped to `@id`, else `event_id`"),
        doc: "The column that keeps the event's id. It must be unique; where an existing table \
              has none, the ids seen are kept in the table `aqueduct_seen` beside it.",
    },
    Key {
        name: "mode",
        ty: Ty::Choice(&["insert", "upsert"]),
        default: Default::Toml("\"insert\""),
        doc: "`insert`: one row per event, whatever is delivered again. `upsert`: one row per \
              `key`, which the last event with it fills.",
    },
    Key {
        name: "key",
        ty: Ty::Strs,
        default: Default::Absent,
        doc: "With `mode = \"upsert\"`: the columns that make a row the same one. They must be \
              the primary key, or unique.",
    },
    Key {
        name: "seen",
        ty: Ty::Duration,
        default: Default::Toml("\"30d\""),
        doc: "How long `aqueduct_seen` knows an event that comes again, where the table itself \
              cannot tell (`upsert`, or a table without an id column).",
    },
];

/// The spec, read.
#[derive(Debug)]
struct Config {
    path: PathBuf,
    table: String,
    /// Name, what goes in, type.
    columns: Vec<(String, Selector, Option<String>)>,
    default_columns: bool,
    create: bool,
    id_column: String,
    id_column_asked: bool,
    /// Empty: every event is a row.
    key: Vec<String>,
    seen: Duration,
}

impl Config {
    fn new(values: &Values) -> Self {
        let given = values.opt_columns("columns");
        let columns = match given {
            Some(given) => given
                .iter()
                .map(|column| (column.name.clone(), column.from.clone(), column.ty.clone()))
                .collect(),
            None => vec![("data".into(), Selector::Body, Some("json".into()))],
        };
        Self {
            path: values.opt_path("path").unwrap_or_default(),
            table: values.str("table").into(),
            columns,
            default_columns: given.is_none(),
            create: values.bool("create"),
            id_column: values.opt_str("id_column").unwrap_or("event_id").into(),
            id_column_asked: values.opt_str("id_column").is_some(),
            key: match values.str("mode") {
                "upsert" => values.list("key").to_vec(),
                _ => Vec::new(),
            },
            seen: values.opt_duration("seen").unwrap_or(Duration::from_secs(30 * 86_400)),
        }
    }
}

fn check(values: &Values) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut complain = |key, message: String| complaints.push(Complaint { key, message });
    let table = values.str("table").to_lowercase();
    if table.starts_with("sqlite_") || table == "aqueduct_seen" {
        complain(
            "table",
            format!("`{table}` is a table of {}'s own (name another)", owner(&table)),
        );
    }
    let columns = values.opt_columns("columns");
    let key = values.list("key");
    match (values.str("mode"), key) {
        ("upsert", []) => {
            let message = "`mode = \"upsert\"` needs `key` (the columns that make a row the same)";
            complain("mode", message.into());
        }
        ("upsert", _) if columns.is_none() => {
            complain("mode", "`mode = \"upsert\"` needs `columns` (its `key` is of them)".into());
        }
        ("upsert", _) => {}
        (_, []) => {}
        _ => complain("key", "`key` means nothing here (it goes with `mode = \"upsert\"`)".into()),
    }
    let Some(columns) = columns else { return complaints };
    for name in key {
        if !columns.iter().any(|column| column.name.eq_ignore_ascii_case(name)) {
            let known: Vec<_> = columns.iter().map(|it| format!("`{}`", it.name)).collect();
            let message =
                format!("`{name}` is none of the columns (they are {})", known.join(", "));
            complain("key", message);
        }
    }
    let ids: Vec<_> = columns.iter().filter(|column| column.from == Selector::Id).collect();
    if let [_, second, ..] = ids[..] {
        let message = format!("`{}` is a second column for `@id` (one is enough)", second.name);
        complain("columns", message);
    }
    if let Some(asked) = values.opt_str("id_column") {
        let same = |name: &str| name.eq_ignore_ascii_case(asked);
        if let Some(other) = ids.iter().find(|column| !same(&column.name)) {
            let message =
                format!("`@id` goes into `{}` already (leave one of them out)", other.name);
            complain("id_column", message);
        }
    }
    let id_column = values.opt_str("id_column").unwrap_or("event_id");
    let taken = columns.iter().find(|column| column.name.eq_ignore_ascii_case(id_column));
    if let Some(taken) = taken.filter(|column| ids.is_empty() && column.from != Selector::Id) {
        let message = format!(
            "`{}` is the id column and takes `@id` (map it to that, or set `id_column`)",
            taken.name
        );
        complain("columns", message);
    }
    complaints.extend(columns::check(columns));
    complaints
}

fn owner(table: &str) -> &'static str {
    if table == "aqueduct_seen" { "aqueduct" } else { "SQLite" }
}

/// The path without `.` in it, so that two ways to write it compare equal.
fn plain(path: &Path) -> PathBuf {
    path.components().filter(|part| *part != Component::CurDir).collect()
}

fn open(spec: SinkSpec, _site: Site) -> BoxFuture<'static, Result<Box<dyn Sink>>> {
    Box::pin(async move { Ok(Box::new(Table::open(Config::new(&spec.values)).await?) as _) })
}

/// A table, open for writing.
struct Table {
    config: Config,
    plan: Plan,
    database: Database,
}

#[async_trait]
impl Sink for Table {
    async fn store(&mut self, batch: &[&Delivery]) -> Result<Vec<Refusal>> {
        self.database.check_there()?;
        write::store(self, batch).await
    }
}

impl Table {
    async fn open(config: Config) -> Result<Self> {
        let mut database = Database::open(&config.path).await?;
        let found = layout::read(&mut database.connection, &config.path, &config.table).await?;
        let found = match found {
            Some(found) => found,
            None if config.create => create(&mut database, &config).await?,
            None => bail!(
                "there is no table `{}` in {} (create it, or set `create = true`)",
                config.table,
                config.path.display()
            ),
        };
        let plan = Plan::new(&config, &found, &config.path)?;
        if plan.known == plan::Known::BySeen {
            execute(&mut database, SEEN).await?;
        }
        Ok(Self { config, plan, database })
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

async fn create(database: &mut Database, config: &Config) -> Result<layout::Layout> {
    execute(database, &plan::create(config)).await?;
    match layout::read(&mut database.connection, &config.path, &config.table).await? {
        Some(layout) => Ok(layout),
        None => bail!("table `{}` in {} is gone again", config.table, config.path.display()),
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
