//! The `http` source: events that are posted. The web server reads and checks a request
//! ([`body::read`]), makes its events ([`Ids::events`]) and knocks at the source's door; what waits
//! there while an append is under way goes with the next one, so that concurrent requests share a
//! commit.

pub mod body;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;
use async_trait::async_trait;
use bytes::Bytes;

use super::Source;
use super::door::{Ask, Away, Host, Reply};
use super::{BATCH_BYTES, BATCH_EVENTS, Batch, Capabilities, Kind, Move, Outcome, Pull, Slot};
use crate::event::{Event, EventId, Origin, Sequence, now_us};
use crate::spec::{Default, Key, Ty};

/// `kind = "http"`.
pub static KIND: Kind = Kind {
    name: "http",
    doc: "Takes events that are posted: JSON, NDJSON (an event a line) or text, also gzip'd. 202 \
          comes once they are durable in the stream; a repeated Idempotency-Key with the same body \
          is the same event.",
    keys: &[Key {
        name: "path",
        ty: Ty::Route,
        default: Default::Required,
        doc: "Where they are posted to.",
    }],
    capabilities: Capabilities { identity: true },
    check: |_| Vec::new(),
    finite: |_| false,
    instances: |_| 1,
    open: |spec, _, instance| {
        Ok(Box::new(Http { host: spec.door.host(instance), given: VecDeque::new() }))
    },
};

/// Gives events their ids: one run of a process.
#[derive(Debug)]
pub struct Ids {
    origin: Origin,
    guard: u64,
    next: AtomicU64,
    filed_under: String,
}

impl Ids {
    /// A run of its own for the source that files its ids under `origin`.
    pub fn new(origin: &str) -> Self {
        let run = fastrand::u128(..).to_be_bytes();
        Self {
            origin: Origin::new(Sequence::Count, &[b"http", origin.as_bytes(), &run]),
            guard: fastrand::u64(..),
            next: AtomicU64::new(0),
            filed_under: origin.to_owned(),
        }
    }

    /// The events of one request, accepted now. With an `Idempotency-Key` the same bodies are the
    /// same events, whenever and wherever they come.
    pub fn events(&self, bodies: Vec<Bytes>, key: Option<&[u8]>, source: &Arc<str>) -> Vec<Event> {
        let time_us = now_us();
        let first = match key {
            Some(_) => 0,
            None => self.next.fetch_add(bodies.len() as u64, Ordering::Relaxed),
        };
        let id = |index: u64, body: &Bytes| match key {
            Some(key) => EventId::hashed(&[
                b"http",
                self.filed_under.as_bytes(),
                key,
                &index.to_le_bytes(),
                body,
            ]),
            None => EventId::new(self.origin, first + index, self.guard),
        };
        let events = bodies.into_iter().zip(0u64..);
        events
            .map(|(body, index)| Event::new(id(index, &body), body, source.clone(), time_us))
            .collect()
    }
}

/// The source: what its actor runs.
struct Http {
    host: Host,
    /// For each batch that was given and not answered yet, who waits for it.
    given: VecDeque<Vec<Reply>>,
}

#[async_trait]
impl Source for Http {
    async fn seek(&mut self, _: &[Slot]) -> Result<()> {
        self.given.clear();
        self.host.open();
        Ok(())
    }

    async fn next(&mut self) -> Result<Pull> {
        let (mut events, mut replies, mut bytes) = (Vec::new(), Vec::new(), 0);
        while events.len() < BATCH_EVENTS && bytes < BATCH_BYTES {
            let Some(guest) = self.host.next() else { break };
            // Only the web server knocks here, and it asks for nothing else.
            let (Ask::Take(taken), reply) = guest.split() else { continue };
            bytes += taken.iter().map(Event::size).sum::<usize>();
            events.extend(taken);
            replies.push(reply);
        }
        if replies.is_empty() {
            return Ok(Pull::Idle);
        }
        self.given.push_back(replies);
        Ok(Pull::Batch(Batch { events, ..Batch::default() }))
    }

    async fn wait(&mut self) {
        self.host.arrived().await;
    }

    fn answered(&mut self, _: &[Move], outcome: Outcome) {
        let answer = match outcome {
            Outcome::Durable => Ok(()),
            Outcome::Full(backlog) => Err(Away::Full(backlog)),
            Outcome::Lost => {
                self.host.close(); // until the stream is back, and `seek` is called
                Err(Away::Closed)
            }
        };
        for reply in self.given.pop_front().unwrap_or_default() {
            reply.send(answer);
        }
    }

    fn waits(&self) -> bool {
        false
    }
}
