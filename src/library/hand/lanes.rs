//! What a consumer of an ordered group holds: a lane for each shard, in which its messages stand in
//! order. Of a lane nothing is given out before all that was given out is settled, so what waits
//! for a message is what stands behind it.

use std::collections::{BTreeMap, HashSet, VecDeque};

use super::Pick;
use crate::event::{Delivery, Ticket};

/// One shard's.
#[derive(Debug, Default)]
struct Lane {
    /// The ownership by which the messages are this consumer's: greater with each owner.
    epoch: i64,
    /// That ownership is at an end: nothing that comes by right of it is this consumer's.
    over: bool,
    /// With the program and not settled.
    out: VecDeque<Pick>,
    /// Behind them.
    waiting: VecDeque<Pick>,
}

/// What an ownership's end makes another's.
#[derive(Debug, Default)]
pub(super) struct Gone {
    /// With the program, which is to be told.
    pub out: VecDeque<Pick>,
    /// The rest.
    pub waiting: VecDeque<Pick>,
}

impl Gone {
    pub fn tickets(&self) -> impl Iterator<Item = Ticket> {
        self.out.iter().chain(&self.waiting).map(|pick| pick.ticket)
    }
}

impl Lane {
    fn take(&mut self) -> Gone {
        let Self { out, waiting, .. } = self;
        Gone { out: std::mem::take(out), waiting: std::mem::take(waiting) }
    }
}

/// The lanes of a consumer. A pick in them is held, and is not lost.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    lanes: BTreeMap<u32, Lane>,
    /// The shard that the last batch began with.
    turn: u32,
    /// Fetched, and not to be given out: to be handed back, with the shards that these are of.
    void: Vec<Ticket>,
}

impl Lanes {
    /// Whether what was fetched is this consumer's. Answers what it makes another's: what stands in
    /// the lane by right of an earlier ownership.
    pub fn admit(&mut self, delivery: &Delivery) -> Option<Gone> {
        let epoch = delivery.fence.as_ref().map_or(0, |fence| fence.epoch);
        let lane = self.lanes.entry(delivery.ticket.shard).or_default();
        if epoch < lane.epoch || (epoch == lane.epoch && lane.over) {
            self.void.push(delivery.ticket);
            return None;
        }
        if epoch == lane.epoch {
            return Some(Gone::default());
        }
        // Who claims a shard frees all that was held of it: there is nothing to hand back.
        self.void.retain(|ticket| ticket.shard != delivery.ticket.shard);
        (lane.epoch, lane.over) = (epoch, false);
        Some(lane.take())
    }

    /// The last of its lane.
    pub fn push(&mut self, pick: Pick) {
        self.lanes.entry(pick.ticket.shard).or_default().waiting.push_back(pick);
    }

    /// The front of each lane that has nothing with the program: what may be given out next.
    pub fn fronts(&self) -> impl Iterator<Item = &Pick> {
        let free = self.lanes.values().filter(|lane| lane.out.is_empty());
        free.filter_map(|lane| lane.waiting.front())
    }

    /// What of each lane is not with the program.
    pub fn waiting(&self) -> impl Iterator<Item = &VecDeque<Pick>> {
        self.lanes.values().map(|lane| &lane.waiting).filter(|waiting| !waiting.is_empty())
    }

    /// The shards, beginning with another each time that one [had its turn](Self::had_turn).
    pub fn shards(&self) -> Vec<u32> {
        let before = self.lanes.range(..=self.turn);
        let after = self.lanes.range(self.turn.saturating_add(1)..);
        after.chain(before).map(|(shard, _)| *shard).collect()
    }

    /// A batch began with this shard.
    pub fn had_turn(&mut self, shard: u32) {
        self.turn = shard;
    }

    /// The first that waits, where the lane has nothing with the program but the last `given`.
    pub fn next(&self, shard: u32, given: usize) -> Option<Pick> {
        let lane = self.lanes.get(&shard).filter(|lane| lane.out.len() == given)?;
        lane.waiting.front().copied()
    }

