//! A group's members, the stream that they share and the sink, as the code has it: each action
//! below is one transaction (or script) of the code, or a fault; between any two, anybody else may
//! come first, for as long as it likes. That is also what a pause is: a member that acts late, by
//! what it knew before.
//!
//! No clock is trusted: a lease runs out whenever it likes, also while its member is at work.
//!
//! One shard is modelled. Shards share nothing but who lives and how many each may own
//! (`tests/rebalance.rs`). A member's hand, its one batch with the sink, tokens and epochs are
//! those of `src/stream/sql/{own,fetch,lease}.rs`, `src/stream/redis/lua/own.lua`,
//! `src/actor/member/{ordered,queues}.rs` and `src/sink/*/ordered.rs`. Not modelled: events that a
//! sink refuses, restored older copies of a database, and what a single transaction does inside.

use stateright::{Model, Property};

/// Events in one batch.
const BATCH: usize = 2;
/// Events in a hand, at most.
const HAND: usize = 2;

/// What is wrong with the protocol, to see that the model finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Broken {
    /// It is as the code has it.
    #[default]
    Nothing,
    /// The sink does not look for a newer owner.
    NoFence,
    /// An ack does not look whose the event is.
    AckWithoutToken,
    /// What is done with is taken to be all before the last event that was acked.
    CursorAtLastAck,
    /// An owner has the epoch of the one before.
    EpochStays,
    /// Who claims a shard leaves to the owner before what that one holds.
    ClaimLeavesLeases,
    /// A sink does not know an id again.
    NoIds,
    /// A member acks what it is about to store.
    AckFirst,
    /// A lease that ran out is nobody's for ever.
    NoReclaim,
}

/// An offset of the shard, as the group has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Slot {
    /// Beyond the cursor.
    Ahead,
    /// Given once, and free for the next.
    Free,
    /// A member's; `late` once its lease has run out.
    Held { token: u8, by: u8, late: bool },
    /// Acked.
    Done,
}

/// An event in a member's hand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Given {
    offset: u8,
    token: u8,
}

/// By what right a member has events: the epoch, and in truth the how manieth owner it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Right {
    epoch: u8,
    reign: u8,
}

/// A batch with the sink.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Flight {
    right: Right,
    events: Vec<Given>,
    /// What the sink's transaction came to: whether it stored.
    stored: Option<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Member {
    up: bool,
    right: Right,
    hand: Vec<Given>,
    flight: Option<Flight>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    slots: Vec<Slot>,
    owner: Option<u8>,
    /// The owner's lease has run out.
    late: bool,
    right: Right,
    members: Vec<Member>,
    /// Batches whose sender has given them up or is gone; they may be stored all the same.
    orphans: Vec<Flight>,
    /// What is stored, in the order of the commits.
    rows: Vec<u8>,
    /// The newest owner that has stored something, as the sink knows it, and in truth.
    fence: Right,
    /// Where they are counted.
    disturbances: u8,
    fenced_store: bool,
    stale_ack: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// The lease of the shard's owner runs out; in a group without order, that of an event.
    Expire(u8),
    /// Keeps or claims the shard, if the group is ordered, and takes so many at most: what is behind
    /// these is as good as not appended yet.
    Fetch(u8, u8),
    /// So many from the front go to the sink.
    Send(u8, u8),
    /// The sink's transaction.
    Commit(u8),
    CommitOrphan(u8),
    /// The sink's answer has come, and what it says is done.
    Settle(u8),
    /// It never comes; what was not stored is not, or may be yet.
    Lost(u8, bool),
    Renew(u8),
    /// The member hands back all it has.
    Leave(u8),
    Crash(u8, bool),
    /// A new life of the same name.
    Open(u8),
}

/// The protocol, of a size.
#[derive(Clone, Debug)]
pub struct Group {
    pub ordered: bool,
    pub members: u8,
    pub events: u8,
    /// Batches that nobody waits for any more and that may be stored yet, at most.
    pub orphans: usize,
    /// Leases that run out, members that hand back or die, and answers that are lost, at most;
    /// `None`: any number.
    pub disturbances: Option<u8>,
    pub broken: Broken,
}

