//! A publisher that waits to be asked: each request sends its whole range anew, as a run of its
//! own. Which run an event is of is part of its id, and the run is named by the request's
//! `Idempotency-Key`, so a request that is repeated makes the same events again.

use anyhow::Result;
use async_trait::async_trait;

use super::Publisher;
use crate::event::{Origin, Sequence, hash_parts};
use crate::source::door::{Ask, Away, Host, Reply};
use crate::source::{Batch, Move, Outcome, Pull, Slot, Source};

/// One instance of it.
pub(super) struct Triggered {
    publisher: Publisher,
    origin: String,
    host: Host,
    /// The run under way, if there is one.
    run: Option<Reply>,
    /// What its events carry of a trace.
    trace: Option<Box<str>>,
    /// Batches that nothing is known of yet, of this run or of one that failed.
    under_way: usize,
}

impl Triggered {
    /// An instance that lets requests in at `host`.
    pub fn new(publisher: Publisher, origin: &str, host: Host) -> Self {
        Self { publisher, origin: origin.to_owned(), host, run: None, trace: None, under_way: 0 }
    }

    fn begin(&mut self, run: &str) {
        let parts = [b"publisher", self.origin.as_bytes(), b"run", run.as_bytes()];
        self.publisher.origin = Origin::new(Sequence::Count, &parts);
        self.publisher.guard = hash_parts(&parts);
        self.publisher.restart();
    }

    fn end(&mut self, answer: Result<(), Away>) {
        if let Some(reply) = self.run.take() {
            reply.send(answer);
        }
    }
}

#[async_trait]
impl Source for Triggered {
    async fn seek(&mut self, _: &[Slot]) -> Result<()> {
        self.run = None;
        self.under_way = 0;
        self.host.open();
        Ok(())
    }

    async fn next(&mut self) -> Result<Pull> {
        if self.run.is_none() {
            // What is left of a run that failed is answered first.
            let guest = if self.under_way == 0 { self.host.next() } else { None };
            let Some((Ask::Run { name, trace }, reply)) = guest.map(|guest| guest.split()) else {
                return Ok(Pull::Idle);
            };
            self.begin(&name);
            (self.run, self.trace) = (Some(reply), trace);
        }
        let Some(mut events) = self.publisher.due() else { return Ok(Pull::Idle) };
        if self.trace.is_some() {
            events.iter_mut().for_each(|event| event.trace.clone_from(&self.trace));
        }
        self.under_way += 1;
        Ok(Pull::Batch(Batch { events, ..Batch::default() }))
    }

    async fn wait(&mut self) {
        match self.run {
            Some(_) => self.publisher.wait_until_due().await,
            None => self.host.arrived().await,
        }
    }

    fn answered(&mut self, _: &[Move], outcome: Outcome) {
        self.under_way = self.under_way.saturating_sub(1);
        match outcome {
            Outcome::Durable if self.under_way == 0 && self.publisher.is_spent() => {
                self.end(Ok(()));
            }
            Outcome::Durable => {}
            Outcome::Full(backlog) => self.end(Err(Away::Full(backlog))),
            Outcome::Lost => {
                self.end(Err(Away::Closed));
                self.host.close(); // until the stream is back, and `seek` is called
            }
        }
    }

    fn waits(&self) -> bool {
        false
    }
}
