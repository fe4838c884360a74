//! Requests that make events: posts to an `http` source, and triggers of publishers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::http::Method;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, HttpResponse, ResponseError, web};
use futures_util::future::join_all;
use serde_json::{Value as Json, json};
use tracing::Instrument;

use super::body;
use super::guard::{Guard, Pass};
use super::problem::Problem;
use crate::event::trace;
use crate::source::SourceSpec;
use crate::source::door::{Ask, Away};
use crate::source::http::Ids;
use crate::source::http::body::{Format, read};
use crate::spec::{Room, Ty};
use crate::telemetry::board::Board;
use crate::telemetry::logs;
use crate::telemetry::metrics::{RequestLabels, RequestedLabels};
use crate::telemetry::traces::request::{Asked, Request};
use crate::topology::{Topology, needs_http};

/// How long a client may take to send a body.
const BODY_WAIT: Duration = Duration::from_secs(30);
/// How long a request waits to become durable: a run that is paced takes its time.
const DURABLE_WAIT: Duration = Duration::from_secs(30);
/// Longer ones are refused.
const KEY_BYTES_MAX: usize = 256;
/// What makes a repeated request the same one.
const IDEMPOTENCY_KEY: &str = "idempotency-key";

/// The requests that this process's sources take.
pub struct Intake {
    guard: Arc<Guard>,
    board: Arc<Board>,
    posts: HashMap<String, Post>,
    triggers: Vec<SourceSpec>,
}

/// A path that events are posted to.
pub struct Post {
    /// The source.
    pub source: SourceSpec,
    ids: Ids,
}

impl Intake {
    /// What the sources of `topology` take that run here.
    pub fn new(
        topology: &Topology,
        guard: Arc<Guard>,
        board: &Arc<Board>,
        runs: impl Fn(Room, &str) -> bool,
    ) -> Self {
        let (mut posts, mut triggers) = (HashMap::new(), Vec::new());
        for source in topology.sources.iter().filter(|source| runs(Room::Source, &source.name)) {
            let route = source.kind.keys.iter().find(|key| matches!(key.ty, Ty::Route));
            let path = route.and_then(|key| source.values.opt_str(key.name));
            if let Some(path) = path {
                let post = Post { source: source.clone(), ids: Ids::new(&source.origin) };
                posts.insert(path.to_owned(), post);
            } else if needs_http(source.kind, &source.values).is_some() {
                triggers.push(source.clone());
            }
        }
        Self { guard, board: board.clone(), posts, triggers }
    }

    /// The paths that events are posted to, and their sources.
    pub fn posts(&self) -> impl Iterator<Item = (&str, &SourceSpec)> {
        self.posts.iter().map(|(path, post)| (path.as_str(), &post.source))
    }

    /// The publishers that are triggered.
    pub fn triggers(&self) -> &[SourceSpec] {
        &self.triggers
    }

    /// Who guards them.
    pub fn guard(&self) -> &Arc<Guard> {
        &self.guard
    }

