//! What is between: named, durable, sharded logs with consumer groups. A backend is plain async
//! Rust behind [`Backend`], with a [`Writer`] for sources and a [`Reader`] for each group member.
//!
//! A new kind is one file beside this one and one line in [`KINDS`].

pub mod chunk;
pub mod cursor;
pub mod embedded;
mod modes;
pub mod postgres;
mod rabbitmq;
mod redis;
mod shards;
mod sql;
pub mod suspicion;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

use self::cursor::{CursorMove, Moved, Refused, ShardCursor};
pub use self::shards::{shard_for, shard_of};
use crate::event::{Delivery, Event, EventId, Ticket};
use crate::source::{Dead, Move, Slot};
use crate::spec::{Complaint, Key, Site, Values};

/// Events, and the steps of their source's checkpoint that go with them. Without steps (a group
/// that writes a stream, a command) the events are appended as they are.
#[derive(Clone, Debug)]
pub struct Append {
    /// The source's `origin`: what its checkpoint is filed under.
    pub origin: Arc<str>,
    /// Steps of the checkpoint.
    pub moves: Vec<Move>,
    /// Events, in order.
    pub events: Vec<Event>,
}

/// What became of an [`Append`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Appended {
    /// The events and the checkpoint are durable.
    Durable,
    /// The stream's checkpoint is not what the append started from: nothing was changed. The
    /// source reads its slots again and goes there.
    Rewound,
    /// The slowest group is this many events behind, past `max_backlog`: nothing was changed.
    Full(u64),
}

/// Appends to a stream.
#[async_trait]
pub trait Writer: Send {
    /// Every slot the stream holds for `origin`.
    async fn slots(&mut self, origin: &str) -> Result<Vec<Slot>>;

    /// Compare and append: each in order, and each whole or not at all; one commit for all of
    /// them where the backend can. When it returns, what is [`Appended::Durable`] is durable. An
    /// error leaves open what was stored; the checkpoint tells.
    async fn append(&mut self, appends: &[Append]) -> Result<Vec<Appended>>;
}

/// One group member's hand on a stream. All methods may be called while a `fetch` waits.
///
/// In an ordered group a member owns shards: a fetch claims them, as many as are its share, and
/// fetches and renewals keep them for a lease. It is given each shard's events in order, with a
/// fence; who owned the shard before can do nothing to them any more.
///
/// Whatever is fetched is leased: it stays with this member until it is acked, buried or
/// released, or until the lease runs out unrenewed and another member gets it. Everything here
/// acts on what is still this member's and quietly passes over what is not.
#[async_trait]
pub trait Reader: Send + Sync {
    /// The next events: first what dead members left behind, then new ones; at most `events` and
    /// about `bytes`, and as soon as there is one. Empty when `wait` has passed.
    async fn fetch(&self, events: usize, bytes: usize, wait: Duration) -> Result<Vec<Delivery>>;

    /// They are stored: they are not delivered to this group again.
    async fn ack(&self, tickets: &[Ticket]) -> Result<()>;

    /// Starts the lease of these anew and answers which are no longer this member's.
    async fn renew(&self, tickets: &[Ticket]) -> Result<Vec<Ticket>>;

    /// Counts an attempt, durably, before the event is delivered alone. Answers how many there
    /// are now, or `None` when the event is no longer this member's.
    async fn charge(&self, ticket: Ticket) -> Result<Option<u32>>;

    /// Takes one attempt back: the delivery failed through no fault of the event's.
    async fn refund(&self, ticket: Ticket) -> Result<()>;

    /// Hands events back, undelivered: the next member gets them at once, and this delivery is
    /// not counted. A member of an ordered group gives up the shards that these are of.
    async fn release(&self, tickets: &[Ticket]) -> Result<()>;

    /// The member fetches no more, and does not count as one that runs: one of an ordered group
    /// gives up all its shards, which others take at once.
    async fn leave(&self) -> Result<()> {
        Ok(())
    }

    /// Makes the event a dead letter of this group, and acks it, in one. Burying it twice leaves
    /// one.
    async fn bury(&self, delivery: &Delivery, reason: &str) -> Result<()>;
}

