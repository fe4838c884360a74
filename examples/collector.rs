//! A collector of spans that prints them, a line each: to see what `[tracing]` sends where there is
//! no Jaeger.
//!
//! ```text
//! cargo run --example collector [-- ADDRESS]      (127.0.0.1:4317)
//! ```

use std::fmt::Write as _;
use std::io::Write as _;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use tonic::{Request, Response, Status, transport::Server};

struct Printer;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[tonic::async_trait]
impl TraceService for Printer {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request.into_inner().resource_spans.into_iter().flat_map(|it| it.scope_spans);
        let mut out = std::io::stdout().lock();
        for span in scopes.flat_map(|scope| scope.spans) {
            let took = span.end_time_unix_nano.saturating_sub(span.start_time_unix_nano);
            let failed = span.status.filter(|status| status.code == 2).map(|it| it.message);
            // Nobody may be reading.
            let _ = writeln!(
                out,
                "{} {} {:>10.3} ms  {} {}",
                hex(&span.trace_id),
                hex(&span.span_id),
                took as f64 / 1e6,
                span.name,
                failed.map(|cause| format!("FAILED: {cause}")).unwrap_or_default(),
            );
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:4317".into());
    let server = Server::builder().add_service(TraceServiceServer::new(Printer));
    Ok(server.serve(address.parse()?).await?)
}