pub const NO_EVENT_LOST: &str = "no-event-lost";
pub const STORED_ONCE: &str = "stored-once";
pub const IN_ORDER: &str = "in-order";
pub const NO_FENCED_STORE: &str = "no-store-by-a-fenced-owner";
pub const HOLDER_ACKS: &str = "only-the-holder-acks";
pub const ONE_OWNER: &str = "one-owner";
pub const ENDS: &str = "all-is-stored-in-the-end";

impl Group {
    fn is(&self, broken: Broken) -> bool {
        self.broken == broken
    }

    /// Does it. `false`: it cannot be done, or changes nothing.
    fn apply(&self, state: &mut State, action: Action) -> bool {
        match action {
            Action::Expire(offset) => self.expire(state, offset),
            Action::Fetch(member, most) => self.fetch(state, member, most),
            Action::Send(member, count) => self.send(state, member, count),
            Action::Commit(member) => {
                let flight = state.members[member as usize].flight.take();
                let Some(mut flight) = flight else { return false };
                let open = flight.stored.is_none();
                if open {
                    flight.stored = Some(self.store(state, &flight));
                }
                state.members[member as usize].flight = Some(flight);
                open
            }
            Action::CommitOrphan(place) => {
                let flight = state.orphans.remove(place as usize);
                self.store(state, &flight);
                true
            }
            Action::Settle(member) => self.settle(state, member),
            Action::Lost(member, orphan) => state.lose_answer(member, orphan),
            Action::Renew(member) => self.renew(state, member),
            Action::Leave(member) => self.leave(state, member),
            Action::Crash(member, orphan) => {
                state.lose_answer(member, orphan);
                let member = &mut state.members[member as usize];
                member.hand.clear();
                std::mem::replace(&mut member.up, false)
            }
            Action::Open(member) => self.open(state, member),
        }
    }

    /// Events before it may be deleted: it is never further than the first that is not done with.
    fn deletable(&self, state: &State) -> usize {
        let done = |slot: &Slot| *slot == Slot::Done;
        match self.is(Broken::CursorAtLastAck) {
            false => state.slots.iter().take_while(|slot| done(slot)).count(),
            true => state.slots.iter().rposition(done).map_or(0, |last| last + 1),
        }
    }

    fn expire(&self, state: &mut State, offset: u8) -> bool {
        if self.ordered {
            return state.owner.is_some() && !std::mem::replace(&mut state.late, true);
        }
        match state.slots.get_mut(offset as usize) {
            Some(Slot::Held { late, .. }) => !std::mem::replace(late, true),
            _ => false,
        }
    }

    fn fetch(&self, state: &mut State, me: u8, most: u8) -> bool {
        let mut changed = false;
        if self.ordered {
            if state.owner == Some(me) {
                changed |= std::mem::replace(&mut state.late, false);
            } else if state.owner.is_none() || state.late {
                self.claim(state, me);
                changed = true;
            } else {
                return false;
            }
        }
        // What the member had by an earlier right is void.
        let right = if self.ordered { state.right } else { Right::default() };
        let member = &mut state.members[me as usize];
        if self.ordered && member.right != right {
            member.right = right;
            let void = std::mem::take(&mut member.hand);
            state.release(&void);
        }
        let token = 1 + state.tokens().max().unwrap_or(0);
        let (mut taken, held) = (Vec::new(), state.members[me as usize].hand.len());
        for ahead in [false, true] {
            for offset in 0..state.slots.len() as u8 {
                let is_free = match state.slots[offset as usize] {
                    Slot::Ahead => ahead,
                    Slot::Free => !ahead,
                    Slot::Held { late, .. } => {
                        late && !ahead && !self.ordered && !self.is(Broken::NoReclaim)
                    }
                    Slot::Done => false,
                };
                if !is_free || taken.len() == most as usize || taken.len() + held >= HAND {
                    continue;
                }
                changed = true;
                state.slots[offset as usize] = Slot::Held { token, by: me, late: false };
                taken.push(Given { offset, token });
            }
        }
        state.members[me as usize].hand.extend(taken);
        changed
    }

    fn claim(&self, state: &mut State, me: u8) {
        (state.owner, state.late) = (Some(me), false);
        state.right.reign += 1;
        if !self.is(Broken::EpochStays) {
            state.right.epoch += 1;
        }
        for slot in &mut state.slots {
            if matches!(slot, Slot::Held { .. }) && !self.is(Broken::ClaimLeavesLeases) {
                *slot = Slot::Free;
            }
        }
    }