/// How a member reads.
#[derive(Clone, Debug)]
pub struct ReaderSpec {
    /// The group.
    pub group: GroupSpec,
    /// `INSTANCE/GROUP/NUMBER`: unique among all members of all processes.
    pub member: String,
}

/// A stream, opened. Opening it created its groups.
#[async_trait]
pub trait Backend: Send + Sync {
    /// A hand to write with.
    async fn writer(&self) -> Result<Box<dyn Writer>>;
    /// A group member's hand. Errs while members of the same group live that are ordered where this
    /// one is not, or the other way round: they were seen within their lease, or hold something.
    async fn reader(&self, spec: ReaderSpec) -> Result<Arc<dyn Reader>>;
    /// What it holds, and how far its groups are. Also the proof that the backend is there.
    async fn status(&self) -> Result<StreamStatus>;
    /// Where its own settings promise less than that what is appended stays: what may be lost,
    /// and which setting would be right.
    async fn weakness(&self) -> Option<String> {
        None
    }
    /// The newest `count` events, oldest first, touching nothing.
    async fn peek(&self, count: usize) -> Result<Vec<Event>>;
    /// Forgets a group and what it holds back. `false`: there is none of that name.
    async fn drop_group(&self, group: &str) -> Result<bool>;
    /// Where a group stands in each shard. Errs where the backend keeps no history.
    async fn cursor(&self, group: &str) -> Result<Vec<ShardCursor>>;
    /// Puts a group's cursor elsewhere, and answers what that did in each shard; or why not, and
    /// then nothing was changed. What members hold of these shards is theirs no more: no ack of
    /// it reaches what they are given from then on. A moved cursor holds back trimming at once.
    async fn move_cursor(&self, order: &CursorMove) -> Result<Result<Vec<Moved>, Refused>>;
    /// Removes the stream: its events, its groups, its dead letters, and what members left behind.
    /// For a stream that a program made for itself, and that no source writes: what a checkpoint
    /// left stays. Nobody may have it open any more.
    async fn erase(&self) -> Result<()>;
    /// The dead letters of all groups of this stream, oldest first.
    async fn dead(&self) -> Result<Vec<DeadLetter>>;
    /// Files what never was in the stream (a line that is too long) as a dead letter of each of
    /// its groups, durably; of nobody's, under the group `-`, where it has none. Filing the same
    /// event again changes nothing.
    async fn file_dead(&self, dead: &[Dead]) -> Result<()>;
    /// Puts these dead letters (all, where `ids` is empty) into the stream again, each for the
    /// group that gave it up alone, and forgets them. Answers how many there were.
    async fn replay_dead(&self, ids: &[EventId]) -> Result<u64>;
    /// Forgets these dead letters (all, where `ids` is empty). Answers how many there were.
    async fn drop_dead(&self, ids: &[EventId]) -> Result<u64>;
}

/// What `/streams` shows of a stream. `None`: the backend cannot tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct StreamStatus {
    /// Its name.
    pub stream: String,
    /// Events it holds.
    pub length: Option<u64>,
    /// Its groups, by name.
    pub groups: Vec<GroupStatus>,
    /// Events in each shard; empty where the backend cannot tell. The status page shows them.
    #[serde(skip)]
    pub shards: Vec<u64>,
}

/// What `/streams` shows of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Events that no member was given yet.
    pub lag: Option<u64>,
    /// Events that members hold and have not acked.
    pub pending: Option<u64>,
    /// Members that hold something or were seen of late.
    pub consumers: Vec<ConsumerStatus>,
    /// When the oldest event that it has not acked was appended, in microseconds since 1970 UTC;
    /// `None` also where there is none. The status page shows it.
    #[serde(skip)]
    pub oldest_us: Option<i64>,
}

/// What `/streams` shows of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsumerStatus {
    /// `INSTANCE/GROUP/NUMBER`
    pub name: String,
    /// Events it holds.
    pub pending: Option<u64>,
    /// Milliseconds since it last fetched or renewed.
    pub idle_ms: Option<u64>,
}

