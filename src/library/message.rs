//! What is published.

use std::sync::OnceLock;

use bytes::Bytes;
use serde::Serialize;

use super::Error;
use crate::event::{Event, EventId, Origin, Sequence, now_us, trace};

/// A message to publish.
///
/// The first [`publish`](super::Producer::publish) gives it its id, and from then on it *is* that
/// event: published again after an error, by whichever producer, it keeps its id, and whoever
/// keeps one of each id keeps it once. A clone of a published message is the same event; a message
/// that is changed is another one.
#[derive(Clone, Debug)]
pub struct Message {
    body: Bytes,
    key: Option<Box<str>>,
    kind: Option<Box<str>>,
    shard: Option<u32>,
    idempotency: Option<Box<str>>,
    traceparent: Option<Box<str>>,
    tracestate: Option<Box<str>>,
    /// Its id, and when it was first published.
    made: OnceLock<(EventId, i64)>,
}

impl Message {
    /// A message with this body, of any bytes.
    pub fn new(body: impl Into<Bytes>) -> Self {
        Self {
            body: body.into(),
            key: None,
            kind: None,
            shard: None,
            idempotency: None,
            traceparent: None,
            tracestate: None,
            made: OnceLock::new(),
        }
    }

    /// A message with `value` as JSON. Errs where that cannot be written as JSON: a map whose keys
    /// are no strings, say.
    pub fn json<T: Serialize + ?Sized>(value: &T) -> Result<Self, Error> {
        Ok(Self::new(serde_json::to_vec(value).map_err(Error::Json)?))
    }

    /// Picks its shard: all messages with this key go to the same one ([`crate::shard_of`]), so
    /// they are read in the order in which they were published. Without a key it goes to any.
    pub fn key(self, key: impl Into<String>) -> Self {
        Self { key: Some(key.into().into()), ..self.changed() }
    }

    /// Names the shard that it goes to, counted from 0, instead of leaving that to the key, which
    /// still travels with it. Publishing errs with [`Error::Invalid`] where the stream has no such
    /// shard.
    ///
    /// Order holds within a shard: messages of one key are read in the order in which they were
    /// published only where all of them go to one shard, so name none of them a shard, or all of
    /// them the same.
    pub fn shard(self, shard: u32) -> Self {
        Self { shard: Some(shard), ..self.changed() }
    }

    /// What kind of thing happened (`"order-paid"`), for readers to tell without a look at the
    /// body: [`Received::kind`](super::Received::kind), and `@type` in a sink's columns.
    pub fn kind(self, kind: impl Into<String>) -> Self {
        Self { kind: Some(kind.into().into()), ..self.changed() }
    }

    /// Names the event: whatever is published under this name, by producers of one origin, is the
    /// same event with the same id, also by another process and next year. The name alone decides,
    /// not the body: use what names the thing that happened (`"order-17-paid"`), and never one name
    /// for two of them.
    pub fn idempotency(self, name: impl Into<String>) -> Self {
        Self { idempotency: Some(name.into().into()), ..self.changed() }
    }

    /// The [W3C `traceparent`](https://www.w3.org/TR/trace-context/) of the span that it is
    /// published in, for the spans of whoever works on it to be that span's children. What is none
    /// is left out, as the standard asks.
    pub fn traceparent(self, traceparent: &str) -> Self {
        Self { traceparent: Some(traceparent.into()), ..self.changed() }
    }

    /// The W3C `tracestate` that goes with the `traceparent`; nothing without one.
    pub fn tracestate(self, tracestate: &str) -> Self {
        Self { tracestate: Some(tracestate.into()), ..self.changed() }
    }

    /// Its id, once a publish was begun.
    pub fn id(&self) -> Option<EventId> {
        self.made.get().map(|(id, _)| *id)
    }

    /// The shard that it names.
    pub(super) fn named_shard(&self) -> Option<u32> {
        self.shard
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    fn changed(self) -> Self {
        Self { made: OnceLock::new(), ..self }
    }

    /// The event that it is.
    pub(super) fn event(&self, ids: &mut Ids) -> Event {
        let (id, time_us) =
            *self.made.get_or_init(|| (ids.id(self.idempotency.as_deref()), now_us()));
        let parent = self.traceparent.as_deref();
        Event {
            key: self.key.clone(),
            kind: self.kind.clone(),
            shard: self.shard,
            trace: parent.and_then(|parent| trace::carried(parent, self.tracestate.as_deref())),
            ..Event::new(id, self.body.clone(), ids.source.clone(), time_us)
        }
    }
}

/// Gives messages their ids: one producer's.
pub(super) struct Ids {
    /// The origin, as events name their source.
    pub source: std::sync::Arc<str>,
    /// A run of its own: what it counts no other producer counts.
    run: Origin,
    next: u64,
}

impl Ids {
    /// The ids of a producer that files them under `origin`.
    pub fn new(origin: &str) -> Self {
        let run = fastrand::u128(..).to_be_bytes();
        let run = Origin::new(Sequence::Count, &[b"library", origin.as_bytes(), &run]);
        Self { source: origin.into(), run, next: 0 }
    }

    fn id(&mut self, name: Option<&str>) -> EventId {
        if let Some(name) = name {
            return EventId::hashed(&[b"library", self.source.as_bytes(), name.as_bytes()]);
        }
        let sequence = self.next;
        self.next += 1;
        EventId::new(self.run, sequence, self.run.bits())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_event_however_often_it_is_published() {
        let (mut ids, mut others) = (Ids::new("shop"), Ids::new("shop"));
        let message = Message::new("1").key("k");
        assert_eq!(message.id(), None);
        let event = message.event(&mut ids);
        assert_eq!(message.event(&mut others), event);
        assert_eq!(message.clone().event(&mut others), event);
        assert_ne!(message.key("other").event(&mut ids).id, event.id);
        let (first, next) = (event.id, Message::new("1").event(&mut ids).id);
        assert!(first < next && first.origin() == next.origin());
        assert_ne!(Message::new("1").event(&mut others).id.origin(), first.origin());
    }

    #[test]
    fn a_name_is_the_event_of_its_origin_whatever_the_body() {
        let named = |origin, name: &str, body: &'static str| {
            Message::new(body).idempotency(name).event(&mut Ids::new(origin)).id
        };
        assert_eq!(named("shop", "order-1", "a"), named("shop", "order-1", "b"));
        assert_ne!(named("shop", "order-1", "a"), named("shop", "order-2", "a"));
        assert_ne!(named("shop", "order-1", "a"), named("till", "order-1", "a"));
    }

    #[test]
    fn a_trace_travels_and_nonsense_does_not() {
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = |message: Message| message.event(&mut Ids::new("shop")).trace;
        let both = trace(Message::new("").tracestate("a=1").traceparent(parent));
        assert_eq!(both.as_deref(), Some(&*format!("{parent} a=1")));
        assert_eq!(trace(Message::new("").traceparent("nonsense").tracestate("a=1")), None);
    }
}
