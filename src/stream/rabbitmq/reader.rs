//! A group member's hand on its queues.
//!
//! The broker keeps no leases: what it has sent to a connection stays there until the connection
//! ends. So a lease is the member's own: what it does not renew, its reader hands back.
//!
//! Nor does it count in a way that could be relied on. A classic queue tells only whether a message
//! was sent before; a quorum queue counts, but the messages of a process that dies go from one of
//! its dying connections to the next, and count in each. So what was sent before is put into its
//! queue anew, as a copy that says so, and only the copy is handed out. A copy that was sent before
//! has been with members three times, which is as far as anybody needs to count: from there on its
//! attempts are charged.

use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use async_trait::async_trait;
use futures_util::future::try_join_all;
use tokio::sync::{Mutex, Notify};
use tokio::time::{Instant, timeout_at};

use super::hand::{Hand, Held, Lane, Place, Word};
use super::in_flight::Flight;
use super::intake::Intake;
use super::message::{Letter, Message};
use super::names::GroupNames;
use super::{Broker, declare, status};
use crate::event::{Delivery, Ticket, now_us};
use crate::stream::{Reader, ReaderSpec};

/// How long one fetch waits, at most.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long the broker waits for word of a message, at most: after 30 minutes it would close the
/// connection.
const HELD_MAX: Duration = Duration::from_secs(600);

/// One member.
pub(super) struct Member(Arc<Shared>);

/// What a member's tasks share.
pub(super) struct Shared {
    pub broker: Arc<Broker>,
    pub names: GroupNames,
    pub hand: Arc<Hand>,
    /// Events in one delivery.
    pub batch: usize,
    /// The lease.
    pub lease: Duration,
    /// Held by who takes messages out of the queue of suspects.
    pub suspecting: Mutex<()>,
    intake: Mutex<Option<Intake>>,
    /// A waiting fetch makes way.
    way: Notify,
}

impl Member {
    /// A hand on the queues of the group.
    pub async fn open(broker: Arc<Broker>, spec: ReaderSpec) -> Result<Self> {
        let names = broker.names.group(&spec.group.name)?.clone();
        let mut lanes = Vec::with_capacity(names.queues.len() + 1);
        for _ in 0..=names.queues.len() {
            lanes.push(Lane::new(broker.link.channel().await?));
        }
        let hand = Arc::new(Hand::new(spec.member, lanes));
        status::register(&broker.url, &names, Arc::downgrade(&hand));
        let shared = Arc::new(Shared {
            broker,
            names,
            hand,
            batch: spec.group.batch.max(1),
            lease: spec.group.lease,
            suspecting: Mutex::new(()),
            intake: Mutex::new(None),
            way: Notify::new(),
        });
        tokio::spawn(watch(Arc::downgrade(&shared)));
        Ok(Self(shared))
    }
}

#[async_trait]
impl Reader for Member {
    async fn fetch(&self, events: usize, bytes: usize, wait: Duration) -> Result<Vec<Delivery>> {
        let shared = &self.0;
        let end = Instant::now() + wait.min(WAIT_MAX);
        let mut intake = shared.intake.lock().await;
        let intake = intake.get_or_insert_with(|| Intake::new(shared));
        loop {
            shared.hand.lock().seen = std::time::Instant::now();
            intake.consume(shared).await?;
            intake.drain(shared)?;
            shared.count_anew().await?;
            intake.adopt(shared).await?;
            let landed = shared.broker.in_flight.landed();
            let taken = shared.take(events, bytes);
            if !taken.is_empty() || Instant::now() >= end {
                return Ok(taken);
            }
            let until = end.min(intake.adopt_at().into());
            tokio::select! {
                arrived = timeout_at(until, intake.wait(shared)) => {
                    // Nothing may have come.
                    arrived.unwrap_or(Ok(()))?;
                }
                () = landed => {}
                () = shared.way.notified() => return Ok(Vec::new()),
            }
        }
    }

    async fn ack(&self, tickets: &[Ticket]) -> Result<()> {
        let hand = &self.0.hand;
        hand.check()?;
        let words = {
            let mut inner = hand.lock();
            let held = tickets.iter().filter_map(|ticket| inner.held.remove(ticket));
            let places: Vec<Place> = held.map(|held| held.place).collect();
            hand.answer(&mut inner, &places, Word::Ack)
        };
        words.out().await
    }

    async fn renew(&self, tickets: &[Ticket]) -> Result<Vec<Ticket>> {
        self.0.hand.check()?;
        let deadline = std::time::Instant::now() + self.0.lease;
        let mut inner = self.0.hand.lock();
        inner.seen = std::time::Instant::now();
        let lost = tickets.iter().filter(|ticket| !inner.renew(ticket, deadline)).copied();
        Ok(lost.collect())
    }

