//! A group member's hand on a stream.

use std::sync::Arc;
use std::sync::Mutex as StdMutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use futures_util::future::BoxFuture;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio::time::{Instant, timeout_at};

use super::fetch::{Order, Taken, fetch};
use super::lease::{self, Range, ranges};
use super::state::Stream;
use super::{Database, Mode, Sql, Statement, args, dead, first, lock, mode, own, statement};
use crate::event::{Delivery, Ticket};
use crate::stream::{Reader, ReaderSpec};

/// How long one fetch waits, at most.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How often a member says that it is there.
const SEEN: Duration = Duration::from_secs(2);
/// How soon a member looks again where another one is just taking what there is.
const BUSY: Duration = Duration::from_millis(3);

const LAST_SEEN: Statement = statement!("SELECT seen FROM members WHERE grp = $1 AND name = $2");
const SEE: Statement = statement!(
    "INSERT INTO members (grp, name, seen, ordered, lease) VALUES ($1, $2, $3, $4, $5)
     ON CONFLICT (grp, name) DO UPDATE
       SET seen = excluded.seen, ordered = excluded.ordered, lease = excluded.lease"
);
/// Whether a fetch would find something, or find out that its group is gone.
const IS_DUE: Statement = statement!(
    "SELECT CASE WHEN EXISTS (SELECT 1 FROM leases WHERE grp = $1 AND deadline <= $2)
       OR EXISTS (SELECT 1 FROM cursors c JOIN offsets o ON o.stream = $3 AND o.shard = c.shard
                  WHERE c.grp = $1 AND c.next < o.next)
       OR NOT EXISTS (SELECT 1 FROM cursors WHERE grp = $1) THEN 1 ELSE 0 END"
);

/// The same for a member of an ordered group, which also claims what is free.
const IS_DUE_IN_ORDER: Statement = statement!(
    "SELECT CASE WHEN EXISTS (SELECT 1 FROM owners WHERE grp = $1 AND until <= $2)
       OR EXISTS (SELECT 1 FROM owners w JOIN leases l ON l.grp = w.grp AND l.shard = w.shard
                  WHERE w.grp = $1 AND w.member = $4 AND l.deadline = 0)
       OR EXISTS (SELECT 1 FROM owners w JOIN cursors c ON c.grp = w.grp AND c.shard = w.shard
                  JOIN offsets o ON o.stream = $3 AND o.shard = w.shard
                  WHERE w.grp = $1 AND w.member = $4 AND c.next < o.next)
       OR NOT EXISTS (SELECT 1 FROM cursors WHERE grp = $1) THEN 1 ELSE 0 END"
);

/// One member. A clone shares what it is.
pub(super) struct Member<D>(Arc<Inner<D>>);

impl<D> Clone for Member<D> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

struct Inner<D> {
    stream: Arc<Stream<D>>,
    spec: ReaderSpec,
    name: Arc<str>,
    lease_ms: i64,
    seen: StdMutex<Seen>,
    /// When it last looked and found nothing, and nobody has told it of anything since.
    rests: StdMutex<Option<Instant>>,
    /// Held by whoever changes what the member holds: two that cut one lease would not see each
    /// other's rows.
    hand: Mutex<()>,
    /// In an ordered group: held by who takes, to the end of its transaction, also where nobody
    /// waits for it any more.
    taking: Arc<Mutex<()>>,
    /// What was taken, and is to be handed back before anybody takes what is behind it.
    unwanted: StdMutex<Vec<Ticket>>,
    turn: AtomicUsize,
}

/// When the member last said that it is there.
#[derive(Clone, Copy, Default)]
struct Seen {
    at: Option<Instant>,
    /// As the database has it: the time before the last, or, once that is committed, the last.
    stored: [Option<i64>; 2],
}

