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
pub mod state;

use std::net::TcpListener;
use std::sync::Arc;

use actix::Addr;
use actix_web::dev::ServerHandle;
use actix_web::http::header::{ACCEPT, ContentType};
use actix_web::{
    App, FromRequest, Handler, HttpRequest, HttpResponse, HttpServer, Resource, Responder,
    ResponseError, web,
};
use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;
use tokio::sync::watch;

use self::guard::Guard;
use self::inside::Inside;
use self::intake::Intake;
use self::problem::Problem;
use self::query::Queries;
use crate::actor::message::Inspect;
use crate::actor::supervisor::{Part, Supervisor};
use crate::spec::Room;
use crate::telemetry::board::{Board, Trouble};
use crate::telemetry::metrics::Exposition;
use crate::topology::edition::Edition;
use crate::topology::{Http, Tls};

/// Threads that answer requests.
const WORKERS: usize = 2;
/// Seconds that open connections get when the server stops.
const STOP_SECONDS: u64 = 1;

/// What listens; stop it before the process ends.
pub struct Server {
    handles: Vec<ServerHandle>,
    inside: web::Data<Inside>,
}

impl Server {
    /// Stops listening, and gives open connections a moment.
    pub async fn stop(self) {
        self.inside.stop();
        for handle in self.handles {
            handle.stop(true).await;
        }
    }
}

/// What the handlers know.
struct Served {
    /// What runs.
    editions: watch::Receiver<Arc<Edition>>,
    supervisor: Addr<Supervisor>,
    board: Arc<Board>,
    intake: Intake,
    queries: Queries,
    /// Names of the components that posts and triggers need.
    needed: Vec<String>,
    /// Requests are what the process is here for, among others.
    requested: bool,
}

/// Listens on `listen`, and on `admin` where it is given; then what shows the inside of the
/// process is served there alone.
pub fn start(
    http: &Http,
    editions: watch::Receiver<Arc<Edition>>,
    part: &Part,
    supervisor: &Addr<Supervisor>,
    board: &Arc<Board>,
) -> Result<Server> {
    let guard = Guard::new(http);
    let topology = editions.borrow().topology.clone();
    let queries = Queries::new(&topology, guard.clone(), board.clone())?;
    let intake = Intake::new(&topology, guard, board, |room, name| part.has(room, name));
    let sources = intake.posts().map(|(_, source)| source).chain(intake.triggers());
    let needed = sources.flat_map(|source| {
        let (own, to) = (Room::Source.noun(), Room::Stream.noun());
        [format!("{own}.{}", source.name), format!("{to}.{}", source.to)]
    });
    let needed: Vec<_> = needed.collect();
    let requested = !needed.is_empty() || !queries.specs().is_empty();
    let (supervisor, board) = (supervisor.clone(), board.clone());
    let served = Served { editions, supervisor, board, intake, queries, needed, requested };
    let served = web::Data::new(served);
    let inside = web::Data::new(Inside::start(&served));
    let (tls, all) = (http.tls.as_ref(), http.admin.is_none());
    let mut handles =
        vec![listen(&http.listen, tls, Side { inside: all, intake: true }, &served, &inside)?];
    if let Some(admin) = &http.admin {
        handles.push(listen(admin, tls, Side { inside: true, intake: false }, &served, &inside)?);
    }
    Ok(Server { handles, inside })
}

/// What of it one address serves.
#[derive(Clone, Copy)]
struct Side {
    /// What shows the inside of the process.
    inside: bool,
    /// What takes events.
    intake: bool,
}

fn listen(
    address: &str,
    tls: Option<&Tls>,
    side: Side,
    served: &web::Data<Served>,
    within: &web::Data<Inside>,
) -> Result<ServerHandle> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} (is another program there?)"))?;
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
                .app_data(within.clone())
                .configure(inside::configure),
            false => app,
        };
        match side.intake {
            true => {
                let api = openapi::describe(&served.intake, &served.queries, side.inside);
                let api = move || std::future::ready(HttpResponse::Ok().json(api.clone()));
                app.service(shown("/openapi.json", api)).default_service(web::to(others))
            }
            false => app.default_service(web::to(nothing)),
        }
    })
    .workers(WORKERS)
    .disable_signals()
    .shutdown_timeout(STOP_SECONDS);
    let server = match tls {
        Some(tls) => server.listen_rustls_0_23(listener, tls_config(tls)?),
        None => server.listen(listener),
    };
    let server = server.with_context(|| format!("cannot serve on {address}"))?.run();
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

fn tls_config(tls: &Tls) -> Result<ServerConfig> {
    let cert = || format!("cannot read [http] tls.cert {} (PEM is wanted)", tls.cert.display());
    let key = || format!("cannot read [http] tls.key {} (PEM is wanted)", tls.key.display());
    let certs: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(&tls.cert).with_context(cert)?.collect();
    let private = PrivateKeyDer::from_pem_file(&tls.key).with_context(key)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certs.with_context(cert)?, private)
        .context("[http] tls: the key does not belong to the certificate")
}

async fn livez() -> impl Responder {
    HttpResponse::Ok().content_type(ContentType::plaintext()).body("alive\n")
}

/// Whether everything works, and what does not.
#[derive(Serialize)]
struct Health {
    healthy: bool,
    troubles: Vec<Trouble>,
}

impl Health {
    fn answer(troubles: Vec<Trouble>, ready: bool) -> HttpResponse {
        let mut answer = match ready {
            true => HttpResponse::Ok(),
            false => HttpResponse::ServiceUnavailable(),
        };
        answer.json(Health { healthy: troubles.is_empty(), troubles })
    }
}

async fn healthz(served: web::Data<Served>) -> impl Responder {
    let mut troubles = served.board.troubles();
    troubles.extend(served.queries.troubles().await);
    let healthy = troubles.is_empty();
    Health::answer(troubles, healthy)
}

/// Where requests make events or ask for rows, what they need decides: a sink that is away does not
/// stop those that make events.
async fn readyz(served: web::Data<Served>) -> impl Responder {
    let mut troubles = served.board.troubles();
    let needed = &served.needed;
    let away = troubles.iter().any(|it| !served.requested || needed.contains(&it.name));
    let unanswered = served.queries.troubles().await;
    let ready = !away && unanswered.is_empty();
    troubles.extend(unanswered);
    Health::answer(troubles, ready)
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
    if let Some(answer) = served.queries.answer(&request).await {
        return Ok(answer);
    }
    match served.intake.answer(&request, payload).await {
        Some(answer) => answer,
        None => Ok(nothing().await),
    }
}

async fn nothing() -> HttpResponse {
    HttpResponse::NotFound()
        .content_type(ContentType::plaintext())
        .body("nothing is served here (try /healthz, /streams, /metrics, /openapi.json)\n")
}
