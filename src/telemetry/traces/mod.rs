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
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use opentelemetry::InstrumentationScope;
use opentelemetry::trace::SpanKind;
use opentelemetry_sdk::trace::{Sampler as SdkSampler, SdkTracerProvider};

use self::export::{Exporter, Way};
use self::sampler::Sampler;
use self::span::Span;
use super::metrics::Metrics;
use crate::event::trace::{Place, split};
use crate::topology::{Sample, Tracing};

/// The version of OpenTelemetry's semantic conventions whose names the spans use.
pub const CONVENTIONS: &str = "1.38.0";

/// The spans of this process, on their way out; or none, without `[tracing]`. An edit of the
/// topology may turn it to another collector while everybody goes on with it.
#[derive(Clone, Debug)]
pub struct Traces(Arc<Following>);

#[derive(Debug)]
struct Following {
    on: AtomicBool,
    way: Way,
    scope: InstrumentationScope,
    sample: Mutex<Sample>,
    samplers: Mutex<HashMap<String, Arc<Sampler>>>,
    provider: SdkTracerProvider,
}

impl Default for Traces {
    fn default() -> Self {
        let way = Way::default();
        let scope = InstrumentationScope::builder("aqueduct")
            .with_version(env!("CARGO_PKG_VERSION"))
            .with_schema_url(format!("https://opentelemetry.io/schemas/{CONVENTIONS}"))
            .build();
        let provider = SdkTracerProvider::builder()
            .with_sampler(SdkSampler::AlwaysOn) // who makes a span has decided
            .with_span_processor(way.clone())
            .build();
        let (sample, samplers) = (Mutex::new(Sample::Ratio(0.0)), Mutex::default());
        let on = AtomicBool::new(false);
        Self(Arc::new(Following { on, way, scope, sample, samplers, provider }))
    }
}

impl Traces {
    /// Sends spans to this collector from now on, or none any more. It need not be there yet.
    /// Answers what sends them, which is to be stopped when it is not needed any more. Errs where
    /// the collector's address is none; then all is as before.
    pub fn turn(
        &self,
        tracing: Option<&Tracing>,
        instance: &str,
        metrics: &Metrics,
    ) -> Result<Option<Exporter>> {
        let begin = |tracing| export::start(tracing, instance, metrics);
        let (queue, exporter) = tracing.map(begin).transpose()?.unzip();
        self.0.way.turn(queue);
        if let Some(tracing) = tracing {
            self.sample(tracing.sample);
        }
        self.0.on.store(tracing.is_some(), Ordering::Relaxed);
        Ok(exporter)
    }

    /// Has each source begin so many traces from now on.
    pub fn sample(&self, sample: Sample) {
        *self.0.sample.lock().unwrap_or_else(PoisonError::into_inner) = sample;
        let samplers = self.0.samplers.lock().unwrap_or_else(PoisonError::into_inner);
        samplers.values().for_each(|sampler| sampler.set(sample));
    }

    /// Whether there is a collector to send spans to.
    pub fn on(&self) -> bool {
        self.0.on.load(Ordering::Relaxed)
    }

    /// What decides whether an event of this source begins a trace; the same for all its
    /// instances.
    pub fn sampler(&self, source: &str) -> Arc<Sampler> {
        let mut samplers = self.0.samplers.lock().unwrap_or_else(PoisonError::into_inner);
        let sample = || *self.0.sample.lock().unwrap_or_else(PoisonError::into_inner);
        let sampler = || Arc::new(Sampler::new(sample()));
        samplers.entry(source.to_owned()).or_insert_with(sampler).clone()
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
        if !self.on() {
            return None;
        }
        let parent = trace.and_then(|trace| Some((Place::parse(trace)?, split(trace).1)));
        Some(Span::new(name.into(), kind, parent, start_us, self.0.scope.clone()))
    }

    /// The span ended at `end_us`: off it goes.
    pub fn end(&self, span: Span, end_us: i64) {
        self.0.way.put(span.ended(end_us));
    }
}

/// Whether an event that carries this is followed.
pub fn is_followed(trace: Option<&str>) -> bool {
    trace.and_then(Place::parse).is_some_and(|place| place.sampled)
}
