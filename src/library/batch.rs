//! What was pulled, and what becomes of it.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use chrono::{DateTime, Utc};
use serde::de::DeserializeOwned;

use super::Error;
use super::consumer::Turn;
use super::hand::{Held, Pick};
use super::shared::{Shared, tickets};
use crate::event::{Event, EventId, trace};

/// A message as it was delivered.
#[derive(Clone)]
pub struct Received {
    event: Event,
    pick: Pick,
    stream: Arc<str>,
    deliveries: u32,
    attempt: u32,
}

impl Received {
    fn new(pick: Pick, held: Held) -> Self {
        let Held { delivery, given, charged, .. } = held;
        Self {
            deliveries: delivery.deliveries.saturating_add(given.saturating_sub(1)),
            attempt: delivery.attempts + u32::from(!charged),
            stream: delivery.stream,
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

    /// What kind of thing happened, as its producer says ([`Message::kind`](super::Message::kind)).
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

/// What became of messages that were settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// These were no longer this consumer's, or it cannot tell: it was silent for longer than its
    /// lease. Others have them, or will, so what was done about them may be done once more.
    pub lost: Vec<EventId>,
    /// These became dead letters: `aqueduct dead` lists, replays and drops them.
    pub dead: Vec<EventId>,
}

/// Messages that were pulled. Each is to be settled: acknowledged, retried, given up or released.
///
/// Settling tries for as long as a lease where the backend is away, and errs with [`Error::Away`]
/// then. After an error, and where a future was dropped midway, the messages count as not settled,
/// and settling them again is right; what the first call had done is reported as lost.
///
/// What is not settled when the batch is dropped is delivered again, and counts as a delivery
/// without an outcome: the second time in one consumer, or the third in all, the message is
/// delivered alone, as an attempt.
pub struct Batch {
    shared: Arc<Shared>,
    messages: Vec<Received>,
    /// Not settled yet.
    open: Mutex<HashSet<Pick>>,
    /// Held while there are such.
    turn: Mutex<Option<Turn>>,
}

impl Batch {
    pub(super) fn new(shared: &Arc<Shared>, given: Vec<(Pick, Held)>, turn: Turn) -> Self {
        Self {
            open: Mutex::new(given.iter().map(|(pick, _)| *pick).collect()),
            turn: Mutex::new((!given.is_empty()).then_some(turn)),
            messages: given.into_iter().map(|(pick, held)| Received::new(pick, held)).collect(),
            shared: shared.clone(),
        }
    }

    pub(super) fn empty(shared: &Arc<Shared>) -> Self {
        Self {
            shared: shared.clone(),
            messages: Vec::new(),
            open: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    /// The messages, settled or not, in the order of their delivery.
    pub fn messages(&self) -> &[Received] {
        &self.messages
    }

    /// The messages, one by one.
    pub fn iter(&self) -> std::slice::Iter<'_, Received> {
        self.messages.iter()
    }

    /// How many messages it has.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    /// Whether none came.
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Acknowledges all that is not settled yet: it is not delivered to this group again.
    pub async fn ack(&self) -> Result<Settled, Error> {
        self.ack_picks(self.unsettled()).await
    }

    /// Acknowledges these messages of the batch.
    pub async fn ack_only<'m>(
        &self,
        messages: impl IntoIterator<Item = &'m Received>,
    ) -> Result<Settled, Error> {
        let picks = self.own(messages)?;
        self.ack_picks(picks).await
    }

    async fn ack_picks(&self, picks: Vec<Pick>) -> Result<Settled, Error> {
        let work = Work::begin(self, picks);
        let (shared, picks, lease) = (&self.shared, &work.picks, self.shared.group.lease);
        let mut tries = shared.tries("acknowledge messages");
        while work.is_due() {
            let reader = shared.reader_in(&mut tries).await?;
            let acked = async {
                shared.look(&reader, picks, lease / 2).await?;
                let ours = shared.hand().ours(picks);
                reader.ack(&tickets(&ours)).await?;
                // Too late to be sure that the backend still took them for ours.
                let mut hand = shared.hand();
                let late = hand.older(picks, lease);
                hand.lose(&late);
                Ok(())
            };
            if shared.answer(&reader, acked.await, &mut tries).await?.is_some() {
                break;
            }
        }
        Ok(work.done(Vec::new()))
    }

    /// The handling of a message failed, as `why` says: it is delivered again, alone, after a wait
    /// that grows from 50 ms to 5 s, by this consumer or, should that end, by another. If this was
    /// the last of the group's `attempts` it becomes a dead letter.
    pub async fn retry(
        &self,
        message: &Received,
        why: impl fmt::Display,
    ) -> Result<Settled, Error> {
        let why = why.to_string();
        let work = Work::begin(self, self.own([message])?);
        let shared = &self.shared;
        let mut tries = shared.tries("retry a message");
        while work.is_due() {
            let Some(held) = shared.hand().find(&message.pick) else { break };
            if held.charged && held.delivery.attempts >= shared.group.attempts {
                return self.bury(work, message, &why).await;
            }
            if held.charged {
                shared.hand().refused(message.pick);
                break;
            }
            // It failed among others: that is an attempt as well, as its handler says so.
            if let Err(error) = shared.charge(message.pick).await {
                tries.again(error).await?;
            }
        }
        Ok(work.kept())
    }

    /// Makes the message a dead letter of the group at once, with `why` as the reason.
    pub async fn give_up(
        &self,
        message: &Received,
        why: impl fmt::Display,
    ) -> Result<Settled, Error> {
        let work = Work::begin(self, self.own([message])?);
        self.bury(work, message, &why.to_string()).await
    }

    async fn bury(&self, work: Work<'_>, message: &Received, why: &str) -> Result<Settled, Error> {
        let (shared, picks, lease) = (&self.shared, &work.picks, self.shared.group.lease);
        let mut tries = shared.tries("make a message a dead letter");
        while work.is_due() {
            let reader = shared.reader_in(&mut tries).await?;
            let buried = async {
                shared.look(&reader, picks, lease / 2).await?;
                let held = shared.hand().find(&message.pick);
                match held {
                    Some(held) => reader.bury(&held.delivery, why).await.map(|()| true),
                    None => Ok(false),
                }
            };
            let buried = buried.await;
            if let Some(buried) = shared.answer(&reader, buried, &mut tries).await? {
                let dead = if buried { vec![message.id()] } else { Vec::new() };
                if buried {
                    let group = &shared.group.name;
                    tracing::warn!(%group, event = %message.id(), "a dead letter: {why}");
                }
                return Ok(work.done(dead));
            }
        }
        Ok(work.done(Vec::new()))
    }

    /// Hands all that is not settled back, as if it had not been delivered: any consumer of the
    /// group may have it at once, this one too, and no attempt is counted. For who stops, or cannot
    /// work through no fault of the messages.
    pub async fn release(&self) -> Result<Settled, Error> {
        let work = Work::begin(self, self.unsettled());
        let shared = &self.shared;
        let mut tries = shared.tries("hand back messages");
        while work.is_due() {
            let reader = shared.reader_in(&mut tries).await?;
            let ours = shared.hand().ours(&work.picks);
            let released = shared.hand_back(&reader, &ours).await;
            if shared.answer(&reader, released, &mut tries).await?.is_some() {
                break;
            }
        }
        Ok(work.done(Vec::new()))
    }

    fn open(&self) -> MutexGuard<'_, HashSet<Pick>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsettled(&self) -> Vec<Pick> {
        let open = self.open();
        self.messages.iter().map(|it| it.pick).filter(|pick| open.contains(pick)).collect()
    }

    /// Messages of this batch that are not settled yet.
    fn own<'m>(
        &self,
        messages: impl IntoIterator<Item = &'m Received>,
    ) -> Result<Vec<Pick>, Error> {
        let open = self.open();
        let of = |message: &Received| match open.contains(&message.pick) {
            true => Ok(message.pick),
            false => Err(Error::Invalid(format!(
                "message {} is not of this batch, or was settled before",
                message.event.id
            ))),
        };
        messages.into_iter().map(of).collect()
    }
}

