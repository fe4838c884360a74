//! `insert TABLE` and `write FILE`: what a sink does with the events that are followed.

use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

use super::{of_event, server};
use crate::event::{Delivery, Refusal, now_us};
use crate::sink::SinkSpec;
use crate::telemetry::traces::{Traces, is_followed};

/// The spans of one sink.
#[derive(Debug)]
pub struct Writes {
    traces: Traces,
    name: String,
    batch: String,
    common: Vec<KeyValue>,
}

impl Writes {
    /// Of the sink of `spec`.
    pub fn new(traces: &Traces, spec: &SinkSpec) -> Self {
        let values = &spec.values;
        let mut common = vec![KeyValue::new("aqueduct.sink", spec.name.to_string())];
        let operation = match spec.kind.system {
            Some(system) => {
                common.push(KeyValue::new("db.system.name", system));
                common.push(KeyValue::new("db.operation.name", "insert"));
                let table = values.opt_str("table").unwrap_or_default().to_owned();
                common.push(KeyValue::new("db.collection.name", table));
                "insert"
            }
            None => "write",
        };
        if let Some(path) = values.opt_str("path") {
            let key = if spec.kind.system.is_some() { "db.namespace" } else { "file.path" };
            common.push(KeyValue::new(key, path.to_owned()));
        }
        common.extend(server(values));
        let target = values.opt_str("table").or_else(|| values.opt_str("path"));
        let target = target.unwrap_or(&spec.name);
        let (name, batch) = (format!("{operation} {target}"), format!("batch {}", spec.name));
        Self { traces: traces.clone(), name, batch, common }
    }

    /// When a write starts, where anybody is to know.
    pub fn begin(&self) -> i64 {
        if self.traces.on() { now_us() } else { 0 }
    }

    /// The write ended so: a span for each event that is followed, and one for the batch that they
    /// link to. One that failed is followed in any case.
    pub fn end(&self, batch: &[&Delivery], start_us: i64, outcome: Result<&[Refusal], &str>) {
        if !self.traces.on() {
            return;
        }
        let followed = |it: &(usize, &&Delivery)| is_followed(it.1.event.trace.as_deref());
        let mut followed = batch.iter().enumerate().filter(followed).peekable();
        let (first, end_us) = (followed.peek(), now_us());
        if first.is_none() && outcome.is_ok() {
            return;
        }
        let first = first.and_then(|(_, delivery)| delivery.event.trace.as_deref());
        let Some(mut whole) =
            self.traces.span(self.batch.clone(), SpanKind::Internal, first, start_us)
        else {
            return;
        };
        whole.set_all(&self.common);
        whole.set("messaging.batch.message_count", batch.len() as i64);
        if let Err(cause) = outcome {
            whole.fail("unavailable", cause);
        }
        for (index, delivery) in followed {
            let trace = delivery.event.trace.as_deref();
            let Some(mut span) =
                self.traces.span(self.name.clone(), SpanKind::Client, trace, start_us)
            else {
                break;
            };
            span.set_all(&self.common);
            span.set("db.operation.batch.size", batch.len() as i64);
            of_event(&mut span, &delivery.event);
            span.link(whole.place());
            match outcome {
                Err(cause) => span.fail("unavailable", cause),
                Ok(refusals) => {
                    if let Some(refusal) = refusals.iter().find(|it| it.index == index) {
                        span.fail("refused", &refusal.reason);
                    }
                }
            }
            self.traces.end(span, end_us);
        }
        self.traces.end(whole, end_us);
    }
}
