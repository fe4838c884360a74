//! An event as an entry of a Redis stream, and any program's entry as an event.
//!
//! Ours has `_id`, `_source` and `_time` (RFC 3339 with microseconds; a plain number of them where
//! the year is past 9999), then `_key`, `_type`, `_shard` (that its producer named), `traceparent`,
//! `tracestate` and `_group` (a replayed dead letter's) where there are such, then the body.

use std::io::Write as _;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Datelike};
use redis::{Cmd, Value};

use super::flat;
use crate::event::{Event, EventId, trace};
use crate::stream::StreamSpec;

/// The names of what an event travels with.
pub(super) const RESERVED: [&str; 11] = [
    "_id",
    "_source",
    "_time",
    "_key",
    "_type",
    "_shard",
    "traceparent",
    "tracestate",
    "_group",
    "_types",
    "_body",
];

/// The two numbers of an entry's id.
pub(super) type EntryId = (u64, u64);

/// How bodies are spelt in a stream.
#[derive(Clone, Debug)]
pub(super) struct Format {
    stream: Arc<str>,
    key: String,
    /// The field of a body that is whole.
    pub field: String,
    /// Whether an object's members are fields.
    pub flat: bool,
}

impl Format {
    /// That of a stream with this key.
    pub fn new(spec: &StreamSpec, key: &str) -> Self {
        Self {
            stream: spec.name.clone(),
            key: key.to_owned(),
            field: spec.values.opt_str("field").unwrap_or("body").to_owned(),
            flat: spec.values.bool("flat"),
        }
    }

    /// Whether an event is no more than id, source, time and a body.
    pub fn is_plain(&self, event: &Event) -> bool {
        let Event { key, kind, shard, trace, only_group, .. } = event;
        !self.flat
            && (key.is_none() && kind.is_none() && shard.is_none())
            && (trace.is_none() && only_group.is_none())
    }

    /// Adds the fields of `event` to a command, behind their number where `counted`.
    pub fn put(&self, event: &Event, counted: bool, times: &mut Times, cmd: &mut Cmd) {
        let flat = if self.flat { flat::flatten(&event.body, &self.field) } else { None };
        let (parent, state) = event.trace.as_deref().map(trace::split).unzip();
        let shard = event.shard.map(|shard| shard.to_string());
        let extra = [
            ("_key", event.key.as_deref()),
            ("_type", event.kind.as_deref()),
            ("_shard", shard.as_deref()),
            ("traceparent", parent),
            ("tracestate", state.flatten()),
            ("_group", event.only_group.as_deref()),
            ("_types", flat.as_ref().and_then(|flat| flat.types.as_deref())),
        ];
        let inexact = flat.as_ref().is_some_and(|flat| flat.inexact);
        if counted {
            let extras = extra.iter().filter(|(_, text)| text.is_some()).count();
            let fields = 3 + extras + usize::from(inexact);
            cmd.arg(2 * (fields + flat.as_ref().map_or(1, |flat| flat.members.len())));
        }
        cmd.arg("_id").arg(&id_text(event.id)[..]);
        cmd.arg("_source").arg(&*event.source);
        cmd.arg("_time").arg(times.text(event.time_us));
        for (name, text) in extra {
            if let Some(text) = text {
                cmd.arg(name).arg(text);
            }
        }
        if inexact {
            cmd.arg("_body").arg(&event.body[..]);
        }
        match &flat {
            Some(flat) => flat.members.iter().for_each(|(name, text)| {
                cmd.arg(name).arg(&**text);
            }),
            None => {
                cmd.arg(&*self.field).arg(&event.body[..]);
            }
        }
    }

    /// The event of an entry with these fields (a name, its value, and so on).
    pub fn event(&self, entry: EntryId, fields: Vec<Value>, names: &mut Names) -> Event {
        let mut pairs = Pairs(fields.into_iter());
        let own = pairs.0.as_slice().chunks(2).find(|pair| is(&pair[0], b"_id"));
        match own.and_then(|pair| pair.get(1)).and_then(own_id) {
            Some(id) => self.own(id, &mut pairs, names),
            None => self.foreign(entry, &mut pairs),
        }
    }

