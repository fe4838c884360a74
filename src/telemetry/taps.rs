//! Taps: a few of the events that pass, for who looks at them.
//!
//! Nobody looks most of the time: then a batch costs one look at a number. While somebody does, at
//! most a few events a second are kept of what passes a node, the newest instead of older ones.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};

use serde::Serialize;

use crate::event::{Delivery, Event, now_us};
use crate::stream::{Append, Appended};

/// For how long after a look events are kept, in microseconds.
const OPEN_US: i64 = 10_000_000;
/// Events that are kept of each node.
const KEPT_MAX: usize = 20;
/// The least time between two of them, in microseconds.
const APART_US: i64 = 250_000;
/// Bytes of a body that are kept.
const BODY_BYTES_MAX: usize = 500;
/// Nodes that events are kept of: names in a stream that others write could be any number.
const NODES_MAX: usize = 512;

/// Where events are looked at.
#[derive(Debug, Default)]
pub struct Taps {
    /// Until when somebody looks, in microseconds since 1970 UTC.
    open_until_us: AtomicI64,
    nodes: Mutex<HashMap<String, VecDeque<Sample>>>,
}

/// An event that passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sample {
    /// When it was seen, in microseconds since 1970 UTC.
    pub seen_us: i64,
    /// `stored`, by a sink or stream, or `appended`, to a stream, or `fetched`, from one.
    pub passed: &'static str,
    /// Its id.
    pub id: String,
    /// The source that made it.
    pub source: String,
    /// When it was accepted, in microseconds since 1970 UTC.
    pub time_us: i64,
    /// What picks its shard.
    pub key: Option<String>,
    /// What kind of thing happened.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The trace it belongs to, where that is followed.
    pub trace_id: Option<String>,
    /// How long its body is.
    pub bytes: usize,
    /// The body as text, cut where it is long.
    pub body: String,
}

impl Sample {
    /// What is shown of an event.
    pub fn new(event: &Event, passed: &'static str, seen_us: i64) -> Self {
        Self {
            seen_us,
            passed,
            id: event.id.to_string(),
            source: event.source.to_string(),
            time_us: event.time_us,
            key: event.key.as_deref().map(str::to_owned),
            kind: event.kind.as_deref().map(str::to_owned),
            trace_id: event.trace.as_deref().and_then(trace_id),
            bytes: event.body.len(),
            body: body_shown(&event.body),
        }
    }
}

/// The start of a body, as text.
pub fn body_shown(body: &[u8]) -> String {
    let mut end = body.len().min(BODY_BYTES_MAX);
    // Not in the middle of a character, which may have three more bytes.
    while end < body.len() && end > BODY_BYTES_MAX - 4 && body[end] & 0xc0 == 0x80 {
        end -= 1;
    }
    String::from_utf8_lossy(&body[..end]).into_owned()
}

/// The trace of an event that is followed.
pub fn trace_id(trace: &str) -> Option<String> {
    let place = crate::event::trace::Place::parse(trace).filter(|place| place.sampled)?;
    Some(format!("{:032x}", place.trace_id))
}

impl Taps {
    fn open(&self) -> bool {
        let until_us = self.open_until_us.load(Ordering::Relaxed);
        // The clock is only asked where somebody has looked at all.
        until_us != 0 && now_us() < until_us
    }

    /// What was seen of late at a node (`stream.events`), newest first; and from now on somebody
    /// looks, for some seconds.
    pub fn look(&self, node: &str) -> Vec<Sample> {
        let now_us = now_us();
        let before_us = self.open_until_us.swap(now_us + OPEN_US, Ordering::Relaxed);
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if before_us < now_us {
            nodes.clear(); // of another time
        }
        nodes.get(node).map(|kept| kept.iter().rev().cloned().collect()).unwrap_or_default()
    }

    /// What a stream has taken, of what it was given.
    pub fn appended(&self, stream: &str, appends: &[Append], outcome: &[Appended]) {
        if !self.open() {
            return;
        }
        for (append, appended) in appends.iter().zip(outcome) {
            if *appended == Appended::Durable {
                let events = append.events.iter();
                self.keep(&format!("stream.{stream}"), "appended", events.clone());
                if let Some(last) = append.events.last() {
                    self.keep(&format!("source.{}", last.source), "appended", events);
                }
            }
        }
    }

    /// What a group was given of a stream.
    pub fn fetched(&self, stream: &str, batch: &[Delivery]) {
        if self.open() {
            let events = batch.iter().map(|delivery| &delivery.event);
            self.keep(&format!("stream.{stream}"), "fetched", events);
        }
    }

    /// What a group's sink or stream has stored. `target`: `sink.db`.
    pub fn stored(&self, group: &str, target: impl FnOnce() -> String, batch: &[Delivery]) {
        if self.open() {
            let events = batch.iter().map(|delivery| &delivery.event);
            self.keep(&format!("group.{group}"), "stored", events.clone());
            self.keep(&target(), "stored", events);
        }
    }

    /// Keeps the last of these, unless there was one a moment ago.
    fn keep<'e>(
        &self,
        node: &str,
        passed: &'static str,
        mut events: impl DoubleEndedIterator<Item = &'e Event>,
    ) {
        let now_us = now_us();
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= NODES_MAX && !nodes.contains_key(node) {
            return;
        }
        let kept = nodes.entry(node.to_owned()).or_default();
        if kept.back().is_some_and(|last| now_us - last.seen_us < APART_US) {
            return;
        }
        let Some(event) = events.next_back() else { return };
        let sample = Sample::new(event, passed, now_us);
        // A stream's events are seen when they come and when they go.
        if kept.iter().any(|known| known.id == sample.id && known.passed != passed) {
            return;
        }
        if kept.len() >= KEPT_MAX {
            kept.pop_front();
        }
        kept.push_back(sample);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::EventId;

    fn event(body: Vec<u8>) -> Event {
        Event::new(EventId::hashed(&[&body]), body.into(), "input".into(), 7)
    }

    fn append(event: Event) -> Append {
        Append { origin: "input".into(), moves: Vec::new(), events: vec![event] }
    }

    #[test]
    fn only_what_passes_while_somebody_looks_is_kept() {
        let taps = Taps::default();
        taps.appended("s", &[append(event(vec![1]))], &[Appended::Durable]);
        assert_eq!(taps.look("stream.s"), []);
        taps.appended("s", &[append(event(vec![b'x'; 3000]))], &[Appended::Durable]);
        taps.appended("s", &[append(event(vec![b'y']))], &[Appended::Durable]);
        let seen = taps.look("stream.s");
        assert_eq!(seen.len(), 1, "no more than a few a second: {seen:?}");
        assert_eq!((seen[0].bytes, &*seen[0].body), (3000, &*"x".repeat(BODY_BYTES_MAX)));
        assert_eq!(taps.look("source.input")[0].id, seen[0].id);
    }

    #[test]
    fn what_the_stream_did_not_take_did_not_pass() {
        let taps = Taps::default();
        taps.look("stream.s");
        taps.appended("s", &[append(event(vec![1]))], &[Appended::Full(1)]);
        assert_eq!(taps.look("stream.s"), []);
    }

    #[test]
    fn a_character_is_not_cut() {
        let body = format!("{}ü", "x".repeat(BODY_BYTES_MAX - 1));
        assert_eq!(body_shown(body.as_bytes()), "x".repeat(BODY_BYTES_MAX - 1));
        assert_eq!(body_shown("kurz ü".as_bytes()), "kurz ü");
        assert_eq!(body_shown(&[0xff, b'a']), "\u{fffd}a");
    }
}
