//! Reading rows back.

mod value;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use async_trait::async_trait;
use futures_util::TryStreamExt;
use serde_json::Value as Json;
use sqlx::sqlite::{SqliteArguments, SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use super::DIALECT;
use super::plan::{of_declared, quote};
use crate::sink::SinkSpec;
use crate::sink::columns::Type;
use crate::sink::database::{add, code, identity, primary, trouble};
use crate::sink::query::condition::{Condition, Named, behind, other_meaning, resolve};
use crate::sink::query::pool::{Pool, Turn};
use crate::sink::query::{Ask, Filling, Mark, Page, Reader, Unanswered, machine};
use crate::sink::table::Config;

/// How long a statement waits for another process's lock.
const BUSY: Duration = Duration::from_secs(2);
/// Steps of SQLite's machine from one look at the clock to the next.
const STEPS: i32 = 10_000;

/// The rows of a sink's table.
pub(super) fn open(spec: &SinkSpec) -> Result<Arc<dyn Reader>> {
    let path = spec.values.opt_path("path").unwrap_or_default();
    // Not `:memory:` nor a `file:` URI, whatever the path looks like.
    let plain = std::path::absolute(&path)
        .with_context(|| format!("no such place as {}", path.display()))?;
    let config = Config::new(&spec.values, &DIALECT);
    Ok(Arc::new(Table { path, plain, config, pool: Pool::new() }))
}

struct Table {
    /// As it stands in the topology.
    path: PathBuf,
    plain: PathBuf,
    config: Config,
    pool: Pool<Live>,
}

/// A connection.
struct Live {
    connection: SqliteConnection,
    /// When what it does is given up.
    deadline: Arc<Mutex<Instant>>,
    /// What the path named when it was opened.
    identity: (u64, u64),
}

#[async_trait]
impl Reader for Table {
    fn identity(&self) -> String {
        format!("table {} in {} on {}", self.config.table, self.plain.display(), machine())
    }

    async fn page(&self, ask: &Ask) -> Result<Page, Unanswered> {
        let turn = self.pool.turn().await;
        let mut live = self.live(&turn, ask.timeout).await?;
        let page = self.read(&mut live.connection, ask).await;
        if !matches!(page, Err(Unanswered::Away(_))) {
            turn.give(live);
        }
        page
    }

    async fn check(&self, order: Option<&str>) -> Result<()> {
        // Where all are at work, the database works.
        let Some(turn) = self.pool.try_turn() else { return Ok(()) };
        let mut live = self.live(&turn, BUSY).await?;
        View::read(&mut live.connection, &self.path, &self.config, order).await?;
        turn.give(live);
        Ok(())
    }
}

impl Table {
    /// A connection to the file that the path names now, for work until `timeout` from now.
    async fn live(&self, turn: &Turn<'_, Live>, timeout: Duration) -> Result<Live> {
        let now = identity(&self.plain)?;
        let deadline = Instant::now() + timeout;
        while let Some(live) = turn.take() {
            if live.identity == now {
                *live.deadline.lock().unwrap_or_else(PoisonError::into_inner) = deadline;
                return Ok(live);
            }
        }
        let deadline = Arc::new(Mutex::new(deadline));
        let options = SqliteConnectOptions::new()
            .filename(&self.plain)
            .create_if_missing(false)
            .busy_timeout(BUSY)
            .pragma("query_only", "1")
            .disable_statement_logging();
        let connect = async {
            let mut connection = options.connect().await?;
            let deadline = deadline.clone();
            let in_time =
                move || Instant::now() < *deadline.lock().unwrap_or_else(PoisonError::into_inner);
            connection.lock_handle().await?.set_progress_handler(STEPS, in_time);
            Ok(connection)
        };
        let connection = connect.await.map_err(|error| trouble(&self.path, error))?;
        Ok(Live { connection, deadline, identity: now })
    }

    async fn read(&self, connection: &mut SqliteConnection, ask: &Ask) -> Result<Page, Unanswered> {
        let order = ask.order.as_deref();
        let view = View::read(connection, &self.path, &self.config, order).await?;
        let (sql, arguments) = view.statement(&self.config.table, ask)?;
        let unanswered = |error: sqlx::Error| match primary(&error) {
            Some(code::INTERRUPT) => Unanswered::Late,
            _ => Unanswered::Away(trouble(&self.path, error)),
        };
        let query = sqlx::query_with(AssertSqlSafe(sql), arguments).persistent(false);
        let mut found = query.fetch(connection);
        let (mut page, mut last, mut next) = (Filling::new(ask.limit), None, None);
        while let Some(row) = found.try_next().await.map_err(unanswered)? {
            if !page.take(view.row(&row)?)? {
                next = last.map(|last| view.mark(&last)).transpose()?;
                break;
            }
            last = Some(row);
        }
        Ok(page.page(next))
    }
}

/// A column as a query sees it.
struct Column {
    name: String,
    ty: Type,
    not_null: bool,
}

/// A table as a query sees it.
struct View {
    columns: Vec<Column>,
    /// The columns that make the order, quoted: of no two rows are they all the same.
    order: Vec<String>,
    /// The first of these may be NULL.
    nullable: bool,
}

impl View {
    /// Errs when there is no such table, or it cannot be read in this order.
    async fn read(
        connection: &mut SqliteConnection,
        path: &Path,
        config: &Config,
        order: Option<&str>,
    ) -> Result<Self> {
        let table = &config.table;
        let rowless: Option<bool> =
            sqlx::query_scalar("SELECT wr FROM pragma_table_list(?) WHERE type = 'table'")
                .bind(table)
                .fetch_optional(&mut *connection)
                .await
                .map_err(|error| trouble(path, error))?;
        let Some(rowless) = rowless else {
            bail!(
                "there is no table `{table}` in {} (its sink creates it when it runs)",
                path.display()
            )
        };
        let rows: Vec<(String, String, bool, i64)> = sqlx::query_as(
            "SELECT name, type, \"notnull\", pk FROM pragma_table_xinfo(?) WHERE hidden <> 1
             ORDER BY cid",
        )
        .bind(table)
        .fetch_all(connection)
        .await
        .map_err(|error| trouble(path, error))?;
        let mut key: Vec<_> = rows.iter().filter(|(_, _, _, place)| *place > 0).collect();
        key.sort_by_key(|(_, _, _, place)| *place);
        let numbers = matches!(key[..], [(_, ty, _, _)] if ty.eq_ignore_ascii_case("integer"));
        let sound = numbers || rowless || key.iter().all(|(_, _, not_null, _)| *not_null);
        let key: Vec<String> = match sound && !key.is_empty() {
            true => key.into_iter().map(|(name, ..)| name.clone()).collect(),
            false => vec!["_rowid_".to_owned()],
        };
        let columns = rows.into_iter().map(|(name, declared, not_null, _)| {
            // JSON and times are stored in columns of text.
            let asked = config.columns.iter().find(|it| it.name.eq_ignore_ascii_case(&name));
            let asked = asked.and_then(|it| it.ty.as_deref());
            let ty = of_declared(&asked.unwrap_or(&declared).to_lowercase());
            Column { name, ty, not_null }
        });
        let columns: Vec<Column> = columns.collect();
        Self::ordered(columns, key, order).with_context(|| {
            format!("the rows of `{table}` in {} cannot be put in order", path.display())
        })
    }

    fn ordered(columns: Vec<Column>, key: Vec<String>, order: Option<&str>) -> Result<Self> {
        let wanted = order.unwrap_or("inserted_at");
        let first = columns.iter().find(|column| column.name.eq_ignore_ascii_case(wanted));
        if let (None, Some(order)) = (first, order) {
            let names: Vec<_> = columns.iter().map(|column| format!("`{}`", column.name)).collect();
            bail!("there is no column `{order}` (`order` may be {})", names.join(", "));
        }
        let first = first.filter(|first| key != [first.name.as_str()]);
        let nullable = first.is_some_and(|column| !column.not_null);
        let names = first.map(|column| column.name.clone()).into_iter().chain(key);
        let order = names.map(|name| quote(&name)).collect();
        Ok(Self { columns, order, nullable })
    }

    /// A statement, and what is bound to it: nothing that was asked is part of its text but the
    /// names of columns that exist.
    fn statement(&self, table: &str, ask: &Ask) -> Result<(String, SqliteArguments), Unanswered> {
        let named: Vec<_> = self.columns.iter().map(Named::from).collect();
        let mut bound = Bound::default();
        let mut conditions = Vec::new();
        for condition in resolve(&ask.filters, &named, |a, b| a.eq_ignore_ascii_case(b))? {
            conditions.push(match condition {
                Condition::Column { at, value } => self.columns[at].has(value, &mut bound)?,
                Condition::Member { at, path, value } => {
                    member(&self.columns[at].name, &path, value, &mut bound)
                }
            });
        }
        if let Some(Mark(mark)) = &ask.after {
            let places = mark.iter().map(|value| bound.add(value::bindable(value)?));
            let places: Option<Vec<_>> = places.collect();
            let Some(places) = places.filter(|places| places.len() == self.order.len()) else {
                let message = "`after` is no place in these rows (take `next` of the page before)";
                return Err(Unanswered::Wrong(message.to_owned()));
            };
            let bind = |at: usize| places[at].clone();
            conditions.push(behind(&self.order, self.nullable, mark[0].is_null(), bind));
        }
        let wanted = match conditions.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", conditions.join(" AND ")),
        };
        let columns = self.columns.iter().map(|column| quote(&column.name));
        let columns: Vec<String> = columns.chain(self.order.iter().cloned()).collect();
        let sql = format!(
            "SELECT {} FROM {}{wanted} ORDER BY {} DESC LIMIT {}",
            columns.join(", "),
            quote(table),
            self.order.join(" DESC, "),
            ask.limit + 1
        );
        Ok((sql, bound.arguments))
    }

    /// A row as a JSON object.
    fn row(&self, row: &sqlx::sqlite::SqliteRow) -> Result<String> {
        let mut out = String::from("{");
        for (at, column) in self.columns.iter().enumerate() {
            if at > 0 {
                out.push(',');
            }
            out.push_str(&Json::from(column.name.as_str()).to_string());
            out.push(':');
            value::Stored::read(row.try_get_raw(at)?)?.render(column.ty, &mut out);
        }
        out.push('}');
        Ok(out)
    }

    /// A row's place.
    fn mark(&self, row: &sqlx::sqlite::SqliteRow) -> Result<Mark> {
        let places = self.columns.len()..self.columns.len() + self.order.len();
        let values = places.map(|at| Ok(value::Stored::read(row.try_get_raw(at)?)?.mark()));
        values.collect::<Result<_>>().map(Mark)
    }
}

