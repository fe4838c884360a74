//! Requests that make events: posts to an `http` source, and triggers of publishers.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::Method;
use actix_web::http::header::CONTENT_TYPE;
use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::join_all;
use serde_json::{Value as Json, json};

use super::body;
use super::guard::{Guard, Pass};
use super::problem::Problem;
use crate::source::SourceSpec;
use crate::source::door::{Ask, Away};
use crate::source::http::Ids;
use crate::source::http::body::{Format, read};
use crate::spec::{Room, Ty};
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
    pub fn new(topology: &Topology, guard: Arc<Guard>, runs: impl Fn(Room, &str) -> bool) -> Self {
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
        Self { guard, posts, triggers }
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
    pub fn guard(&self) -> &Guard {
        &self.guard
    }

    /// Answers a request, if it is for one of them.
    pub async fn answer(
        &self,
        request: &HttpRequest,
        payload: web::Payload,
    ) -> Option<Result<HttpResponse, Problem>> {
        if let Some(post) = self.posts.get(request.path()) {
            return Some(self.take(post, request, payload).await);
        }
        let name = match request.path().strip_prefix("/publish") {
            Some("") => None,
            Some(rest) => Some(rest.strip_prefix('/')?),
            None => return None,
        };
        if self.triggers.is_empty() {
            return None;
        }
        Some(self.trigger(name, request).await)
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
        let key = idempotency_key(request)?;
        let format = format(request)?;
        let reading = body::read(request, payload, &pass, self.guard.body_max);
        let body =
            tokio::time::timeout(BODY_WAIT, reading).await.map_err(|_| Problem::slow())??;
        let bodies = read(format, &body).map_err(|error| Problem::bad(error.to_string()))?;
        let events = post.ids.events(bodies, key, &post.source.name);
        let ids: Vec<String> = events.iter().map(|event| event.id.to_string()).collect();
        durable(post.source.door.knock(1, Ask::Take(events)), &post.source).await?;
        Ok(HttpResponse::Accepted().json(json!({ "ids": ids })))
    }

    /// Has a publisher, or each of them, send its range anew.
    async fn trigger(
        &self,
        name: Option<&str>,
        request: &HttpRequest,
    ) -> Result<HttpResponse, Problem> {
        let _pass = self.admit(request)?;
        let run: Arc<str> = match idempotency_key(request)? {
            Some(key) => format!("key {}", String::from_utf8_lossy(key)).into(),
            None => format!("random {:032x}", fastrand::u128(..)).into(),
        };
        let Some(name) = name else {
            let runs = self.triggers.iter().map(|source| publish(source, &run));
            let done: Result<Vec<Json>, Problem> = join_all(runs).await.into_iter().collect();
            return Ok(HttpResponse::Ok().json(done?));
        };
        match self.triggers.iter().find(|source| &*source.name == name) {
            Some(source) => Ok(HttpResponse::Ok().json(publish(source, &run).await?)),
            None => {
                let known: Vec<&str> = self.triggers.iter().map(|it| &*it.name).collect();
                let known = known.join(", ");
                Err(Problem::missing(format!("no source to trigger has this name (try {known})")))
            }
        }
    }
}

/// One run of all instances of a publisher.
async fn publish(source: &SourceSpec, run: &Arc<str>) -> Result<Json, Problem> {
    let door = &source.door;
    let asked = (1..=door.instances()).map(|n| door.knock(n, Ask::Run(run.clone())));
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
