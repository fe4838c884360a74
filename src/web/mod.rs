//! What is served over HTTP: whether the process works, what its streams hold, what it counts.

use std::net::TcpListener;
use std::sync::Arc;

use actix::Addr;
use actix_web::dev::ServerHandle;
use actix_web::http::header::ContentType;
use actix_web::{App, HttpResponse, HttpServer, Responder, web};
use anyhow::{Context, Result};
use serde::Serialize;

use crate::actor::message::Inspect;
use crate::actor::supervisor::Supervisor;
use crate::telemetry::board::{Board, Trouble};
use crate::topology::Http;

/// Threads that answer requests.
const WORKERS: usize = 2;
/// Seconds that open connections get when the server stops.
const STOP_SECONDS: u64 = 1;

/// What listens; stop it before the process ends.
pub struct Server {
    handles: Vec<ServerHandle>,
}

impl Server {
    /// Stops listening, and gives open connections a moment.
    pub async fn stop(self) {
        for handle in self.handles {
            handle.stop(true).await;
        }
    }
}

/// Listens on `listen`, and on `admin` where it is given; then what shows the inside of the
/// process is served there alone.
pub fn start(http: &Http, supervisor: &Addr<Supervisor>, board: &Arc<Board>) -> Result<Server> {
    let mut handles = vec![listen(&http.listen, http.admin.is_none(), supervisor, board)?];
    if let Some(admin) = &http.admin {
        handles.push(listen(admin, true, supervisor, board)?);
    }
    Ok(Server { handles })
}

fn listen(
    address: &str,
    inside: bool,
    supervisor: &Addr<Supervisor>,
    board: &Arc<Board>,
) -> Result<ServerHandle> {
    let listener = TcpListener::bind(address)
        .with_context(|| format!("cannot listen on {address} (is another program there?)"))?;
    let (supervisor, board) = (supervisor.clone(), board.clone());
    let server = HttpServer::new(move || {
        let app = App::new()
            .app_data(web::Data::new(supervisor.clone()))
            .app_data(web::Data::from(board.clone()))
            .route("/livez", web::get().to(livez))
            .route("/healthz", web::get().to(healthz))
            .route("/readyz", web::get().to(healthz));
        let app = match inside {
            true => app
                .route("/streams", web::get().to(streams))
                .route("/metrics", web::get().to(metrics)),
            false => app,
        };
        app.default_service(web::to(nothing))
    })
    .workers(WORKERS)
    .disable_signals()
    .shutdown_timeout(STOP_SECONDS)
    .listen(listener)
    .with_context(|| format!("cannot serve on {address}"))?
    .run();
    let handle = server.handle();
    actix_rt::spawn(server);
    Ok(handle)
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

async fn healthz(board: web::Data<Board>) -> impl Responder {
    let troubles = board.troubles();
    let mut answer = match troubles.is_empty() {
        true => HttpResponse::Ok(),
        false => HttpResponse::ServiceUnavailable(),
    };
    answer.json(Health { healthy: troubles.is_empty(), troubles })
}

async fn streams(supervisor: web::Data<Addr<Supervisor>>) -> impl Responder {
    match supervisor.send(Inspect).await {
        Ok(snapshot) => HttpResponse::Ok().json(snapshot.streams),
        Err(_) => stopping(),
    }
}

async fn metrics(
    supervisor: web::Data<Addr<Supervisor>>,
    board: web::Data<Board>,
) -> impl Responder {
    // Asking the streams brings the lags up to date.
    if supervisor.send(Inspect).await.is_err() {
        return stopping();
    }
    match board.metrics.encode() {
        Ok(text) => HttpResponse::Ok()
            .content_type("application/openmetrics-text; version=1.0.0; charset=utf-8")
            .body(text),
        Err(_) => HttpResponse::InternalServerError().body("the metrics cannot be written\n"),
    }
}

fn stopping() -> HttpResponse {
    HttpResponse::ServiceUnavailable().body("the process is stopping\n")
}

async fn nothing() -> impl Responder {
    HttpResponse::NotFound()
        .content_type(ContentType::plaintext())
        .body("nothing is served here (try /healthz, /streams, /metrics)\n")
}
