//! Dead letters over HTTP: shown, replayed, dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use actix_web::http::header::CACHE_CONTROL;
use actix_web::{HttpRequest, HttpResponse, web};
use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::body;
use super::guard::Pass;
use super::inside::Inside;
use super::problem::Problem;
use crate::event::EventId;
use crate::spec::Site;
use crate::stream::{Backend, DeadLetter, StreamSpec};
use crate::telemetry::taps::{body_shown, trace_id};

/// How long a backend may take.
const WAIT: Duration = Duration::from_secs(30);
/// Letters that are shown, unless more are asked for.
const SHOWN: usize = 100;
/// Letters that are shown at most.
pub(super) const SHOWN_MAX: usize = 1000;
/// Bytes of a list of ids.
const IDS_BYTES_MAX: usize = 1 << 20;

#[derive(Deserialize)]
struct Limit {
    #[serde(default)]
    limit: Option<usize>,
}

/// The oldest of a stream's dead letters, and how many there are.
pub(super) async fn list(
    inside: web::Data<Inside>,
    request: HttpRequest,
    stream: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let _pass = inside.admit(&request)?;
    let limit = web::Query::<Limit>::from_query(request.query_string())
        .map_err(|_| Problem::bad("`limit` is no number"))?;
    let limit = limit.limit.unwrap_or(SHOWN).min(SHOWN_MAX);
    let stream = Letters::of(&inside, &stream)?;
    let name = stream.spec.name.clone();
    let letters = stream.ask(&inside, async |backend| backend.dead().await).await?;
    let mut by_group: BTreeMap<&str, usize> = BTreeMap::new();
    for letter in &letters {
        *by_group.entry(&letter.group).or_default() += 1;
    }
    let shown: Vec<Json> = letters.iter().take(limit).map(shown).collect();
    Ok(HttpResponse::Ok().insert_header((CACHE_CONTROL, "no-store")).json(json!({
        "stream": &*name,
        "total": letters.len(),
        "groups": by_group,
        "letters": shown,
    })))
}

fn shown(letter: &DeadLetter) -> Json {
    let event = &letter.event;
    json!({
        "id": event.id.to_string(),
        "group": letter.group,
        "reason": letter.reason,
        "attempts": letter.attempts,
        "dead_us": letter.time_us,
        "time_us": event.time_us,
        "source": &*event.source,
        "key": event.key,
        "type": event.kind,
        "trace_id": event.trace.as_deref().and_then(trace_id),
        "bytes": event.body.len(),
        "body": body_shown(&event.body),
    })
}

/// Which letters are meant. That all are has to be said.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Which {
    #[serde(default)]
    ids: Vec<String>,
    #[serde(default)]
    all: bool,
}

/// Puts letters back, each for the group that gave it up.
pub(super) async fn replay(
    inside: web::Data<Inside>,
    request: HttpRequest,
    payload: web::Payload,
    stream: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let pass = inside.admit_action(&request)?;
    let ids = which(&request, payload, &pass).await?;
    let stream = Letters::of(&inside, &stream)?;
    let name = stream.spec.name.clone();
    // It goes on to its end, also where who asked has gone.
    let doing = async move {
        let ids = &ids[..];
        stream.ask(&inside, async |backend| backend.replay_dead(ids).await).await
    };
    let replayed = finished(doing).await?;
    tracing::info!(stream = %name, replayed, "dead letters were put back over HTTP");
    Ok(HttpResponse::Ok().json(json!({ "replayed": replayed })))
}

/// Forgets letters.
pub(super) async fn forget(
    inside: web::Data<Inside>,
    request: HttpRequest,
    payload: web::Payload,
    stream: web::Path<String>,
) -> Result<HttpResponse, Problem> {
    let pass = inside.admit_action(&request)?;
    let ids = which(&request, payload, &pass).await?;
    let stream = Letters::of(&inside, &stream)?;
    let name = stream.spec.name.clone();
    let doing = async move {
        let ids = &ids[..];
        stream.ask(&inside, async |backend| backend.drop_dead(ids).await).await
    };
    let dropped = finished(doing).await?;
    tracing::info!(stream = %name, dropped, "dead letters were dropped over HTTP");
    Ok(HttpResponse::Ok().json(json!({ "dropped": dropped })))
}

async fn finished(
    doing: impl Future<Output = Result<u64, Problem>> + 'static,
) -> Result<u64, Problem> {
    let stopping = |_| Problem::away("the process is stopping");
    actix_rt::spawn(doing).await.map_err(stopping)?
}

/// The ids in a request's body; none of them: all letters.
async fn which(
    request: &HttpRequest,
    payload: web::Payload,
    pass: &Pass,
) -> Result<Vec<EventId>, Problem> {
    let body = tokio::time::timeout(WAIT, body::read(request, payload, pass, IDS_BYTES_MAX));
    let body = body.await.map_err(|_| Problem::slow())??;
    let wanted = "`{\"ids\": [\"…\"]}`, or `{\"all\": true}`";
    let which: Which = serde_json::from_slice(&body)
        .map_err(|error| Problem::bad(format!("the body is not {wanted}: {error}")))?;
    if which.all != which.ids.is_empty() {
        return Err(Problem::bad(format!("the body does not say which letters ({wanted})")));
    }
    let id = |id: &String| id.parse().map_err(|_| Problem::bad(format!("{id:?} is no event id")));
    which.ids.iter().map(id).collect()
}

/// A stream whose letters are asked for. It is opened for each request, as a command opens it: the
/// process may hold another part of it, or none.
struct Letters {
    spec: StreamSpec,
    site: Site,
}

impl Letters {
    fn of(inside: &Inside, name: &str) -> Result<Self, Problem> {
        let topology = inside.served.editions.borrow().topology.clone();
        let missing = || Problem::missing("no stream of the topology has this name");
        let spec = topology.stream(name).ok_or_else(missing)?.clone();
        let site = Site {
            data_dir: topology.runtime.data_dir.clone(),
            instance: topology.runtime.instance.clone(),
            until_idle: false,
            runs: false,
        };
        Ok(Self { spec, site })
    }

    async fn ask<T>(
        self,
        inside: &Inside,
        work: impl AsyncFnOnce(Arc<dyn Backend>) -> Result<T>,
    ) -> Result<T, Problem> {
        let Self { spec, site } = self;
        let name = spec.name.clone();
        let asking = async {
            let _turn = inside.dead.acquire().await?;
            let backend = (spec.kind.open)(spec, site).await;
            work(backend.with_context(|| format!("cannot open stream {name}"))?).await
        };
        match tokio::time::timeout(WAIT, asking).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(Problem::away(format!("{error:#}"))),
            Err(_) => {
                Err(Problem::away(format!("stream {name} took longer than {} s", WAIT.as_secs())))
            }
        }
    }
}