    fn send(&self, state: &mut State, me: u8, count: u8) -> bool {
        let member = &mut state.members[me as usize];
        if member.flight.is_some() || count == 0 || member.hand.len() < count as usize {
            return false;
        }
        let events = member.hand[..count as usize].to_vec();
        member.flight = Some(Flight { right: member.right, events: events.clone(), stored: None });
        if self.is(Broken::AckFirst) {
            self.ack(state, &events);
        }
        true
    }

    /// The sink's transaction: whether it stored. What it has is as good as stored.
    fn store(&self, state: &mut State, flight: &Flight) -> bool {
        if self.ordered {
            if flight.right.epoch < state.fence.epoch && !self.is(Broken::NoFence) {
                return false;
            }
            state.fenced_store |= flight.right.reign < state.fence.reign;
            state.fence.epoch = state.fence.epoch.max(flight.right.epoch);
            state.fence.reign = state.fence.reign.max(flight.right.reign);
        }
        for Given { offset, .. } in &flight.events {
            if !state.rows.contains(offset) || self.is(Broken::NoIds) {
                state.rows.push(*offset);
            }
        }
        true
    }

    fn ack(&self, state: &mut State, events: &[Given]) {
        for given in events {
            let slot = &mut state.slots[given.offset as usize];
            let is_mine = matches!(slot, Slot::Held { token, .. } if *token == given.token);
            if is_mine || (self.is(Broken::AckWithoutToken) && *slot != Slot::Done) {
                state.stale_ack |= !is_mine;
                *slot = Slot::Done;
            }
        }
    }

    fn settle(&self, state: &mut State, me: u8) -> bool {
        let member = &mut state.members[me as usize];
        let Some(flight) = member.flight.take_if(|flight| flight.stored.is_some()) else {
            return false;
        };
        if flight.stored == Some(true) {
            member.hand.retain(|given| !flight.events.contains(given));
            self.ack(state, &flight.events);
        } else if member.right.epoch == flight.right.epoch {
            // Turned away: where the stream does not know, the next owner is to be a newer one.
            self.leave(state, me);
        }
        true
    }

    fn renew(&self, state: &mut State, me: u8) -> bool {
        let mut changed = false;
        if state.owner == Some(me) {
            changed |= std::mem::replace(&mut state.late, false);
        }
        let member = &mut state.members[me as usize];
        let before = member.hand.len();
        let slots = &mut state.slots;
        let mut keep = |given: &Given| match &mut slots[given.offset as usize] {
            Slot::Held { token, late, .. } if *token == given.token => {
                changed |= std::mem::replace(late, false);
                true
            }
            _ => false,
        };
        let kept: Vec<Given> = member.hand.iter().copied().filter(|given| keep(given)).collect();
        let lost = kept.len() < before;
        // Who lost one event of a shard lost the shard.
        member.hand = if lost && self.ordered { Vec::new() } else { kept };
        changed || lost
    }

    fn leave(&self, state: &mut State, me: u8) -> bool {
        let hand = std::mem::take(&mut state.members[me as usize].hand);
        state.release(&hand);
        let owns = state.owner == Some(me);
        if owns {
            (state.owner, state.late) = (None, false);
        }
        owns || !hand.is_empty()
    }

    /// What it had in its earlier life is free at once.
    fn open(&self, state: &mut State, me: u8) -> bool {
        for slot in &mut state.slots {
            if matches!(slot, Slot::Held { by, .. } if *by == me) {
                *slot = Slot::Free;
            }
        }
        if state.owner == Some(me) {
            (state.owner, state.late) = (None, false);
        }
        !std::mem::replace(&mut state.members[me as usize].up, true)
    }

    fn is_done(&self, state: &State) -> bool {
        state.slots.iter().all(|slot| *slot == Slot::Done)
    }

