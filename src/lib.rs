//! Aqueduct carries events from where they happen to where they are kept. It is a program that runs
//! a topology file, and this library: the same streams and groups in a program of one's own.
//!
//! ```text
//!  publisher ┐                       ┌ member 1 ┐
//!  tail      ├─Append─▶ stream ──────┤ member 2 ├─Deliver─▶ sink ─▶ PostgreSQL, SQLite, a file
//!  http      ┘  ◀durable             └ member n ┘ ◀stored      (or another stream)
//!  Producer ──publish─▶    │ ────────▶ Consumer ─────────────▶ your program
//! ```
//!
//! A [`Stream`] is a durable, sharded log in a SQLite file, Redis, RabbitMQ or PostgreSQL, opened by
//! URL. A [`Producer`] publishes to it:
//!
//! ```
//! # async fn run(dir: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
//! # let url = format!("embedded:{}", dir.join("streams.db").display());
//! # let order = std::collections::BTreeMap::from([("number", 17)]);
//! use aqueduct::{Message, Stream};
//!
//! // "redis://localhost:6379", "postgres://…", "amqp://…", "embedded:data/streams.db"
//! let orders = Stream::at(url).name("orders").shards(8).open().await?;
//! let mut producer = orders.producer("shop").await?;
//! let messages = [Message::json(&order)?.key("customer-7").idempotency("order-17")];
//! producer.publish(&messages).await?; // durable when it returns
//! # Ok(())
//! # }
//! # let dir = std::env::temp_dir().join(format!("aqueduct-doc-{}", std::process::id()));
//! # std::fs::create_dir_all(&dir).unwrap();
//! # tokio::runtime::Runtime::new().unwrap().block_on(run(&dir)).unwrap();
//! # std::fs::remove_dir_all(&dir).unwrap();
//! ```
//!
//! The consumers of a [`Group`], in any number of processes, share its messages. Each is leased to
//! the [`Consumer`] that pulled it until that acknowledges it; those of one that dies go to another:
//!
//! ```
//! # async fn run(dir: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
//! # let url = format!("embedded:{}", dir.join("streams.db").display());
//! # let orders = aqueduct::Stream::at(url).name("orders").shards(8).open().await?;
//! # let messages: Vec<_> = (0..3).map(|n| aqueduct::Message::new(n.to_string())).collect();
//! # orders.producer("shop").await?.publish(&messages).await?;
//! # let mut handled = 0;
//! # let mut handle = |_: &aqueduct::Received| { handled += 1; Ok::<_, String>(()) };
//! use std::time::Duration;
//!
//! let group = orders.group("billing").lease(Duration::from_secs(20)).attempts(5);
//! let mut consumer = group.consumer("worker-1").await?;
//! loop {
//!     let batch = consumer.pull(100, Duration::from_secs(1)).await?;
//!     for message in &batch {
//!         if let Err(why) = handle(message) {
//!             batch.retry(message, why).await?; // alone; after five times a dead letter
//!         }
//!     }
//!     batch.ack().await?; // all the others
//! #   if batch.is_empty() { break }
//! }
//! # assert_eq!(handled, 3);
//! # consumer.close().await?;
//! # Ok(())
//! # }
//! # let dir = std::env::temp_dir().join(format!("aqueduct-doc-{}-2", std::process::id()));
//! # std::fs::create_dir_all(&dir).unwrap();
//! # tokio::runtime::Runtime::new().unwrap().block_on(run(&dir)).unwrap();
//! # std::fs::remove_dir_all(&dir).unwrap();
//! ```
//!
//! `examples/producer.rs`, `examples/consumer.rs` and, for an ordered group, `examples/ordered.rs` are
//! whole programs.
//!
//! # What you may rely on
//!
//! - **Published means durable**, as durable as the backend is set up to be
//!   ([`Stream::weakness`]).
//! - **A message is one event**, with one id, however often it is published: again after an error
//!   (the same [`Message`]), or by a process that does not know whether an earlier one did
//!   ([`Message::idempotency`]). The stream may hold it twice; the `postgres`, `sqlite` and `file`
//!   sinks of a topology keep one of each id, and so should a consumer whose work is not to be done
//!   twice ([`Received::id`]).
//! - **Delivered at least once** to each group: once, unless a consumer dies or falls silent with it
//!   in hand. What was settled too late is said ([`Settled::lost`]).
//! - **Nothing is stuck.** A message whose handling fails, or ends its process, again and again
//!   becomes a dead letter, and never one that shared a batch with it.
//! - **One key, one shard, one order** ([`Message::key`], [`shard_of`]), unless the producer names
//!   another shard ([`Message::shard`]). Consumers of a group share a shard, so with several of them
//!   messages of one key may be worked on at the same time.
//! - **Handled in order**, where a group asks for it ([`Group::ordered`]): a shard is one consumer's
//!   at a time, and its next messages come once those before are settled. [`Received::fence`] keeps
//!   out what a consumer still does that others have followed.
//!
//! A stream and a group of this library are those of the topology file: `aqueduct run` may write
//! what a [`Consumer`] reads, and store what a [`Producer`] publishes.
//!
//! # Traces
//!
//! [`Message::traceparent`] and [`Received::traceparent`] are the W3C Trace Context of a message, as
//! any OpenTelemetry propagator writes and reads it; nothing is asked of the program's own set-up.
//! With the `opentelemetry` crates, inject the current context into a map and hand over its
//! `traceparent` to publish, and extract one from the `traceparent` of what was received as the
//! parent of the span that handles it. A group of a topology that has `[tracing]` goes on with the
//! trace by itself.

#![forbid(unsafe_code)]
#![deny(missing_docs)]

mod library;

pub use event::{EventId, Fence};
pub use library::{
    Batch, Consumer, Error, Group, Iter, Message, Producer, Received, Settled, Stream,
    StreamBuilder,
};
pub use stream::shard_of;

// The program's rooms, in the order in which an event meets them; ARCHITECTURE.md says what each
// is. They are public for the program and its tests alone, and change as it does. Who reads the
// pages of their kinds reads the private ones too.
#[doc(hidden)]
pub mod actor;
#[doc(hidden)]
pub mod cli;
#[doc(hidden)]
pub mod client;
#[doc(hidden)]
pub mod event;
mod fault;
#[doc(hidden)]
pub mod sink;
#[doc(hidden)]
#[allow(rustdoc::private_intra_doc_links)]
pub mod source;
#[doc(hidden)]
pub mod spec;
#[doc(hidden)]
#[allow(rustdoc::private_intra_doc_links)]
pub mod stream;
#[doc(hidden)]
pub mod telemetry;
#[doc(hidden)]
pub mod topology;
#[doc(hidden)]
pub mod web;
