//! Which numbers an instance sends, and which the stream has already.
//!
//! A publisher's checkpoint says for each *part* how far it was sent. A part is named by the
//! numbers in it, not by the instance that sends them: `1..10` holds 1 to 10, `2..+5` holds 2, 7,
//! 12 and so on without end. So whatever `n` and `instances` were when a number was sent, the
//! checkpoint still tells that it was: after an edit of either, an instance passes over the
//! numbers that some part counts as sent, and sends the others. None is skipped and none is sent
//! twice. Parts of former editions stay in the checkpoint for that, a few bytes each. Rounds after
//! the first have parts of their own: `1..10#2` is of the second.

use std::collections::BTreeMap;

use crate::event::SEQUENCE_MAX;
use crate::source::Slot;

/// `first`, `first + step` … below `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub first: u64,
    pub end: u64,
    pub step: u64,
}

/// The most instances a publisher can have.
pub(super) const INSTANCES_MAX: u64 = 1024;

/// The most rounds it can send: each has slots of its own in the checkpoint.
pub(super) const ROUNDS_MAX: u64 = 10_000;

/// Past the last number that an id has room for.
const END_MAX: u64 = SEQUENCE_MAX + 1;

impl Part {
    /// What instance number `instance` (from 1) of `instances` sends of `range` (both ends
    /// included): an even share in order, the first ones one more when it does not come out even.
    /// Without a range the instances take turns.
    pub fn of(range: Option<(u64, u64)>, instances: u64, instance: u64) -> Self {
        let Some((first, last)) = range else {
            return Self { first: instance, end: END_MAX, step: instances };
        };
        let end = last.saturating_add(1).min(END_MAX);
        let count = end.saturating_sub(first);
        let (share, more) = (count / instances, count % instances);
        let before = instance - 1;
        let first = first + before * share + before.min(more);
        Self { first, end: first + share + u64::from(before < more), step: 1 }
    }

    /// Its name in the checkpoint.
    pub fn slot(&self, round: u64) -> String {
        let numbers = match self.end {
            END_MAX => format!("{}..+{}", self.first, self.step),
            end => format!("{}..{}", self.first, end.saturating_sub(1)),
        };
        if round == 1 { numbers } else { format!("{numbers}#{round}") }
    }

    fn from_slot(name: &str) -> Option<Self> {
        let (name, _) = in_round(name);
        let (first, rest) = name.split_once("..")?;
        let first = first.parse().ok()?;
        let (end, step) = match rest.strip_prefix('+') {
            Some(step) => (END_MAX, step.parse().ok()?),
            None => (rest.parse::<u64>().ok().filter(|last| *last <= SEQUENCE_MAX)? + 1, 1),
        };
        (1..=INSTANCES_MAX).contains(&step).then_some(())?;
        Some(Self { first, end, step })
    }

    /// Its smallest number that is `n` or more (it may be past the end).
    pub fn at_least(&self, n: u64) -> u64 {
        self.first + n.saturating_sub(self.first).div_ceil(self.step) * self.step
    }

    /// How many of its numbers are `n` or more, where `n` is one of them.
    pub fn remaining(&self, n: u64) -> u64 {
        self.end.saturating_sub(n).div_ceil(self.step)
    }

    fn holds(&self, n: u64) -> bool {
        (self.first..self.end).contains(&n) && (n - self.first).is_multiple_of(self.step)
    }
}

/// A slot's name without its round, and that: from 1.
fn in_round(name: &str) -> (&str, u64) {
    let split = name.split_once('#');
    split.map_or((name, 1), |(numbers, round)| (numbers, round.parse().unwrap_or(0)))
}

/// What the stream's checkpoint tells, by rounds.
#[derive(Debug, Default)]
pub(super) struct Rounds(BTreeMap<u64, Vec<Slot>>);

impl Rounds {
    /// What the stream's checkpoint tells.
    pub fn read(stored: &[Slot]) -> Self {
        let mut rounds: BTreeMap<u64, Vec<Slot>> = BTreeMap::new();
        for slot in stored {
            rounds.entry(in_round(&slot.0).1).or_default().push(slot.clone());
        }
        Self(rounds)
    }

    /// What it tells of one round, which is then gone from here.
    pub fn take(&mut self, round: u64) -> Vec<Slot> {
        self.0.remove(&round).unwrap_or_default()
    }
}

/// The numbers that the stream has, of one round.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// Parts, ended where they were sent to; those without gaps first.
    parts: Vec<Part>,
    /// No number from here on was sent.
    end: u64,
}

