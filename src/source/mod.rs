//! Where events come from. A source is plain async Rust behind [`Source`]; the actor that runs it
//! appends what it gives and moves its checkpoint in the same transaction.
//!
//! A new kind is one file beside this one and one line in [`KINDS`].

pub mod door;
pub mod http;
pub mod publisher;
mod template;

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use self::door::Door;
use crate::event::Event;
use crate::spec::{Complaint, Key, Site, Values};

pub mod tail;

/// A source's checkpoint in one slot. A source has a slot for each thing it reads on its own: a
/// tailed file, a publisher's instance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Ascends with what was read of this slot (a byte offset, a count), so that two positions of
    /// one slot can be compared.
    pub order: u64,
    /// What else the source needs to find the place again; only the source reads it.
    pub note: String,
}

/// A checkpoint's slot, and where it stands.
pub type Slot = (String, Position);

/// A checkpoint's step from one position to the next. `from` is `None` for a slot that the stream
/// does not know yet; `to` is `None` to forget a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The slot's name, unique within the source's `origin`.
    pub slot: String,
    /// What the stream must hold for the append to happen.
    pub from: Option<Position>,
    /// What it holds afterwards.
    pub to: Option<Position>,
}

/// Events that go with steps of the checkpoint: all or nothing of both.
#[derive(Clone, Debug, Default)]
pub struct Batch {
    /// The steps.
    pub moves: Vec<Move>,
    /// The events, in order.
    pub events: Vec<Event>,
    /// What could not become an event (a line past `max_line`): dead letters of every group of
    /// the stream, stored together with the moves.
    pub dead: Vec<Dead>,
}

/// Something that a source read and cannot hand on as an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dead {
    /// Stands for it: its id is the same when it is read again, its body is a JSON object that
    /// says where it is found.
    pub event: Event,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// What a source has to give at the moment.
#[derive(Debug)]
pub enum Pull {
    /// Events, or a step without events (skipped lines, say).
    Batch(Batch),
    /// Nothing now: call [`Source::wait`].
    Idle,
    /// Nothing ever again: a finite range was sent, or with `--until-idle` every file is read.
    Spent,
}

/// A source of events.
///
/// The actor calls `seek` first, then `next` over and over, several batches ahead of the
/// stream's answers. When the stream answers that its checkpoint is another one (`Rewound`), the
/// actor waits until nothing is under way and calls `seek` again.
#[async_trait]
pub trait Source: Send {
    /// Goes to what the stream has stored for this source: every slot it knows, in no order.
    async fn seek(&mut self, stored: &[Slot]) -> Result<()>;

    /// The next events, as one batch of at most [`BATCH_EVENTS`] events and about
    /// [`BATCH_BYTES`]. Returns at once when there is nothing. An error restarts the source.
    async fn next(&mut self) -> Result<Pull>;

    /// Returns when `next` may have something again. Safe to drop while it waits.
    async fn wait(&mut self);

    /// Told of each batch in order, with its moves, what became of it: what was kept in case the
    /// stream goes back to before it (a deleted file, say) may be let go once it is durable.
    /// Batches that nothing is told of before the next `seek` are [`Outcome::Lost`].
    fn answered(&mut self, _moves: &[Move], _outcome: Outcome) {}

    /// Whether its batches wait while the stream is full; otherwise they come back as
    /// [`Outcome::Full`].
    fn waits(&self) -> bool {
        true
    }
}

/// What became of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is durable in the stream.
    Durable,
    /// The slowest group is this many events behind: nothing of it was taken.
    Full(u64),
    /// Not known: the stream went away, or holds another checkpoint. `seek` comes next.
    Lost,
}

/// Events in one batch of a source, at most.
pub const BATCH_EVENTS: usize = 1000;
/// Bytes of bodies in one batch of a source: it ends with the event that reaches this.
pub const BATCH_BYTES: usize = 1024 * 1024;

/// What a source kind can do; `check` derives promises from it.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// The same event gets the same id when it is read again.
    pub identity: bool,
}

/// A source of the topology file, checked.
#[derive(Clone, Debug)]
pub struct SourceSpec {
    /// `NAME` in `[source.NAME]`.
    pub name: Arc<str>,
    /// Its entry in [`KINDS`].
    pub kind: &'static Kind,
    /// The stream it writes.
    pub to: String,
    /// What its ids and its checkpoint are filed under.
    pub origin: String,
    /// A JSON pointer into the body that picks the event's key.
    pub key: Option<String>,
    /// An extra Prometheus counter.
    pub counter: Option<String>,
    /// The kind's own keys.
    pub values: Values,
    /// Where requests come in, for kinds that are reached over HTTP.
    pub door: Arc<Door>,
}

/// A kind of source.
#[derive(Debug)]
pub struct Kind {
    /// As in `kind = "…"`.
    pub name: &'static str,
    /// One sentence for the schema and the reference.
    pub doc: &'static str,
    /// Its own keys, beside those that all sources have.
    pub keys: &'static [Key],
    /// What it can do.
    pub capabilities: Capabilities,
    /// Rules between its keys.
    pub check: fn(&Values) -> Vec<Complaint>,
    /// Whether it comes to an end: by itself, or where `--until-idle` asks it to.
    pub finite: fn(&Values) -> bool,
    /// How many actors it runs as; each gets its number, from 1.
    pub instances: fn(&Values) -> u64,
    /// Makes instance number `n`. Opens nothing that can fail for long: that is `seek`'s.
    pub open: fn(&SourceSpec, &Site, n: u64) -> Result<Box<dyn Source>>,
}

/// The kinds there are.
pub static KINDS: &[&Kind] = &[&publisher::KIND, &tail::KIND, &http::KIND];