    /// From here on nothing fails, and every living member does what is its to do: whether all is
    /// stored.
    fn ends(&self, state: &State) -> bool {
        let mut state = state.clone();
        if state.members.iter().all(|member| !member.up) {
            self.apply(&mut state, Action::Open(0));
        }
        for _ in 0..40 {
            if self.is_done(&state) {
                return (0..self.events).all(|offset| state.rows.contains(&offset));
            }
            let mut moved = false;
            while !state.orphans.is_empty() {
                moved |= self.apply(&mut state, Action::CommitOrphan(0));
            }
            for me in
                (0..self.members).filter(|me| state.members[*me as usize].up).collect::<Vec<_>>()
            {
                moved |= self.apply(&mut state, Action::Commit(me));
                moved |= self.apply(&mut state, Action::Settle(me));
                moved |= self.apply(&mut state, Action::Fetch(me, BATCH as u8));
                let count = state.members[me as usize].hand.len().min(BATCH);
                moved |= self.apply(&mut state, Action::Send(me, count as u8));
            }
            // Time passes.
            for offset in 0..self.events {
                if !moved {
                    self.apply(&mut state, Action::Expire(offset));
                }
            }
        }
        false
    }
}

impl State {
    fn tokens(&self) -> impl Iterator<Item = u8> {
        let held = self.slots.iter().filter_map(|slot| match slot {
            Slot::Held { token, .. } => Some(*token),
            _ => None,
        });
        let hands = self.members.iter().flat_map(|it| it.hand.iter().map(|given| given.token));
        let flights = self.members.iter().filter_map(|it| it.flight.as_ref());
        held.chain(hands).chain(flights.flat_map(|it| it.events.iter().map(|given| given.token)))
    }

    /// States that differ in names only are one: tokens are only ever compared for being the same,
    /// epochs for which is the later one, and any member is as good as another. So there are
    /// finitely many, whatever number of owners and leases there is.
    fn in_one_form(mut self) -> Self {
        self.renumber();
        if self.members.len() == 2 {
            let mut other = self.clone();
            other.members.swap(0, 1);
            other.owner = other.owner.map(|owner| 1 - owner);
            for slot in &mut other.slots {
                if let Slot::Held { by, .. } = slot {
                    *by = 1 - *by;
                }
            }
            other.renumber();
            return self.min(other);
        }
        self
    }

    fn renumber(&mut self) {
        for member in self.members.iter_mut().filter(|member| member.hand.is_empty()) {
            member.right = Right::default();
        }
        let (mut epochs, mut reigns) = (vec![0], vec![0]);
        for right in self.rights() {
            epochs.push(right.epoch);
            reigns.push(right.reign);
        }
        for numbers in [&mut epochs, &mut reigns] {
            numbers.sort_unstable();
            numbers.dedup();
        }
        let place =
            |all: &[u8], number: u8| all.iter().position(|it| *it == number).unwrap_or(0) as u8;
        for right in self.rights() {
            right.epoch = place(&epochs, right.epoch);
            right.reign = place(&reigns, right.reign);
        }
        let mut live: Vec<u8> = Vec::new();
        for slot in &mut self.slots {
            if let Slot::Held { token, .. } = slot {
                if !live.contains(token) {
                    live.push(*token);
                }
                *token = 1 + place(&live, *token);
            }
        }
        for member in &mut self.members {
            // What fits no event any more is known to its member only.
            let mut stale: Vec<u8> = Vec::new();
            let flight = member.flight.iter_mut().flat_map(|flight| &mut flight.events);
            for Given { token, .. } in member.hand.iter_mut().chain(flight) {
                if live.contains(token) {
                    *token = 1 + place(&live, *token);
                } else {
                    if !stale.contains(token) {
                        stale.push(*token);
                    }
                    *token = 100 + place(&stale, *token);
                }
            }
        }
        // They ack nothing any more.
        let orphans = self.orphans.iter_mut().flat_map(|flight| &mut flight.events);
        orphans.for_each(|given| given.token = 0);
    }

    fn rights(&mut self) -> impl Iterator<Item = &mut Right> {
        let members = self.members.iter_mut().flat_map(|member| {
            let flight = member.flight.as_mut().map(|flight| &mut flight.right);
            std::iter::once(&mut member.right).chain(flight)
        });
        let orphans = self.orphans.iter_mut().map(|flight| &mut flight.right);
        [&mut self.right, &mut self.fence].into_iter().chain(members).chain(orphans)
    }

    fn release(&mut self, events: &[Given]) {
        for given in events {
            let slot = &mut self.slots[given.offset as usize];
            if matches!(slot, Slot::Held { token, .. } if *token == given.token) {
                *slot = Slot::Free;
            }
        }
    }

    /// The member hears nothing of its batch.
    fn lose_answer(&mut self, member: u8, orphan: bool) -> bool {
        let Some(flight) = self.members[member as usize].flight.take() else { return false };
        if orphan && flight.stored.is_none() {
            self.orphans.push(flight);
        }
        true
    }

