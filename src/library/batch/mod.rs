//! What was pulled, and what becomes of it.

mod received;
mod work;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

pub use self::received::Received;
use self::work::Work;
use super::Error;
use super::consumer::Turn;
use super::hand::{Held, Pick};
use super::shared::{Shared, tickets};
use crate::event::EventId;

/// What became of messages that were settled.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Settled {
    /// These were no longer this consumer's, or it cannot tell: it was silent for longer than its
    /// lease. Others have them, or will, so what was done about them may be done once more.
    pub lost: Vec<EventId>,
    /// These became dead letters: `aqueduct dead` lists, replays and drops them.
    pub dead: Vec<EventId>,
    /// In an ordered group: these stand behind a message of their shard that is delivered again, and
    /// are delivered again behind it. They are not settled, and not of this batch any more; what was
    /// done about them already may be done once more. So it is with what was handed back before.
    pub waiting: Vec<EventId>,
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
    /// In an ordered group: to be delivered again, behind one of this batch or as all was handed
    /// back.
    waiting: Mutex<HashSet<Pick>>,
    /// Held while there are such.
    turn: Mutex<Option<Turn>>,
}

impl Batch {
    pub(super) fn new(shared: &Arc<Shared>, given: Vec<(Pick, Held)>, turn: Turn) -> Self {
        Self {
            open: Mutex::new(given.iter().map(|(pick, _)| *pick).collect()),
            turn: Mutex::new((!given.is_empty()).then_some(turn)),
            waiting: Mutex::default(),
            messages: given.into_iter().map(|(pick, held)| Received::new(pick, held)).collect(),
            shared: shared.clone(),
        }
    }

    pub(super) fn empty(shared: &Arc<Shared>) -> Self {
        Self {
            shared: shared.clone(),
            messages: Vec::new(),
            open: Mutex::default(),
            waiting: Mutex::default(),
            turn: Mutex::default(),
        }
    }

    /// The messages, settled or not, in the order of their delivery. Who handles those of an
    /// ordered group goes by [`iter`](Self::iter).
    pub fn messages(&self) -> &[Received] {
        &self.messages
    }

