//! What a consumer holds: fetched, leased, and not settled yet.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::event::{Delivery, Ticket};
use crate::stream::suspicion;

/// A message in a hand. A backend may know an event that was lost and came again by the same
/// ticket; the number tells the two apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Pick {
    pub ticket: Ticket,
    number: u64,
}

/// What is known of a message.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub delivery: Delivery,
    number: u64,
    /// When it last certainly was this consumer's.
    sure: Instant,
    /// How often it was given to the program.
    pub given: u32,
    /// How often the program let go of it and did not say what became of it.
    deaths: u32,
    /// Its present delivery was charged as an attempt.
    pub charged: bool,
    /// Somebody is about to settle it.
    settling: bool,
    /// The program said what became of it, or never had it.
    known: bool,
    /// Another consumer has it, or may have it.
    lost: bool,
}

/// A message that is to be delivered alone.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspect {
    pub pick: Pick,
    /// The program said that it could not handle it; otherwise it may take the process down.
    pub refused: bool,
    /// When its next delivery is due.
    pub due: Instant,
}

/// A consumer's hand.
#[derive(Debug, Default)]
pub(super) struct Hand {
    held: HashMap<Ticket, Held>,
    /// To be delivered, together.
    fresh: VecDeque<Pick>,
    suspects: Vec<Suspect>,
    numbers: u64,
}

impl Hand {
    /// Takes in what was fetched; it was this consumer's at `sure` at the earliest.
    pub fn take_in(&mut self, fetched: Vec<Delivery>, sure: Instant) {
        for delivery in fetched {
            self.numbers += 1;
            let pick = Pick { ticket: delivery.ticket, number: self.numbers };
            match suspicion::is_suspect(&delivery, 0) {
                true => self.suspects.push(Suspect { pick, refused: false, due: sure }),
                false => self.fresh.push_back(pick),
            }
            let held = Held {
                delivery,
                number: pick.number,
                sure,
                given: 0,
                deaths: 0,
                charged: false,
                settling: false,
                known: true,
                lost: false,
            };
            self.held.insert(pick.ticket, held);
        }
    }

    fn get(&self, pick: &Pick) -> Option<&Held> {
        self.held.get(&pick.ticket).filter(|held| held.number == pick.number && !held.lost)
    }

    fn get_mut(&mut self, pick: &Pick) -> Option<&mut Held> {
        let held = self.held.get_mut(&pick.ticket);
        held.filter(|held| held.number == pick.number && !held.lost)
    }

    /// The message, while it is this consumer's.
    pub fn find(&self, pick: &Pick) -> Option<Held> {
        self.get(pick).cloned()
    }

    /// Whether something waits to be delivered, but for suspects.
    pub fn has_fresh(&mut self) -> bool {
        while self.fresh.front().is_some_and(|pick| self.get(pick).is_none()) {
            self.forget_front();
        }
        !self.fresh.is_empty()
    }

    fn forget_front(&mut self) {
        if let Some(pick) = self.fresh.pop_front() {
            self.forget(&pick);
        }
    }

    /// Up to `most` messages for the program.
    pub fn give(&mut self, most: usize) -> Vec<(Pick, Held)> {
        let mut given = Vec::with_capacity(most.min(self.fresh.len()));
        while given.len() < most && self.has_fresh() {
            let Some(pick) = self.fresh.pop_front() else { break };
            given.extend(self.given(pick));
        }
        given
    }

    /// One message for the program.
    pub fn given(&mut self, pick: Pick) -> Option<(Pick, Held)> {
        self.suspects.retain(|suspect| suspect.pick != pick);
        let held = self.get_mut(&pick)?;
        (held.given, held.known) = (held.given + 1, false);
        Some((pick, held.clone()))
    }

    /// The suspect that is due first.
    pub fn next_suspect(&mut self) -> Option<Suspect> {
        let gone = |hand: &Self, suspect: &Suspect| hand.get(&suspect.pick).is_none();
        let gone: Vec<Pick> =
            self.suspects.iter().filter(|it| gone(self, it)).map(|it| it.pick).collect();
        for pick in gone {
            self.suspects.retain(|suspect| suspect.pick != pick);
            self.forget(&pick);
        }
        self.suspects.iter().min_by_key(|suspect| suspect.due).copied()
    }