    async fn charge(&self, ticket: Ticket) -> Result<Option<u32>> {
        let attempts = {
            let mut inner = self.0.hand.lock();
            let Some(held) = inner.held.get_mut(&ticket) else { return Ok(None) };
            if std::mem::take(&mut held.unspent) {
                return Ok(Some(held.attempts));
            }
            held.attempts.saturating_add(1)
        };
        Ok(self.restate(ticket, attempts, true).await?.then_some(attempts))
    }

    async fn refund(&self, ticket: Ticket) -> Result<()> {
        let attempts = self.0.hand.lock().held.get(&ticket).map_or(0, |held| held.attempts);
        if let Some(less) = attempts.checked_sub(1) {
            self.restate(ticket, less, false).await?;
        }
        Ok(())
    }

    async fn release(&self, tickets: &[Ticket]) -> Result<()> {
        let shared = &self.0;
        // What was read ahead and not fetched goes back as well: who hands back is about to stop.
        shared.pause(true).await?;
        let (task, tickets) = (shared.clone(), tickets.to_vec());
        to_its_end(async move { task.hand_back(&tickets, true).await }).await?;
        shared.heard().await
    }

    async fn bury(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let shared = &self.0;
        let Some(held) = shared.hand.lock().held.get(&delivery.ticket).cloned() else {
            return Ok(());
        };
        let attempts = held.spent();
        let (group, time_us) = (&*shared.names.name, now_us());
        let letter = Letter { group, reason, attempts, time_us };
        let letter = Message::letter(&held.event, &letter, shared.names.dead.clone())?;
        shared.broker.publish(&[letter]).await?;
        self.ack(&[delivery.ticket]).await
    }
}

impl Member {
    /// [`Shared::restate`], to its end, whatever becomes of who asked for it.
    async fn restate(&self, ticket: Ticket, attempts: u32, unspent: bool) -> Result<bool> {
        to_its_end(self.0.clone().restate(ticket, attempts, unspent)).await
    }
}

/// What is begun with a copy is ended, whatever becomes of who asked for it: otherwise there would
/// be two of it.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T>> + Send + 'static,
) -> Result<T> {
    tokio::spawn(work).await.context("copying messages ended")?
}

impl Shared {
    fn take(&self, events: usize, bytes: usize) -> Vec<Delivery> {
        let deadline = std::time::Instant::now() + self.lease;
        let sky = self.broker.in_flight.look();
        let mut inner = self.hand.lock();
        let taken = inner.take(&self.hand.lanes, events, bytes, deadline, &sky);
        drop((inner, sky));
        let deliver = |(ticket, held): (Ticket, Held)| Delivery {
            stream: self.broker.spec.name.clone(),
            ticket,
            deliveries: held.deliveries,
            attempts: held.spent(),
            fence: None,
            event: held.event,
        };
        taken.into_iter().map(deliver).collect()
    }

    /// Puts messages that somebody may have had before into their queue anew, with one delivery
    /// more in them.
    async fn count_anew(self: &Arc<Self>) -> Result<()> {
        let some = std::mem::take(&mut self.hand.lock().returned);
        if some.is_empty() {
            return Ok(());
        }
        let shared = self.clone();
        to_its_end(async move { shared.put_anew(some).await }).await
    }

    async fn put_anew(&self, some: Vec<Held>) -> Result<()> {
        let _flight = self.take_off(&some);
        let copied = match self.broker.takes_messages() {
            true => self.copy(&some).await,
            false => Err(anyhow!("the broker takes no messages")),
        };
        let words = {
            let mut inner = self.hand.lock();
            match copied {
                Ok(()) => {
                    let places: Vec<Place> = some.iter().map(|held| held.place).collect();
                    self.hand.answer(&mut inner, &places, Word::Ack)
                }
                // It may be short of what only we can free: then they count the next time.
                Err(error) => {
                    tracing::debug!("deliveries are not counted: {error:#}");
                    inner.buffer.extend(some);
                    return self.hand.check();
                }
            }
        };
        words.out().await?;
        self.heard().await
    }

    /// Returns when the broker has heard every word so far. What is on its way when a process dies
    /// may be lost.
    pub async fn heard(&self) -> Result<()> {
        let exchange = &self.broker.names.exchange;
        let lanes = self.hand.lanes.iter();
        try_join_all(lanes.map(|lane| declare::hear(&lane.channel, exchange))).await.map(drop)
    }

