//! A consumer group: who shares the work.

use std::time::Duration;

use toml::Table;

use super::Error;
use super::consumer::Consumer;
use super::place::{Declared, Stream, quoted};
use super::shared::Shared;
use crate::spec::units::duration_text;

/// A consumer group of a stream. Made by [`Stream::group`]; nothing is checked before
/// [`consumer`](Self::consumer) or [`create`](Self::create).
#[derive(Clone, Debug)]
#[must_use = "nothing is created before `consumer` or `create`"]
pub struct Group {
    stream: Stream,
    name: String,
    keys: Table,
}

impl Group {
    pub(super) fn new(stream: Stream, name: String) -> Self {
        Self { stream, name, keys: Table::new() }
    }

    /// How long a consumer may be silent until its messages go to another one; 20 s where this is
    /// not set. A consumer that lives renews its leases by itself.
    pub fn lease(self, lease: Duration) -> Self {
        self.set("lease", duration_text(lease))
    }

    /// How often the handling of a message may fail until it is a dead letter; 5 where this is not
    /// set.
    pub fn attempts(self, attempts: u32) -> Self {
        self.set("attempts", attempts)
    }

    /// A new group begins with what is published from now on, instead of the oldest that is kept.
    pub fn latest(self) -> Self {
        self.set("start", "latest")
    }

    /// Each shard is one consumer's at a time, of all processes, and that one is given its messages
    /// in order: what has one key is handled in the order in which it was published, one message
    /// after the other. All members of a group, in all programs, have to be ordered, or none.
    ///
    /// - A consumer owns as many shards as are its share among those that pull or hold something;
    ///   beyond the number of shards, consumers wait. A shard moves to another consumer at once when its owner closes or
    ///   is dropped, when a lease has passed where it died or fell silent, and as soon as it has
    ///   settled what it has of the shard where others join and it has more than its share.
    /// - What [`pull`](Consumer::pull) gives of a shard is the next of it, in order; more of that
    ///   shard only once all of it is settled, whichever batch has it, and meanwhile other shards'.
    ///   Within a batch, messages of a shard are settled from the first on:
    ///   [`ack_only`](super::Batch::ack_only) refuses to leave out one before.
    /// - A message that is [retried](super::Batch::retry) keeps all behind it in its shard waiting,
    ///   what the same batch has of that included: the batch
    ///   [passes over](super::Batch::iter) these, and they come again behind it. It comes again
    ///   alone, until it is settled or a dead letter; then its shard goes on. Other shards go on
    ///   meanwhile. So it is with one that was dropped unsettled twice.
    /// - A consumer that was stopped for longer than its lease cannot know at that moment that
    ///   another one owns the shard. What it still does outside of this library is to be fenced by
    ///   the [epoch](super::Received::fence) of what it has.
    ///
    /// Streams that can: `embedded:`, `redis:` and `postgres:`; on RabbitMQ opening the group errs
    /// with [`Error::Invalid`].
    pub fn ordered(self) -> Self {
        self.set("ordered", true)
    }

    /// Sets any key that `[group.NAME]` may have in a topology file, as it would stand there
    /// between quotes: `.set("queue", "bills")`.
    pub fn set(mut self, key: &str, value: impl ToString) -> Self {
        self.keys.insert(key.to_owned(), quoted(&value.to_string()));
        self
    }

    /// Creates the group where it is not there yet, and starts no consumer: it has all that is
    /// published from now on.
    pub async fn create(&self) -> Result<(), Error> {
        let Declared { stream, site, .. } = self.stream.declare(&self.name, &self.keys)?;
        let opened = (stream.kind.open)(stream, site).await;
        let what = || format!("create group {} on stream {}", self.name, self.stream.name());
        opened.map(drop).map_err(|error| Error::away(what(), error))
    }

    /// A consumer of the group, which is created where it is not there yet. `name` tells it from
    /// others where people look at them (`aqueduct status`); several may have the same.
    pub async fn consumer(&self, name: &str) -> Result<Consumer, Error> {
        if name.is_empty()
            || name.len() > 200
            || name.contains(|c: char| c == '/' || c.is_control())
        {
            let text = "this cannot name a consumer (1 to 200 bytes, without `/`)";
            return Err(Error::Invalid(text.to_owned()));
        }
        let declared = self.stream.declare(&self.name, &self.keys)?;
        Ok(Consumer::new(Shared::open(declared, name).await?))
    }
}