impl<'c> From<&'c Column> for Named<'c> {
    fn from(column: &'c Column) -> Self {
        Self { name: &column.name, is_json: column.ty == Type::Json }
    }
}

impl Column {
    /// The condition that it has this value.
    fn has(&self, value: &str, bound: &mut Bound) -> Result<String, Unanswered> {
        let Some(meanings) = value::meanings(self.ty, value) else {
            return Err(Unanswered::Wrong(format!(
                "`{}` is no value of column `{}` ({})",
                crate::spec::text::shown(value),
                self.name,
                value::wanted(self.ty)
            )));
        };
        let places: Option<Vec<_>> = meanings.into_iter().map(|it| bound.add(it)).collect();
        let places = places.unwrap_or_default().join(", ");
        let name = quote(&self.name);
        Ok(match self.ty {
            Type::Json => {
                format!("(CASE WHEN json_valid({name}) THEN json({name}) END) IN (json({places}))")
            }
            _ => format!("{name} IN ({places})"),
        })
    }
}

/// The condition that a member of a JSON column has a value: the text, or what else it reads as.
fn member(column: &str, path: &[&str], value: &str, bound: &mut Bound) -> String {
    let steps: String = path.iter().map(|part| format!(".{}", Json::from(*part))).collect();
    let number = match other_meaning(value) {
        Some("true" | "false" | "null") | None => Json::Null,
        Some(number) => serde_json::from_str(number).unwrap_or(Json::Null),
    };
    let bind = |it| bound.add(it);
    let three = [Json::from(format!("${steps}")), Json::from(value), number].map(value::plain);
    let [path, text, number] = three.map(bind).map(Option::unwrap_or_default);
    let name = quote(column);
    let found = format!("json_extract({name}, {path})");
    format!(
        "CASE WHEN json_valid({name}) THEN CASE json_type({name}, {path}) \
         WHEN 'text' THEN {found} = {text} \
         WHEN 'integer' THEN {found} = {number} WHEN 'real' THEN {found} = {number} \
         WHEN 'true' THEN {text} = 'true' WHEN 'false' THEN {text} = 'false' \
         WHEN 'null' THEN {text} = 'null' END END"
    )
}

/// What is bound to a statement.
#[derive(Default)]
struct Bound {
    arguments: SqliteArguments,
    count: usize,
}

impl Bound {
    /// Binds a value: its placeholder.
    fn add(&mut self, value: value::Bindable) -> Option<String> {
        use value::Bindable::{Blob, Integer, Null, Real, Text};
        let arguments = &mut self.arguments;
        let added = match value {
            Null => add(arguments, None::<i64>),
            Integer(it) => add(arguments, it),
            Real(it) => add(arguments, it),
            Text(it) => add(arguments, it),
            Blob(it) => add(arguments, it),
        };
        added.ok()?;
        self.count += 1;
        Some(format!("?{}", self.count))
    }
}
