//! Traces: one for each event that is followed on its way, as spans in the words of OpenTelemetry's
//! semantic conventions ([`CONVENTIONS`]), sent to the collector that `[tracing]` names.
//!
//! Whether a new trace begins is decided once, at the source ([`sampler`]); from there on the
//! event's own `traceparent` says so. What is not followed costs a look at that field and nothing
//! else. What goes wrong is followed from there on in any case. The way of a span to the collector
//! ([`export`]) holds nobody up: what does not fit its queue is dropped, and counted.

pub mod export;
pub mod request;
pub mod sampler;
pub mod span;

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use opentelemetry::InstrumentationScope;
use opentelemetry::trace::SpanKind;
use opentelemetry_sdk::trace::{Sampler as SdkSampler, SdkTracerProvider};

use self::export::{Exporter, Queue};
use self::sampler::Sampler;
use self::span::Span;
use super::metrics::Metrics;
use crate::event::trace::{Place, split};
use crate::topology::{Sample, Tracing};

/// The version of OpenTelemetry's semantic conventions whose names the spans use.
pub const CONVENTIONS: &str = "1.38.0";

/// The spans of this process, on their way out; or none, without `[tracing]`.
#[derive(Clone, Debug, Default)]
pub struct Traces(Option<Arc<Following>>);

#[derive(Debug)]
struct Following {
    queue: Queue,
    scope: InstrumentationScope,
    sample: Sample,
    samplers: Mutex<HashMap<String, Arc<Sampler>>>,
    provider: SdkTracerProvider,
}

impl Traces {
    /// Starts what sends spans to the collector. It need not be there yet. Errs where its address
    /// is none.
    pub fn start(tracing: &Tracing, instance: &str, metrics: &Metrics) -> Result<(Self, Exporter)> {
        let (queue, exporter) = export::start(tracing, instance, metrics)?;
        let scope = InstrumentationScope::builder("aqueduct")
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(format!("https://opentelemetry.io/schemas/{CONVENTIONS}"))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_sampler(SdkSampler::AlwaysOn) // who makes a span has decided
            .with_span_processor(queue.clone())
            .build();
        let (sample, samplers) = (tracing.sample, Mutex::default());
        Ok((Self(Some(Arc::new(Following { queue, scope, sample, samplers, provider }))), exporter))
    }

    /// Whether there is a collector to send spans to.
    pub fn on(&self) -> bool {
        self.0.is_some()
    }

    /// What decides whether an event of this source begins a trace; the same for all its
    /// instances. `None` where nothing is followed.
    pub fn sampler(&self, source: &str) -> Option<Arc<Sampler>> {
        let following = self.0.as_ref()?;
        let mut samplers = following.samplers.lock().unwrap_or_else(PoisonError::into_inner);
        let sampler = || Arc::new(Sampler::new(following.sample));
        Some(samplers.entry(source.to_owned()).or_insert_with(sampler).clone())
    }

    /// A span that starts now or did at `start_us`: a child of what `trace` names, or the first
    /// of a new trace. `None` where nothing is followed.
    pub fn span(
        &self,
        name: impl Into<Cow<'static, str>>,
        kind: SpanKind,
        trace: Option<&str>,
        start_us: i64,
    ) -> Option<Span> {
        let following = self.0.as_ref()?;
        let parent = trace.and_then(|trace| Some((Place::parse(trace)?, split(trace).1)));
        Some(Span::new(name.into(), kind, parent, start_us, following.scope.clone()))
    }

    /// The span ended at `end_us`: off it goes.
    pub fn end(&self, span: Span, end_us: i64) {
        if let Some(following) = &self.0 {
            following.queue.put(span.ended(end_us));
        }
    }
}

/// Whether an event that carries this is followed.
pub fn is_followed(trace: Option<&str>) -> bool {
    trace.and_then(Place::parse).is_some_and(|place| place.sampled)
}
