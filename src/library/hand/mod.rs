//! What a consumer holds: fetched, leased, and not settled yet.

mod lanes;

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use self::lanes::{Gone, Lanes};
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
    /// Somebody was: it may be settled, though nobody came to know.
    tried: bool,
    /// The program said what became of it, or never had it.
    known: bool,
    /// Another consumer has it, or may have it.
    lost: bool,
    /// In an ordered group: the program said that it could not handle it.
    refused: bool,
    /// In an ordered group: when its next delivery alone is due.
    due: Instant,
}

impl Held {
    fn is_suspect(&self) -> bool {
        suspicion::is_suspect(&self.delivery, self.deaths)
    }
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
    /// In an ordered group it is these that tell what is to be delivered, and when.
    lanes: Option<Lanes>,
}

impl Hand {
    /// An empty one.
    pub fn new(ordered: bool) -> Self {
        Self { lanes: ordered.then(Lanes::default), ..Self::default() }
    }

    /// Takes in what was fetched; it was this consumer's at `sure` at the earliest.
    pub fn take_in(&mut self, fetched: Vec<Delivery>, sure: Instant) {
        for delivery in fetched {
            let admitted = self.lanes.as_mut().map(|lanes| lanes.admit(&delivery));
            match admitted {
                Some(None) => continue,
                Some(Some(old)) => self.not_ours(old),
                None => {}
            }
            self.numbers += 1;
            let pick = Pick { ticket: delivery.ticket, number: self.numbers };
            match &mut self.lanes {
                Some(lanes) => lanes.push(pick),
                None if suspicion::is_suspect(&delivery, 0) => {
                    self.suspects.push(Suspect { pick, refused: false, due: sure });
                }
                None => self.fresh.push_back(pick),
            }
            let held = Held {
                delivery,
                number: pick.number,
                sure,
                given: 0,
                deaths: 0,
                charged: false,
                settling: false,
                tried: false,
                known: true,
                lost: false,
                refused: false,
                due: sure,
            };
            self.held.insert(pick.ticket, held);
        }
    }

