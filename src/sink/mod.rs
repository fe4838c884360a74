//! Where events end. A sink is plain async Rust behind [`Sink`]; one actor runs it and joins what
//! several members deliver into one write.
//!
//! A new kind is one file beside this one and one line in [`KINDS`].

pub mod columns;
mod console;
mod database;
mod fence;
mod file;
mod line;
mod postgres;
pub mod query;
mod sqlite;
mod table;

use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use futures_util::future::BoxFuture;

use self::query::OpenReader;
use crate::event::{Delivery, Refusal, Stored};
use crate::spec::{Complaint, Key, Site, Values};

/// A place where events are kept.
#[async_trait]
pub trait Sink: Send {
    /// Stores the batch durably and answers which events it would not take, and why; all others
    /// are stored when it returns. An event whose id is stored already counts as stored.
    ///
    /// An error means that the sink could not work (away, full, locked): no event's fault, and
    /// nothing is known of the batch, which will come again. The sink is then opened anew.
    async fn store(&mut self, batch: &[&Delivery]) -> Result<Vec<Refusal>>;

    /// [`Sink::store`] for deliveries of ordered groups, which all have a fence. Those of a fence
    /// come in order, and what is stored of them is always a part without a gap from the first on:
    /// nothing behind a refused event, and nothing at all once the sink has stored something of a
    /// newer owner of the shard. Other shards of the batch are not touched by either.
    async fn store_ordered(&mut self, batch: &[&Delivery]) -> Result<Stored> {
        anyhow::bail!("the sink cannot keep {} events in order (`ordered = false`)", batch.len())
    }

    /// Whether it could store something now; asked every second while there is nothing to
    /// store. An error counts as one of `store`.
    async fn check(&mut self) -> Result<()> {
        Ok(())
    }
}

/// What a sink kind can do; `check` derives promises from it.
#[derive(Clone, Copy, Debug)]
pub struct Capabilities {
    /// An event stored again under the same id is kept once. Otherwise: why it is not.
    pub idempotent: Result<(), &'static str>,
    /// Its transaction can check a shard owner's epoch (`ordered` groups).
    pub fencing: bool,
}

/// A sink of the topology file, checked.
#[derive(Clone, Debug)]
pub struct SinkSpec {
    /// `NAME` in `[sink.NAME]`.
    pub name: Arc<str>,
    /// Its entry in [`KINDS`].
    pub kind: &'static Kind,
    /// The kind's own keys.
    pub values: Values,
}

/// A kind of sink.
#[derive(Debug)]
pub struct Kind {
    /// As in `kind = "…"`.
    pub name: &'static str,
    /// One sentence for the schema and the reference.
    pub doc: &'static str,
    /// What OpenTelemetry calls it, where it is a database (`db.system.name`).
    pub system: Option<&'static str>,
    /// Its keys.
    pub keys: &'static [Key],
    /// What it can do.
    pub capabilities: Capabilities,
    /// Rules between its keys.
    pub check: fn(&Values) -> Vec<Complaint>,
    /// What two sinks must not share (a table, a path), if anything, as an error shows it.
    pub claims: fn(&Values) -> Option<String>,
    /// Where it writes, in a few words without a secret (`table "t" in data/x.db`).
    pub place: fn(&Values) -> String,
    /// A command to try that shows what is stored, if there is one.
    pub look: fn(&Values) -> Option<String>,
    /// How many of it are opened to write at once. What one writes is not seen by the others
    /// until it is stored.
    pub writers: fn(&Values) -> usize,
    /// Opens one.
    pub open: fn(SinkSpec, Site) -> Opening,
    /// Reads back what it stores, where it is a database.
    pub reader: Option<OpenReader>,
}

/// A sink on its way to being open.
pub type Opening = BoxFuture<'static, Result<Box<dyn Sink>>>;

/// The kinds there are.
pub static KINDS: &[&Kind] = &[&postgres::KIND, &sqlite::KIND, &file::KIND, &console::KIND];
