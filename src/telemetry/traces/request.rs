//! The span of a request that makes events: a `tracing` span, so that what is logged within it
//! says which trace it belongs to, and which `tracing-opentelemetry` makes one of OpenTelemetry's.

use opentelemetry::trace::{SpanKind, TraceContextExt, TracerProvider};
use opentelemetry::{Context, KeyValue};
use tracing::field::Empty;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::{Layer, Registry};

use super::Traces;
use super::span::{context, shown};
use crate::event::now_us;
use crate::event::trace::{Place, split, text};

/// The target of what becomes a span; nothing else does.
const TARGET: &str = "aqueduct::request";

/// What is known of a request before it is answered.
#[derive(Debug)]
pub struct Asked<'a> {
    /// `POST`
    pub method: &'a str,
    /// The path it is for, as the topology has it.
    pub route: &'a str,
    /// `http` or `https`
    pub scheme: &'static str,
    /// The source whose events it makes: whether it begins a trace counts there.
    pub source: &'a str,
    /// What it carries of an event's trace, if anything.
    pub trace: Option<Box<str>>,
}

/// A request under way.
#[derive(Debug)]
pub struct Request {
    traces: Traces,
    /// Disabled where it is not followed.
    pub span: tracing::Span,
    /// What its events carry.
    pub trace: Option<Box<str>>,
    name: String,
    attributes: Vec<KeyValue>,
    start_us: i64,
}

impl Traces {
    /// The layer of the log that makes spans of requests.
    pub fn layer(&self) -> Box<dyn Layer<Registry> + Send + Sync> {
        let tracer = self.0.provider.tracer_with_scope(self.0.scope.clone());
        let layer = tracing_opentelemetry::layer()
            .with_tracer(tracer)
            .with_location(false)
            .with_threads(false)
            .with_level(false)
            .with_target(false)
            .with_tracked_inactivity(false)
            .with_filter(Targets::new().with_target(TARGET, LevelFilter::TRACE));
        layer.boxed()
    }

    /// A request begins. Without `[tracing]` its events carry what it brought, and no more.
    pub fn request(&self, asked: Asked<'_>) -> Request {
        let Asked { method, route, scheme, source, trace } = asked;
        let mut request = Request {
            traces: self.clone(),
            span: tracing::Span::none(),
            trace,
            name: String::new(),
            attributes: Vec::new(),
            start_us: 0,
        };
        if !self.on() {
            return request;
        }
        request.start_us = now_us();
        let parent = request.trace.as_deref().and_then(Place::parse);
        let followed = match parent {
            Some(parent) => parent.sampled,
            None => self.sampler(source).rule().begin(request.start_us).is_some(),
        };
        request.name = format!("{method} {route}");
        request.attributes = vec![
            KeyValue::new("http.request.method", method.to_owned()),
            KeyValue::new("http.route", route.to_owned()),
            KeyValue::new("url.path", route.to_owned()),
            KeyValue::new("url.scheme", scheme),
        ];
        if followed {
            request.follow(parent);
        }
        request
    }
}

impl Request {
    fn follow(&mut self, parent: Option<Place>) {
        // At the highest level, so that lines within it are known whatever is logged.
        self.span = tracing::error_span!(
            target: TARGET,
            "request",
            otel.name = self.name,
            otel.kind = "server",
            otel.status_code = Empty,
            otel.status_description = Empty,
            trace_id = Empty,
            span_id = Empty,
        );
        if let Some(parent) = parent {
            let state = self.trace.as_deref().and_then(|it| split(it).1?.parse().ok());
            let context = context(parent, true, state.unwrap_or_default());
            // It errs where no layer is there to make spans of it: then it has no trace either.
            let _ = self.span.set_parent(Context::new().with_remote_span_context(context));
        }
        for attribute in &self.attributes {
            self.span.set_attribute(attribute.key.clone(), attribute.value.clone());
        }
        let context = self.span.context();
        let span = context.span();
        let own = span.span_context();
        if own.is_valid() {
            self.span.record("trace_id", own.trace_id().to_string());
            self.span.record("span_id", own.span_id().to_string());
            let place = Place {
                trace_id: u128::from_be_bytes(own.trace_id().to_bytes()),
                span_id: u64::from_be_bytes(own.span_id().to_bytes()),
                sampled: true,
            };
            self.trace = Some(text(place, Some(&own.trace_state().header())));
        }
    }

    /// It was answered. One that failed is followed in any case. Answers its place, as events
    /// carry it.
    pub fn answered(mut self, status: u16, error: Option<&str>) -> Option<Box<str>> {
        if !self.traces.on() {
            return self.trace;
        }
        let failed = status >= 500;
        self.attributes.push(KeyValue::new("http.response.status_code", i64::from(status)));
        if !self.span.is_none() {
            self.span.set_attribute("http.response.status_code", i64::from(status));
            if failed {
                self.span.set_attribute("error.type", status.to_string());
                self.span.record("otel.status_code", "ERROR");
                self.span.record("otel.status_description", shown(error.unwrap_or_default()));
            }
            return self.trace;
        }
        let name = std::mem::take(&mut self.name);
        let trace = self.trace.as_deref();
        if failed
            && let Some(mut span) = self.traces.span(name, SpanKind::Server, trace, self.start_us)
        {
            span.set_all(&self.attributes);
            span.fail("unavailable", error.unwrap_or_default());
            let place = span.carried();
            self.traces.end(span, now_us());
            return Some(place);
        }
        self.trace
    }
}
