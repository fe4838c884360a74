//! The `publisher` source: makes events, numbered, from a body with placeholders.
//!
//! The id of an event is its number in the run of this `origin`, so an event that is made again
//! (after a crash, or a stream put back to an older copy) is the same event, though `{now}` in it
//! may read otherwise. [`numbers`] tells how the checkpoint outlives an edit of `n` or
//! `instances`.

mod numbers;
mod pace;
mod trigger;

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use serde_json::Value as Json;
use tokio::time::Instant;

use self::numbers::{INSTANCES_MAX, Part, ROUNDS_MAX, Rounds, Sent};
use self::pace::Pace;
use self::trigger::Triggered;
use super::template::{self, Maker, Template};
use super::{BATCH_BYTES, BATCH_EVENTS, Batch, Capabilities, Kind, Move, Position, Pull, Slot};
use super::{Source, SourceSpec};
use crate::event::{Event, EventId, Origin, SEQUENCE_MAX, Sequence, hash, now_us};
use crate::spec::{Complaint, Default, Key, Site, Ty, Value, Values};

/// `kind = "publisher"`.
pub static KIND: Kind = Kind {
    name: "publisher",
    doc: "Makes events, numbered, from a body with placeholders.",
    keys: &[
        Key {
            name: "body",
            ty: Ty::Body,
            default: Default::Toml(
                r#"{ message = "Message #{n}", type = "test", timestamp = "{now}" }"#,
            ),
            doc: "What an event says: a string, or a table sent as a JSON object. Placeholders: \
                  {n}, {round} (from 1), {now} (RFC 3339), {source}, {instance} (from 1), {uuid}, \
                  {random:1..100} (both ends included). A string in a table that is one placeholder alone keeps \
                  its JSON type; other braces are text.",
        },
        Key {
            name: "n",
            ty: Ty::Range,
            default: Default::Absent,
            doc: "The numbers to send, both ends included, each once. Absent: from 1 without \
                  end, going on after a restart where it was.",
        },
        Key {
            name: "rounds",
            ty: Ty::Int(1, ROUNDS_MAX as i64),
            default: Default::Toml("1"),
            doc: "How often the whole of n is sent, one round after the other, each time as new \
                  events. Raised later, the rounds that are more are sent. Not with trigger, \
                  where each request is a round.",
        },
        Key {
            name: "instances",
            ty: Ty::Int(1, INSTANCES_MAX as i64),
            default: Default::Toml("1"),
            doc: "How many actors send. A finite n is split evenly and in order; otherwise they \
                  take turns with the numbers. After an edit each number is still sent once.",
        },
        Key {
            name: "every",
            ty: Ty::Duration,
            default: Default::Absent,
            doc: "Time between two events of an instance, the first at once. Absent, as rate: as \
                  fast as the stream takes them.",
        },
        Key {
            name: "rate",
            ty: Ty::Rate,
            default: Default::Absent,
            doc: "Events a second of all instances together; \"0/s\" is no limit. After a stall \
                  at most a second's worth is caught up.",
        },
        Key {
            name: "trigger",
            ty: Ty::Choice(&["http"]),
            default: Default::Absent,
            doc: "\"http\": sends its range anew, as a new run, each time POST /publish/NAME (or \
                  POST /publish, for all such sources) comes, and nothing otherwise; except that \
                  with --until-idle, which waits for nobody, a finite n is sent once.",
        },
    ],
    capabilities: Capabilities { identity: true },
    check,
    finite: |values| values.opt_range("n").is_some(),
    instances,
    open,
};

fn open(spec: &SourceSpec, site: &Site, instance: u64) -> Result<Box<dyn Source>> {
    let publisher = Publisher::new(spec, instance);
    Ok(match spec.values.get("trigger") {
        Some(_) if !site.until_idle => {
            Box::new(Triggered::new(publisher, &spec.origin, spec.door.host(instance)))
        }
        _ => Box::new(publisher),
    })
}

fn rounds(values: &Values) -> u64 {
    values.uint("rounds").max(1)
}

fn instances(values: &Values) -> u64 {
    values.uint("instances").max(1)
}