    fn own(&self, id: EventId, pairs: &mut Pairs, names: &mut Names) -> Event {
        let mut event = Event::new(id, Bytes::new(), self.stream.clone(), 0);
        let (mut types, mut exact) = (None, None);
        let (mut first, mut rest): (Option<Pair>, Vec<Pair>) = (None, Vec::new());
        for (name, value) in pairs {
            match &name[..] {
                b"_id" => {}
                b"_source" => event.source = names.source(&value),
                b"_time" => event.time_us = names.times.read(&value).unwrap_or_default(),
                b"_key" => event.key = Some(text(value).into()),
                b"_type" => event.kind = Some(text(value).into()),
                b"_shard" => event.shard = text(value).parse().ok(),
                b"traceparent" => event.trace = Some(text(value).into()),
                b"tracestate" => {
                    let parent = event.trace.take().unwrap_or_default(); // it stands before
                    event.trace = Some(format!("{parent} {}", text(value)).into());
                }
                b"_group" => event.only_group = Some(text(value).into()),
                b"_types" => types = Some(text(value)),
                b"_body" => exact = Some(value),
                _ if first.is_none() => first = Some((name, value)),
                _ => rest.push((name, value)),
            }
        }
        event.body = match (exact, types, first) {
            (Some(exact), _, _) => exact.into(),
            (None, None, Some((name, body))) if name == self.field.as_bytes() => body.into(),
            (None, types, first) => {
                let mut all = Vec::with_capacity(rest.len() + 1);
                all.extend(first);
                all.append(&mut rest);
                match types {
                    None if all.is_empty() => Bytes::new(),
                    types => object(all, types.as_deref()),
                }
            }
        };
        event
    }

    fn foreign(&self, entry: EntryId, pairs: &mut Pairs) -> Event {
        let all: Vec<Pair> = pairs.collect();
        let whole = all
            .iter()
            .position(|(name, _)| name == self.field.as_bytes())
            .filter(|_| !self.flat || all.len() == 1);
        let named = |wanted: &[u8]| {
            let found = all.iter().find(|(name, _)| name == wanted);
            found.and_then(|(_, value)| std::str::from_utf8(value).ok())
        };
        let trace = named(b"traceparent").and_then(|it| trace::carried(it, named(b"tracestate")));
        let body: Bytes = match whole {
            Some(index) => {
                all.into_iter().nth(index).map(|(_, body)| body.into()).unwrap_or_default()
            }
            None => object(all, None),
        };
        // The body too: a server that comes back empty gives the same entry ids again.
        let place = format!("{}-{}", entry.0, entry.1);
        let id = EventId::hashed(&[self.key.as_bytes(), place.as_bytes(), &body]);
        let time_us = i64::try_from(entry.0).unwrap_or(i64::MAX).saturating_mul(1000);
        Event { trace, ..Event::new(id, body, self.stream.clone(), time_us) }
    }
}

/// The JSON object of these fields; as strings, unless the types say otherwise.
fn object(fields: Vec<Pair>, types: Option<&str>) -> Bytes {
    let fields: Vec<(String, String)> =
        fields.into_iter().map(|(name, value)| (text(name), text(value))).collect();
    let typed = types.and_then(|types| flat::unflatten(&fields, types));
    // Of strings alone an object can always be made.
    typed.or_else(|| flat::unflatten(&fields, &"s".repeat(fields.len()))).unwrap_or_default().into()
}

/// Text of bytes that should be some; what is not UTF-8 becomes U+FFFD.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

type Pair = (Vec<u8>, Vec<u8>);

/// The fields of an entry, one after the other.
struct Pairs(std::vec::IntoIter<Value>);

impl Iterator for Pairs {
    type Item = Pair;

    fn next(&mut self) -> Option<Pair> {
        Some((bytes(self.0.next()?), self.0.next().map(bytes).unwrap_or_default()))
    }
}

/// The bytes of a string as Redis answers it.
pub(super) fn bytes(value: Value) -> Vec<u8> {
    match value {
        Value::BulkString(bytes) => bytes,
        Value::SimpleString(text) => text.into_bytes(),
        Value::Int(number) => number.to_string().into_bytes(),
        Value::Okay => b"OK".to_vec(),
        _ => Vec::new(),
    }
}

fn is(value: &Value, name: &[u8]) -> bool {
    matches!(value, Value::BulkString(bytes) if bytes == name)
}