impl<'b> IntoIterator for &'b Batch {
    type Item = &'b Received;
    type IntoIter = std::slice::Iter<'b, Received>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.messages).finish()
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        let left = self.unsettled();
        if !left.is_empty() {
            self.shared.hand().let_go(&left);
            self.shared.returned.notify_one();
        }
    }
}

/// Messages that are being settled. Where that ends early they are as they were.
struct Work<'b> {
    batch: &'b Batch,
    picks: Vec<Pick>,
}

impl<'b> Work<'b> {
    fn begin(batch: &'b Batch, picks: Vec<Pick>) -> Self {
        batch.shared.hand().set_settling(&picks, true);
        Self { batch, picks }
    }

    /// Whether any of them still is this consumer's.
    fn is_due(&self) -> bool {
        !self.batch.shared.hand().ours(&self.picks).is_empty()
    }

    /// They are settled, as far as they were this consumer's, and leave its hand.
    fn done(self, dead: Vec<EventId>) -> Settled {
        let settled = self.settled(dead);
        self.batch.shared.hand().settled(&self.picks);
        settled
    }

    /// They are settled, as far as they were this consumer's, and stay in its hand to be delivered
    /// again.
    fn kept(self) -> Settled {
        self.settled(Vec::new())
    }

    fn settled(&self, dead: Vec<EventId>) -> Settled {
        let Self { batch, picks } = self;
        let mut hand = batch.shared.hand();
        let ours: HashSet<Pick> = hand.ours(picks).into_iter().collect();
        let lost: Vec<Pick> = picks.iter().filter(|pick| !ours.contains(pick)).copied().collect();
        hand.settled(&lost);
        drop(hand);
        let lost: HashSet<Pick> = lost.into_iter().collect();
        let mut open = batch.open();
        picks.iter().for_each(|pick| {
            open.remove(pick);
        });
        if open.is_empty() {
            *batch.turn.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        drop(open);
        if !lost.is_empty() {
            let (group, events) = (&batch.shared.group.name, lost.len());
            tracing::warn!(%group, events, "messages were settled too late: others have them");
        }
        let is_lost = |message: &&Received| lost.contains(&message.pick);
        let lost = batch.messages.iter().filter(is_lost).map(Received::id).collect();
        Settled { lost, dead }
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        self.batch.shared.hand().set_settling(&self.picks, false);
    }
}
