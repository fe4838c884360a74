//! `[query.NAME]`: rows of a database sink over HTTP, newest first, a page at a time.

use std::collections::HashMap;
use std::sync::Arc;

use actix_web::http::header::{CACHE_CONTROL, ETAG, IF_NONE_MATCH};
use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;

use super::guard::Guard;
use super::problem::Problem;
use crate::event::hash;
use crate::sink::rows::{Ask, FILTERS_MAX, Mark, ROWS_MAX, Reading, Rows, Unanswered};
use crate::topology::{QuerySpec, Topology};

/// Rows in a page where nothing is asked.
const ROWS: usize = 100;

/// The queries that are served.
pub struct Queries {
    guard: Arc<Guard>,
    by_path: HashMap<String, Query>,
}

struct Query {
    spec: QuerySpec,
    rows: Arc<dyn Rows>,
}

/// What is answered, but for where it came from.
#[derive(Serialize, Deserialize)]
struct Found {
    rows: Vec<Json>,
    next: Option<String>,
}

#[derive(Serialize)]
struct Answer<'a> {
    #[serde(flatten)]
    found: &'a Found,
    cached: bool,
}

impl Queries {
    /// The queries of a topology.
    pub fn new(topology: &Topology, guard: Arc<Guard>) -> Self {
        let queries = topology.queries.iter().filter_map(|spec| {
            let sink = topology.sink(&spec.sink)?;
            let reading = Reading { order: spec.order.clone(), timeout: spec.timeout };
            // The check of the topology lets no other sink be queried.
            let rows = (sink.kind.rows?)(sink, reading);
            Some((spec.path.clone(), Query { spec: spec.clone(), rows }))
        });
        Self { guard, by_path: queries.collect() }
    }

    /// What is served, and where.
    pub fn specs(&self) -> impl Iterator<Item = &QuerySpec> {
        self.by_path.values().map(|query| &query.spec)
    }

    /// Answers a request, if it is for one of them.
    pub async fn answer(&self, request: &HttpRequest) -> Option<Result<HttpResponse, Problem>> {
        let query = self.by_path.get(request.path())?;
        Some(self.page(query, request).await)
    }

    async fn page(&self, query: &Query, request: &HttpRequest) -> Result<HttpResponse, Problem> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(Problem::only_get());
        }
        if !self.guard.knows(request) {
            return Err(Problem::stranger());
        }
        let _pass = self.guard.enter().ok_or_else(Problem::busy)?;
        let ask = read_ask(request.query_string())?;
        let found = query.ask(&ask).await?;
        Ok(respond(request, &found, false))
    }
}

impl Query {
    async fn ask(&self, ask: &Ask) -> Result<Found, Problem> {
        let name = &self.spec.name;
        match tokio::time::timeout(self.spec.timeout, self.rows.page(ask)).await {
            Ok(Ok(page)) => {
                Ok(Found { rows: page.rows, next: page.next.map(|mark| mark.to_string()) })
            }
            Ok(Err(Unanswered::Wrong(message))) => Err(Problem::bad(message)),
            Ok(Err(Unanswered::Away(error))) => {
                tracing::warn!(query = %name, "cannot answer: {error:#}");
                Err(Problem::away("the database cannot answer now (the log says why)"))
            }
            Err(_) => {
                tracing::warn!(query = %name, "the database took longer than `timeout`");
                Err(Problem::away(format!(
                    "the database took longer than {} s (ask for less, or set a longer `timeout`)",
                    self.spec.timeout.as_secs_f64()
                )))
            }
        }
    }
}

/// Reads `level=info&limit=100&after=…`.
fn read_ask(query: &str) -> Result<Ask, Problem> {
    let pairs = web::Query::<Vec<(String, String)>>::from_query(query)
        .map_err(|_| Problem::bad("the question cannot be read (NAME=VALUE&NAME=VALUE…)"))?;
    let mut ask = Ask { limit: ROWS, ..Ask::default() };
    for (name, value) in pairs.into_inner() {
        match name.as_str() {
            "limit" => {
                ask.limit = value
                    .parse()
                    .ok()
                    .filter(|limit| (1..=ROWS_MAX).contains(limit))
                    .ok_or_else(|| {
                        Problem::bad(format!("`limit` is {value} (a number from 1 to {ROWS_MAX})"))
                    })?;
            }
            "after" => {
                let mark = Mark::parse(&value);
                ask.after = Some(mark.ok_or_else(|| {
                    Problem::bad("`after` is no place in the rows (take `next` of the page before)")
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

/// 200 with the rows, or 304 where who asks has them already.
fn respond(request: &HttpRequest, found: &Found, cached: bool) -> HttpResponse {
    let content = serde_json::to_vec(found).unwrap_or_default();
    let tag = format!("\"{:016x}\"", hash(&content));
    let known = request.headers().get(IF_NONE_MATCH).and_then(|known| known.to_str().ok());
    let unchanged = known.is_some_and(|known| {
        known.split(',').map(str::trim).any(|it| it == "*" || it.trim_start_matches("W/") == tag)
    });
    let status = if unchanged { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
    let mut answer = HttpResponse::build(status);
    answer.insert_header((ETAG, tag));
    answer.insert_header((CACHE_CONTROL, "private, no-cache"));
    match unchanged {
        true => answer.finish(),
        false => answer.json(Answer { found, cached }),
    }
}