impl<D: Database> Member<D> {
    /// A hand on `stream`. What a member of this name held before, in an earlier life, is free
    /// at once. Errs while members of the other mode live.
    pub async fn open(stream: Arc<Stream<D>>, spec: ReaderSpec) -> Result<Self> {
        let member = Self(Arc::new(Inner {
            name: spec.member.as_str().into(),
            lease_ms: i64::try_from(spec.group.lease.as_millis()).unwrap_or(i64::MAX / 4),
            seen: StdMutex::default(),
            rests: StdMutex::default(),
            hand: Mutex::default(),
            taking: Arc::default(),
            unwanted: StdMutex::default(),
            turn: AtomicUsize::new(fastrand::usize(..) / 2),
            stream,
            spec,
        }));
        let inner = member.0.clone();
        member
            .write(Mode::Kept, move |tx, group| {
                let inner = inner.clone();
                Box::pin(async move {
                    mode::wait_turn(tx, group).await?;
                    inner.see(tx, group).await?;
                    let Inner { stream, spec, name, .. } = &*inner;
                    mode::enter(tx, group, &stream.spec, &spec.group, name).await?;
                    tx.outbox().wake(&inner.stream.spec.name, Some(&inner.spec.group.name));
                    lease::free(tx, &inner.name).await
                })
            })
            .await?;
        Ok(member)
    }

    /// Runs `work` for the member's group.
    async fn write<T, W>(&self, mode: Mode, work: W) -> Result<T>
    where
        T: Send + 'static,
        W: for<'t> Fn(&'t mut dyn Sql, i64) -> BoxFuture<'t, Result<T>> + Send + Sync + 'static,
    {
        let _one = self.0.hand.lock().await;
        let name = self.0.spec.group.name.clone();
        self.0
            .stream
            .transact(mode, move |tx, ids| match ids.group(&name) {
                Ok(group) => work(tx, group),
                Err(error) => Box::pin(async { Err(error) }),
            })
            .await
    }

    /// Runs `work` for each of the ranges that `tickets` are.
    async fn each<W>(&self, tickets: &[Ticket], work: W) -> Result<()>
    where
        W: for<'t> Fn(&'t mut dyn Sql, i64, Range) -> BoxFuture<'t, Result<()>>
            + Send
            + Sync
            + 'static,
    {
        let (ranges, work): (Arc<[Range]>, _) = (ranges(tickets).into(), Arc::new(work));
        self.write(Mode::Loose, move |tx, group| {
            let (ranges, work) = (ranges.clone(), work.clone());
            Box::pin(async move {
                for range in &*ranges {
                    work(tx, group, *range).await?;
                }
                Ok(())
            })
        })
        .await
    }

    /// Waits until nobody else takes, and hands back what was taken for nobody: of each shard
    /// that is the oldest, and what is behind it must not be delivered before.
    async fn take_turn(&self) -> Result<OwnedMutexGuard<()>> {
        let turn = self.0.taking.clone().lock_owned().await;
        let unwanted = lock(&self.0.unwanted).clone();
        if !unwanted.is_empty() {
            self.release_now(&unwanted).await?;
            lock(&self.0.unwanted).clear();
        }
        Ok(turn)
    }

    /// Takes what there is now.
    async fn take(&self, events: usize, bytes: usize) -> Result<Leased<D>> {
        let inner = &*self.0;
        let turn = match inner.spec.group.ordered {
            true => Some(Arc::new(self.take_turn().await?)),
            false => None,
        };
        let order = Order {
            group: inner.spec.group.name.clone(),
            member: inner.name.clone(),
            lease_ms: inner.lease_ms,
            ordered: inner.spec.group.ordered,
            turn: inner.turn.fetch_add(1, Ordering::Relaxed),
            events: events.max(1),
            bytes,
        };
        let member = self.clone();
        inner
            .stream
            .transact(Mode::Loose, move |tx, ids| {
                let (member, order, turn) = (member.clone(), order.clone(), turn.clone());
                Box::pin(async move {
                    member.0.see_in_time(tx, ids.group(&order.group)?).await?;
                    let taken = fetch(tx, &ids, &member.0.stream, &order).await?;
                    Ok(Leased { member, taken, _turn: turn })
                })
            })
            .await
    }

    /// Whether a fetch would find something, or find out that its group is gone.
    async fn is_due(&self) -> Result<bool> {
        if self.0.is_to_be_seen() {
            return Ok(true);
        }
        let inner = self.0.clone();
        self.0
            .stream
            .transact(Mode::Read, move |tx, ids| {
                let (group, inner) = (ids.group(&inner.spec.group.name), inner.clone());
                Box::pin(async move {
                    let Ok(group) = group else { return Ok(true) };
                    let now = tx.now_ms();
                    let row = if inner.spec.group.ordered {
                        let args = args![group, now, ids.stream, &*inner.name];
                        first(tx, IS_DUE_IN_ORDER, args).await?
                    } else {
                        first(tx, IS_DUE, args![group, now, ids.stream]).await?
                    };
                    row.map_or(Ok(true), |row| Ok(row.int(0)? != 0))
                })
            })
            .await
    }

    async fn release_now(&self, tickets: &[Ticket]) -> Result<()> {
        let inner = self.0.clone();
        self.each(tickets, move |tx, group, range| {
            let inner = inner.clone();
            Box::pin(async move {
                tx.outbox().wake(&inner.stream.spec.name, Some(&inner.spec.group.name));
                if inner.spec.group.ordered {
                    own::give_up(tx, group, &inner.name, range.shard).await?;
                }
                lease::release(tx, group, &range).await
            })
        })
        .await
    }

    async fn charge_by(&self, ticket: Ticket, by: i64) -> Result<Option<u32>> {
        self.write(Mode::Kept, move |tx, group| Box::pin(lease::charge(tx, group, ticket, by)))
            .await
    }
}

