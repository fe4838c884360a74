//! A group member's hand on a stream.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use sqlx::{Row, SqliteConnection};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout_at};

use super::db::Commit;
use super::fetch::{Order, Taken, fetch};
use super::lease::{self, ranges};
use super::state::Stream;
use super::{clock, dead};
use crate::event::{Delivery, Ticket};
use crate::stream::{Reader, ReaderSpec};

/// How often a waiting member looks for what other processes appended or left behind.
const POLL: Duration = Duration::from_millis(150);
/// How long one fetch waits, at most.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How often a member says that it is there.
const SEEN_MS: i64 = 2000;

/// One member. A clone shares what it is.
#[derive(Clone)]
pub(super) struct Member(Arc<Inner>);

struct Inner {
    stream: Arc<Stream>,
    spec: ReaderSpec,
    lease_ms: i64,
    /// When it last said that it is there.
    seen_ms: AtomicI64,
    turn: AtomicUsize,
}

impl Member {
    /// A hand on `stream`. What a member of this name held before, in an earlier life, is free
    /// at once.
    pub async fn open(stream: Arc<Stream>, spec: ReaderSpec) -> Result<Self> {
        let lease_ms = i64::try_from(spec.group.lease.as_millis()).unwrap_or(i64::MAX / 4);
        let member = Self(Arc::new(Inner {
            stream,
            spec,
            lease_ms,
            seen_ms: AtomicI64::new(0),
            turn: AtomicUsize::new(fastrand::usize(..) / 2),
        }));
        let name = member.0.spec.member.clone();
        member
            .write(move |sql, group| {
                Box::pin(async move {
                    lease::free(sql, &name).await?;
                    see(sql, group, &name).await
                })
            })
            .await?;
        Ok(member)
    }

    /// Runs `work` for the member's group.
    async fn write<T, W>(&self, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'t> FnOnce(&'t mut SqliteConnection, i64) -> BoxFuture<'t, Result<T>>
            + Send
            + 'static,
    {
        let name = self.0.spec.group.name.clone();
        self.0
            .stream
            .write(Commit::Quick, move |tx, ids| {
                Box::pin(async move { work(&mut tx.sql, ids.group(&name)?).await })
            })
            .await
    }

    /// Whether it is time to say that the member is there; if so, it is up to the caller.
    fn is_to_be_seen(&self) -> bool {
        let now = clock::now_ms();
        let seen = self.0.seen_ms.load(Ordering::Relaxed);
        let due = seen == 0 || now - seen >= SEEN_MS;
        if due {
            self.0.seen_ms.store(now, Ordering::Relaxed);
        }
        due
    }

    /// Takes what there is now.
    async fn take(&self, events: usize, bytes: usize) -> Result<Leased> {
        let Inner { stream, spec, lease_ms, turn, .. } = &*self.0;
        let order = Order {
            group: spec.group.name.clone(),
            member: spec.member.clone(),
            lease_ms: *lease_ms,
            turn: turn.fetch_add(1, Ordering::Relaxed),
            events: events.max(1),
            bytes,
        };
        let seen = self.is_to_be_seen();
        let member = self.clone();
        stream
            .write(Commit::Quick, move |tx, ids| {
                Box::pin(async move {
                    if seen {
                        see(&mut tx.sql, ids.group(&order.group)?, &order.member).await?;
                    }
                    let taken = fetch(tx, &ids, &member.0.stream, &order).await?;
                    Ok(Leased { member, taken })
                })
            })
            .await
    }

    /// Whether a fetch would find something, or find out that its group is gone.
    async fn is_due(&self) -> Result<bool> {
        let Inner { stream, spec, seen_ms, .. } = &*self.0;
        if clock::now_ms() - seen_ms.load(Ordering::Relaxed) >= SEEN_MS {
            return Ok(true);
        }
        let (mut read, ids) = stream.read().await?;
        let Ok(group) = ids.group(&spec.group.name) else { return Ok(true) };
        let row = sqlx::query(
            "SELECT EXISTS (SELECT 1 FROM leases WHERE grp = ?1 AND deadline <= ?2)
               OR EXISTS (SELECT 1 FROM cursors c JOIN offsets o
                          ON o.stream = ?3 AND o.shard = c.shard
                          WHERE c.grp = ?1 AND c.next < o.next)
               OR NOT EXISTS (SELECT 1 FROM cursors WHERE grp = ?1)",
        )
        .bind(group)
        .bind(clock::now_ms())
        .bind(ids.stream)
        .fetch_one(read.sql()?)
        .await
        .map_err(|error| stream.explain(error))?;
        Ok(row.try_get(0)?)
    }