impl Sent {
    /// What the stream's checkpoint tells.
    pub fn read(stored: &[Slot]) -> Self {
        let mut parts: Vec<Part> = stored
            .iter()
            .filter_map(|(name, position)| {
                let part = Part::from_slot(name)?;
                Some(Part { end: part.end.min(position.order), ..part })
            })
            .collect();
        // Parts that took turns have left no gap up to the one that is furthest behind. Knowing
        // it saves going through millions of numbers one by one.
        let mut steps: Vec<u64> = parts.iter().map(|part| part.step).filter(|s| *s > 1).collect();
        steps.sort_unstable();
        steps.dedup();
        for step in steps {
            let sent_to = |first| parts.iter().find(|p| p.step == step && p.first == first);
            let behind = (1..=step).map(|first| sent_to(first).map_or(first, |part| part.end));
            let end = behind.min().unwrap_or(1);
            parts.push(Part { first: 1, end, step: 1 });
        }
        parts.sort_by_key(|part| part.step);
        let end = parts.iter().map(|part| part.end).max().unwrap_or(0);
        Self { parts, end }
    }

    /// The first number of `part`, from its number `n` on, that was not sent (it may be past the
    /// part's end).
    pub fn pass_over(&self, part: &Part, mut n: u64) -> u64 {
        while n < self.end.min(part.end) {
            match self.parts.iter().find(|sent| sent.holds(n)) {
                None => break,
                Some(sent) if sent.step == 1 => n = part.at_least(sent.end),
                Some(_) => n += part.step,
            }
        }
        n
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::source::Position;

    fn numbers(part: Part) -> Vec<u64> {
        (part.first..part.end).step_by(part.step as usize).collect()
    }

    #[test]
    fn a_range_is_split_evenly_and_in_order() {
        let bounds = |range, instances| {
            let parts = (1..=instances).map(|n| Part::of(Some(range), instances, n).slot(1));
            parts.collect::<Vec<_>>().join(" ")
        };
        assert_eq!(bounds((1, 50), 5), "1..10 11..20 21..30 31..40 41..50");
        assert_eq!(bounds((0, 9), 4), "0..2 3..5 6..7 8..9");
        assert_eq!(bounds((7, 7), 1), "7..7");
    }

    #[test]
    fn without_a_range_the_instances_take_turns() {
        let part = Part::of(None, 3, 2);
        assert_eq!((part.slot(1).as_str(), part.first, part.at_least(3)), ("2..+3", 2, 5));
        assert_eq!((part.at_least(0), part.at_least(5), part.at_least(6)), (2, 5, 8));
    }

    #[test]
    fn names_that_are_no_parts_are_not_read() {
        for name in
            ["", "..", "1..", "a..b", "1..+0", "1..+1025", "1", "-1..5", "1..17592186044416"]
        {
            assert_eq!(Part::from_slot(name), None, "{name}");
        }
    }

    #[test]
    fn a_long_run_in_turns_is_passed_over_at_once() {
        let slot = |name: &str, order| (name.to_owned(), Position { order, note: String::new() });
        let stored = [slot("1..+2", 2_000_000_000_001), slot("2..+2", 2_000_000_000_010)];
        let part = Part::of(None, 3, 1);
        let next = Sent::read(&stored).pass_over(&part, part.first);
        // 2_000_000_000_002 is one of its numbers and was sent, 2_000_000_000_005 was not.
        assert_eq!(next, 2_000_000_000_005);
    }

    proptest! {
        #[test]
        fn the_parts_of_a_range_are_the_range(first in 0u64..1000, count in 1u64..1000, k in 1u64..40) {
            let range = (first, first + count - 1);
            let parts: Vec<Part> = (1..=k).map(|n| Part::of(Some(range), k, n)).collect();
            let all: Vec<u64> = parts.iter().copied().flat_map(numbers).collect();
            prop_assert_eq!(all, (range.0..=range.1).collect::<Vec<_>>());
            let lens: Vec<usize> = parts.iter().map(|part| numbers(*part).len()).collect();
            prop_assert!(lens.is_sorted_by(|a, b| a >= b) && lens[0] - lens[k as usize - 1] <= 1);
        }

        #[test]
        fn turns_meet_every_number_once(k in 1u64..40, last in 1u64..500) {
            let parts = (1..=k).map(|n| Part { end: last + 1, ..Part::of(None, k, n) });
            let mut all: Vec<u64> = parts.flat_map(numbers).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (1..=last).collect::<Vec<_>>());
        }

        #[test]
        fn a_part_is_known_by_its_name(first in 0u64..100, count in 1u64..100, k in 1u64..9, n in 0u64..9) {
            for range in [Some((first, first + count - 1)), None] {
                let part = Part::of(range, k, n % k + 1);
                if part.first < part.end {
                    prop_assert_eq!(Part::from_slot(&part.slot(1)), Some(part));
                    prop_assert_eq!(Part::from_slot(&part.slot(n + 2)), Some(part));
                    prop_assert_eq!(in_round(&part.slot(n + 2)).1, n + 2);
                }
            }
        }
    }
}