    /// The first of a shard that is with the program.
    pub fn first_out(&self, shard: u32) -> Option<Pick> {
        self.lanes.get(&shard)?.out.front().copied()
    }

    /// All of a shard.
    pub fn of(&self, shard: u32) -> impl Iterator<Item = &Pick> {
        self.lanes.get(&shard).into_iter().flat_map(|lane| lane.out.iter().chain(&lane.waiting))
    }

    /// This one, which was the first that waited, is with the program.
    pub fn given(&mut self, pick: Pick) {
        let Some(lane) = self.lanes.get_mut(&pick.ticket.shard) else { return };
        if lane.waiting.front() == Some(&pick) {
            lane.waiting.pop_front();
            lane.out.push_back(pick);
        }
    }

    /// This one, which is with the program, is to be given out again, and before all that stands
    /// behind it. Answers what of that is with the program, and waits from now on.
    pub fn refused(&mut self, pick: &Pick) -> Vec<Pick> {
        let Some(lane) = self.lanes.get_mut(&pick.ticket.shard) else { return Vec::new() };
        let Some(place) = lane.out.iter().position(|it| it == pick) else { return Vec::new() };
        let mut back: Vec<Pick> = lane.out.drain(place..).collect();
        back.iter().rev().for_each(|pick| lane.waiting.push_front(*pick));
        back.remove(0);
        back
    }

    /// These, in order, are with the program no longer, and wait.
    pub fn let_go(&mut self, picks: &[Pick]) {
        for pick in picks.iter().rev() {
            if let Some(lane) = self.lanes.get_mut(&pick.ticket.shard)
                && let Some(place) = lane.out.iter().rposition(|it| it == pick)
            {
                lane.out.remove(place);
                lane.waiting.push_front(*pick);
            }
        }
    }

    /// This one is done with.
    pub fn remove(&mut self, pick: &Pick) {
        let Some(lane) = self.lanes.get_mut(&pick.ticket.shard) else { return };
        for part in [&mut lane.out, &mut lane.waiting] {
            if let Some(place) = part.iter().position(|it| it == pick) {
                part.remove(place);
                return;
            }
        }
    }

    /// The ownership that this one is held by is at an end. Answers all that was held by it, which
    /// is to be handed back: nobody need have followed, as an event can be gone from a shard that
    /// is still this consumer's. What stood behind it comes again, in order, to the next owner.
    pub fn end(&mut self, pick: &Pick) -> Gone {
        match self.lanes.get_mut(&pick.ticket.shard) {
            Some(lane) if lane.out.contains(pick) || lane.waiting.contains(pick) => {
                lane.over = true;
                let gone = lane.take();
                self.void.extend(gone.tickets());
                gone
            }
            _ => Gone::default(),
        }
    }

    /// The shards that these are of are about to be handed back: what waits there is not given out
    /// any more, and answered; what is with the program may be settled until it is handed back.
    pub fn close(&mut self, picks: &[Pick]) -> Vec<Pick> {
        let mut closed = Vec::new();
        for pick in picks {
            if let Some(lane) = self.lanes.get_mut(&pick.ticket.shard)
                && lane.out.contains(pick)
            {
                lane.over = true;
                self.void.extend(lane.waiting.iter().map(|pick| pick.ticket));
                closed.extend(lane.waiting.drain(..));
            }
        }
        closed
    }

    /// Whether the lane in which this one stands was [closed](Self::close).
    pub fn is_closed(&self, pick: &Pick) -> bool {
        let lane = self.lanes.get(&pick.ticket.shard);
        lane.is_some_and(|lane| lane.over && lane.out.contains(pick))
    }

    /// What is with the program of the lanes that were [closed](Self::close).
    pub fn closed(&self) -> impl Iterator<Item = &Pick> {
        self.lanes.values().filter(|lane| lane.over).flat_map(|lane| &lane.out)
    }

