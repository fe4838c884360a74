//! What a member has: events it has read ahead, and what it has handed out.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use super::held::Looked;

use crate::event::{Delivery, Ticket};

/// An event that was read and not handed out yet.
pub(super) struct Ahead {
    /// The event.
    pub delivery: Delivery,
    /// By when it certainly was this member's.
    pub since: Instant,
}

/// What is known of an event that was handed out.
#[derive(Clone, Copy)]
struct Held {
    /// When it last was certainly this member's.
    since: Instant,
    /// It was deleted from the stream: nobody else can have it any more.
    deleted: bool,
}

/// A member's hand.
pub(super) struct Hand {
    ahead: VecDeque<Ahead>,
    held: HashMap<Ticket, Held>,
    lease: Duration,
    /// Bytes of an event, about: the more careful of the last few reads.
    size: usize,
    /// The first read of all has yet to show how large events are.
    seen: bool,
}

/// Events of the first read, while nothing is known of their size.
const FIRST_READ: usize = 100;

impl Hand {
    /// An empty one.
    pub fn new(lease: Duration) -> Self {
        Self { ahead: VecDeque::new(), held: HashMap::new(), lease, size: 0, seen: false }
    }

    /// How many events to ask for, so that they are about `bytes`.
    pub fn count(&self, events: usize, bytes: usize) -> usize {
        let most = if self.seen { bytes / self.size.max(1) } else { FIRST_READ };
        events.min(most.max(1)).max(1)
    }

    /// Puts aside what was read.
    pub fn put(&mut self, read: Vec<Delivery>, since: Instant) {
        if read.is_empty() {
            return;
        }
        let size = read.iter().map(|delivery| delivery.event.size()).sum::<usize>() / read.len();
        // A large event is remembered for a while, since others may follow.
        self.size = size.max(self.size - self.size / 4);
        self.seen = true;
        self.ahead.extend(read.into_iter().map(|delivery| Ahead { delivery, since }));
    }

    /// Hands out what fits, and answers what was read too long ago to be sure of.
    pub fn take(&mut self, events: usize, bytes: usize) -> (Vec<Delivery>, Vec<Ticket>) {
        let (mut taken, mut late, mut size) = (Vec::new(), Vec::new(), 0);
        if !self.ahead.is_empty() {
            taken.reserve(events.min(self.ahead.len()));
        }
        while let Some(next) = self.ahead.front() {
            let more = next.delivery.event.size();
            if taken.len() == events.max(1) || (!taken.is_empty() && size + more > bytes) {
                break;
            }
            let Some(Ahead { delivery, since }) = self.ahead.pop_front() else { break };
            if since.elapsed() >= self.lease / 2 {
                late.push(delivery.ticket);
                continue;
            }
            size += more;
            self.held.insert(delivery.ticket, Held { since, deleted: false });
            taken.push(delivery);
        }
        (taken, late)
    }

    /// Gives up what was read ahead at least this long ago.
    pub fn give_up(&mut self, age: Duration) -> Vec<Ticket> {
        let old = |ahead: &Ahead| ahead.since.elapsed() >= age;
        let (old, young): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.ahead).into_iter().partition(old);
        self.ahead = young;
        old.into_iter().map(|ahead| ahead.delivery.ticket).collect()
    }

    /// Whether something is read ahead.
    pub fn has_ahead(&self) -> bool {
        !self.ahead.is_empty()
    }

    /// Of these, which are certainly still this member's, and which were handed out to it and may
    /// be another's by now.
    pub fn sort(&self, tickets: &[Ticket]) -> (Vec<Ticket>, Vec<Ticket>) {
        let held = tickets.iter().filter_map(|ticket| Some((*ticket, self.held.get(ticket)?)));
        let (sure, unsure): (Vec<_>, Vec<_>) =
            held.partition(|(_, held)| held.since.elapsed() < self.lease / 2);
        let tickets = |held: Vec<(Ticket, _)>| held.into_iter().map(|(ticket, _)| ticket).collect();
        (tickets(sure), tickets(unsure))
    }

    /// Whether this was handed out.
    pub fn has(&self, ticket: &Ticket) -> bool {
        self.held.contains_key(ticket)
    }

    /// Lets go of what is done with.
    pub fn let_go(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            self.held.remove(ticket);
        }
    }

    /// These were asked to be renewed at `since`. Answers which are lost.
    pub fn renewed(&mut self, tickets: &[Ticket], since: Instant, looked: Looked) -> Vec<Ticket> {
        for ticket in &looked.deleted {
            if let Some(held) = self.held.get_mut(ticket) {
                held.deleted = true;
            }
        }
        let is_deleted = |held: &Held| held.deleted;
        let lost: Vec<Ticket> = looked
            .lost
            .into_iter()
            .filter(|ticket| !self.held.get(ticket).is_some_and(is_deleted))
            .collect();
        for ticket in &lost {
            self.held.remove(ticket);
        }
        for ticket in tickets {
            if let Some(held) = self.held.get_mut(ticket) {
                held.since = since;
            }
        }
        lost
    }
}
