//! Two programs that give one stream two numbers of shards, and a key that has another shard by
//! each: an opening (`src/stream/sql/shards.rs`) and an append are one transaction each, and
//! whoever has opened the stream may append at any later time.

use stateright::{Model, Property};

pub const ONE_NUMBER: &str = "one-number-of-shards";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Broken {
    #[default]
    Nothing,
    /// An append does not compare the number.
    AppendAnyhow,
    /// The number changes whatever is there.
    ChangeAnyhow,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    recorded: Option<usize>,
    /// Which of the programs have opened the stream.
    open: [bool; 2],
    /// For each shard, the numbers of the key's events that wait there.
    waiting: [Vec<u8>; 2],
    /// By each of the programs.
    appended: [u8; 2],
    stored: Vec<u8>,
}

impl State {
    fn appended(&self) -> u8 {
        self.appended.iter().sum()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Open(usize),
    Append(usize),
    /// A member stores and acks the next event of a shard.
    Store(usize),
}

/// The programs are known by the shard that the key has by their number.
#[derive(Clone, Debug)]
pub struct Shards {
    pub events: u8,
    pub broken: Broken,
}

impl Model for Shards {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, _: &State, actions: &mut Vec<Action>) {
        for which in 0..2 {
            actions.extend([Action::Open(which), Action::Append(which), Action::Store(which)]);
        }
    }

    fn next_state(&self, state: &State, action: Action) -> Option<State> {
        let mut next = state.clone();
        match action {
            Action::Open(program) => {
                let is_read = state.waiting.iter().all(Vec::is_empty);
                let same = state.recorded.is_none_or(|recorded| recorded == program);
                let may = same || is_read || self.broken == Broken::ChangeAnyhow;
                next.open[program] = may;
                if may {
                    next.recorded = Some(program);
                }
            }
            Action::Append(program) => {
                if !state.open[program] || state.appended() == self.events {
                    return None;
                }
                if state.recorded == Some(program) || self.broken == Broken::AppendAnyhow {
                    next.waiting[program].push(state.appended());
                    next.appended[program] += 1;
                } else {
                    next.open[program] = false;
                }
            }
            Action::Store(shard) => {
                if state.waiting[shard].is_empty() {
                    return None;
                }
                next.stored.push(next.waiting[shard].remove(0));
            }
        }
        (next != *state).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(ONE_NUMBER, |_, state: &State| {
                state.stored.iter().copied().eq(0..state.stored.len() as u8)
                    && state.waiting.iter().any(Vec::is_empty)
            }),
            Property::sometimes(
                "the number changes between events",
                |model: &Self, state: &State| {
                    // Events follow the change: both programs have appended some.
                    let both = state.appended.iter().all(|appended| *appended > 0);
                    both && state.stored.len() == model.events as usize
                },
            ),
        ]
    }
}
