//! `send STREAM`: from the acceptance of an event until it is durable.

use std::sync::Arc;

use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

use super::{of_event, on_stream};
use crate::actor::message::Down;
use crate::event::{Event, now_us};
use crate::stream::{Appended, StreamSpec};
use crate::telemetry::traces::sampler::Sampler;
use crate::telemetry::traces::span::Span;
use crate::telemetry::traces::{Traces, is_followed};

/// The spans of one source, or of one group that writes a stream.
#[derive(Debug)]
pub struct Sends {
    traces: Traces,
    /// Decides what begins a trace; `None` where that was decided before.
    sampler: Option<Arc<Sampler>>,
    /// Whether events are accepted when they were made, and not now.
    accepts: bool,
    name: String,
    common: Vec<KeyValue>,
}

impl Sends {
    /// Of a source. Whether its events begin a trace is decided here, unless it was when it was
    /// asked for them.
    pub fn of_source(traces: &Traces, stream: &StreamSpec, source: &str, asked: bool) -> Self {
        let sampler = (!asked).then(|| traces.sampler(source));
        Self { sampler, accepts: true, ..Self::of_group(traces, stream) }
    }

    /// Of a group: its events are followed or not.
    pub fn of_group(traces: &Traces, stream: &StreamSpec) -> Self {
        Self {
            traces: traces.clone(),
            sampler: None,
            accepts: false,
            name: format!("send {}", stream.name),
            common: on_stream(stream, "send"),
        }
    }

    /// Starts the spans of those that are followed; the events carry them from here on.
    pub fn begin(&self, events: &mut [Event]) -> Vec<Span> {
        let mut spans = Vec::new();
        if !self.traces.on() {
            return spans;
        }
        let now_us = now_us();
        let rule = self.sampler.as_ref().map(|sampler| sampler.rule());
        for event in events {
            let start_us = match (event.trace.as_deref(), &rule) {
                (Some(trace), _) if is_followed(Some(trace)) => match self.accepts {
                    true => event.time_us.min(now_us),
                    false => now_us,
                },
                (None, Some(rule)) => match rule.begin(now_us) {
                    Some(start_us) => start_us,
                    None => continue,
                },
                _ => continue,
            };
            spans.extend(self.span(event.trace.as_deref(), start_us).map(|mut span| {
                of_event(&mut span, event);
                event.trace = Some(span.carried());
                span
            }));
        }
        spans
    }

    fn span(&self, trace: Option<&str>, start_us: i64) -> Option<Span> {
        let mut span = self.traces.span(self.name.clone(), SpanKind::Producer, trace, start_us)?;
        span.set_all(&self.common);
        Some(span)
    }

    /// Ends them with what became of the append of so many events. One that failed is followed
    /// in any case, by one span for all of it.
    pub fn end(&self, spans: Vec<Span>, events: u64, answer: &Result<Appended, Down>) {
        if !self.traces.on() {
            return;
        }
        let failure: Option<(&'static str, String)> = match answer {
            Ok(Appended::Durable) => None,
            Ok(Appended::Rewound) => {
                Some(("rewound", "the stream holds another checkpoint".to_owned()))
            }
            Ok(Appended::Full(behind)) => {
                Some(("full", format!("the slowest group is {behind} events behind")))
            }
            Err(Down::Failed(cause)) => Some(("unavailable", cause.to_string())),
            Err(Down::Died) => Some(("died", "the stream's actor died with it".to_owned())),
        };
        let end_us = now_us();
        let decides = self.sampler.is_some() && events > 0;
        let mut spans = spans;
        if spans.is_empty() && decides && answer.is_err() {
            spans.extend(self.span(None, end_us).map(|mut span| {
                span.set("messaging.batch.message_count", events as i64);
                span
            }));
        }
        for mut span in spans {
            if let Some((kind, cause)) = &failure {
                span.fail(kind, cause);
            }
            self.traces.end(span, end_us);
        }
    }
}
