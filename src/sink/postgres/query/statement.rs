//! The statement that reads a page. Nothing that was asked is part of its text but the names of
//! columns that exist; what is asked for is bound, as text that the server reads as a column's
//! type.

use serde_json::Value as Json;
use sqlx::AssertSqlSafe;
use sqlx::postgres::PgConnection;

use super::view::{Column, Looks, View};
use crate::client::postgres::{code, quote};
use crate::sink::query::condition::{Condition, Named, behind, other_meaning, resolve};
use crate::sink::query::{Ask, Mark, Unanswered};
use crate::spec::text::shown;

const NO_PLACE: &str = "`after` is no place in these rows (take `next` of the page before)";

/// A statement: its rows are a JSON object and the values that make its place.
pub(super) struct Statement {
    pub(super) sql: String,
    pub(super) bound: Vec<Option<String>>,
}

impl View {
    pub(super) fn statement(&self, ask: &Ask) -> Result<Statement, Unanswered> {
        let order = self.order(ask.order.as_deref())?;
        let mut bound = Vec::new();
        let mut bind = |value: Option<String>, ty: &str| {
            bound.push(value);
            format!("${}::text::{ty}", bound.len())
        };
        let mut wanted = Vec::new();
        for condition in self.conditions(ask)? {
            wanted.push(match condition {
                Condition::Column { at, value } => {
                    let column = &self.columns[at];
                    let (name, ty) = column.comparable();
                    format!("{name} = {}", bind(Some(value.into()), ty))
                }
                Condition::Member { at, path, value } => {
                    let name = self.columns[at].comparable().0;
                    let meanings = meanings(&path, value).into_iter();
                    let ways = meanings.map(|it| format!("{name} @> {}", bind(Some(it), "jsonb")));
                    format!("({})", ways.collect::<Vec<_>>().join(" OR "))
                }
            });
        }
        if let Some(Mark(mark)) = &ask.after {
            if mark.len() != order.names.len() || !mark.iter().all(is_text_or_null) {
                return Err(Unanswered::Wrong(NO_PLACE.to_owned()));
            }
            let bind = |at: usize| bind(mark[at].as_str().map(str::to_owned), &order.types[at]);
            wanted.push(behind(&order.names, order.nullable, mark[0].is_null(), bind));
        }
        let wanted = match wanted.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", wanted.join(" AND ")),
        };
        let columns: Vec<_> = self.columns.iter().map(Column::shown).collect();
        // With `t.`, as what is selected has the columns' names too.
        let places: String = order.names.iter().map(|name| format!(", t.{name}::text")).collect();
        let sql = format!(
            "SELECT (SELECT row_to_json(r.*) FROM (SELECT {}) r)::text{places} FROM {} t{wanted} \
             ORDER BY {} LIMIT {}",
            columns.join(", "),
            self.name.sql(),
            order.sql("t."),
            ask.limit + 1
        );
        Ok(Statement { sql, bound })
    }

    fn conditions<'a>(&self, ask: &'a Ask) -> Result<Vec<Condition<'a>>, Unanswered> {
        let named: Vec<_> = self.columns.iter().map(Named::from).collect();
        resolve(&ask.filters, &named, |a, b| a == b)
    }

    /// What of the question the server cannot read, found out by asking for each value alone.
    pub(super) async fn blame(
        &self,
        connection: &mut PgConnection,
        ask: &Ask,
    ) -> sqlx::Result<Option<String>> {
        for condition in self.conditions(ask).unwrap_or_default() {
            let (at, value) = match condition {
                Condition::Column { at, value } => (at, value),
                Condition::Member { value, .. } => {
                    if try_value(connection, value, "text").await?.is_err() {
                        return Ok(Some(format!("`{}` is no text for PostgreSQL", shown(value))));
                    }
                    continue;
                }
            };
            let column = &self.columns[at];
            let Column { name, ty, .. } = column;
            let message = match try_value(connection, value, column.comparable().1).await? {
                Ok(()) => continue,
                Err(error) if code(&error) == Some("42883") => {
                    format!("column `{name}` cannot be asked for: {ty} has no equality")
                }
                Err(_) => format!("`{}` is no value of column `{name}` ({ty})", shown(value)),
            };
            return Ok(Some(message));
        }
        let Ok(order) = self.order(ask.order.as_deref()) else { return Ok(None) };
        let mark = ask.after.iter().flat_map(|Mark(mark)| mark).zip(&order.types);
        for (value, ty) in mark {
            let Some(value) = value.as_str() else { continue };
            if try_value(connection, value, ty).await?.is_err() {
                return Ok(Some(NO_PLACE.to_owned()));
            }
        }
        Ok(None)
    }
}

/// Whether the text is a value of the type that can be compared. The outer error is of the
/// connection.
async fn try_value(
    connection: &mut PgConnection,
    text: &str,
    ty: &str,
) -> sqlx::Result<sqlx::Result<()>> {
    let sql = format!("SELECT $1::text::{ty} = $1::text::{ty}");
    let tried = sqlx::query(AssertSqlSafe(sql)).persistent(false).bind(text);
    match tried.execute(connection).await {
        Ok(_) => Ok(Ok(())),
        Err(error @ sqlx::Error::Database(_)) => Ok(Err(error)),
        Err(error) => Err(error),
    }
}

fn is_text_or_null(value: &Json) -> bool {
    value.is_null() || value.is_string()
}

/// The JSON objects that have this member with this text, or with what else it reads as.
fn meanings(path: &[&str], value: &str) -> Vec<String> {
    let text = Json::from(value).to_string();
    let scalars = std::iter::once(text.as_str()).chain(other_meaning(value));
    let nested = |scalar: &str| {
        let mut out = String::new();
        for name in path {
            out.push('{');
            out.push_str(&Json::from(*name).to_string());
            out.push(':');
        }
        out.push_str(scalar);
        out.extend(path.iter().map(|_| '}'));
        out
    };
    scalars.map(nested).collect()
}

impl Column {
    /// What of it is compared, and the type of that.
    fn comparable(&self) -> (String, &str) {
        let name = quote(&self.name);
        match self.looks {
            Looks::Json => (format!("{name}::jsonb"), "jsonb"),
            _ => (name, &self.ty),
        }
    }

    /// What is shown of it: bytes in base64, the rest as the server makes JSON of it.
    fn shown(&self) -> String {
        let name = quote(&self.name);
        match self.looks {
            Looks::Bytes => {
                format!("translate(encode(t.{name}, 'base64'), E'\\n', '') AS {name}")
            }
            _ => format!("t.{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_may_be_a_text_and_what_it_reads_as() {
        assert_eq!(meanings(&["level"], "info"), ["{\"level\":\"info\"}"]);
        assert_eq!(
            meanings(&["a\"b", "c"], "5"),
            ["{\"a\\\"b\":{\"c\":\"5\"}}", "{\"a\\\"b\":{\"c\":5}}"]
        );
        assert_eq!(meanings(&["ok"], "true")[1], "{\"ok\":true}");
    }
}
