//! What a request asks for.

use actix_web::web;

use crate::sink::query::{Ask, FILTERS_MAX, Mark, ROWS_MAX};
use crate::spec::text::shown;
use crate::topology::QuerySpec;
use crate::web::problem::Problem;

/// Rows in a page where nothing is asked.
pub const ROWS: usize = 100;

/// A question that is the same however it was put.
pub struct Question {
    pub ask: Ask,
    /// All that its answer depends on.
    pub text: String,
}

/// Reads `level=info&limit=100&after=…`.
pub fn read(query: &str, spec: &QuerySpec, identity: &str) -> Result<Ask, Problem> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(query)
        .map_err(|_| Problem::bad("the question cannot be read (NAME=VALUE&NAME=VALUE…)"))?;
    let mut ask = Ask {
        filters: Vec::new(),
        order: spec.order.clone(),
        limit: ROWS,
        after: None,
        timeout: spec.timeout,
    };
    for (name, value) in pairs.into_inner() {
        match name.as_str() {
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=ROWS_MAX).contains(limit));
                ask.limit = limit.ok_or_else(|| {
                    let value = shown(&value);
                    Problem::bad(format!("`limit` is `{value}` (a number from 1 to {ROWS_MAX})"))
                })?;
            }
            "after" => {
                let mark = Mark::open(&value, identity);
                ask.after = Some(mark.ok_or_else(|| {
                    Problem::bad(
                        "`after` is no place in these rows (take `next` of the page before)",
                    )
                })?);
            }
            _ => ask.filters.push((name, value)),
        }
    }
    if ask.filters.len() > FILTERS_MAX {
        return Err(Problem::bad(format!(
            "{} conditions are too many (at most {FILTERS_MAX})",
            ask.filters.len()
        )));
    }
    Ok(ask)
}

/// The question in one form, so that equal ones are equal.
pub fn normal(mut ask: Ask, identity: &str) -> Question {
    ask.filters.sort();
    ask.filters.dedup();
    let after = ask.after.as_ref().map(|mark| &mark.0);
    let text = serde_json::json!([identity, ask.filters, ask.limit, after]).to_string();
    Question { ask, text }
}
