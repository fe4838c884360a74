//! What a member holds: fetched, leased, and not settled yet.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;

use super::queues::{Next, Queues};
use crate::event::{Delivery, Fence, Ticket};

/// One fetched batch.
#[derive(Clone, Debug)]
pub struct Held {
    /// Its events.
    pub deliveries: Arc<Vec<Delivery>>,
    /// How often this member or its target died while the batch was being delivered.
    pub deaths: u32,
}

/// An event that is to be delivered alone.
#[derive(Clone, Debug)]
pub struct Suspect {
    /// The event, with the attempts that were charged.
    pub delivery: Delivery,
    /// What the sink said when it refused it; `None` when a death put it under suspicion.
    pub refused: Option<String>,
    /// When its next delivery is due.
    pub due: Instant,
}

/// A member's hand. One thread's.
#[derive(Debug, Default)]
pub struct Hand {
    /// All there is in an ordered group.
    ordered: RefCell<Queues>,
    batches: RefCell<VecDeque<Held>>,
    suspects: RefCell<VecDeque<Suspect>>,
    delivering: Cell<bool>,
    acking: Cell<u32>,
    acks: Cell<u64>,
    arrived: Notify,
    room: Notify,
    suspected: Notify,
}

impl Hand {
    /// A new life begins. If the last one ended within a delivery, that batch saw a death.
    pub fn resume(&self) {
        self.acking.set(0);
        if self.delivering.replace(false) {
            self.front_died();
        }
        self.back();
        self.arrived.notify_one();
        self.room.notify_one();
        self.suspected.notify_one();
    }

    /// Whether another batch may be fetched.
    pub fn has_room(&self, batches_max: usize, suspects_max: usize) -> bool {
        self.batches.borrow().len() < batches_max && self.suspects.borrow().len() < suspects_max
    }

    /// Whether more may be fetched of shards that wait for nothing, beside one such batch.
    pub fn has_room_in_order(&self, events: usize) -> bool {
        self.ordered.borrow().ready() <= events
    }

    /// Adds what was fetched for an ordered group. Answers what this makes void.
    pub fn push_in_order(&self, deliveries: Vec<Delivery>) -> Vec<Ticket> {
        let void = self.ordered.borrow_mut().push(deliveries);
        self.arrived.notify_one();
        void
    }

    /// What is to be delivered next, of so many events and about so many bytes.
    pub fn next_in_order(&self, events_max: usize, bytes_max: usize) -> Next {
        self.ordered.borrow_mut().next(events_max, bytes_max)
    }

    /// Nothing of an ordered group is with the target any more.
    pub fn back(&self) {
        self.ordered.borrow_mut().back();
    }

    /// These of an ordered group are done with.
    pub fn done(&self, tickets: &[Ticket]) {
        self.ordered.borrow_mut().done(tickets);
        self.room.notify_one();
    }

    /// The shard has a newer owner. Answers what this makes void.
    pub fn fenced(&self, fence: &Arc<Fence>) -> Vec<Ticket> {
        let void = self.ordered.borrow_mut().fenced(fence);
        self.room.notify_one();
        void
    }

    /// Adds a fetched batch.
    pub fn push(&self, deliveries: Vec<Delivery>) {
        let held = Held { deliveries: Arc::new(deliveries), deaths: 0 };
        self.batches.borrow_mut().push_back(held);
        self.arrived.notify_one();
    }

    /// The batch that is next to be delivered.
    pub fn front(&self) -> Option<Held> {
        self.batches.borrow().front().cloned()
    }

    /// Replaces the front batch by what is left of it; drops it when nothing is.
    pub fn replace_front(&self, rest: Vec<Delivery>) {
        let mut batches = self.batches.borrow_mut();
        batches.pop_front();
        if !rest.is_empty() {
            batches.push_front(Held { deliveries: Arc::new(rest), deaths: 0 });
        }
        self.room.notify_one();
    }

