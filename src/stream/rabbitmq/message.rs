//! An event as a message, and back.
//!
//! Ours (`app_id = "aqueduct"`): the body as it is, `message_id` the event's id, `timestamp` its
//! second, `type` its type, and as headers `source`, `time_us`, `key`, `shard` (that its producer
//! named), `traceparent`, `tracestate`, `only_group`. Where these would not fit the header of a
//! message, the whole event is its body, as a chunk of one.
//!
//! What another client put there: its id comes from stream, `message_id` and body. Without a
//! `message_id` each delivery is an event of its own, since two equal bodies may well be two
//! events: it is stored at least once.

use std::sync::Arc;

use anyhow::Result;
use bytes::Bytes;
use lapin::BasicProperties;
use lapin::types::{AMQPValue, FieldTable, LongString, ShortString};

use super::link::HEADER_BYTES;
use crate::event::{Event, EventId, now_us, trace};
use crate::stream::chunk;

/// `app_id` of our messages.
const OURS: &str = "aqueduct";
/// `content_type` of a message whose body is the whole event.
const CHUNK: &str = "application/x-aqueduct-chunk";
/// `delivery_mode` of what survives a restart.
const PERSISTENT: u8 = 2;
/// Bytes of a kind that is a property, at most: a short string's.
const KIND_BYTES: usize = 255;
/// Bytes of a dead letter's reason that are kept.
const REASON_BYTES: usize = HEADER_BYTES / 2;

/// How often an event was delivered before this message carried it.
const DELIVERIES: &str = "aqueduct-deliveries";
/// Its charged attempts.
const ATTEMPTS: &str = "aqueduct-attempts";
/// What the maker of a copy finds it by.
const TOKEN: &str = "aqueduct-token";
/// Whether the last attempt was charged for a delivery that is yet to come.
const UNSPENT: &str = "aqueduct-unspent";
/// Its shard, where the queue does not tell.
const SHARD: &str = "aqueduct-shard";
/// Of a dead letter: whose it is, why, and since when.
const GROUP: &str = "aqueduct-group";
const REASON: &str = "aqueduct-reason";
const DEAD_US: &str = "aqueduct-dead-us";
/// What a copy of an event carries beside it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    /// Deliveries before this message.
    pub deliveries: u32,
    /// Charged attempts.
    pub attempts: u32,
    /// What its maker finds it by.
    pub token: u64,
    /// The last attempt was charged, and the event not yet delivered for it.
    pub unspent: bool,
    /// The shard it is of.
    pub shard: u32,
}

/// Whose a dead letter is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Letter<'a> {
    pub group: &'a str,
    pub reason: &'a str,
    pub attempts: u32,
    pub time_us: i64,
}

/// A message, ready to be published.
pub(super) struct Message {
    /// The exchange; empty for the one that routes by the queue's name.
    pub exchange: ShortString,
    /// The routing key, or the queue's name.
    pub key: ShortString,
    /// Its properties.
    pub properties: BasicProperties,
    /// Its body.
    pub body: Bytes,
}

impl Message {
    /// An event for an exchange. It is for all groups, whatever a replay elsewhere said of it.
    pub fn event(event: &Event, exchange: ShortString, key: ShortString) -> Result<Self> {
        Self::build(event, None, exchange, key, FieldTable::default())
    }

    /// A copy of an event for one queue.
    pub fn copy(event: &Event, counts: &Counts, queue: ShortString) -> Result<Self> {
        let mut headers = FieldTable::default();
        put_int(&mut headers, DELIVERIES, counts.deliveries.into());
        put_int(&mut headers, ATTEMPTS, counts.attempts.into());
        put_int(&mut headers, SHARD, counts.shard.into());
        put_int(&mut headers, TOKEN, counts.token as i64);
        put_int(&mut headers, UNSPENT, counts.unspent.into());
        let only = event.only_group.as_deref();
        Self::build(event, only, ShortString::default(), queue, headers)
    }

    /// A replayed event, for the queue of the group that gave it up.
    pub fn replay(event: &Event, group: &str, queue: ShortString) -> Result<Self> {
        Self::build(event, Some(group), ShortString::default(), queue, FieldTable::default())
    }

