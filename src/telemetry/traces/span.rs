//! One span on its way: made where something starts, handed to [`super::Traces::end`] where it
//! ends. The event's spans are made by hand and not by a tracer: their places are chosen before
//! they are known to be needed, and they end in another place than they start, often in another
//! process.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{Event, Link, SpanContext, SpanKind, Status, TraceFlags, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};

use crate::event::now_us;
use crate::event::trace::{Place, text};
use crate::spec::text::redact;

/// Events on one span, at most; more are counted only.
const EVENTS_MAX: usize = 64;
/// Bytes of a cause, at most.
const CAUSE_BYTES_MAX: usize = 1024;

/// A span that has not ended yet.
#[derive(Debug)]
pub struct Span {
    data: Box<SpanData>,
    place: Place,
}

impl Span {
    /// A child of `parent`, where there is one.
    pub(super) fn new(
        name: Cow<'static, str>,
        kind: SpanKind,
        parent: Option<(Place, Option<&str>)>,
        start_us: i64,
        scope: InstrumentationScope,
    ) -> Self {
        let place = parent.map_or_else(Place::begin, |(parent, _)| parent.child());
        let state = parent.and_then(|(_, state)| state?.parse().ok()).unwrap_or_default();
        let data = SpanData {
            span_context: context(place, false, state),
            parent_span_id: parent.map_or(0, |(parent, _)| parent.span_id).into(),
            // All but a consumer's parent are of this very process, or nobody can tell.
            parent_span_is_remote: parent.is_some() && kind == SpanKind::Consumer,
            span_kind: kind,
            name,
            start_time: time(start_us),
            end_time: time(start_us),
            attributes: Vec::with_capacity(12),
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: Status::Unset,
            instrumentation_scope: scope,
        };
        Self { data: Box::new(data), place }
    }

    /// Where it is.
    pub fn place(&self) -> Place {
        self.place
    }

    /// What an event carries that goes on from here.
    pub fn carried(&self) -> Box<str> {
        let state = self.data.span_context.trace_state().header();
        text(self.place, Some(&state))
    }

    /// Adds an attribute.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        self.data.attributes.push(KeyValue::new(key, value));
    }

    /// Adds attributes.
    pub fn set_all(&mut self, attributes: &[KeyValue]) {
        self.data.attributes.extend_from_slice(attributes);
    }

    /// Something happened meanwhile.
    pub fn event(&mut self, name: &'static str, attributes: Vec<KeyValue>) {
        let events = &mut self.data.events;
        match events.events.len() < EVENTS_MAX {
            true => events.events.push(Event::new(name, time(now_us()), attributes, 0)),
            false => events.dropped_count += 1,
        }
    }

    /// Another span has to do with it.
    pub fn link(&mut self, place: Place) {
        let context = context(place, false, TraceState::default());
        self.data.links.links.push(Link::new(context, Vec::new(), 0));
    }

    /// It failed. `kind` is one of few words; the cause is shown without secrets.
    pub fn fail(&mut self, kind: &'static str, cause: &str) {
        self.set("error.type", kind);
        self.data.status = Status::error(shown(cause));
    }

    pub(super) fn ended(mut self, end_us: i64) -> SpanData {
        self.data.end_time = time(end_us).max(self.data.start_time);
        *self.data
    }
}

/// A cause as a span shows it: without secrets, and not at any length.
pub fn shown(cause: &str) -> String {
    let mut cause = redact(cause);
    if cause.len() > CAUSE_BYTES_MAX {
        let mut end = CAUSE_BYTES_MAX;
        while !cause.is_char_boundary(end) {
            end -= 1;
        }
        cause.truncate(end);
        cause.push('…');
    }
    cause
}

/// A place as OpenTelemetry has it.
pub(super) fn context(place: Place, remote: bool, state: TraceState) -> SpanContext {
    let flags = TraceFlags::default().with_sampled(place.sampled);
    SpanContext::new(place.trace_id.into(), place.span_id.into(), flags, remote, state)
}

fn time(us: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(us.max(0) as u64)
}