    /// Does not take in what was fetched: it is to be handed back.
    pub fn turn_away(&mut self, fetched: Vec<Delivery>) {
        if let Some(lanes) = &mut self.lanes {
            lanes.hand_back(fetched.iter().map(|delivery| delivery.ticket));
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

    /// Whether something may be delivered now, but for suspects.
    pub fn has_fresh(&mut self) -> bool {
        if let Some(lanes) = &self.lanes {
            return lanes.fronts().any(|pick| self.get(pick).is_some_and(|it| !it.is_suspect()));
        }
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

    /// Up to `most` messages, of about `bytes`, for the program.
    pub fn give(&mut self, most: usize, bytes: usize) -> Vec<(Pick, Held)> {
        if self.lanes.is_some() {
            return self.give_in_order(most, bytes);
        }
        let mut given = Vec::with_capacity(most.min(self.fresh.len()));
        while given.len() < most && self.has_fresh() {
            let Some(pick) = self.fresh.pop_front() else { break };
            given.extend(self.given(pick));
        }
        given
    }

    /// The same of an ordered group: of each shard of which the program has nothing, the next.
    fn give_in_order(&mut self, most: usize, bytes: usize) -> Vec<(Pick, Held)> {
        let (mut given, mut size) = (Vec::new(), 0);
        let shards = self.lanes.as_ref().map(Lanes::shards).unwrap_or_default();
        for shard in shards {
            let (before, mut died) = (given.len(), None);
            while let Some(lanes) = &mut self.lanes
                && let Some(pick) = lanes.next(shard, given.len() - before)
                && let Some(held) = self.held.get(&pick.ticket)
            {
                // What was let go of once goes again without anything else of its shard.
                let same = *died.get_or_insert(held.deaths > 0) == (held.deaths > 0);
                if held.is_suspect() || !same {
                    break;
                }
                size += held.delivery.event.size();
                if given.len() == most || (size > bytes && !given.is_empty()) {
                    return given;
                }
                if given.is_empty() {
                    lanes.had_turn(shard);
                }
                given.extend(self.given(pick));
            }
        }
        given
    }

    /// One message for the program.
    pub fn given(&mut self, pick: Pick) -> Option<(Pick, Held)> {
        self.suspects.retain(|suspect| suspect.pick != pick);
        if let Some(lanes) = &mut self.lanes {
            lanes.given(pick);
        }
        let held = self.get_mut(&pick)?;
        (held.given, held.known) = (held.given + 1, false);
        Some((pick, held.clone()))
    }

    /// The suspect that is due first.
    pub fn next_suspect(&mut self) -> Option<Suspect> {
        if let Some(lanes) = &self.lanes {
            let suspects = lanes.fronts().filter_map(|pick| {
                let held = self.get(pick).filter(|held| held.is_suspect())?;
                Some(Suspect { pick: *pick, refused: held.refused, due: held.due })
            });
            return suspects.min_by_key(|suspect| suspect.due);
        }
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
            (Some(_), None) => {
                self.lose(&[*pick]);
            }
            (None, _) => {}
        }
    }

    /// Its attempt was given back.
    pub fn refunded(&mut self, pick: &Pick) {
        if let Some(held) = self.get_mut(pick) {
            held.charged = false;
        }
    }

    /// The program could not handle it: it is delivered again, alone. Answers what it had of the
    /// same shard behind that, in an ordered group: it has it no longer, as if it had never had it.
    pub fn refused(&mut self, pick: Pick) -> Vec<Pick> {
        if self.is_closed(&pick) {
            self.lose(&[pick]);
        }
        let Some(held) = self.get_mut(&pick) else { return Vec::new() };
        (held.charged, held.known, held.settling) = (false, true, false);
        let due = Instant::now() + suspicion::wait_after(held.delivery.attempts);
        (held.refused, held.due) = (true, due);
        let Some(lanes) = &mut self.lanes else {
            self.suspects.push(Suspect { pick, refused: true, due });
            return Vec::new();
        };
        let behind = lanes.refused(&pick);
        for pick in &behind {
            if let Some(held) = self.get_mut(pick) {
                (held.given, held.known) = (held.given.saturating_sub(1), true);
            }
        }
        behind
    }

    /// The program let go of these, and did not say what became of them.
    pub fn let_go(&mut self, picks: &[Pick]) {
        // To be given out again is only what was not about to be handed back.
        let closed: Vec<Pick> = picks.iter().filter(|it| self.is_closed(it)).copied().collect();
        self.lose(&closed);
        if let Some(lanes) = &mut self.lanes {
            lanes.let_go(picks);
        }
        for pick in picks {
            let Some(held) = self.get_mut(pick) else {
                self.forget(pick);
                continue;
            };
            held.deaths += 1;
            let (charged, attempts) = (std::mem::take(&mut held.charged), held.delivery.attempts);
            let wait = if charged { suspicion::wait_after(attempts) } else { Duration::ZERO };
            let due = Instant::now() + wait;
            (held.refused, held.due) = (false, due);
            let is_suspect = charged || held.is_suspect();
            if self.lanes.is_some() {
                continue;
            }
            match is_suspect {
                true => self.suspects.push(Suspect { pick: *pick, refused: false, due }),
                false => self.fresh.push_back(*pick),
            }
        }
    }

    /// Somebody is about to settle these, or no longer is.
    pub fn set_settling(&mut self, picks: &[Pick], settling: bool) {
        for pick in picks {
            if let Some(held) = self.get_mut(pick) {
                held.settling = settling;
                held.tried = true;
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

    /// These, and in an ordered group all else of their shards that nobody is about to settle.
    pub fn beside(&self, picks: &[Pick]) -> Vec<Pick> {
        let Some(lanes) = &self.lanes else { return picks.to_vec() };
        let these: HashSet<&Pick> = picks.iter().collect();
        let shards: HashSet<u32> = picks.iter().map(|pick| pick.ticket.shard).collect();
        let is_free = |pick: &&Pick| {
            !these.contains(pick) && self.get(pick).is_some_and(|held| !held.settling)
        };
        let all = shards.into_iter().flat_map(|shard| lanes.of(shard));
        picks.iter().chain(all.filter(is_free)).copied().collect()
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
        let lost: HashSet<&Ticket> = lost.iter().collect();
        let lost: Vec<Pick> =
            picks.iter().filter(|pick| lost.contains(&pick.ticket)).copied().collect();
        self.lose_settled(picks, &lost) + self.lose(&lost)
    }

    /// In an ordered group: of the `lost` these were settled by a call that was given up, as they
    /// stood first with the program, and others of their shards, of `picks`, still are this
    /// consumer's. They alone are lost.
    fn lose_settled(&mut self, picks: &[Pick], lost: &[Pick]) -> usize {
        let is_lost: HashSet<&Pick> = lost.iter().collect();
        let kept = picks.iter().filter(|pick| !is_lost.contains(pick) && self.get(pick).is_some());
        let kept: HashSet<u32> = kept.map(|pick| pick.ticket.shard).collect();
        let mut settled = 0;
        for shard in kept {
            while let Some(first) = self.lanes.as_ref().and_then(|lanes| lanes.first_out(shard))
                && is_lost.contains(&first)
                && let Some(held) = self.get_mut(&first).filter(|held| held.tried)
            {
                (held.lost, settled) = (true, settled + 1);
                if let Some(lanes) = &mut self.lanes {
                    lanes.remove(&first);
                }
            }
        }
        settled
    }

    /// These are another's now, and with them in an ordered group all of their shards. Answers how
    /// many were thought to be ours.
    pub fn lose(&mut self, picks: &[Pick]) -> usize {
        let mut lost = 0;
        for pick in picks {
            let Some(held) = self.get_mut(pick) else { continue };
            lost += 1;
            held.lost = true;
            if let Some(lanes) = &mut self.lanes {
                let gone = lanes.end(pick);
                lost += gone.tickets().count().saturating_sub(1);
                self.not_ours(gone);
            }
        }
        lost
    }

    /// These are another's, and stand in no lane any more.
    fn not_ours(&mut self, Gone { out, waiting }: Gone) {
        for pick in out {
            if let Some(held) = self.get_mut(&pick) {
                held.lost = true;
            }
        }
        waiting.iter().for_each(|pick| self.forget(pick));
    }

    /// All of it is another's.
    pub fn lose_all(&mut self) {
        let gone = self.lanes.as_mut().map(Lanes::end_all).unwrap_or_default();
        gone.into_iter().for_each(|gone| self.not_ours(gone));
        self.held.values_mut().for_each(|held| held.lost = true);
    }

    /// These are settled.
    pub fn settled(&mut self, picks: &[Pick]) {
        picks.iter().for_each(|pick| self.forget(pick));
    }

    /// The shards that these are of are about to be handed back, in an ordered group: nothing more of
    /// them is given out. Where that is cut off, what the program has of them is
    /// [still to be handed back](Self::cut_off).
    pub fn close(&mut self, picks: &[Pick]) {
        let closed = self.lanes.as_mut().map(|lanes| lanes.close(picks)).unwrap_or_default();
        closed.iter().for_each(|pick| self.forget(pick));
    }

    /// What the program has of shards that it was about to hand back.
    pub fn cut_off(&self) -> Vec<Pick> {
        let lanes = self.lanes.as_ref();
        lanes.map(|lanes| lanes.closed().copied().collect()).unwrap_or_default()
    }

    fn is_closed(&self, pick: &Pick) -> bool {
        self.lanes.as_ref().is_some_and(|lanes| lanes.is_closed(pick))
    }

    /// Whether there is something to be handed back.
    pub fn has_void(&self) -> bool {
        let has_void = |lanes: &Lanes| !lanes.void().is_empty() || lanes.closed().next().is_some();
        self.lanes.as_ref().is_some_and(has_void)
    }

    /// What is to be handed back of shards that this consumer has lost or never was to have.
    pub fn void(&self) -> Vec<Ticket> {
        self.lanes.as_ref().map(|lanes| lanes.void().to_vec()).unwrap_or_default()
    }

    /// These were handed back.
    pub fn handed_back(&mut self, tickets: &[Ticket]) {
        if let Some(lanes) = &mut self.lanes {
            lanes.handed_back(tickets);
        }
    }

    /// What is not given out yet and has not been certain to be this consumer's for `age`.
    pub fn stale(&self, age: Duration) -> Vec<Pick> {
        let Some(lanes) = &self.lanes else { return Vec::new() };
        let is_old = |pick: &Pick| self.get(pick).is_some_and(|held| held.sure.elapsed() >= age);
        let stale = lanes.waiting().filter(|waiting| waiting.front().is_some_and(is_old));
        stale.flatten().copied().collect()
    }

    /// The bytes, about, of what waits in an ordered group, for its turn or for what is before it.
    pub fn waiting_bytes(&self) -> usize {
        let waiting = self.lanes.iter().flat_map(Lanes::waiting).flatten();
        waiting.filter_map(|pick| self.get(pick)).map(|held| held.delivery.event.size()).sum()
    }

    /// Whether the program has anything that is this consumer's.
    pub fn is_out(&self) -> bool {
        self.lanes.as_ref().is_some_and(Lanes::is_out)
    }

    fn forget(&mut self, pick: &Pick) {
        if let Some(lanes) = &mut self.lanes {
            lanes.remove(pick);
        }
        if self.held.get(&pick.ticket).is_some_and(|held| held.number == pick.number) {
            self.held.remove(&pick.ticket);
        }
    }

    /// Lets go of everything.
    pub fn clear(&mut self) {
        let (numbers, ordered) = (self.numbers, self.lanes.is_some());
        *self = Self { numbers, ..Self::new(ordered) };
    }

    /// Whether it holds anything.
    pub fn is_empty(&self) -> bool {
        self.held.values().all(|held| held.lost)
    }
}
