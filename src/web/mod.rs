//! What is served over HTTP: whether the process works, what its streams hold, what it counts, and
//! the paths of sources that are reached this way.

mod body;
mod dead;
mod guard;
mod inside;
mod intake;
mod live;
mod openapi;
mod page;
mod problem;
mod query;
mod server;
mod serving;
pub mod state;
mod tls;

use std::net::TcpListener;
use std::sync::{Arc, PoisonError, RwLock};

use actix::Addr;
use actix_web::dev::ServerHandle;
use actix_web::http::Method;
use actix_web::http::header::{ACCEPT, ContentType};
use actix_web::{
    App, FromRequest, Handler, HttpRequest, HttpResponse, HttpServer, Resource, Responder,
    ResponseError, web,
};
use anyhow::{Context, Result};
use rustls::ServerConfig;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot, watch};

use self::inside::Inside;
use self::problem::Problem;
pub use self::server::Server;
use self::serving::Serving;
use crate::actor::message::{Applied, Inspect};
use crate::actor::reload::Changes;
use crate::actor::supervisor::Supervisor;
use crate::telemetry::board::{Board, Trouble};
use crate::telemetry::metrics::Exposition;
use crate::topology::Faults;
use crate::topology::edition::{Edition, Refused};

/// Where edits of the topology are asked for, and answered.
pub type Reloads = mpsc::Sender<oneshot::Sender<Result<Applied, Faults>>>;

/// Threads that answer requests.
const WORKERS: usize = 2;
/// Seconds that open connections get when the server stops.
const STOP_SECONDS: u64 = 1;

/// What the handlers know.
struct Served {
    /// What runs.
    editions: watch::Receiver<Arc<Edition>>,
    supervisor: Addr<Supervisor>,
    board: Arc<Board>,
    /// What is served because the topology says so. An edit replaces it.
    serving: RwLock<Arc<Serving>>,
    /// Where edits are asked for.
    reloads: Reloads,
}