    async fn release_now(&self, tickets: &[Ticket]) -> Result<()> {
        let ranges = ranges(tickets);
        self.write(move |sql, group| {
            Box::pin(async move {
                for range in &ranges {
                    lease::release(sql, group, range).await?;
                }
                Ok(())
            })
        })
        .await?;
        self.0.stream.db.wake(&self.0.stream.spec.name, Some(&self.0.spec.group.name));
        Ok(())
    }
}

#[async_trait]
impl Reader for Member {
    async fn fetch(&self, events: usize, bytes: usize, wait: Duration) -> Result<Vec<Delivery>> {
        let Inner { stream, spec, .. } = &*self.0;
        let end = Instant::now() + wait.min(WAIT_MAX);
        let signal = stream.db.signal(&stream.spec.name, &spec.group.name);
        loop {
            stream.tend();
            let mut leased = self.take(events, bytes).await?;
            if leased.taken.gone {
                stream.forget_ids();
                continue;
            }
            if leased.taken.more {
                signal.notify_one();
            }
            let deliveries = std::mem::take(&mut leased.taken.deliveries);
            if !deliveries.is_empty() {
                return Ok(deliveries);
            }
            loop {
                let now = Instant::now();
                if now >= end {
                    return Ok(Vec::new());
                }
                let signalled = timeout_at(end.min(now + POLL), signal.notified()).await.is_ok();
                stream.tend();
                if signalled || self.is_due().await? {
                    break;
                }
            }
        }
    }

    async fn ack(&self, tickets: &[Ticket]) -> Result<()> {
        let ranges = ranges(tickets);
        self.write(move |sql, group| {
            Box::pin(async move {
                for range in &ranges {
                    lease::ack(sql, group, range).await?;
                }
                Ok(())
            })
        })
        .await
    }

    async fn renew(&self, tickets: &[Ticket]) -> Result<Vec<Ticket>> {
        let ranges = ranges(tickets);
        let seen = self.is_to_be_seen().then(|| self.0.spec.member.clone());
        let lease_ms = self.0.lease_ms;
        self.write(move |sql, group| {
            Box::pin(async move {
                if let Some(name) = seen {
                    see(sql, group, &name).await?;
                }
                let deadline = clock::now_ms() + lease_ms;
                let mut lost = Vec::new();
                for range in &ranges {
                    let (shard, hold) = (range.shard, range.token);
                    let offsets = lease::renew(sql, group, range, deadline).await?;
                    lost.extend(offsets.into_iter().map(|offset| Ticket { shard, hold, offset }));
                }
                Ok(lost)
            })
        })
        .await
    }

    async fn charge(&self, ticket: Ticket) -> Result<Option<u32>> {
        self.write(move |sql, group| Box::pin(lease::charge(sql, group, ticket, 1))).await
    }

    async fn refund(&self, ticket: Ticket) -> Result<()> {
        self.write(move |sql, group| Box::pin(lease::charge(sql, group, ticket, -1))).await?;
        Ok(())
    }

    async fn release(&self, tickets: &[Ticket]) -> Result<()> {
        self.release_now(tickets).await
    }

    async fn bury(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let Inner { stream, spec, .. } = &*self.0;
        let letter = dead::Letter::new(delivery, &spec.group, reason)?;
        let ticket = delivery.ticket;
        stream
            .write(Commit::Quick, move |tx, ids| {
                Box::pin(async move { letter.bury(tx, &ids, ticket).await })
            })
            .await
    }
}

/// Says that a member is there.
async fn see(sql: &mut SqliteConnection, group: i64, name: &str) -> Result<()> {
    sqlx::query("INSERT OR REPLACE INTO members VALUES (?, ?, ?)")
        .bind(group)
        .bind(name)
        .bind(clock::now_ms())
        .execute(sql)
        .await?;
    Ok(())
}

/// Events on their way to a member: should it have gone away meanwhile, they are handed back.
struct Leased {
    member: Member,
    taken: Taken,
}

impl Drop for Leased {
    fn drop(&mut self) {
        let left = &self.taken.deliveries;
        if left.is_empty() {
            return;
        }
        let tickets: Vec<Ticket> = left.iter().map(|delivery| delivery.ticket).collect();
        let member = self.member.clone();
        // Without a runtime the process ends, and the next one takes them over.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = member.release_now(&tickets).await {
                    tracing::debug!(%error, "could not hand back what nobody waits for");
                }
            });
        }
    }
}