impl<D: Database> Inner<D> {
    /// How often the member says that it is there, at most. In an ordered group what it owns
    /// depends on it; in any, that nobody of the other mode comes.
    fn seen_every(&self) -> Duration {
        let most = if self.spec.group.ordered { SEEN / 2 } else { SEEN };
        (self.spec.group.lease / 4).min(most)
    }

    fn is_to_be_seen(&self) -> bool {
        lock(&self.seen).at.is_none_or(|at| at.elapsed() >= self.seen_every())
    }

    /// What wakes the member. In an ordered group an event is for one member only.
    fn signal(&self) -> Arc<Notify> {
        let (stream, group) = (&self.stream.spec.name, &self.spec.group);
        let name = match group.ordered {
            true => format!("{}\0{}", group.name, self.name),
            false => group.name.to_string(),
        };
        self.stream.db.local().signal(stream, &name)
    }

    /// Says that the member is there, if it is time.
    async fn see_in_time(&self, tx: &mut dyn Sql, group: i64) -> Result<()> {
        if !self.is_to_be_seen() {
            return Ok(());
        }
        // Whoever comes meanwhile need not.
        lock(&self.seen).at = Some(Instant::now());
        self.see(tx, group).await
    }

    /// Says that the member is there.
    async fn see(&self, tx: &mut dyn Sql, group: i64) -> Result<()> {
        let found = first(tx, LAST_SEEN, args![group, &*self.name]).await?;
        let found = found.map(|row| row.int(0)).transpose()?;
        let Seen { stored, .. } = *lock(&self.seen);
        let now = tx.now_ms();
        let ordered = u32::from(self.spec.group.ordered);
        tx.run(SEE, args![group, &*self.name, now, ordered, self.lease_ms]).await?;
        if found.is_some() && stored != [None; 2] && !stored.contains(&found) {
            // The database has gone back to before. Of what it says that the member holds, the
            // member need not know.
            lease::release_member(tx, group, &self.name).await?;
        }
        *lock(&self.seen) = Seen { at: Some(Instant::now()), stored: [found, Some(now)] };
        Ok(())
    }
}

#[async_trait]
impl<D: Database> Reader for Member<D> {
    async fn fetch(&self, events: usize, bytes: usize, wait: Duration) -> Result<Vec<Delivery>> {
        let Inner { stream, spec, rests, .. } = &*self.0;
        let end = Instant::now() + wait.min(WAIT_MAX);
        let (signal, ordered) = (self.0.signal(), spec.group.ordered);
        let every = D::LOOK.min(self.0.seen_every());
        // Who does not wait wants to know what there is now.
        if wait.is_zero() {
            *lock(rests) = None;
        }
        loop {
            stream.tend();
            let rested = *lock(rests);
            let Some(rested) = rested else {
                let mut leased = self.take(events, bytes).await?;
                if leased.taken.more {
                    signal.notify_one();
                }
                let deliveries = std::mem::take(&mut leased.taken.deliveries);
                if !deliveries.is_empty() {
                    return Ok(deliveries);
                }
                if leased.taken.busy && Instant::now() < end {
                    tokio::time::sleep(BUSY).await;
                } else if !leased.taken.busy && !leased.taken.more {
                    *lock(rests) = Some(Instant::now());
                }
                if Instant::now() >= end {
                    return Ok(Vec::new());
                }
                continue;
            };
            let look = rested + every;
            let signalled = timeout_at(end.min(look), signal.notified()).await.is_ok();
            // All members of an ordered group are woken, and few of them find something.
            let looks = Instant::now() >= look || (signalled && ordered);
            if (signalled && !ordered) || (looks && self.is_due().await?) {
                *lock(rests) = None;
            } else if Instant::now() >= end {
                return Ok(Vec::new());
            } else {
                *lock(rests) = Some(Instant::now());
            }
        }
    }

