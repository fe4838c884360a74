//! Which events of an origin are written, in a few numbers however many they are: events whose
//! sequences follow each other without a gap are one [`Span`].

use std::collections::BTreeMap;

/// Events that follow each other without a gap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// The sequence of the last event in it.
    pub(super) last: u64,
    /// The last event's guard.
    pub(super) guard: u32,
    /// The sequence that goes on from here.
    pub(super) next: u64,
}

/// The spans of one origin, or those of them that a batch can touch, by the sequence they start at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Spans(pub(super) BTreeMap<u64, Span>);

/// What spans know of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// It is written.
    Written,
    /// It is not.
    New,
    /// Another event with its sequence is: an unfinished line that was completed later, or the
    /// other way round. The guard is that event's. Only a single id can tell whether this one is
    /// written too.
    Other(u32),
}

impl Spans {
    /// What is known of the event at `sequence` with `guard`.
    pub(super) fn place(&self, sequence: u64, guard: u32) -> Place {
        match self.0.range(..=sequence).next_back() {
            Some((_, span)) if sequence < span.last => Place::Written,
            Some((_, span)) if sequence == span.last && guard == span.guard => Place::Written,
            Some((_, span)) if sequence == span.last => Place::Other(span.guard),
            _ => Place::New,
        }
    }

    /// Notes the event as written. `next` is the sequence that goes on from it. Where its place
    /// is [`Place::Other`], it takes the other's place.
    pub(super) fn add(&mut self, sequence: u64, guard: u32, next: u64) {
        let added = Span { last: sequence, guard, next };
        let start = match self.0.range_mut(..=sequence).next_back() {
            Some((start, span)) if sequence == span.next || sequence == span.last => {
                *span = added;
                *start
            }
            _ => {
                self.0.insert(sequence, added);
                sequence
            }
        };
        if let Some(after) = self.0.remove(&next) {
            self.0.insert(start, after);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_completed_line_takes_the_place_of_the_unfinished_one() {
        let mut spans = Spans::default();
        spans.add(0, 1, 10);
        spans.add(10, 2, 14);
        assert_eq!(spans.place(10, 2), Place::Written);
        assert_eq!(spans.place(10, 3), Place::Other(2));
        spans.add(10, 3, 17);
        assert_eq!(spans.place(10, 2), Place::Other(3));
        assert_eq!(spans.place(14, 9), Place::New);
        spans.add(17, 4, 20);
        assert_eq!(spans.0, BTreeMap::from([(0, Span { last: 17, guard: 4, next: 20 })]));
    }

    proptest! {
        /// Lines of a file in any order, any number of times: each is new once, and once all of
        /// them came, they are one span.
        #[test]
        fn lines_in_any_order_are_new_once(
            lengths in prop::collection::vec(1u64..9, 1..60),
            picks in prop::collection::vec(0usize..60, 0..200),
        ) {
            let mut offset = 0;
            let lines: Vec<_> = lengths.iter().map(|length| {
                offset += length;
                (offset - length, (offset % 7) as u32, offset)
            }).collect();
            let (mut spans, mut written) = (Spans::default(), std::collections::HashSet::new());
            let picks = picks.into_iter().filter(|pick| *pick < lines.len());
            for pick in picks.chain(0..lines.len()) {
                let (sequence, guard, next) = lines[pick];
                let expected = if written.insert(pick) { Place::New } else { Place::Written };
                prop_assert_eq!(spans.place(sequence, guard), expected);
                if expected == Place::New {
                    spans.add(sequence, guard, next);
                }
                let runs = written.iter().filter(|it| **it == 0 || !written.contains(&(*it - 1)));
                prop_assert_eq!(spans.0.len(), runs.count());
            }
        }
    }
}