    /// A dead letter, for the queue of these.
    pub fn letter(event: &Event, letter: &Letter, queue: ShortString) -> Result<Self> {
        let mut headers = FieldTable::default();
        put_text(&mut headers, GROUP, letter.group);
        put_text(&mut headers, REASON, cut(letter.reason, REASON_BYTES));
        put_int(&mut headers, ATTEMPTS, letter.attempts.into());
        put_int(&mut headers, DEAD_US, letter.time_us);
        Self::build(event, None, ShortString::default(), queue, headers)
    }

    fn build(
        event: &Event,
        only_group: Option<&str>,
        exchange: ShortString,
        key: ShortString,
        mut headers: FieldTable,
    ) -> Result<Self> {
        let text = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        let size = event.source.len()
            + text(&event.key)
            + text(&event.trace)
            + text(&event.kind)
            + only_group.map_or(0, str::len);
        let mut properties = BasicProperties::default()
            .with_app_id(OURS.into())
            .with_delivery_mode(PERSISTENT)
            .with_message_id(event.id.to_string().into()) // 36 bytes
            .with_timestamp((event.time_us.max(0) / 1_000_000) as u64);
        let body = if size > HEADER_BYTES || text(&event.kind) > KIND_BYTES {
            properties = properties.with_content_type(CHUNK.into());
            let only_group = only_group.map(Arc::from);
            chunk::encode(&[&Event { only_group, ..event.clone() }])?.into()
        } else {
            put_text(&mut headers, "source", &event.source);
            put_int(&mut headers, "time_us", event.time_us);
            if let Some(kind) = &event.kind {
                properties = properties.with_type((&**kind).into());
            }
            if let Some(shard) = event.shard {
                put_int(&mut headers, "shard", shard.into());
            }
            let (parent, state) = event.trace.as_deref().map(trace::split).unzip();
            let texts = [
                ("key", event.key.as_deref()),
                ("traceparent", parent),
                ("tracestate", state.flatten()),
                ("only_group", only_group),
            ];
            for (name, text) in texts {
                if let Some(text) = text {
                    put_text(&mut headers, name, text);
                }
            }
            event.body.clone()
        };
        Ok(Self { exchange, key, properties: properties.with_headers(headers), body })
    }
}

fn put_int(headers: &mut FieldTable, name: &str, number: i64) {
    headers.insert(name.into(), AMQPValue::LongLongInt(number));
}

fn put_text(headers: &mut FieldTable, name: &str, text: &str) {
    headers.insert(name.into(), AMQPValue::LongString(LongString::from(text)));
}

