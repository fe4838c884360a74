//! The floor of `scripts/bench http`: a handler that does no more than parse the JSON it is sent.

use actix_web::{App, HttpResponse, HttpServer, web};

async fn parse(body: web::Json<serde_json::Value>) -> HttpResponse {
    match body.is_object() {
        true => HttpResponse::Accepted().json(serde_json::json!({ "ids": [] })),
        false => HttpResponse::BadRequest().finish(),
    }
}

fn main() -> std::io::Result<()> {
    let listen = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8080".to_owned());
    actix_rt::System::new().block_on(async {
        let app = || App::new().route("/log", web::post().to(parse));
        HttpServer::new(app).workers(2).bind(listen)?.run().await
    })
}