/// An id that we made: a UUIDv8 as we write it.
fn own_id(value: &Value) -> Option<EventId> {
    let Value::BulkString(text) = value else { return None };
    if text.len() != uuid::fmt::Hyphenated::LENGTH || text.iter().any(u8::is_ascii_uppercase) {
        return None;
    }
    let uuid = uuid::Uuid::try_parse_ascii(text).ok()?;
    let ours = uuid.get_version_num() == 8 && uuid.get_variant() == uuid::Variant::RFC4122;
    ours.then(|| EventId::from_bytes(*uuid.as_bytes()))
}

/// An id as it is written.
pub(super) fn id_text(id: EventId) -> [u8; uuid::fmt::Hyphenated::LENGTH] {
    let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
    id.uuid().hyphenated().encode_lower(&mut text);
    text
}

/// Reads an entry's id.
pub(super) fn entry_id(text: &[u8]) -> Option<EntryId> {
    let (ms, seq) = std::str::from_utf8(text).ok()?.split_once('-')?;
    Some((ms.parse().ok()?, seq.parse().ok()?))
}

/// Writes an entry's id.
pub(super) fn put_entry_id((ms, seq): EntryId, cmd: &mut Cmd) {
    let mut text = [0u8; 41];
    let mut rest = &mut text[..];
    // Two numbers of 20 digits and a dash always fit.
    let _ = write!(rest, "{ms}-{seq}");
    let length = 41 - rest.len();
    cmd.arg(&text[..length]);
}

/// What the names of many events in a row have in common.
#[derive(Debug, Default)]
pub(super) struct Names {
    source: Option<Arc<str>>,
    times: Times,
}

impl Names {
    fn source(&mut self, name: &[u8]) -> Arc<str> {
        match &self.source {
            Some(source) if source.as_bytes() == name => source.clone(),
            _ => self.source.insert(text(name.to_vec()).into()).clone(),
        }
    }
}

/// Bytes of a time up to the point, as `2026-11-21T04:39:51.`
const SECOND: usize = 20;
/// Bytes of a whole time.
const TIME: usize = SECOND + 7;

/// Writes and reads times. Those of many events are of the same second.
#[derive(Debug)]
pub(super) struct Times {
    second: Option<i64>,
    text: [u8; TIME],
    number: String,
}

impl Default for Times {
    fn default() -> Self {
        Self { second: None, text: [0; TIME], number: String::new() }
    }
}

impl Times {
    /// A time in microseconds since 1970 UTC, as text.
    pub fn text(&mut self, time_us: i64) -> &[u8] {
        let (second, micros) = (time_us.div_euclid(1_000_000), time_us.rem_euclid(1_000_000));
        if !self.set(second) {
            self.number = time_us.to_string();
            return self.number.as_bytes();
        }
        let mut rest = micros;
        for digit in self.text[SECOND..TIME - 1].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        &self.text
    }

    /// The time of a text, if it is one.
    pub fn read(&mut self, text: &[u8]) -> Option<i64> {
        if text.len() == TIME
            && text[..SECOND] == self.text[..SECOND]
            && let Some(second) = self.second
        {
            let digits = std::str::from_utf8(&text[SECOND..TIME - 1]).ok()?;
            return Some(second * 1_000_000 + digits.parse::<u32>().ok().map(i64::from)?);
        }
        let text = std::str::from_utf8(text).ok()?;
        if let Ok(time_us) = text.parse() {
            return Some(time_us);
        }
        let time_us = DateTime::parse_from_rfc3339(text).ok()?.timestamp_micros();
        self.set(time_us.div_euclid(1_000_000));
        Some(time_us)
    }