/// The start of `text`, at most `bytes` long.
fn cut(text: &str, bytes: usize) -> &str {
    let mut end = bytes.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What a message was.
#[derive(Debug)]
pub(super) struct Read {
    /// The event.
    pub event: Event,
    /// What travelled with it.
    pub counts: Counts,
    /// Somebody may have had this very message before.
    pub returned: bool,
    /// Of a dead letter: group, reason, and when.
    pub letter: Option<(String, String, i64)>,
}

/// Reads messages of one stream.
pub(super) struct Decoder {
    stream: Arc<str>,
    /// The source of the message before, which is nearly always the same.
    source: Arc<str>,
}

impl Decoder {
    pub fn new(stream: Arc<str>) -> Self {
        Self { source: stream.clone(), stream }
    }

    /// Reads one, whoever wrote it: nothing that it may hold is an error.
    pub fn read(&mut self, message: lapin::message::Delivery) -> Read {
        let headers = Headers(message.properties.headers().as_ref());
        let ours = message.properties.app_id().as_ref().is_some_and(|app| app.as_str() == OURS);
        let body = Bytes::from(message.data);
        let event = match ours.then(|| self.ours(&message.properties, &headers, &body)).flatten() {
            Some(event) => event,
            None => self.foreign(&message.properties, &headers, body),
        };
        let counts = match ours {
            true => Counts {
                deliveries: headers.int(DELIVERIES).map_or(0, count),
                attempts: headers.int(ATTEMPTS).map_or(0, count),
                token: headers.int(TOKEN).unwrap_or_default() as u64,
                unspent: headers.int(UNSPENT) == Some(1),
                shard: headers.int(SHARD).map_or(0, count),
            },
            false => Counts::default(),
        };
        let letter = headers.text(GROUP).filter(|_| ours).map(|group| {
            let reason = headers.text(REASON).unwrap_or_default().to_owned();
            (group.to_owned(), reason, headers.int(DEAD_US).unwrap_or_default())
        });
        Read { event, counts, returned: message.redelivered, letter }
    }

    fn ours(
        &mut self,
        properties: &BasicProperties,
        headers: &Headers,
        body: &Bytes,
    ) -> Option<Event> {
        if properties.content_type().as_ref().is_some_and(|kind| kind.as_str() == CHUNK) {
            return chunk::decode(body).ok()?.pop();
        }
        let id: EventId = properties.message_id().as_ref()?.as_str().parse().ok()?;
        let source = headers.text("source")?;
        if *self.source != *source {
            self.source = source.into();
        }
        let mut event = Event::new(id, body.clone(), self.source.clone(), headers.int("time_us")?);
        event.key = headers.text("key").map(Into::into);
        event.trace = headers.text("traceparent").map(|parent| match headers.text("tracestate") {
            Some(state) => format!("{parent} {state}").into(),
            None => parent.into(),
        });
        event.kind = kind(properties);
        event.shard = headers.int("shard").and_then(|shard| u32::try_from(shard).ok());
        event.only_group = headers.text("only_group").map(Into::into);
        Some(event)
    }

    fn foreign(&self, properties: &BasicProperties, headers: &Headers, body: Bytes) -> Event {
        let id = match properties.message_id().as_ref().map(ShortString::as_str) {
            Some(name) if !name.is_empty() => {
                EventId::hashed(&[b"rabbitmq", self.stream.as_bytes(), name.as_bytes(), &body])
            }
            _ => EventId::hashed(&[b"rabbitmq", uuid::Uuid::new_v4().as_bytes()]),
        };
        let app = properties.app_id().as_ref().map(ShortString::as_str);
        let source =
            app.filter(|app| !app.is_empty()).map_or_else(|| self.stream.clone(), Arc::from);
        let seconds = properties.timestamp().and_then(|seconds| i64::try_from(seconds).ok());
        let time_us = seconds.and_then(|seconds| seconds.checked_mul(1_000_000));
        let mut event = Event::new(id, body, source, time_us.unwrap_or_else(now_us));
        event.kind = kind(properties);
        let parent = headers.text("traceparent");
        event.trace = parent.and_then(|it| trace::carried(it, headers.text("tracestate")));
        event
    }
}

/// The property `type`.
fn kind(properties: &BasicProperties) -> Option<Box<str>> {
    let kind = properties.kind().as_ref().map(ShortString::as_str);
    kind.filter(|kind| !kind.is_empty()).map(Into::into)
}

fn count(number: i64) -> u32 {
    u32::try_from(number.max(0)).unwrap_or(u32::MAX)
}

/// The headers of a message. What is of another type than asked for is not there.
struct Headers<'a>(Option<&'a FieldTable>);