fn check(values: &Values) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut complain = |key, message| complaints.push(Complaint { key, message });
    match values.get("body") {
        Some(Value::Str(text)) => {
            let faults = template::faults(&Json::from(text.as_str()));
            faults.into_iter().for_each(|fault| complain("body", fault));
        }
        Some(Value::Json(body)) => {
            template::faults(body).into_iter().for_each(|fault| complain("body", fault));
        }
        _ => {}
    }
    if let Some((first, last)) = values.opt_range("n") {
        let count = last.saturating_sub(first).saturating_add(1);
        if last > SEQUENCE_MAX {
            let message = format!("{last} is past the last number an id can hold ({SEQUENCE_MAX})");
            complain("n", message);
        } else if instances(values) > count {
            let instances = instances(values);
            let message =
                format!("{instances} instances for {count} numbers (at most one for each number)");
            complain("instances", message);
        }
    }
    if rounds(values) > 1 && values.get("trigger").is_some() {
        let message = "each request is a round of its own (leave rounds or trigger out)".to_owned();
        complain("rounds", message);
    } else if rounds(values) > 1 && values.get("n").is_none() {
        let message = "numbers without an end have no rounds (give it a range, such as n = \
                       \"1..50\")";
        complain("rounds", message.to_owned());
    }
    if values.get("trigger").is_some() && values.get("n").is_none() {
        let message = "has no range to send (give it one, such as n = \"1..50\")".to_owned();
        complain("trigger", message);
    }
    if values.get("every").is_some() && values.get("rate").is_some() {
        complain("rate", "every and rate both set the pace (give one of them)".to_owned());
    }
    complaints
}

/// The body of a publisher that has none of its own, and of `aqueduct publish`.
fn default_body(message: &str, kind: &str, timestamp: &str) -> Json {
    serde_json::json!({ "message": message, "type": kind, "timestamp": timestamp })
}

/// Message number `n` of type `kind`, made now: `{"message":"Message #n","type":…,"timestamp":…}`.
pub fn message(kind: &str, n: u64) -> Bytes {
    let body = default_body(&format!("Message #{n}"), kind, &template::rfc3339(now_us()));
    Bytes::from(body.to_string())
}

/// What the events of a round are counted in. There is one run of a source that nothing triggers,
/// and its later rounds.
fn run_of(origin: &str, round: u64) -> Origin {
    match round {
        1 => Origin::new(Sequence::Count, &[b"publisher", origin.as_bytes(), b"0"]),
        _ => {
            let parts = [b"publisher", origin.as_bytes(), b"round", &round.to_be_bytes()];
            Origin::new(Sequence::Count, &parts)
        }
    }
}

/// One instance of a publisher.
struct Publisher {
    source: Arc<str>,
    template: Template,
    /// What its ids are filed under, by rounds.
    name: String,
    origin: Origin,
    guard: u64,
    part: Part,
    /// The one that is being sent, from 1.
    round: u64,
    rounds: u64,
    slot: String,
    /// What the stream holds of later rounds, as of the last `seek`.
    later: Rounds,
    /// What it holds of all parts in this round.
    sent: Sent,
    /// The next number to send; past the part's end when all were sent.
    next: u64,
    /// What the stream will hold in our slot once all batches given so far are in.
    stands: Option<Position>,
    pace: Option<Pace>,
}

impl Publisher {
    fn new(spec: &SourceSpec, instance: u64) -> Self {
        let values = &spec.values;
        let instances = instances(values);
        let maker = Maker { source: &spec.name, instance };
        let template = match values.get("body") {
            Some(Value::Str(text)) => Template::text(text, maker),
            Some(Value::Json(body)) => Template::json(body, maker),
            _ => Template::json(&default_body("Message #{n}", "test", "{now}"), maker),
        };
        let pace = match (values.opt_duration("every"), values.opt_float("rate")) {
            (Some(every), _) => Pace::new(every.as_secs_f64()),
            (None, Some(rate)) => Pace::new(instances as f64 / rate),
            (None, None) => None,
        };
        let part = Part::of(values.opt_range("n"), instances, instance);
        let origin = spec.origin.as_bytes();
        Self {
            source: spec.name.clone(),
            template,
            name: spec.origin.clone(),
            origin: run_of(&spec.origin, 1),
            guard: hash(origin),
            round: 1,
            rounds: rounds(values),
            slot: part.slot(1),
            later: Rounds::default(),
            next: part.first,
            part,
            sent: Sent::default(),
            stands: None,
            pace,
        }
    }

