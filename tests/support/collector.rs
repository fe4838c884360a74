//! A collector of spans: a real OTLP receiver over gRPC that keeps what it is sent.

#![allow(dead_code)] // each test uses a part of it

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value::Value};
use opentelemetry_proto::tonic::trace::v1::Span as Sent;
use tonic::{Request, Response, Status};

pub const SERVER: i32 = 2;
pub const CLIENT: i32 = 3;
pub const PRODUCER: i32 = 4;
pub const CONSUMER: i32 = 5;

type Attributes = BTreeMap<String, String>;

/// A span as it arrived, in hex and text.
#[derive(Clone, Debug)]
pub struct Span {
    pub resource: Attributes,
    pub schema: String,
    pub trace: String,
    pub state: String,
    pub id: String,
    pub parent: String,
    pub name: String,
    pub kind: i32,
    pub start_us: i64,
    pub end_us: i64,
    pub attributes: Attributes,
    pub events: Vec<(String, Attributes)>,
    /// Trace and span of each.
    pub links: Vec<(String, String)>,
    /// What went wrong, where something did.
    pub error: Option<String>,
}

impl Span {
    pub fn get(&self, name: &str) -> &str {
        self.attributes.get(name).map(String::as_str).unwrap_or_default()
    }

    pub fn number(&self, name: &str) -> f64 {
        self.get(name).parse().unwrap_or(f64::NAN)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn attributes(list: Vec<KeyValue>) -> Attributes {
    let text = |value: Value| match value {
        Value::StringValue(text) => text,
        Value::IntValue(number) => number.to_string(),
        Value::DoubleValue(number) => number.to_string(),
        other => format!("{other:?}"),
    };
    let pairs = list.into_iter();
    pairs
        .map(|it| (it.key, it.value.and_then(|it| it.value).map(text).unwrap_or_default()))
        .collect()
}

fn span(resource: &Attributes, schema: &str, sent: Sent) -> Span {
    Span {
        resource: resource.clone(),
        schema: schema.to_owned(),
        trace: hex(&sent.trace_id),
        state: sent.trace_state,
        id: hex(&sent.span_id),
        parent: hex(&sent.parent_span_id),
        name: sent.name,
        kind: sent.kind,
        start_us: (sent.start_time_unix_nano / 1000) as i64,
        end_us: (sent.end_time_unix_nano / 1000) as i64,
        attributes: attributes(sent.attributes),
        events: sent.events.into_iter().map(|it| (it.name, attributes(it.attributes))).collect(),
        links: sent.links.iter().map(|it| (hex(&it.trace_id), hex(&it.span_id))).collect(),
        error: sent.status.filter(|status| status.code == 2).map(|status| status.message),
    }
}

#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Kept {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut kept = self.0.lock().unwrap();
        for of_resource in request.into_inner().resource_spans {
            let resource = of_resource.resource.map(|it| attributes(it.attributes));
            let resource = resource.unwrap_or_default();
            for scope in of_resource.scope_spans {
                let spans = scope.spans.into_iter();
                kept.extend(spans.map(|sent| span(&resource, &scope.schema_url, sent)));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse { partial_success: None }))
    }
}

/// The collector. It is gone when this is dropped.
pub struct Collector {
    pub port: u16,
    kept: Kept,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Collector {
    pub fn start(port: u16) -> Self {
        let mut collector = Self { port, kept: Kept::default(), runtime: None };
        collector.up();
        collector
    }

    pub fn up(&mut self) {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let address: SocketAddr = ([127, 0, 0, 1], self.port).into();
        let service = TraceServiceServer::new(self.kept.clone());
        runtime.spawn(async move {
            // The last one's connections may not be gone yet.
            loop {
                let server = tonic::transport::Server::builder().add_service(service.clone());
                let _ = server.serve(address).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        self.runtime = Some(runtime);
    }

    /// Gone, with all its connections.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }

    pub fn spans(&self) -> Vec<Span> {
        self.kept.0.lock().unwrap().clone()
    }

    pub fn count(&self) -> usize {
        self.kept.0.lock().unwrap().len()
    }

    pub fn named(&self, name: &str) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| span.name == name);
        spans
    }

    /// The spans of a trace, in the order of their start.
    pub fn trace(&self, trace: &str) -> Vec<Span> {
        let mut spans = self.spans();
        spans.retain(|span| span.trace == trace);
        spans.sort_by_key(|span| span.start_us);
        spans
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kill();
    }
}