    /// Answers a request, if it is for one of them.
    pub async fn answer(
        &self,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Option<Result<HttpResponse, Problem>> {
        if let Some(post) = self.posts.get(request.path()) {
            let taking = self.take(post, request, payload);
            return Some(self.counted(&post.source, taking).await);
        }
        let name = match request.path().strip_prefix("/publish") {
            Some("") => None,
            Some(rest) => Some(rest.strip_prefix('/')?),
            None => return None,
        };
        // Of a request to all of them the first one tells.
        let named = |source: &&SourceSpec| name.is_none_or(|name| name == &*source.name);
        match self.triggers.iter().find(named) {
            Some(first) => Some(self.counted(first, self.trigger(name, first, request)).await),
            None if self.triggers.is_empty() => None,
            None => Some(self.admit(request).and_then(|_| Err(self.no_trigger()))),
        }
    }

    async fn counted(
        &self,
        source: &SourceSpec,
        answering: impl Future<Output = Result<HttpResponse, Problem>>,
    ) -> Result<HttpResponse, Problem> {
        let started = Instant::now();
        let answer = answering.await;
        let (source, metrics) = (source.name.to_string(), &self.board.metrics);
        let labels = RequestedLabels { source: source.clone() };
        let seconds = metrics.request_seconds.get_or_create_owned(&labels);
        seconds.observe(started.elapsed().as_secs_f64());
        let status = match &answer {
            Ok(response) => response.status(),
            Err(problem) => problem.status_code(),
        };
        let labels = RequestLabels { source, status: status.as_u16() };
        metrics.requests.get_or_create_owned(&labels).inc();
        answer
    }

    fn no_trigger(&self) -> Problem {
        let known: Vec<&str> = self.triggers.iter().map(|it| &*it.name).collect();
        let known = known.join(", ");
        Problem::missing(format!("no source to trigger has this name (try {known})"))
    }

    /// Lets a request in that may be: in the order in which a stranger learns the least.
    fn admit(&self, request: &HttpRequest) -> Result<Pass, Problem> {
        if request.method() != Method::POST {
            return Err(Problem::only_post());
        }
        if !self.guard.knows(request) {
            return Err(Problem::stranger());
        }
        self.guard.enter().ok_or_else(Problem::busy)
    }

    async fn take(
        &self,
        post: &Post,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Result<HttpResponse, Problem> {
        let pass = self.admit(request)?;
        let traced = self.board.traces.request(asked(request, &post.source));
        let taking = self.take_admitted(post, request, payload, pass, traced.trace.as_deref());
        let answer = taking.instrument(traced.span.clone()).await;
        answered(traced, &post.source, &answer);
        answer
    }

    async fn take_admitted(
        &self,
        post: &Post,
        request: &HttpRequest,
        payload: web::Payload,
        pass: Pass,
        trace: Option<&str>,
    ) -> Result<HttpResponse, Problem> {
        let key = idempotency_key(request)?;
        let format = format(request)?;
        let reading = body::read(request, payload, &pass, self.guard.body_max);
        let body =
            tokio::time::timeout(BODY_WAIT, reading).await.map_err(|_| Problem::slow())??;
        let bodies = read(format, &body).map_err(|error| Problem::bad(error.to_string()))?;
        let mut events = post.ids.events(bodies, key, &post.source.name);
        if let Some(trace) = trace {
            events.iter_mut().for_each(|event| event.trace = Some(trace.into()));
        }
        let ids: Vec<String> = events.iter().map(|event| event.id.to_string()).collect();
        durable(post.source.door.knock(1, Ask::Take(events)), &post.source).await?;
        Ok(HttpResponse::Accepted().json(json!({ "ids": ids })))
    }

    /// Has a publisher, or each of them, send its range anew.
    async fn trigger(
        &self,
        name: Option<&str>,
        first: &SourceSpec,
        request: &HttpRequest,
    ) -> Result<HttpResponse, Problem> {
        let _pass = self.admit(request)?;
        let traced = self.board.traces.request(asked(request, first));
        let running = self.run(name.map(|_| first), request, traced.trace.as_deref());
        let answer = running.instrument(traced.span.clone()).await;
        answered(traced, first, &answer);
        answer
    }

    async fn run(
        &self,
        source: Option<&SourceSpec>,
        request: &HttpRequest,
        trace: Option<&str>,
    ) -> Result<HttpResponse, Problem> {
        let run: Arc<str> = match idempotency_key(request)? {
            Some(key) => format!("key {}", String::from_utf8_lossy(key)).into(),
            None => format!("random {:032x}", fastrand::u128(..)).into(),
        };
        if let Some(source) = source {
            return Ok(HttpResponse::Ok().json(publish(source, &run, trace).await?));
        }
        let runs = self.triggers.iter().map(|source| publish(source, &run, trace));
        let done: Result<Vec<Json>, Problem> = join_all(runs).await.into_iter().collect();
        Ok(HttpResponse::Ok().json(done?))
    }
}

/// One run of all instances of a publisher.
async fn publish(
    source: &SourceSpec,
    run: &Arc<str>,
    trace: Option<&str>,
) -> Result<Json, Problem> {
    let door = &source.door;
    let ask = || Ask::Run { name: run.clone(), trace: trace.map(Into::into) };
    let asked = (1..=door.instances()).map(|n| door.knock(n, ask()));
    let all = async { join_all(asked).await.into_iter().collect::<Result<(), Away>>() };
    durable(all, source).await?;
    // A trigger needs a range: the topology's check sees to it.
    let (first, last) = source.values.opt_range("n").unwrap_or((1, 0));
    Ok(json!({
        "source": &*source.name,
        "published": (first..=last).count(),
        "numbers": (first..=last).collect::<Vec<_>>(),
    }))
}

/// Waits until what was asked is durable.
async fn durable(
    answer: impl Future<Output = Result<(), Away>>,
    source: &SourceSpec,
) -> Result<(), Problem> {
    let stream = &source.to;
    match tokio::time::timeout(DURABLE_WAIT, answer).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(Away::Full(backlog))) => Err(Problem::away(format!(
            "stream `{stream}` is full: its slowest group is {backlog} events behind"
        ))),
        Ok(Err(Away::Closed)) => Err(Problem::away(format!(
            "stream `{stream}` cannot take it now (see /healthz; repeat it with the same \
             Idempotency-Key, and it happens once)"
        ))),
        Err(_) => Err(Problem::away(format!(
            "stream `{stream}` took longer than {} s (repeat it with the same Idempotency-Key, and \
             it happens once)",
            DURABLE_WAIT.as_secs()
        ))),
    }
}