    /// Until what comes back is dropped, no member of this process delivers copies of these.
    pub fn take_off(&self, held: &[Held]) -> Flight {
        self.broker.in_flight.take_off(held.iter().map(|held| &held.event))
    }

    /// Copies messages to the ends of their queues.
    async fn copy(&self, held: &[Held]) -> Result<()> {
        let copy = |held: &Held| {
            Message::copy(
                &held.event,
                &held.counts(),
                self.names.queues[held.shard as usize].clone(),
            )
        };
        self.broker.publish(&held.iter().map(copy).collect::<Result<Vec<_>>>()?).await
    }

    /// Stops to consume; the next fetch starts again. Unless `wait`, only if no fetch waits.
    async fn pause(&self, wait: bool) -> Result<()> {
        let mut intake = match self.intake.try_lock() {
            Ok(intake) => intake,
            Err(_) if !wait => return Ok(()),
            Err(_) => {
                self.way.notify_waiters();
                loop {
                    tokio::select! {
                        intake = self.intake.lock() => break intake,
                        // It may not have waited yet.
                        () = tokio::time::sleep(Duration::from_millis(5)) => {
                            self.way.notify_waiters();
                        }
                    }
                }
            }
        };
        match &mut *intake {
            Some(intake) => intake.pause(self).await,
            None => Ok(()),
        }
    }

    /// Hands these back, and with `buffer` all that was not fetched, as if they had not been
    /// delivered: as copies, since the broker counts what is merely given back.
    async fn hand_back(&self, tickets: &[Ticket], buffer: bool) -> Result<()> {
        let held: Vec<Held> = {
            let mut inner = self.hand.lock();
            let mut all: Vec<Held> =
                tickets.iter().filter_map(|ticket| inner.held.remove(ticket)).collect();
            if buffer {
                all.extend(std::mem::take(&mut inner.buffer));
                all.extend(std::mem::take(&mut inner.returned));
            }
            all
        };
        if held.is_empty() {
            return Ok(());
        }
        let _flight = self.take_off(&held);
        let copied = self.copy(&held).await;
        let places: Vec<Place> = held.iter().map(|held| held.place).collect();
        // Where no copy can be made, they are counted, and not lost.
        let word = if copied.is_ok() { Word::Ack } else { Word::Requeue };
        if let Err(error) = copied {
            tracing::debug!("handed back as delivered: {error:#}");
        }
        let words = self.hand.answer(&mut self.hand.lock(), &places, word);
        words.out().await?;
        self.heard().await
    }

    /// Hands back what is held past its lease or too long for the broker.
    async fn tend(&self, now: std::time::Instant) -> Result<()> {
        // While no fetch looks, what is sent ages as well, and is counted.
        if let Ok(mut intake) = self.intake.try_lock()
            && let Some(intake) = &mut *intake
        {
            intake.drain(self)?;
        }
        let (expired, unseen) = {
            let mut inner = self.hand.lock();
            let unseen = now.saturating_duration_since(inner.seen) > self.lease;
            (inner.take_expired(now), unseen && !inner.buffer.is_empty())
        };
        if !expired.is_empty() || unseen {
            // Whoever is silent is not sent the same again.
            self.pause(false).await?;
            let places: Vec<Place> = expired.iter().map(|held| held.place).collect();
            let words = self.hand.answer(&mut self.hand.lock(), &places, Word::Requeue);
            words.out().await?;
        }
        let (old, waiting) = self.hand.lock().older(now, HELD_MAX);
        let idle = now.saturating_duration_since(self.hand.lock().seen) > self.lease;
        let aged = !old.is_empty() || waiting;
        if aged {
            // Nor is who is busy; and what was sent and not looked at is about as old.
            self.pause(false).await?;
        }
        self.hand_back(&old, aged || idle).await
    }
}

/// Tends a member's hand as long as there is one.
async fn watch(shared: Weak<Shared>) {
    loop {
        let Some(every) = shared.upgrade().map(|shared| {
            (shared.lease / 4).clamp(Duration::from_millis(20), Duration::from_secs(1))
        }) else {
            return;
        };
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        if let Err(error) = shared.tend(std::time::Instant::now()).await {
            // The member finds out by itself.
            tracing::debug!(member = %shared.hand.member, "{error:#}");
            return;
        }
    }
}

#[cfg(test)]
impl Member {
    /// Tends the hand as if it were later.
    pub async fn tend_in(&self, later: Duration) -> Result<()> {
        self.0.tend(std::time::Instant::now() + later).await
    }
}
