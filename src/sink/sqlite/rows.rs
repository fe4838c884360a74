//! Reading back a table.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use async_trait::async_trait;
use serde_json::{Map, Value as Json};
use sqlx::sqlite::{
    SqliteArguments, SqliteConnectOptions, SqliteConnection, SqlitePool, SqlitePoolOptions,
    SqliteRow, SqliteValueRef,
};
use sqlx::{AssertSqlSafe, Row, TypeInfo, ValueRef};

use super::super::database::{add, trouble};
use super::Config;
use super::layout::{self, Layout};
use super::plan::quote;
use crate::sink::SinkSpec;
use crate::sink::rows::{Ask, Mark, Page, Reading, Rows, Unanswered};

/// Connections that one query has, at most.
const CONNECTIONS_MAX: u32 = 4;

/// The rows of a sink's table.
pub(super) fn open(spec: &SinkSpec, reading: Reading) -> Arc<dyn Rows> {
    let config = Config::new(&spec.values);
    let options = SqliteConnectOptions::new()
        .filename(&config.path)
        .create_if_missing(false)
        .pragma("query_only", "1")
        .busy_timeout(reading.timeout);
    let pool = SqlitePoolOptions::new()
        .max_connections(CONNECTIONS_MAX)
        .acquire_timeout(reading.timeout)
        .connect_lazy_with(options);
    Arc::new(Table { config, order: reading.order, pool })
}

struct Table {
    config: Config,
    order: Option<String>,
    pool: SqlitePool,
}

/// A table as a query sees it.
struct View {
    layout: Layout,
    /// The columns that make the order: of no two rows they are all the same.
    order: Vec<String>,
}

#[async_trait]
impl Rows for Table {
    async fn page(&self, ask: &Ask) -> Result<Page, Unanswered> {
        let mut connection =
            self.pool.acquire().await.map_err(|error| trouble(&self.config.path, error))?;
        let view = self.view(&mut connection).await?;
        let question = Question::new(&self.config.table, &view, ask)?;
        let query = sqlx::query_with(AssertSqlSafe(question.sql), question.arguments);
        let found = query.fetch_all(&mut *connection).await;
        let found = found.map_err(|error| trouble(&self.config.path, error))?;
        let more = found.len() > ask.limit;
        let found = &found[..found.len().min(ask.limit)];
        let next = found.last().filter(|_| more).map(|last| view.mark(last)).transpose()?;
        let rows = found.iter().map(|row| view.row(row)).collect::<Result<_>>()?;
        Ok(Page { rows, next })
    }
}

impl Table {
    async fn view(&self, connection: &mut SqliteConnection) -> Result<View> {
        let Config { path, table, .. } = &self.config;
        let layout = layout::read(connection, path, table).await?;
        let layout = layout.with_context(|| {
            format!("{} has no table `{table}` yet (its sink creates it)", path.display())
        })?;
        let mut order = Vec::new();
        let wanted = self.order.as_deref().unwrap_or("inserted_at");
        match layout.column(wanted) {
            Some(column) => order.push(column.name.clone()),
            None if self.order.is_some() => {
                return Err(anyhow!("table `{table}` has no column `{wanted}` to order by"));
            }
            None => {}
        }
        let rowid =
            sqlx::query(AssertSqlSafe(format!("SELECT _rowid_ FROM {} LIMIT 0", quote(table))));
        match rowid.fetch_optional(connection).await {
            Ok(_) => order.push("_rowid_".to_owned()),
            // A table WITHOUT ROWID has a primary key, which no two rows share.
            Err(_) => order.extend(layout.unique.first().into_iter().flatten().cloned()),
        }
        Ok(View { layout, order })
    }
}

/// A statement, and what is bound to it: nothing that was asked is part of its text but the names
/// of columns that exist.
struct Question {
    sql: String,
    arguments: SqliteArguments,
}

impl Question {
    fn new(table: &str, view: &View, ask: &Ask) -> Result<Self, Unanswered> {
        let mut arguments = SqliteArguments::default();
        let mut conditions = Vec::new();
        for (name, value) in &ask.filters {
            conditions.push(view.condition(name, value, &mut arguments)?);
        }
        let order: Vec<String> = view.order.iter().map(|name| quote(name)).collect();
        if let Some(Mark(mark)) = &ask.after {
            if mark.len() != order.len() {
                let message = "`after` is of another query (take `next` of the page before)";
                return Err(Unanswered::Wrong(message.to_owned()));
            }
            conditions.push(behind(&order, mark, &mut arguments)?);
        }
        let columns = view.layout.columns.iter().map(|column| quote(&column.name));
        let columns: Vec<String> = columns.chain(order.iter().cloned()).collect();
        let wanted = match conditions.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", conditions.join(" AND ")),
        };
        add(&mut arguments, ask.limit as i64 + 1)?;
        let sql = format!(
            "SELECT {} FROM {}{wanted} ORDER BY {} DESC LIMIT ?",
            columns.join(", "),
            quote(table),
            order.join(" DESC, ")
        );
        Ok(Self { sql, arguments })
    }
}

