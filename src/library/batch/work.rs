//! What becomes of messages while they are settled.

use std::collections::HashSet;
use std::sync::PoisonError;

use super::{Batch, Received, Settled};
use crate::event::EventId;
use crate::library::hand::Pick;
use crate::library::shared::Settling;

/// Messages that are being settled. Where that ends early they are as they were.
pub(super) struct Work<'b> {
    batch: &'b Batch,
    settling: Settling,
    /// Not settled, as they wait for another.
    waiting: Vec<EventId>,
}

impl<'b> Work<'b> {
    /// Begins to settle `picks`. Of what was asked for, others are `waiting`.
    pub fn begin(batch: &'b Batch, picks: Vec<Pick>, waiting: Vec<EventId>) -> Self {
        Self { settling: batch.shared.settling(&picks), batch, waiting }
    }

    pub fn picks(&self) -> &[Pick] {
        &self.settling.picks
    }

    /// Whether any of them still is this consumer's.
    pub fn is_due(&self) -> bool {
        !self.batch.shared.hand().ours(self.picks()).is_empty()
    }

    /// They are settled, as far as they were this consumer's, and leave its hand.
    pub fn done(&self, dead: Vec<EventId>) -> Settled {
        let settled = self.settled(dead);
        self.batch.shared.hand().settled(self.picks());
        if self.batch.shared.group.ordered {
            // What is behind them in their shards may be given out.
            self.batch.shared.returned.notify_one();
        }
        settled
    }

    /// They are settled, as far as they were this consumer's, and stay in its hand to be delivered
    /// again; so does what the batch had `behind` them.
    pub fn kept(mut self, behind: Vec<Pick>) -> Settled {
        let batch = self.batch;
        let behind: HashSet<Pick> = behind.into_iter().collect();
        let is_behind = |message: &&Received| behind.contains(&message.pick);
        self.waiting.extend(batch.messages.iter().filter(is_behind).map(Received::id));
        batch.open().retain(|pick| !behind.contains(pick));
        batch.waiting().extend(behind);
        let settled = self.settled(Vec::new());
        batch.shared.returned.notify_one();
        settled
    }

    fn settled(&self, dead: Vec<EventId>) -> Settled {
        let (batch, picks) = (self.batch, self.picks());
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
        Settled { lost, dead, waiting: self.waiting.clone() }
    }
}