    /// As if nothing had been sent yet.
    fn restart(&mut self) {
        self.sent = Sent::default();
        self.next = self.part.first;
        if let Some(pace) = &mut self.pace {
            pace.restart();
        }
    }

    /// Whether all of the round was sent.
    fn is_spent(&self) -> bool {
        self.next >= self.part.end
    }

    /// Goes to a round, and to what the stream holds of it.
    fn enter(&mut self, round: u64) {
        let stored = self.later.take(round);
        self.round = round;
        self.origin = run_of(&self.name, round);
        self.slot = self.part.slot(round);
        self.stands =
            stored.iter().find(|(name, _)| *name == self.slot).map(|(_, place)| place.clone());
        self.sent = Sent::read(&stored);
        let from = self.stands.as_ref().map_or(self.part.first, |place| place.order);
        self.next = self.sent.pass_over(&self.part, self.part.at_least(from));
    }

    /// Goes to the first round of which something is left; stays in the last one.
    fn go_on(&mut self) {
        while self.is_spent() && self.round < self.rounds {
            self.enter(self.round + 1);
        }
    }

    /// The events that are due, if any are.
    fn due(&mut self) -> Option<Vec<Event>> {
        let due = self.pace.as_mut().map_or(u64::MAX, |pace| pace.due(Instant::now()));
        // Bounded by BATCH_EVENTS, so it fits.
        let count = due.min(self.part.remaining(self.next)).min(BATCH_EVENTS as u64) as usize;
        if count == 0 {
            return None;
        }
        let events = self.make(count);
        if let Some(pace) = &mut self.pace {
            pace.take(events.len() as u64);
        }
        Some(events)
    }

    /// Returns when some may be.
    async fn wait_until_due(&self) {
        if self.is_spent() {
            // What is spent stays so until it starts anew.
            return std::future::pending().await;
        }
        if let Some(pace) = &self.pace {
            pace.wait().await;
        }
    }

    /// The next numbers as events, at most `count`; all bodies share one buffer.
    fn make(&mut self, count: usize) -> Vec<Event> {
        let time_us = now_us();
        let now = template::rfc3339(time_us);
        let mut events = Vec::with_capacity(count);
        let len_max = self.template.len_max();
        let mut buffer =
            BytesMut::with_capacity(len_max.saturating_mul(count).min(BATCH_BYTES + len_max));
        let mut bytes = 0;
        while events.len() < count && bytes < BATCH_BYTES && self.next < self.part.end {
            self.template.render(self.next, self.round, &now, &mut buffer);
            bytes += buffer.len();
            let id = EventId::new(self.origin, self.next, self.guard);
            let body = buffer.split().freeze();
            events.push(Event::new(id, body, self.source.clone(), time_us));
            self.next = self.sent.pass_over(&self.part, self.next + self.part.step);
        }
        events
    }
}

#[async_trait]
impl Source for Publisher {
    async fn seek(&mut self, stored: &[Slot]) -> Result<()> {
        self.later = Rounds::read(stored);
        self.enter(1);
        self.go_on();
        Ok(())
    }

    async fn next(&mut self) -> Result<Pull> {
        self.go_on();
        if self.is_spent() {
            return Ok(Pull::Spent);
        }
        let Some(events) = self.due() else { return Ok(Pull::Idle) };
        let from = self.stands.take();
        self.stands = Some(Position { order: self.next, note: String::new() });
        let moves = vec![Move { slot: self.slot.clone(), from, to: self.stands.clone() }];
        Ok(Pull::Batch(Batch { moves, events, ..Batch::default() }))
    }

    async fn wait(&mut self) {
        self.wait_until_due().await;
    }
}

#[cfg(test)]
mod tests;