impl<'a> Headers<'a> {
    fn value(&self, name: &str) -> Option<&'a AMQPValue> {
        self.0?.inner().get(name)
    }

    fn int(&self, name: &str) -> Option<i64> {
        match *self.value(name)? {
            AMQPValue::LongLongInt(number) => Some(number),
            AMQPValue::LongInt(number) => Some(number.into()),
            AMQPValue::LongUInt(number) => Some(number.into()),
            AMQPValue::ShortInt(number) => Some(number.into()),
            AMQPValue::ShortUInt(number) => Some(number.into()),
            AMQPValue::ShortShortInt(number) => Some(number.into()),
            AMQPValue::ShortShortUInt(number) => Some(number.into()),
            _ => None,
        }
    }

    fn text(&self, name: &str) -> Option<&'a str> {
        match self.value(name)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Origin, Sequence};

    fn delivered(message: Message, redelivered: bool) -> lapin::message::Delivery {
        let (exchange, key) = (message.exchange, message.key);
        let body = message.body.to_vec();
        let mut delivery = lapin::message::Delivery::mock(1, exchange, key, redelivered, body);
        delivery.properties = message.properties;
        delivery
    }

    fn event() -> Event {
        let id = EventId::new(Origin::new(Sequence::Count, &[b"a"]), 3, 5);
        let mut event = Event::new(id, "body".into(), "input".into(), -5);
        event.key = Some("a key ✓".into());
        event.kind = Some("paid ✓".into());
        event.shard = Some(3);
        event.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        event
    }

    fn back(message: Message, redelivered: bool) -> Read {
        Decoder::new("s".into()).read(delivered(message, redelivered))
    }

    #[test]
    fn an_event_comes_back_with_all_it_carries_whatever_its_size() {
        let mut event = event();
        for length in [0, 100, HEADER_BYTES, HEADER_BYTES * 100] {
            event.key = Some("k".repeat(length).into());
            event.kind = Some("t".repeat(length + 1).into());
            let plain = back(Message::event(&event, "x".into(), "".into()).unwrap(), false);
            assert_eq!(plain.event, event);
            assert!(!plain.returned && plain.letter.is_none());
            let replay = back(Message::replay(&event, "g", "q".into()).unwrap(), false);
            assert_eq!(replay.event.only_group.as_deref(), Some("g"));
            assert_eq!(replay.event.key, event.key);
        }
    }

    #[test]
    fn counts_travel_with_a_copy() {
        let counts =
            Counts { deliveries: 2, attempts: 3, token: u64::MAX, unspent: true, shard: 7 };
        let copy = Message::copy(&event(), &counts, "q".into()).unwrap();
        let read = back(copy, true);
        assert_eq!(read.event, event());
        assert_eq!((read.counts.deliveries, read.counts.attempts), (2, 3));
        assert_eq!((read.counts.token, read.counts.shard), (u64::MAX, 7));
        assert!(read.counts.unspent);
        assert!(read.returned);
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let reason = "✓".repeat(REASON_BYTES);
        let letter = Letter { group: "g", reason: &reason, attempts: 1, time_us: 9 };
        let read = back(Message::letter(&event(), &letter, "q".into()).unwrap(), false);
        let (group, reason, time_us) = read.letter.unwrap();
        assert_eq!((&*group, time_us), ("g", 9));
        assert!(reason.len() <= REASON_BYTES && reason.chars().all(|c| c == '✓'));
    }

    #[test]
    fn a_foreign_message_is_known_by_its_id_and_body() {
        let foreign = |id: Option<&str>, body: &str| {
            let mut properties = BasicProperties::default().with_timestamp(u64::MAX);
            if let Some(id) = id {
                properties = properties.with_message_id(id.into());
            }
            let mut headers = FieldTable::default();
            headers.insert("source".into(), AMQPValue::LongString(vec![0xff].into()));
            headers.insert("aqueduct-attempts".into(), AMQPValue::LongLongInt(9));
            let properties = properties.with_headers(headers);
            let body = Bytes::copy_from_slice(body.as_bytes());
            back(Message { exchange: "".into(), key: "q".into(), properties, body }, false)
        };
        let id = |read: Read| read.event.id;
        assert_eq!(id(foreign(Some("1"), "a")), id(foreign(Some("1"), "a")));
        assert_ne!(id(foreign(Some("1"), "a")), id(foreign(Some("1"), "b")));
        assert_ne!(id(foreign(Some("1"), "a")), id(foreign(Some("2"), "a")));
        assert_ne!(id(foreign(None, "a")), id(foreign(None, "a")));
        let read = foreign(Some(&"m".repeat(255)), "");
        assert_eq!((read.counts.attempts, read.counts.deliveries), (0, 0));
        assert_eq!(&*read.event.source, "s");
        assert!(read.event.time_us > 1_600_000_000_000_000);
    }

    #[test]
    fn a_trace_comes_back_with_its_state_and_is_read_from_foreign_messages() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let mut event = event();
        event.trace = Some(trace::join(parent, Some("a=1")));
        let message = Message::event(&event, "x".into(), "".into()).unwrap();
        let headers = message.properties.headers().clone().unwrap();
        assert!(headers.inner().contains_key("tracestate"));
        assert_eq!(back(message, false).event, event);
        for (sent, read) in [(parent, event.trace.as_deref()), ("none", None)] {
            let mut headers = FieldTable::default();
            put_text(&mut headers, "traceparent", sent);
            put_text(&mut headers, "tracestate", "a=1");
            let properties = BasicProperties::default().with_headers(headers);
            let (exchange, key, body) = ("".into(), "q".into(), Bytes::new());
            let foreign = Message { exchange, key, properties, body };
            assert_eq!(back(foreign, false).event.trace.as_deref(), read);
        }
    }

    #[test]
    fn what_only_pretends_to_be_ours_is_foreign() {
        let mut message = Message::event(&event(), "x".into(), "".into()).unwrap();
        message.properties = message.properties.with_message_id("no id".into());
        assert_ne!(back(message, false).event.id, event().id);
        let mut message = Message::event(&event(), "x".into(), "".into()).unwrap();
        message.properties = message.properties.with_content_type(CHUNK.into());
        assert_eq!(back(message, false).event.body, "body");
    }
}