/// An event that a group gave up.
#[derive(Clone, Debug)]
pub struct DeadLetter {
    /// The event.
    pub event: Event,
    /// The group that gave it up.
    pub group: String,
    /// Why.
    pub reason: String,
    /// Deliveries of its own that ended badly.
    pub attempts: u32,
    /// When, in microseconds since 1970 UTC.
    pub time_us: i64,
}

/// A consumer group of the topology file, checked.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupSpec {
    /// `NAME` in `[group.NAME]`.
    pub name: Arc<str>,
    /// The stream it reads.
    pub from: String,
    /// The sink or stream it delivers to.
    pub to: String,
    /// Members in this process.
    pub members: u64,
    /// A new group starts at the next event instead of the oldest retained.
    pub latest: bool,
    /// Events in one delivery.
    pub batch: usize,
    /// After that a silent member's events go to another.
    pub lease: Duration,
    /// Deliveries alone, each ending badly, until an event is a dead letter.
    pub attempts: u32,
    /// Where its dead letters go, beside the stream.
    pub dead: String,
    /// One member at a time per shard, in order.
    pub ordered: bool,
    /// An extra Prometheus counter.
    pub counter: Option<String>,
    /// Keys of the stream's kind (RabbitMQ's `queue`).
    pub values: Values,
}

/// How long a stream keeps what every group has acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retain {
    /// Not at all. While there is no group, everything is kept.
    Acked,
    /// For ever.
    Forever,
    /// Until it is this old; what a group has not acked is kept all the same.
    Age(Duration),
}

/// A stream of the topology file, checked.
#[derive(Clone, Debug)]
pub struct StreamSpec {
    /// `NAME` in `[stream.NAME]`.
    pub name: Arc<str>,
    /// Its entry in [`KINDS`].
    pub kind: &'static Kind,
    /// How many shards it has.
    pub shards: u32,
    /// How long it keeps what is done with.
    pub retain: Retain,
    /// Events that the slowest group may be behind.
    pub max_backlog: u64,
    /// Every group the file declares on it.
    pub groups: Vec<GroupSpec>,
    /// The kind's own keys.
    pub values: Values,
}

/// What a stream kind can do; `check` derives promises from it.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// Events of other clients have an id of their own here (an entry id, a message id).
    pub foreign_identity: bool,
    /// It keeps what was acked: `retain`, cursors and `start = "earliest"` mean something.
    pub history: bool,
    /// It can have more than one shard.
    pub shards: bool,
    /// The checkpoint moves in the transaction that stores the events.
    pub transactional_checkpoint: bool,
    /// It keeps one owner at a time per shard (`ordered` groups).
    pub ordered: bool,
}

/// A kind of stream.
#[derive(Debug)]
pub struct Kind {
    /// As in `kind = "…"`.
    pub name: &'static str,
    /// One sentence for the schema and the reference.
    pub doc: &'static str,
    /// Its own keys, beside those that all streams have.
    pub keys: &'static [Key],
    /// Its own keys in `[group.NAME]`.
    pub group_keys: &'static [Key],
    /// What it can do.
    pub capabilities: Capabilities,
    /// Rules between its keys.
    pub check: fn(&Values) -> Vec<Complaint>,
    /// Where its events are kept, in a few words without a secret.
    pub place: fn(&StreamSpec) -> String,
    /// What it and its groups take for themselves.
    pub claims: fn(&StreamSpec) -> Vec<Claim>,
    /// Opens it, and creates every group of the spec that it does not have.
    pub open: fn(StreamSpec, Site) -> Opening,
}

/// Something at a backend that no other stream or group must take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// What, as an error shows it: ``the queue `logs` at localhost:5672``.
    pub what: String,
    /// The group that takes it, and the key that says so; `None`: the stream itself does.
    pub group: Option<(Arc<str>, &'static str)>,
    /// Other groups of this stream may take it as well.
    pub shared: bool,
}

impl Claim {
    /// What the stream itself takes.
    pub fn stream(what: String) -> Self {
        Self { what, group: None, shared: false }
    }
}

/// A stream on its way to being open.
pub type Opening = BoxFuture<'static, Result<Arc<dyn Backend>>>;

/// The kinds there are.
pub static KINDS: &[&Kind] = &[&embedded::KIND, &redis::KIND, &rabbitmq::KIND, &postgres::KIND];
