//! What is served over HTTP: whether the process works, what its streams hold, what it counts.

use std::net::TcpListener;
use std::sync::Arc;

use actix::Addr;
use actix_web::dev::ServerHandle;
use actix_web::http::header::ContentType;
use actix_web::{App, HttpResponse, HttpServer, Responder, web};
use anyhow::{Context, Result};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Serialize;

use crate::actor::message::Inspect;
use crate::actor::supervisor::Supervisor;
use crate::telemetry::board::{Board, Trouble};
use crate::topology::{Http, Tls};

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
    let (tls, all) = (http.tls.as_ref(), http.admin.is_none());
    let mut handles = vec![listen(&http.listen, tls, all, supervisor, board)?];
    if let Some(admin) = &http.admin {
        handles.push(listen(admin, tls, true, supervisor, board)?);
    }
    Ok(Server { handles })
}

fn listen(
    address: &str,
    tls: Option<&Tls>,
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