    /// Everything is at an end, and there is nothing to hand back.
    pub fn end_all(&mut self) -> Vec<Gone> {
        std::mem::take(self).lanes.into_values().map(|mut lane| lane.take()).collect()
    }

    /// These are to be handed back.
    pub fn hand_back(&mut self, tickets: impl IntoIterator<Item = Ticket>) {
        self.void.extend(tickets);
    }

    /// What is to be handed back.
    pub fn void(&self) -> &[Ticket] {
        &self.void
    }

    /// These were handed back.
    pub fn handed_back(&mut self, tickets: &[Ticket]) {
        let tickets: HashSet<&Ticket> = tickets.iter().collect();
        self.void.retain(|ticket| !tickets.contains(ticket));
    }

    /// Whether anything is with the program.
    pub fn is_out(&self) -> bool {
        self.lanes.values().any(|lane| !lane.out.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Event, EventId, Fence};

    fn delivery(epoch: i64, offset: u64) -> Delivery {
        let id = EventId::hashed(&[&offset.to_le_bytes()]);
        Delivery {
            event: Event::new(id, Default::default(), "shop".into(), 0),
            stream: "s".into(),
            ticket: Ticket { shard: 0, hold: 0, offset },
            deliveries: 1,
            attempts: 0,
            fence: Some(Fence { group: "s/g/1".into(), shard: 0, epoch }.into()),
        }
    }

    fn push(lanes: &mut Lanes, epoch: i64, offset: u64) -> (Option<Vec<Ticket>>, Pick) {
        let delivery = delivery(epoch, offset);
        let gone = lanes.admit(&delivery).map(|gone| gone.tickets().collect());
        let pick = Pick { ticket: delivery.ticket, number: offset };
        if gone.is_some() {
            lanes.push(pick);
        }
        (gone, pick)
    }

    #[test]
    fn a_new_ownership_ends_the_old_one_and_what_has_ended_takes_nothing_in() {
        let mut lanes = Lanes::default();
        let (_, first) = push(&mut lanes, 1, 0);
        let (_, second) = push(&mut lanes, 1, 1);
        lanes.given(first);
        let both = vec![first.ticket, second.ticket];
        assert_eq!(push(&mut lanes, 2, 2).0, Some(both), "whoever has them");
        assert_eq!(push(&mut lanes, 1, 3).0, None, "that was before");
        assert_eq!(lanes.void(), [delivery(1, 3).ticket]);
        let third = *lanes.fronts().next().unwrap();
        assert_eq!((third.ticket.offset, lanes.is_out()), (2, false));
        assert_eq!(lanes.end(&third).tickets().collect::<Vec<_>>(), [third.ticket]);
        assert_eq!(push(&mut lanes, 2, 4).0, None, "a fetch was under way");
        assert_eq!(lanes.fronts().count(), 0);
        // A claim frees what was held before: only what it does not is handed back.
        assert_eq!(push(&mut lanes, 3, 2).0, Some(Vec::new()));
        assert_eq!(lanes.void(), []);
    }

    #[test]
    fn what_is_handed_back_gives_out_nothing_more_and_keeps_what_is_with_the_program() {
        let mut lanes = Lanes::default();
        let (_, first) = push(&mut lanes, 1, 0);
        let (_, second) = push(&mut lanes, 1, 1);
        assert_eq!(lanes.close(&[first]), [], "it is not with the program");
        lanes.given(first);
        assert!(!lanes.is_closed(&first) && lanes.closed().count() == 0);
        assert_eq!(lanes.close(&[first]), [second]);
        assert!(lanes.is_closed(&first) && lanes.is_out());
        assert_eq!(push(&mut lanes, 1, 2).0, None, "a fetch was under way");
        assert_eq!(lanes.void(), [second.ticket, delivery(1, 2).ticket]);
        lanes.handed_back(&[second.ticket]);
        assert_eq!(lanes.void(), [delivery(1, 2).ticket]);
        lanes.remove(&first);
        assert_eq!((lanes.fronts().count(), lanes.is_out()), (0, false));
    }
}