    async fn ack(&self, tickets: &[Ticket]) -> Result<()> {
        self.each(tickets, |tx, group, range| {
            Box::pin(async move { lease::ack(tx, group, &range).await })
        })
        .await?;
        if self.0.spec.group.ordered {
            // A shard of which it held too much may be read from again.
            self.0.signal().notify_one();
        }
        Ok(())
    }

    async fn renew(&self, tickets: &[Ticket]) -> Result<Vec<Ticket>> {
        let ranges: Arc<[Range]> = ranges(tickets).into();
        let inner = self.0.clone();
        self.write(Mode::Loose, move |tx, group| {
            let (inner, ranges) = (inner.clone(), ranges.clone());
            Box::pin(async move {
                inner.see_in_time(tx, group).await?;
                if inner.spec.group.ordered {
                    let Inner { name, lease_ms, .. } = &*inner;
                    own::keep(tx, own::Asker { group, member: name, lease_ms: *lease_ms }).await?;
                }
                let deadline = tx.now_ms() + inner.lease_ms;
                let mut lost = Vec::new();
                for range in &*ranges {
                    let (shard, hold) = (range.shard, range.token);
                    let offsets = lease::renew(tx, group, range, deadline).await?;
                    lost.extend(offsets.into_iter().map(|offset| Ticket { shard, hold, offset }));
                }
                Ok(lost)
            })
        })
        .await
    }

    async fn charge(&self, ticket: Ticket) -> Result<Option<u32>> {
        self.charge_by(ticket, 1).await
    }

    async fn refund(&self, ticket: Ticket) -> Result<()> {
        self.charge_by(ticket, -1).await.map(drop)
    }

    async fn release(&self, tickets: &[Ticket]) -> Result<()> {
        self.release_now(tickets).await
    }

    async fn leave(&self) -> Result<()> {
        let inner = self.0.clone();
        self.write(Mode::Loose, move |tx, group| {
            let inner = inner.clone();
            Box::pin(async move {
                tx.outbox().wake(&inner.stream.spec.name, Some(&inner.spec.group.name));
                own::leave(tx, group, &inner.name).await
            })
        })
        .await
    }

    async fn bury(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let Inner { stream, spec, hand, .. } = &*self.0;
        let letter = Arc::new(dead::Letter::new(delivery, &spec.group, reason)?);
        let ticket = delivery.ticket;
        let _one = hand.lock().await;
        stream
            .transact(Mode::Kept, move |tx, ids| {
                let letter = letter.clone();
                Box::pin(async move { letter.bury(tx, &ids, ticket).await })
            })
            .await
    }
}

/// Events on their way to a member: should it have gone away meanwhile, they are handed back.
struct Leased<D: Database> {
    member: Member<D>,
    taken: Taken,
    /// Goes after the events are known as unwanted.
    _turn: Option<Arc<OwnedMutexGuard<()>>>,
}

impl<D: Database> Drop for Leased<D> {
    fn drop(&mut self) {
        let left = &self.taken.deliveries;
        if left.is_empty() {
            return;
        }
        let tickets: Vec<Ticket> = left.iter().map(|delivery| delivery.ticket).collect();
        let member = self.member.clone();
        let ordered = member.0.spec.group.ordered;
        if ordered {
            lock(&member.0.unwanted).extend(&tickets);
        }
        // Without a runtime the process ends, and the next one takes them over.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                let released = match ordered {
                    true => member.take_turn().await.map(drop),
                    false => member.release_now(&tickets).await,
                };
                if let Err(error) = released {
                    tracing::debug!(%error, "could not hand back what nobody waits for");
                }
            });
        }
    }
}