    /// Makes the text one of this second; `false` where it has no four-digit year.
    fn set(&mut self, second: i64) -> bool {
        if self.second == Some(second) {
            return true;
        }
        let Some(time) = DateTime::from_timestamp(second, 0) else { return false };
        if !(0..=9999).contains(&time.year()) {
            return false;
        }
        let text = time.format("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
        self.text.copy_from_slice(text.as_bytes());
        self.second = Some(second);
        true
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::event::{Origin, Sequence};

    fn format(flat: bool) -> Format {
        Format { stream: "s".into(), key: "k".into(), field: "body".into(), flat }
    }

    fn fields(pairs: &[(&str, &[u8])]) -> Vec<Value> {
        let both = pairs.iter().flat_map(|(name, value)| [name.as_bytes(), *value]);
        both.map(|bytes| Value::BulkString(bytes.to_vec())).collect()
    }

    fn read(format: &Format, pairs: &[(&str, &[u8])]) -> Event {
        format.event((1234, 5), fields(pairs), &mut Names::default())
    }

    #[test]
    fn an_entry_of_another_program_is_an_event() {
        let (number, both) = (("number", &b"7"[..]), ("publisher_id", &b"p\"\xff"[..]));
        let event = read(&format(false), &[number, both]);
        assert_eq!(
            &event.body[..],
            "{\"number\":\"7\",\"publisher_id\":\"p\\\"\u{fffd}\"}".as_bytes()
        );
        assert_eq!((event.time_us, &*event.source), (1_234_000, "s"));
        assert_eq!(event.id, read(&format(true), &[number, both]).id);
        assert_ne!(event.id, read(&format(false), &[number]).id);
        // With the field, that is the body; of a flat one, only where it is alone.
        let body = ("body", &b"\xff"[..]);
        assert_eq!(&read(&format(false), &[number, body]).body[..], b"\xff");
        assert_eq!(&read(&format(true), &[body]).body[..], b"\xff");
        assert_eq!(
            &read(&format(true), &[number, body]).body[..],
            "{\"number\":\"7\",\"body\":\"\u{fffd}\"}".as_bytes()
        );
    }

    #[test]
    fn only_an_id_of_ours_is_one() {
        let version_4 = "1b4e28ba-2fa1-4d2b-883f-0016d3cca427";
        let event = read(&format(false), &[("_id", version_4.as_bytes()), ("_time", b"now")]);
        let body = format!("{{\"_id\":\"{version_4}\",\"_time\":\"now\"}}");
        assert_eq!(&event.body[..], body.as_bytes());
        assert_eq!(event.id.origin().counts(), Sequence::Hashed);
        let id = EventId::new(Origin::new(Sequence::Count, &[b"o"]), 7, 7);
        let event = read(&format(false), &[("a", b"1"), ("_id", &id_text(id))]);
        assert_eq!((event.id, &event.body[..]), (id, &br#"{"a":"1"}"#[..]));
    }

    fn put(format: &Format, event: &Event) -> Vec<Value> {
        let mut cmd = Cmd::new();
        format.put(event, true, &mut Times::default(), &mut cmd);
        let mut args = cmd.args_iter().map(|arg| match arg {
            redis::Arg::Simple(arg) => Value::BulkString(arg.to_vec()),
            _ => unreachable!(),
        });
        let count: usize = String::from_utf8(bytes(args.next().unwrap())).unwrap().parse().unwrap();
        let rest: Vec<Value> = args.collect();
        assert_eq!(rest.len(), count);
        rest
    }

    proptest! {
        #[test]
        fn what_is_put_comes_back(
            body in prop::collection::vec(any::<u8>(), 0..40),
            json in prop_oneof![Just(None), "\\{( ?\"[a-c_]{0,4}\": ?(7|\"x\"|\\[ \\]),?){0,3}\\}".prop_map(Some)],
            time_us in any::<i64>(),
            (key, trace, group) in (any::<Option<String>>(), any::<Option<String>>(), any::<Option<String>>()),
            sequence in 0u64..1 << 44,
        ) {
            let id = EventId::new(Origin::new(Sequence::Bytes, &[b"o"]), sequence, 7);
            let body = json.map_or(body, String::into_bytes);
            let event = Event {
                key: key.map(Into::into),
                trace: trace.map(Into::into),
                only_group: group.map(Into::into),
                ..Event::new(id, body.into(), "input".into(), time_us)
            };
            for flat in [false, true] {
                let fields = put(&format(flat), &event);
                // Whichever way it was written, it can be read.
                for read_as in [false, true] {
                    let back = format(read_as).event((1, 1), fields.clone(), &mut Names::default());
                    prop_assert_eq!(&back, &event);
                }
            }
        }
    }

    #[test]
    fn times_are_read_as_they_were_written() {
        let mut times = Times::default();
        assert_eq!(times.text(-5), b"1969-12-31T23:59:59.999995Z");
        assert_eq!(times.text(1_700_000_000_000_001), b"2023-11-14T22:13:20.000001Z");
        assert_eq!(times.text(i64::MAX), i64::MAX.to_string().as_bytes());
        assert_eq!(times.read(b"2023-11-14T22:13:20.000002Z"), Some(1_700_000_000_000_002));
        assert_eq!(times.read(b"2023-11-14T23:13:20+01:00"), Some(1_700_000_000_000_000));
        assert_eq!(times.read(b"yesterday"), None);
    }
}
