//! `[query.NAME]`: rows of a database sink over HTTP, newest first, a page at a time.

mod answer;
mod ask;
mod cache;
mod flight;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, ResponseError};
use anyhow::Result;
use futures_util::future::join_all;

use self::answer::Found;
pub use self::ask::ROWS;
use self::cache::Cache;
use self::flight::Flights;
use super::guard::{Guard, Pass};
use super::problem::Problem;
use crate::client::said::Telling;
use crate::sink::SinkSpec;
use crate::sink::query::{Ask, Reader, Unanswered};
use crate::telemetry::board::{Board, Trouble};
use crate::telemetry::metrics::{QueryLabels, QueryStatusLabels};
use crate::topology::compare::same_sink;
use crate::topology::{QuerySpec, Topology};

/// How long a database may take to say that it is there.
const CHECK: Duration = Duration::from_secs(2);
/// For how long that is believed.
const CHECKED: Duration = Duration::from_secs(1);

/// The queries that are served.
pub struct Queries {
    guard: Arc<Guard>,
    board: Arc<Board>,
    by_path: HashMap<String, Arc<Query>>,
}

/// One of them.
struct Query {
    spec: QuerySpec,
    sink: SinkSpec,
    reader: Arc<dyn Reader>,
    /// Tells its rows from those of others.
    identity: String,
    cache: Option<Cache>,
    flights: Flights,
    /// What the log knows of its not being answered.
    said: Telling,
    /// When its database was looked at last, and what was wrong with it.
    checked: tokio::sync::Mutex<Option<(Instant, Option<Arc<str>>)>>,
}

impl Queries {
    /// The queries of a topology; those that are as they were in `before` go on with what they
    /// have open. Errs when a sink's rows cannot be read at all.
    pub fn new(
        topology: &Topology,
        guard: Arc<Guard>,
        board: Arc<Board>,
        before: Option<&Queries>,
    ) -> Result<Self> {
        let mut readers: HashMap<&str, Arc<dyn Reader>> = HashMap::new();
        let mut by_path = HashMap::new();
        for spec in &topology.queries {
            // The check of the topology lets no other sink be queried.
            let Some(sink) = topology.sink(&spec.sink) else { continue };
            let Some(open) = sink.kind.reader else { continue };
            let known = before.into_iter().flat_map(|before| before.by_path.values());
            let mut known = known.filter(|query| same_sink(&query.sink, sink));
            if let Some(same) = known.clone().find(|query| query.spec == *spec) {
                by_path.insert(spec.path.clone(), same.clone());
                continue;
            }
            let reader = match (readers.get(&*spec.sink), known.next()) {
                (Some(reader), _) => reader.clone(),
                (None, Some(query)) => query.reader.clone(),
                (None, None) => open(sink)?,
            };
            readers.insert(&spec.sink, reader.clone());
            by_path.insert(spec.path.clone(), Arc::new(Query::new(spec, sink, reader)));
        }
        Ok(Self { guard, board, by_path })
    }

    /// What is served, and where, in the order of the names.
    pub fn specs(&self) -> Vec<&QuerySpec> {
        let mut specs: Vec<_> = self.by_path.values().map(|query| &query.spec).collect();
        specs.sort_by(|a, b| a.name.cmp(&b.name));
        specs
    }

    /// Those that could not be answered now, and why.
    pub async fn troubles(&self) -> Vec<Trouble> {
        let mut troubles: Vec<Trouble> =
            join_all(self.by_path.values().map(|query| query.trouble()))
                .await
                .into_iter()
                .flatten()
                .collect();
        troubles.sort_by(|a, b| a.name.cmp(&b.name));
        troubles
    }

    /// Answers a request, if it is for one of them.
    pub async fn answer(&self, request: &HttpRequest) -> Option<HttpResponse> {
        let query = self.by_path.get(request.path())?;
        let begun = Instant::now();
        let answer = self.page(query, request).await;
        let answer = answer.unwrap_or_else(|problem| problem.error_response());
        let query = query.spec.name.to_string();
        let status = answer.status().as_u16();
        let metrics = &self.board.metrics;
        let labels = QueryStatusLabels { query: query.clone(), status };
        metrics.query_requests.get_or_create_owned(&labels).inc();
        let seconds = metrics.query_seconds.get_or_create_owned(&QueryLabels { query });
        seconds.observe(begun.elapsed().as_secs_f64());
        Some(answer)
    }