    /// The messages, one by one. In an ordered group it passes over those that are not to be handled
    /// now, as is known when it comes upon them: those behind one of their shard that was
    /// [retried](Self::retry), those that were [handed back](Self::release), and those of a shard
    /// that another consumer has taken over.
    pub fn iter(&self) -> Iter<'_> {
        Iter { batch: self, messages: self.messages.iter() }
    }

    /// Whether the message is to be handled, as far as is known.
    fn is_due(&self, message: &Received) -> bool {
        if !self.shared.group.ordered {
            return true;
        }
        let pick = &message.pick;
        // One after the other: others take both, in the other order.
        let waits = self.waiting().contains(pick);
        let is_open = self.open().contains(pick);
        !waits && (!is_open || self.shared.hand().find(pick).is_some())
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
        self.ack_picks(self.unsettled(), Vec::new()).await
    }

    /// Acknowledges these messages of the batch. In an ordered group it errs with
    /// [`Error::Invalid`], and nothing is acknowledged, where one before them in their shard would
    /// be left unsettled.
    pub async fn ack_only<'m>(
        &self,
        messages: impl IntoIterator<Item = &'m Received>,
    ) -> Result<Settled, Error> {
        let (picks, waiting) = self.own(messages)?;
        self.leaves_no_gap(&picks)?;
        self.ack_picks(picks, waiting).await
    }

    async fn ack_picks(&self, picks: Vec<Pick>, waiting: Vec<EventId>) -> Result<Settled, Error> {
        let work = Work::begin(self, picks, waiting);
        let (shared, picks, lease) = (&self.shared, work.picks(), self.shared.group.lease);
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
    ///
    /// In an ordered group what is behind it in its shard waits for it, what this batch has of that
    /// included ([`Settled::waiting`]).
    pub async fn retry(
        &self,
        message: &Received,
        why: impl fmt::Display,
    ) -> Result<Settled, Error> {
        let why = why.to_string();
        let (picks, waiting) = self.own([message])?;
        let work = Work::begin(self, picks, waiting);
        let shared = &self.shared;
        let mut tries = shared.tries("retry a message");
        while work.is_due() {
            let Some(held) = shared.hand().find(&message.pick) else { break };
            if held.charged && held.delivery.attempts >= shared.group.attempts {
                return self.bury(work, message, &why).await;
            }
            if held.charged {
                let behind = shared.hand().refused(message.pick);
                return Ok(work.kept(behind));
            }
            // It failed among others: that is an attempt as well, as its handler says so.
            if let Err(error) = shared.charge(message.pick).await {
                tries.again(error).await?;
            }
        }
        Ok(work.kept(Vec::new()))
    }

    /// Makes the message a dead letter of the group at once, with `why` as the reason.
    pub async fn give_up(
        &self,
        message: &Received,
        why: impl fmt::Display,
    ) -> Result<Settled, Error> {
        let (picks, waiting) = self.own([message])?;
        let work = Work::begin(self, picks, waiting);
        self.bury(work, message, &why.to_string()).await
    }

    async fn bury(&self, work: Work<'_>, message: &Received, why: &str) -> Result<Settled, Error> {
        let (shared, picks, lease) = (&self.shared, work.picks(), self.shared.group.lease);
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
    /// work through no fault of the messages. In an ordered group their shards are given up.
    pub async fn release(&self) -> Result<Settled, Error> {
        let work = Work::begin(self, self.unsettled(), Vec::new());
        let shared = &self.shared;
        let mut tries = shared.tries("hand back messages");
        // A fetch that is under way might bring more of a shard, and give out what is behind these.
        let _turn = match shared.group.ordered {
            true => Some(shared.turn(&tries).await?),
            false => None,
        };
        while work.is_due() {
            let reader = shared.reader_in(&mut tries).await?;
            let ours = shared.hand().ours(work.picks());
            let released = shared.give_up(&reader, &ours).await;
            if shared.answer(&reader, released, &mut tries).await?.is_some() {
                if shared.group.ordered {
                    self.waiting().extend(work.picks());
                }
                break;
            }
        }
        Ok(work.done(Vec::new()))
    }

    fn open(&self) -> MutexGuard<'_, HashSet<Pick>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn waiting(&self) -> MutexGuard<'_, HashSet<Pick>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unsettled(&self) -> Vec<Pick> {
        let open = self.open();
        self.messages.iter().map(|it| it.pick).filter(|pick| open.contains(pick)).collect()
    }

    /// Messages of this batch that are not settled yet, and which of these wait for another.
    fn own<'m>(
        &self,
        messages: impl IntoIterator<Item = &'m Received>,
    ) -> Result<(Vec<Pick>, Vec<EventId>), Error> {
        // Which may be an iterator of this batch: it is asked for before anything is locked.
        let messages: Vec<&Received> = messages.into_iter().collect();
        let (open, waits) = (self.open(), self.waiting());
        let (mut own, mut waiting) = (Vec::new(), Vec::new());
        for message in messages {
            if open.contains(&message.pick) {
                own.push(message.pick);
            } else if waits.contains(&message.pick) {
                waiting.push(message.event.id);
            } else {
                return Err(Error::Invalid(format!(
                    "message {} is not of this batch, or was settled before",
                    message.event.id
                )));
            }
        }
        Ok((own, waiting))
    }

    /// Errs where these, of an ordered group, leave something before them unsettled.
    fn leaves_no_gap(&self, picks: &[Pick]) -> Result<(), Error> {
        if !self.shared.group.ordered {
            return Ok(());
        }
        let (open, picks) = (self.open(), picks.iter().collect::<HashSet<_>>());
        let mut left: HashMap<u32, EventId> = HashMap::new();
        for message in self.messages.iter().filter(|it| open.contains(&it.pick)) {
            if !picks.contains(&message.pick) {
                left.entry(message.shard()).or_insert(message.event.id);
            } else if let Some(before) = left.get(&message.shard()) {
                return Err(Error::Invalid(format!(
                    "message {} is to be acknowledged before message {before}, which stands before \
                     it in shard {} of an ordered group (that one first, or both at once)",
                    message.event.id,
                    message.shard()
                )));
            }
        }
        Ok(())
    }
}

/// Goes over the messages of a [`Batch`]. Made by [`Batch::iter`].
#[derive(Clone, Debug)]
pub struct Iter<'b> {
    batch: &'b Batch,
    messages: std::slice::Iter<'b, Received>,
}

impl<'b> Iterator for Iter<'b> {
    type Item = &'b Received;

    fn next(&mut self) -> Option<Self::Item> {
        self.messages.find(|message| self.batch.is_due(message))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (0, Some(self.messages.len()))
    }
}

impl<'b> IntoIterator for &'b Batch {
    type Item = &'b Received;
    type IntoIter = Iter<'b>;

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
