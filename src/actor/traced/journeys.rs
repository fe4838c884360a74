//! `process STREAM`: from the moment a member has an event until it is acknowledged, dead or
//! somebody else's.

use std::cell::RefCell;
use std::collections::HashMap;

use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

use super::{of_event, on_stream};
use crate::event::{Delivery, Ticket, now_us};
use crate::source::Dead;
use crate::stream::{GroupSpec, StreamSpec};
use crate::telemetry::logs;
use crate::telemetry::traces::span::{Span, shown};
use crate::telemetry::traces::{Traces, is_followed};

/// What became of an event at a member.
const DEAD_LETTER: &str = "dead-letter";

/// The spans of one member. They outlive its lives, like what it holds.
#[derive(Debug)]
pub struct Journeys {
    traces: Traces,
    name: String,
    common: Vec<KeyValue>,
    dead: Vec<KeyValue>,
    open: RefCell<HashMap<Ticket, Span>>,
}

impl Journeys {
    /// Of the member of this name.
    pub fn new(traces: &Traces, group: &GroupSpec, stream: &StreamSpec, member: String) -> Self {
        let own = [
            KeyValue::new("messaging.consumer.group.name", group.name.to_string()),
            KeyValue::new("messaging.client.id", member),
        ];
        let mut common = on_stream(stream, "process");
        common.extend(own.clone());
        Self {
            traces: traces.clone(),
            name: format!("process {}", stream.name),
            common,
            dead: dead_letters(stream, &group.dead).into_iter().chain(own).collect(),
            open: RefCell::default(),
        }
    }

    /// Events have come: those that are followed carry the member's span from here on.
    pub fn begin(&self, batch: &mut [Delivery]) {
        if !self.traces.on() {
            return;
        }
        for delivery in batch {
            if is_followed(delivery.event.trace.as_deref()) {
                self.follow(delivery);
            }
        }
    }

    fn follow(&self, delivery: &mut Delivery) {
        let (event, start_us) = (&mut delivery.event, now_us());
        let trace = event.trace.as_deref();
        let span = self.traces.span(self.name.clone(), SpanKind::Consumer, trace, start_us);
        let Some(mut span) = span else { return };
        span.set_all(&self.common);
        of_event(&mut span, event);
        span.set("messaging.destination.partition.id", delivery.ticket.shard.to_string());
        let wait_us = start_us.saturating_sub(event.time_us).max(0);
        span.set("aqueduct.wait_ms", wait_us as f64 / 1e3);
        if delivery.deliveries > 1 {
            let times = i64::from(delivery.deliveries);
            span.event("reclaimed", vec![KeyValue::new("aqueduct.deliveries", times)]);
        }
        event.trace = Some(span.carried());
        if let Some(before) = self.open.borrow_mut().insert(delivery.ticket, span) {
            self.traces.end(before, start_us);
        }
    }

    /// Something went wrong with this event: it is followed from here on in any case.
    pub fn failed(&self, delivery: &mut Delivery, what: &'static str, cause: &str) {
        if self.traces.on() && !self.open.borrow().contains_key(&delivery.ticket) {
            self.follow(delivery);
        }
        self.log(delivery, what, cause);
        if let Some(span) = self.open.borrow_mut().get_mut(&delivery.ticket) {
            let attempts = i64::from(delivery.attempts);
            span.event(
                what,
                vec![
                    KeyValue::new("aqueduct.cause", shown(cause)),
                    KeyValue::new("aqueduct.attempts", attempts),
                ],
            );
        }
    }

    /// To who asks for it: an event that nobody will take becomes a dead letter, and that is told.
    fn log(&self, delivery: &Delivery, what: &str, cause: &str) {
        if tracing::enabled!(tracing::Level::DEBUG) {
            let (trace_id, span_id) = logs::ids(delivery.event.trace.as_deref());
            let (stream, event) = (&delivery.stream, &delivery.event.id);
            tracing::debug!(%stream, %event, trace_id, span_id, "{what}: {cause}");
        }
    }

    /// The target could not take these, through no fault of theirs: they are tried again.
    pub fn retried(&self, batch: &[Delivery], cause: &str) {
        let mut open = self.open.borrow_mut();
        if open.is_empty() {
            return;
        }
        for delivery in batch.iter().filter(|it| it.event.trace.is_some()) {
            if let Some(span) = open.get_mut(&delivery.ticket) {
                span.event("retry", vec![KeyValue::new("aqueduct.cause", shown(cause))]);
            }
        }
    }

    /// These are stored and acknowledged.
    pub fn stored(&self, batch: &[Delivery]) {
        let mut open = self.open.borrow_mut();
        if open.is_empty() {
            return;
        }
        let end_us = now_us();
        for delivery in batch.iter().filter(|it| it.event.trace.is_some()) {
            if let Some(span) = open.remove(&delivery.ticket) {
                self.traces.end(span, end_us);
            }
        }
    }

    /// This one is a dead letter, since `start_us`.
    pub fn buried(&self, delivery: &Delivery, reason: &str, start_us: i64) {
        let Some(mut span) = self.open.borrow_mut().remove(&delivery.ticket) else { return };
        let end_us = now_us();
        let trace = span.carried();
        let letter = self.traces.span(DEAD_LETTER, SpanKind::Producer, Some(&trace), start_us);
        if let Some(mut letter) = letter {
            letter.set_all(&self.dead);
            of_event(&mut letter, &delivery.event);
            letter.set("aqueduct.attempts", i64::from(delivery.attempts));
            letter.fail("dead_letter", reason);
            self.traces.end(letter, end_us);
        }
        span.fail("dead_letter", reason);
        self.traces.end(span, end_us);
    }

    /// These are no longer this member's.
    pub fn lost(&self, tickets: &[Ticket], why: &'static str) {
        let mut open = self.open.borrow_mut();
        if open.is_empty() {
            return;
        }
        let end_us = now_us();
        for ticket in tickets {
            if let Some(mut span) = open.remove(ticket) {
                span.event(why, Vec::new());
                self.traces.end(span, end_us);
            }
        }
    }
}

fn dead_letters(stream: &StreamSpec, to: &str) -> Vec<KeyValue> {
    let mut attributes = on_stream(stream, "send");
    for attribute in &mut attributes {
        match attribute.key.as_str() {
            "messaging.destination.name" => attribute.value = to.to_owned().into(),
            "messaging.operation.name" => attribute.value = DEAD_LETTER.into(),
            _ => {}
        }
    }
    attributes
}

/// What a source read and could not hand on: a dead letter that never was an event. It carries
/// its span from here on.
pub fn never_sent(traces: &Traces, stream: &StreamSpec, dead: &mut Dead, start_us: i64) {
    let Dead { event, reason } = dead;
    let trace = event.trace.as_deref();
    let Some(mut span) = traces.span(DEAD_LETTER, SpanKind::Producer, trace, start_us) else {
        return;
    };
    span.set_all(&dead_letters(stream, &format!("{}.dead", stream.name)));
    of_event(&mut span, event);
    span.fail("dead_letter", reason);
    event.trace = Some(span.carried());
    traces.end(span, now_us());
}
