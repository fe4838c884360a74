//! A message as a program has it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use crate::event::{Event, EventId, Fence, trace};
use crate::library::hand::{Held, Pick};

/// A message as it was delivered.
#[derive(Clone)]
pub struct Received {
    pub(super) event: Event,
    pub(super) pick: Pick,
    stream: Arc<str>,
    fence: Option<Arc<Fence>>,
    deliveries: u32,
    attempt: u32,
}

impl Received {
    pub(super) fn new(pick: Pick, held: Held) -> Self {
        let Held { delivery, given, charged, .. } = held;
        Self {
            deliveries: delivery.deliveries.saturating_add(given.saturating_sub(1)),
            attempt: delivery.attempts + u32::from(!charged),
            stream: delivery.stream,
            fence: delivery.fence,
            event: delivery.event,
            pick,
        }
    }

    /// Its id: the same however often it is delivered or was published. Who stores under it what
    /// came of the message, in the transaction that stores it, has done the work once.
    pub fn id(&self) -> EventId {
        self.event.id
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.event.body
    }

    /// Its body, read as JSON.
    pub fn json<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.event.body)
    }

    /// What kind of thing happened, as its producer says ([`Message::kind`](crate::Message::kind)).
    pub fn kind(&self) -> Option<&str> {
        self.event.kind.as_deref()
    }

    /// What picked its shard, unless its producer named one.
    pub fn key(&self) -> Option<&str> {
        self.event.key.as_deref()
    }

    /// The origin of the producer, or the name of the source, that it comes from.
    pub fn source(&self) -> &str {
        &self.event.source
    }

    /// When it was first published.
    pub fn time(&self) -> DateTime<Utc> {
        DateTime::from_timestamp_micros(self.event.time_us).unwrap_or_default()
    }

    /// The stream it was read from.
    pub fn stream(&self) -> &str {
        &self.stream
    }

    /// The shard it was read from, counted from 0.
    pub fn shard(&self) -> u32 {
        self.pick.ticket.shard
    }

    /// In an [ordered](crate::Group::ordered) group: by what right it is this consumer's. A consumer
    /// that was stopped for longer than its lease does not know at once that another one owns the
    /// shard; who keeps the greatest `epoch` of each `group` and `shard` beside what it stores, and
    /// compares in the transaction that stores it, lets none through that another had followed.
    ///
    /// ```
    /// # use std::time::Duration;
    /// use aqueduct::Received;
    /// use sqlx::{Connection, SqliteConnection};
    ///
    /// /// Stores what came of a message. `false`: its shard has a newer owner.
    /// async fn book(message: &Received, book: &mut SqliteConnection) -> sqlx::Result<bool> {
    ///     let fence = message.fence().expect("the group is ordered");
    ///     let mut tx = book.begin().await?;
    ///     let newest = sqlx::query(
    ///         "INSERT INTO fences (grp, shard, epoch) VALUES ($1, $2, $3)
    ///          ON CONFLICT (grp, shard) DO UPDATE SET epoch = excluded.epoch
    ///          WHERE fences.epoch <= excluded.epoch",
    ///     );
    ///     let newest = newest.bind(&*fence.group).bind(fence.shard).bind(fence.epoch);
    ///     if newest.execute(&mut *tx).await?.rows_affected() == 0 {
    ///         return Ok(false);
    ///     }
    ///     // It may have been delivered before, and stored without being acknowledged.
    ///     sqlx::query("INSERT INTO book (id, body) VALUES ($1, $2) ON CONFLICT (id) DO NOTHING")
    ///         .bind(message.id().to_string())
    ///         .bind(&**message.body())
    ///         .execute(&mut *tx)
    ///         .await?;
    ///     tx.commit().await?;
    ///     Ok(true)
    /// }
    /// # async fn run(dir: &std::path::Path) -> Result<(), Box<dyn std::error::Error>> {
    /// # let url = format!("embedded:{}", dir.join("streams.db").display());
    /// # let orders = aqueduct::Stream::at(url).name("orders").shards(8).open().await?;
    /// # let messages: Vec<_> = (0..3).map(|n| aqueduct::Message::new(n.to_string()).key("k")).collect();
    /// # orders.producer("shop").await?.publish(&messages).await?;
    /// # let mut db = SqliteConnection::connect("sqlite::memory:").await?;
    /// # for table in [
    /// #     "CREATE TABLE fences (grp TEXT, shard INTEGER, epoch INTEGER, PRIMARY KEY (grp, shard))",
    /// #     "CREATE TABLE book (id TEXT PRIMARY KEY, body BLOB)",
    /// # ] { sqlx::query(table).execute(&mut db).await?; }
    /// # let mut stored = 0;
    ///
    /// let group = orders.group("billing").ordered().lease(Duration::from_secs(20));
    /// let mut consumer = group.consumer("worker-1").await?;
    /// loop {
    ///     let batch = consumer.pull(100, Duration::from_secs(1)).await?;
    ///     for message in &batch {
    ///         if !book(message, &mut db).await? {
    ///             batch.release().await?; // another one has it by now
    ///             break;
    ///         }
    /// #       stored += 1;
    ///     }
    ///     batch.ack().await?;
    /// #   if stored == 3 { break }
    /// }
    /// # assert_eq!(sqlx::query("SELECT 1 FROM book").fetch_all(&mut db).await?.len(), 3);
    /// # consumer.close().await?;
    /// # Ok(())
    /// # }
    /// # let dir = std::env::temp_dir().join(format!("aqueduct-doc-{}-3", std::process::id()));
    /// # std::fs::create_dir_all(&dir).unwrap();
    /// # tokio::runtime::Runtime::new().unwrap().block_on(run(&dir)).unwrap();
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// ```
    pub fn fence(&self) -> Option<&Fence> {
        self.fence.as_deref()
    }

    /// How often it was delivered, this time included.
    pub fn deliveries(&self) -> u32 {
        self.deliveries
    }

    /// Which attempt to handle it this is: 1 at first. If the one that is the group's `attempts`
    /// fails, it becomes a dead letter.
    pub fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The W3C `traceparent` that it travels with: the parent for the span of its handling.
    pub fn traceparent(&self) -> Option<&str> {
        self.event.trace.as_deref().map(|trace| trace::split(trace).0)
    }

    /// The W3C `tracestate` that goes with the `traceparent`.
    pub fn tracestate(&self) -> Option<&str> {
        self.event.trace.as_deref().and_then(|trace| trace::split(trace).1)
    }
}

impl fmt::Debug for Received {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Received({}, attempt {})", self.event.id, self.attempt)
    }
}
