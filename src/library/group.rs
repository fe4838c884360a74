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