/// What a trace tells of a request to `source`.
fn asked<'a>(request: &'a HttpRequest, source: &'a SourceSpec) -> Asked<'a> {
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    Asked {
        method: request.method().as_str(),
        route: request.path(),
        scheme: if request.app_config().secure() { "https" } else { "http" },
        source: &source.name,
        trace: header("traceparent").and_then(|it| trace::carried(it, header("tracestate"))),
    }
}

fn answered(traced: Request, source: &SourceSpec, answer: &Result<HttpResponse, Problem>) {
    let problem = match answer {
        Ok(response) => {
            traced.answered(response.status().as_u16(), None);
            return;
        }
        Err(problem) => problem,
    };
    let status = problem.status_code();
    let trace = traced.answered(status.as_u16(), Some(&problem.to_string()));
    // That a stream is away is told once, and not by each request, but to who asks for it.
    if status.is_server_error() {
        let (trace_id, span_id) = logs::ids(trace.as_deref());
        let (source, status) = (&source.name, status.as_u16());
        tracing::debug!(%source, status, trace_id, span_id, "a request failed: {problem}");
    }
}

fn idempotency_key(request: &HttpRequest) -> Result<Option<&[u8]>, Problem> {
    let Some(key) = request.headers().get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match key.as_bytes() {
        [] => Err(Problem::bad("the Idempotency-Key is empty (leave it out, or give it a value)")),
        key if key.len() > KEY_BYTES_MAX => Err(Problem::bad(format!(
            "the Idempotency-Key has {} bytes (at most {KEY_BYTES_MAX})",
            key.len()
        ))),
        key => Ok(Some(key)),
    }
}

fn format(request: &HttpRequest) -> Result<Format, Problem> {
    let given = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    given.and_then(Format::of).ok_or_else(|| {
        let given = given.unwrap_or("none");
        Problem::unread(format!(
            "the Content-Type is {given} (application/json, application/x-ndjson or text/plain, \
             in UTF-8)"
        ))
    })
}