/// Rows that come after a mark, the largest first. NULL is the smallest.
fn behind(order: &[String], mark: &[Json], arguments: &mut SqliteArguments) -> Result<String> {
    let mut ways = Vec::new();
    for at in 0..order.len() {
        let mut way = Vec::new();
        for (name, value) in order[..at].iter().zip(mark) {
            bind(arguments, value)?;
            way.push(format!("{name} IS ?"));
        }
        if mark[at].is_null() {
            // Nothing is smaller, but what was bound has to be asked for.
            way.push("0".to_owned());
        } else {
            bind(arguments, &mark[at])?;
            way.push(format!("({0} < ? OR {0} IS NULL)", order[at]));
        }
        ways.push(format!("({})", way.join(" AND ")));
    }
    Ok(format!("({})", ways.join(" OR ")))
}

fn bind(arguments: &mut SqliteArguments, value: &Json) -> Result<()> {
    match value {
        Json::Null => add(arguments, None::<i64>),
        Json::Bool(it) => add(arguments, *it),
        Json::Number(it) => match it.as_i64() {
            Some(whole) => add(arguments, whole),
            None => add(arguments, it.as_f64().unwrap_or_default()),
        },
        Json::String(it) => add(arguments, it.clone()),
        Json::Array(_) | Json::Object(_) => add(arguments, value.to_string()),
    }
}

/// What a text may mean as a value: itself, a number, a truth value.
fn meanings(text: &str) -> Vec<Json> {
    let mut all = vec![Json::from(text)];
    all.extend(text.parse::<i64>().map(Json::from));
    if all.len() == 1 {
        all.extend(text.parse::<f64>().ok().filter(|it| it.is_finite()).map(Json::from));
    }
    match text {
        "true" => all.push(Json::from(1)),
        "false" => all.push(Json::from(0)),
        _ => {}
    }
    all
}

impl View {
    /// The condition that a column, or a member of a JSON column, has a value.
    fn condition(
        &self,
        name: &str,
        value: &str,
        arguments: &mut SqliteArguments,
    ) -> Result<String, Unanswered> {
        let meanings = meanings(value);
        let marks = vec!["?"; meanings.len()].join(", ");
        let mut bind_all = |arguments: &mut SqliteArguments| {
            meanings.iter().try_for_each(|meaning| bind(arguments, meaning))
        };
        if let Some(column) = self.layout.column(name) {
            bind_all(arguments)?;
            return Ok(format!("{} IN ({marks})", quote(&column.name)));
        }
        let json: Vec<String> = self
            .layout
            .columns
            .iter()
            .filter(|it| it.is_json())
            .map(|it| quote(&it.name))
            .collect();
        if json.is_empty() || name.contains('"') {
            let known: Vec<&str> = self.layout.columns.iter().map(|it| it.name.as_str()).collect();
            return Err(Unanswered::Wrong(format!(
                "there is no column `{name}` (there are {})",
                known.join(", ")
            )));
        }
        let path: String = name.split('.').map(|part| format!(".\"{part}\"")).collect();
        let mut ways = Vec::new();
        for column in json {
            add(arguments, format!("${path}"))?;
            bind_all(arguments)?;
            ways.push(format!(
                "(CASE WHEN json_valid({column}) THEN json_extract({column}, ?) END) IN ({marks})"
            ));
        }
        Ok(format!("({})", ways.join(" OR ")))
    }

    /// A row as a JSON object.
    fn row(&self, row: &SqliteRow) -> Result<Json> {
        let mut object = Map::new();
        for (at, column) in self.layout.columns.iter().enumerate() {
            let mut value = json(row.try_get_raw(at)?, column.is_json());
            if column.is_bool()
                && let Some(truth) = value.as_i64()
            {
                value = Json::from(truth != 0);
            }
            object.insert(column.name.clone(), value);
        }
        Ok(Json::Object(object))
    }

    /// A row's place.
    fn mark(&self, row: &SqliteRow) -> Result<Mark> {
        let first = self.layout.columns.len();
        let values = (0..self.order.len()).map(|at| Ok(json(row.try_get_raw(first + at)?, false)));
        values.collect::<Result<_>>().map(Mark)
    }
}

/// A value as it is stored, whatever its column says. Bytes that are no text are `\x` and
/// hexadecimal digits.
fn json(value: SqliteValueRef<'_>, is_json: bool) -> Json {
    use sqlx::Decode;
    let kind = value.type_info().name().to_owned();
    match kind.as_str() {
        "NULL" => Json::Null,
        "INTEGER" | "BOOLEAN" => {
            <i64 as Decode<sqlx::Sqlite>>::decode(value).map_or(Json::Null, Json::from)
        }
        "REAL" => <f64 as Decode<sqlx::Sqlite>>::decode(value).map_or(Json::Null, Json::from),
        _ => {
            let bytes = <&[u8] as Decode<sqlx::Sqlite>>::decode(value).unwrap_or_default();
            match std::str::from_utf8(bytes) {
                Ok(text) if is_json => {
                    serde_json::from_str(text).unwrap_or_else(|_| Json::from(text))
                }
                Ok(text) => Json::from(text),
                Err(_) => {
                    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
                    Json::from(format!("\\x{hex}"))
                }
            }
        }
    }
}