    async fn page(
        &self,
        query: &Arc<Query>,
        request: &HttpRequest,
    ) -> Result<HttpResponse, Problem> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return Err(Problem::only_get());
        }
        if !self.guard.knows(request) {
            return Err(Problem::stranger());
        }
        let pass = Arc::new(self.guard.enter().ok_or_else(Problem::busy)?);
        let ask = ask::read(request.query_string(), &query.spec, &query.identity)?;
        let Some(cache) = &query.cache else {
            let found = query.ask(&ask).await?;
            return answer::respond(request, &found, None, self.guard.asks(), &pass);
        };
        let question = ask::normal(ask, &query.identity);
        let metrics = &self.board.metrics;
        let labels = QueryLabels { query: query.spec.name.to_string() };
        // Both are there from the first request on, so that their ratio can be asked for.
        let hits = metrics.query_cache_hits.get_or_create_owned(&labels);
        let misses = metrics.query_cache_misses.get_or_create_owned(&labels);
        let (found, cached) = match cache.get(&question).await {
            Some(found) => {
                hits.inc();
                (Arc::new(found), true)
            }
            None => {
                misses.inc();
                (query.shared(question, pass.clone()).await?, false)
            }
        };
        let cached = Some((cached, cache.ttl));
        answer::respond(request, &found, cached, self.guard.asks(), &pass)
    }
}

impl Query {
    fn new(spec: &QuerySpec, sink: &SinkSpec, reader: Arc<dyn Reader>) -> Self {
        let order = spec.order.as_deref().unwrap_or_default();
        let identity = format!("{} by {order} of {}", spec.name, reader.identity());
        Self {
            spec: spec.clone(),
            sink: sink.clone(),
            reader,
            identity,
            cache: spec.cache.as_ref().map(|cache| Cache::new(&spec.name, cache)),
            flights: Flights::default(),
            said: Telling::default(),
            checked: tokio::sync::Mutex::default(),
        }
    }

    /// The answer of the database, which all who ask the same at once share, and which is kept in
    /// the cache.
    async fn shared(
        self: &Arc<Self>,
        question: ask::Question,
        pass: Arc<Pass>,
    ) -> Result<Arc<Found>, Problem> {
        let query = self.clone();
        let key = question.text.clone();
        let flight = self.flights.join(key, move || async move {
            let found = Arc::new(query.ask(&question.ask).await?);
            if let Some(cache) = &query.cache {
                cache.put(&question, &found).await;
            }
            drop(pass);
            Ok(found)
        });
        flight.await
    }

    /// The answer of the database.
    async fn ask(&self, ask: &Ask) -> Result<Found, Problem> {
        let late = || {
            self.say(&format!("took longer than {:?} (`timeout`)", self.spec.timeout));
            Problem::late(format!(
                "the database took longer than {} s (ask for less, or set a longer `timeout`)",
                self.spec.timeout.as_secs_f64()
            ))
        };
        match tokio::time::timeout(self.spec.timeout, self.reader.page(ask)).await {
            Ok(Ok(page)) => {
                if let Some(works) = self.said.works() {
                    tracing::info!(query = %self.spec.name, "answers again {works}");
                }
                let next = page.next.map(|mark| mark.seal(&self.identity));
                Ok(Found::new(&page.rows, next.as_deref()))
            }
            Ok(Err(Unanswered::Wrong(message))) => Err(Problem::bad(message)),
            Ok(Err(Unanswered::Away(error))) => {
                self.say(&format!("{error:#}"));
                Err(Problem::away("the database cannot answer now"))
            }
            Ok(Err(Unanswered::Late)) | Err(_) => Err(late()),
        }
    }

    /// Tells the log what is wrong, unless it knows.
    fn say(&self, what: &str) {
        if let Some(line) = self.said.failed(what) {
            let (query, sink, so_far) = (&self.spec.name, &self.spec.sink, line.so_far());
            tracing::warn!(%query, %sink, "no answer: {what}{so_far}");
        }
    }

    /// Why it could not be answered now, if it could not.
    async fn trouble(&self) -> Option<Trouble> {
        let mut checked = self.checked.lock().await;
        let known = checked.as_ref().filter(|(at, _)| at.elapsed() < CHECKED);
        let cause = match known {
            Some((_, cause)) => cause.clone(),
            None => {
                let check = self.reader.check(self.spec.order.as_deref());
                let cause = match tokio::time::timeout(CHECK, check).await {
                    Ok(Ok(())) => None,
                    Ok(Err(error)) => Some(format!("{error:#}").into()),
                    Err(_) => Some("no answer within 2 s".into()),
                };
                *checked = Some((Instant::now(), cause.clone()));
                cause
            }
        };
        let (name, sink) = (&self.spec.name, &self.spec.sink);
        let cause = cause.map(|cause| format!("sink.{sink}: {cause}").into());
        cause.map(|cause| Trouble { name: format!("query.{name}"), cause })
    }
}