    /// The target died with the front batch, or that of an ordered group, in hand.
    pub fn front_died(&self) {
        if let Some(front) = self.batches.borrow_mut().front_mut() {
            front.deaths += 1;
        }
        self.ordered.borrow_mut().died();
    }

    /// Marks that the front batch is with the target, so that a death meanwhile is known.
    pub fn set_delivering(&self, delivering: bool) {
        self.delivering.set(delivering);
    }

    /// An acknowledgement begins.
    pub fn begin_ack(&self) {
        self.acking.set(self.acking.get() + 1);
    }

    /// And ends.
    pub fn end_ack(&self) {
        self.acking.set(self.acking.get().saturating_sub(1));
        self.acks.set(self.acks.get() + 1);
    }

    /// Whether one is under way.
    pub fn acking(&self) -> bool {
        self.acking.get() > 0
    }

    /// How many have ended.
    pub fn acks(&self) -> u64 {
        self.acks.get()
    }

    /// Puts an event under suspicion.
    pub fn suspect(&self, suspect: Suspect) {
        if suspect.delivery.fence.is_some() {
            self.ordered.borrow_mut().suspect(suspect);
            self.room.notify_one();
            return;
        }
        self.suspects.borrow_mut().push_back(suspect);
        self.suspected.notify_one();
    }

    /// The suspect that is due first, still in the hand.
    pub fn next_suspect(&self) -> Option<Suspect> {
        self.suspects.borrow().iter().min_by_key(|suspect| suspect.due).cloned()
    }

    /// Changes what is known of a suspect.
    pub fn update_suspect(&self, changed: Suspect) {
        if changed.delivery.fence.is_some() {
            self.ordered.borrow_mut().suspect(changed);
            return;
        }
        let ticket = changed.delivery.ticket;
        if let Some(suspect) =
            self.suspects.borrow_mut().iter_mut().find(|suspect| suspect.delivery.ticket == ticket)
        {
            *suspect = changed;
        }
    }

    /// A suspect is settled.
    pub fn clear_suspect(&self, ticket: Ticket) {
        self.ordered.borrow_mut().done(&[ticket]);
        self.suspects.borrow_mut().retain(|suspect| suspect.delivery.ticket != ticket);
        self.room.notify_one();
    }

    /// Everything held.
    pub fn tickets(&self) -> Vec<Ticket> {
        let batches = self.batches.borrow();
        let suspects = self.suspects.borrow();
        let held = batches.iter().flat_map(|held| held.deliveries.iter());
        held.chain(suspects.iter().map(|suspect| &suspect.delivery))
            .map(|delivery| delivery.ticket)
            .chain(self.ordered.borrow().tickets())
            .collect()
    }

    /// These are another member's now, and in an ordered group the rest of their shards. Answers
    /// what this makes void.
    pub fn lose(&self, lost: &[Ticket]) -> Vec<Ticket> {
        let mut void = lost.to_vec();
        let lost: HashSet<Ticket> = lost.iter().copied().collect();
        for held in self.batches.borrow_mut().iter_mut() {
            let kept = held.deliveries.iter().filter(|held| !lost.contains(&held.ticket));
            held.deliveries = Arc::new(kept.cloned().collect());
        }
        self.suspects.borrow_mut().retain(|suspect| !lost.contains(&suspect.delivery.ticket));
        let also = self.ordered.borrow_mut().lose(&lost);
        void.extend(also.into_iter().filter(|ticket| !lost.contains(ticket)));
        self.room.notify_one();
        void
    }

    /// Lets go of everything.
    pub fn clear(&self) {
        self.ordered.borrow_mut().clear();
        self.batches.borrow_mut().clear();
        self.suspects.borrow_mut().clear();
    }

    /// Returns when a batch came since this was last asked.
    pub async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Returns when something left the hand since this was last asked.
    pub async fn room(&self) {
        self.room.notified().await;
    }

    /// Returns when a suspect was added since this was last asked.
    pub async fn suspected(&self) {
        self.suspected.notified().await;
    }
}