    /// Members that hold what they could ack.
    fn holders(&self) -> usize {
        let holds = |given: &Given| {
            let slot = self.slots[given.offset as usize];
            matches!(slot, Slot::Held { token, .. } if token == given.token)
        };
        self.members.iter().filter(|member| member.hand.iter().any(holds)).count()
    }

    /// Whether each event that is done with, or before `deleted`, is stored.
    fn is_kept(&self, deleted: usize) -> bool {
        let gone = |offset| self.slots[offset] == Slot::Done || offset < deleted;
        (0..self.slots.len()).all(|offset| !gone(offset) || self.rows.contains(&(offset as u8)))
    }
}

impl Model for Group {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let (right, hand) = (Right::default(), Vec::new());
        let member = Member { up: true, right, hand, flight: None };
        vec![State {
            slots: vec![Slot::Ahead; self.events as usize],
            owner: None,
            late: false,
            right,
            members: vec![member; self.members as usize],
            orphans: Vec::new(),
            rows: Vec::new(),
            fence: right,
            disturbances: 0,
            fenced_store: false,
            stale_ack: false,
        }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        let leases = if self.ordered { 1 } else { state.slots.len() as u8 };
        actions.extend((0..leases).map(Action::Expire));
        actions.extend((0..state.orphans.len() as u8).map(Action::CommitOrphan));
        for (me, member) in (0..).zip(&state.members) {
            if !member.up {
                actions.push(Action::Open(me));
                continue;
            }
            actions.extend((1..=BATCH as u8).map(|most| Action::Fetch(me, most)));
            match &member.flight {
                None => actions.extend((1..=BATCH as u8).map(|count| Action::Send(me, count))),
                Some(Flight { stored: None, .. }) => actions.push(Action::Commit(me)),
                Some(_) => actions.push(Action::Settle(me)),
            }
            actions.push(Action::Renew(me));
            actions.extend([Action::Leave(me), Action::Lost(me, false), Action::Crash(me, false)]);
            if state.orphans.len() < self.orphans
                && member.flight.as_ref().is_some_and(|flight| flight.stored.is_none())
            {
                actions.extend([Action::Lost(me, true), Action::Crash(me, true)]);
            }
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        let disturbs = !matches!(
            action,
            Action::Fetch(..)
                | Action::Send(..)
                | Action::Commit(_)
                | Action::CommitOrphan(_)
                | Action::Settle(_)
                | Action::Renew(_)
                | Action::Open(_)
        );
        if let Some(most) = self.disturbances.filter(|_| disturbs) {
            if state.disturbances == most {
                return None;
            }
            next.disturbances += 1;
        }
        self.apply(&mut next, action).then(|| next.in_one_form())
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut properties = vec![
            Property::always(NO_EVENT_LOST, |model: &Self, state: &State| {
                state.is_kept(model.deletable(state))
            }),
            Property::always(STORED_ONCE, |_, state: &State| {
                let mut rows = state.rows.clone();
                rows.sort_unstable();
                rows.windows(2).all(|pair| pair[0] < pair[1])
            }),
            Property::always(HOLDER_ACKS, |_, state: &State| !state.stale_ack),
            Property::always(ENDS, |model: &Self, state: &State| model.ends(state)),
            // It is a model of something: there are ways to the end.
            Property::sometimes("it comes to an end", |model: &Self, state| model.is_done(state)),
        ];
        if self.ordered {
            properties.extend([
                Property::always(IN_ORDER, |_, state: &State| {
                    let mut first: Vec<u8> = Vec::new();
                    for row in &state.rows {
                        if !first.contains(row) {
                            first.push(*row);
                        }
                    }
                    first.into_iter().eq(0..state.rows.iter().max().map_or(0, |last| last + 1))
                }),
                Property::always(NO_FENCED_STORE, |_, state: &State| !state.fenced_store),
                Property::always(ONE_OWNER, |_, state: &State| state.holders() <= 1),
                Property::sometimes("one is turned away", |_, state: &State| {
                    let mut flights = state.members.iter().filter_map(|it| it.flight.as_ref());
                    flights.any(|flight| flight.stored == Some(false))
                }),
            ]);
        }
        properties
    }
}