    /// An attempt was charged for the message's next delivery, or `None`: it is another's.
    pub fn charged(&mut self, pick: &Pick, attempts: Option<u32>) {
        match (self.get_mut(pick), attempts) {
            (Some(held), Some(attempts)) => {
                (held.delivery.attempts, held.charged) = (attempts, true);
            }
            (Some(held), None) => held.lost = true,
            (None, _) => {}
        }
    }

    /// Its attempt was given back.
    pub fn refunded(&mut self, pick: &Pick) {
        if let Some(held) = self.get_mut(pick) {
            held.charged = false;
        }
    }

    /// The program could not handle it: it is delivered again, alone.
    pub fn refused(&mut self, pick: Pick) {
        let Some(held) = self.get_mut(&pick) else { return };
        (held.charged, held.known, held.settling) = (false, true, false);
        let due = Instant::now() + suspicion::wait_after(held.delivery.attempts);
        self.suspects.push(Suspect { pick, refused: true, due });
    }

    /// The program let go of these, and did not say what became of them.
    pub fn let_go(&mut self, picks: &[Pick]) {
        for pick in picks {
            let Some(held) = self.get_mut(pick) else {
                self.forget(pick);
                continue;
            };
            held.deaths += 1;
            let (charged, attempts) = (std::mem::take(&mut held.charged), held.delivery.attempts);
            if !charged && !suspicion::is_suspect(&held.delivery, held.deaths) {
                self.fresh.push_back(*pick);
                continue;
            }
            let wait = if charged { suspicion::wait_after(attempts) } else { Duration::ZERO };
            let due = Instant::now() + wait;
            self.suspects.push(Suspect { pick: *pick, refused: false, due });
        }
    }

    /// Somebody is about to settle these, or no longer is.
    pub fn set_settling(&mut self, picks: &[Pick], settling: bool) {
        for pick in picks {
            if let Some(held) = self.get_mut(pick) {
                held.settling = settling;
            }
        }
    }

    /// Which of these are this consumer's.
    pub fn ours(&self, picks: &[Pick]) -> Vec<Pick> {
        picks.iter().filter(|pick| self.get(pick).is_some()).copied().collect()
    }

    /// Which of these are this consumer's, and have not been certain to be for `age`.
    pub fn older(&self, picks: &[Pick], age: Duration) -> Vec<Pick> {
        let is_old = |pick: &&Pick| self.get(pick).is_some_and(|held| held.sure.elapsed() >= age);
        picks.iter().filter(is_old).copied().collect()
    }

    /// All that nobody is about to settle.
    pub fn all(&self) -> Vec<Pick> {
        let held = self.held.iter().filter(|(_, held)| !held.lost && !held.settling);
        held.map(|(ticket, held)| Pick { ticket: *ticket, number: held.number }).collect()
    }

    /// All of which it is known what became of them: what may go to another consumer as if it had
    /// not been delivered.
    pub fn known(&self) -> Vec<Ticket> {
        let held = self.held.iter().filter(|(_, held)| !held.lost && held.known);
        held.map(|(ticket, _)| *ticket).collect()
    }

    /// These were renewed at `since`, but for the `lost`. Answers how many that made lost.
    pub fn renewed(&mut self, picks: &[Pick], since: Instant, lost: &[Ticket]) -> usize {
        for pick in picks {
            if let Some(held) = self.get_mut(pick) {
                held.sure = held.sure.max(since);
            }
        }
        let lost: std::collections::HashSet<&Ticket> = lost.iter().collect();
        let lost: Vec<Pick> =
            picks.iter().filter(|pick| lost.contains(&pick.ticket)).copied().collect();
        self.lose(&lost)
    }

    /// These are another's now. Answers how many were thought to be ours.
    pub fn lose(&mut self, picks: &[Pick]) -> usize {
        let mut lost = 0;
        for pick in picks {
            if let Some(held) = self.get_mut(pick) {
                held.lost = true;
                lost += 1;
            }
        }
        lost
    }

    /// All of it is another's.
    pub fn lose_all(&mut self) {
        self.held.values_mut().for_each(|held| held.lost = true);
    }

    /// These are settled.
    pub fn settled(&mut self, picks: &[Pick]) {
        picks.iter().for_each(|pick| self.forget(pick));
    }

    fn forget(&mut self, pick: &Pick) {
        if self.held.get(&pick.ticket).is_some_and(|held| held.number == pick.number) {
            self.held.remove(&pick.ticket);
        }
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        let numbers = self.numbers;
        *self = Self { numbers, ..Self::default() };
    }

    /// Whether it holds anything.
    pub fn is_empty(&self) -> bool {
        self.held.values().all(|held| held.lost)
    }
}