impl Served {
    /// What is served now.
    fn now(&self) -> Arc<Serving> {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What of it one address serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Side {
    /// What shows the inside of the process.
    inside: bool,
    /// What takes events.
    intake: bool,
}

fn serve(
    listener: TcpListener,
    tls: Option<ServerConfig>,
    side: Side,
    served: &web::Data<Served>,
    within: &web::Data<Inside>,
) -> Result<ServerHandle> {
    let (served, within) = (served.clone(), within.clone());
    let server = HttpServer::new(move || {
        let app = App::new()
            .app_data(served.clone())
            .service(shown("/livez", livez))
            .service(shown("/healthz", healthz))
            .service(shown("/readyz", readyz));
        let app = match side.inside {
            true => app
                .service(shown("/streams", streams))
                .service(shown("/metrics", metrics))
                .service(web::resource("/api/reload").route(web::to(reload)))
                .app_data(within.clone())
                .configure(inside::configure),
            false => app,
        };
        match side.intake {
            true => app
                .app_data(web::Data::new(side))
                .service(shown("/openapi.json", described))
                .default_service(web::to(others)),
            false => app.default_service(web::to(nothing)),
        }
    })
    .workers(WORKERS)
    .disable_signals()
    .shutdown_timeout(STOP_SECONDS);
    let server = match tls {
        Some(tls) => server.listen_rustls_0_23(listener, tls),
        None => server.listen(listener),
    };
    let server = server.context("cannot serve HTTP")?.run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(handle)
}

/// What can be got at a path, and nothing else done there.
fn shown<F, Args>(path: &str, handler: F) -> Resource
where
    F: Handler<Args>,
    F::Output: Responder + 'static,
    Args: FromRequest + 'static,
{
    let other = || std::future::ready(Problem::only_get().error_response());
    web::resource(path)
        .route(web::get().to(handler.clone()))
        .route(web::head().to(handler))
        .default_service(web::to(other))
}

async fn livez() -> impl Responder {
    HttpResponse::Ok().content_type(ContentType::plaintext()).body("alive\n")
}

/// Whether everything works, and what does not.
#[derive(Serialize)]
struct Health {
    healthy: bool,
    troubles: Vec<Trouble>,
    /// Of the topology that runs.
    generation: u64,
    /// The last edit of it, where it was refused.
    refused: Option<Refused>,
}

impl Health {
    fn answer(served: &Served, troubles: Vec<Trouble>, ready: bool) -> HttpResponse {
        let mut answer = match ready {
            true => HttpResponse::Ok(),
            false => HttpResponse::ServiceUnavailable(),
        };
        let Edition { generation, refused, .. } = &**served.editions.borrow();
        let (generation, refused) = (*generation, refused.clone());
        answer.json(Health { healthy: troubles.is_empty(), troubles, generation, refused })
    }
}

async fn healthz(served: web::Data<Served>) -> impl Responder {
    let mut troubles = served.board.troubles();
    troubles.extend(served.now().queries.troubles().await);
    let healthy = troubles.is_empty();
    Health::answer(&served, troubles, healthy)
}

/// Where requests make events or ask for rows, what they need decides: a sink that is away does not
/// stop those that make events.
async fn readyz(served: web::Data<Served>) -> impl Responder {
    let mut troubles = served.board.troubles();
    let serving = served.now();
    let needed = &serving.needed;
    let away = troubles.iter().any(|it| !serving.requested || needed.contains(&it.name));
    let unanswered = serving.queries.troubles().await;
    let ready = !away && unanswered.is_empty();
    troubles.extend(unanswered);
    Health::answer(&served, troubles, ready)
}

async fn streams(served: web::Data<Served>) -> impl Responder {
    match served.supervisor.send(Inspect).await {
        Ok(snapshot) => HttpResponse::Ok().json(snapshot.streams),
        Err(_) => stopping(),
    }
}

async fn metrics(served: web::Data<Served>, request: HttpRequest) -> impl Responder {
    // Asking the streams brings the lags up to date.
    if served.supervisor.send(Inspect).await.is_err() {
        return stopping();
    }
    let accept = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
    let exposition = Exposition::accepted(accept.unwrap_or_default());
    match served.board.metrics.encode(exposition) {
        Ok(text) => HttpResponse::Ok().content_type(exposition.content_type()).body(text),
        Err(_) => HttpResponse::InternalServerError().body("the metrics cannot be written\n"),
    }
}

fn stopping() -> HttpResponse {
    HttpResponse::ServiceUnavailable().body("the process is stopping\n")
}

/// What is served because the topology says so.
async fn others(
    served: web::Data<Served>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, Problem> {
    let serving = served.now();
    if let Some(answer) = serving.queries.answer(&request).await {
        return Ok(answer);
    }
    match serving.intake.answer(&request, payload).await {
        Some(answer) => answer,
        None => Ok(nothing().await),
    }
}

/// What is served, for programs.
async fn described(served: web::Data<Served>, side: web::Data<Side>) -> impl Responder {
    let serving = served.now();
    HttpResponse::Ok().json(openapi::describe(&serving.intake, &serving.queries, side.inside))
}

/// Has the topology file applied as it is now.
async fn reload(
    served: web::Data<Served>,
    within: web::Data<Inside>,
    request: HttpRequest,
) -> Result<HttpResponse, Problem> {
    if request.method() != Method::POST {
        return Err(Problem::only_post());
    }
    let _pass = within.admit(&request)?;
    let (reply, answer) = oneshot::channel();
    let asked = served.reloads.send(reply).await.is_ok();
    match answer.await {
        Ok(Ok(applied)) => Ok(HttpResponse::Ok().json(Reloaded::new(&applied))),
        Ok(Err(faults)) => Err(Problem::faulty(&faults)),
        Err(_) if asked => Err(Problem::away("the process is stopping".to_owned())),
        Err(_) => Err(Problem::away("this run takes no edits (--until-idle)".to_owned())),
    }
}

/// An edit that was applied, as `/api/reload` answers it.
#[derive(Serialize)]
struct Reloaded<'a> {
    generation: u64,
    #[serde(flatten)]
    changes: &'a Changes,
}

impl<'a> Reloaded<'a> {
    fn new(applied: &'a Applied) -> Self {
        Self { generation: applied.edition.generation, changes: &applied.changes }
    }
}

async fn nothing() -> HttpResponse {
    HttpResponse::NotFound()
        .content_type(ContentType::plaintext())
        .body("nothing is served here (try /healthz, /streams, /metrics, /openapi.json)\n")
}
