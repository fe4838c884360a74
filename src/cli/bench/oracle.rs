//! What is known of every event that was issued, against what arrived: a sink that keeps one of
//! each id, turns away who lost a shard, and remembers what was acknowledged.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use hdrhistogram::Histogram;

use crate::event::{Delivery, Event, EventId, Origin, Sequence, Ticket};

/// The longest latency that is told apart: an hour.
const LATENCY_MAX_US: u64 = 3_600_000_000;
/// Significant digits of a latency.
const DIGITS: u8 = 3;

/// A histogram of latencies in microseconds.
pub fn latencies() -> Histogram<u64> {
    let made = Histogram::new_with_bounds(1, LATENCY_MAX_US, DIGITS);
    made.expect("constants that it takes") // 2 * 1 <= LATENCY_MAX_US and DIGITS <= 5
}

/// One bit for each number.
#[derive(Debug, Default)]
struct Bits(Vec<u64>);

impl Bits {
    fn has(&self, at: u64) -> bool {
        self.0.get((at / 64) as usize).is_some_and(|word| word & (1 << (at % 64)) != 0)
    }

    /// Sets a bit; whether it was not set before.
    fn set(&mut self, at: u64) -> bool {
        let word = (at / 64) as usize;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let fresh = self.0[word] & (1 << (at % 64)) == 0;
        self.0[word] |= 1 << (at % 64);
        fresh
    }
}

/// What the events of one bench are.
#[derive(Clone, Debug)]
pub struct Issue {
    /// A producer's ids are of its own origin; the guard is its number.
    origins: Vec<Origin>,
    /// Keys of each producer; 0: its events have none.
    keys: u64,
    /// What they all say.
    pub body: Bytes,
    /// The event that is published before the clock starts.
    first: EventId,
}

impl Issue {
    /// The events of so many producers, which have so many keys between them.
    pub fn new(name: &str, producers: usize, keys: u64, body: Bytes) -> Self {
        let origin = |number: usize| {
            let parts = [b"bench", name.as_bytes(), &number.to_be_bytes()];
            Origin::new(Sequence::Count, &parts)
        };
        // No two producers share a key: between them there is no order.
        let keys = if keys == 0 { 0 } else { keys.div_ceil(producers as u64) };
        Self {
            origins: (0..producers).map(origin).collect(),
            keys,
            body,
            first: EventId::hashed(&[b"bench", name.as_bytes()]),
        }
    }

    /// An event to begin with, which nothing is counted of.
    pub fn first(&self) -> Event {
        Event::new(self.first, self.body.clone(), "bench".into(), crate::event::now_us())
    }

    /// Producers.
    pub fn producers(&self) -> usize {
        self.origins.len()
    }

    /// The event with this number of a producer, due at `time_us`.
    pub fn event(&self, producer: usize, number: u64, source: &Arc<str>, time_us: i64) -> Event {
        let id = EventId::new(self.origins[producer], number, producer as u64);
        let key = (self.keys > 0).then(|| format!("{producer}-{}", number % self.keys).into());
        Event { key, ..Event::new(id, self.body.clone(), source.clone(), time_us) }
    }

    /// Whose event this is, and which; `None`: nobody's.
    fn place(&self, event: &Event) -> Option<(usize, u64)> {
        let producer = event.id.guard() as usize;
        let ours = self.origins.get(producer).is_some_and(|origin| *origin == event.id.origin());
        ours.then(|| (producer, event.id.sequence()))
    }
}

/// What one group had.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Different events that arrived and were stored.
    pub stored: u64,
    /// Deliveries of what another member may have had before, or had, and not acknowledged in time.
    pub redelivered: u64,
    /// Deliveries again of what had been acknowledged in time.
    pub doubled: u64,
    /// Events that came after a later one of their key.
    pub disordered: u64,
    /// Deliveries to a member that had lost its shard, which were turned away.
    pub fenced: u64,
    /// Events with another body, or that nobody issued.
    pub foreign: u64,
    /// The first few of what is wrong, in words.
    pub examples: Vec<String>,
    /// From when an event was due until it was stored.
    pub latencies: Histogram<u64>,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            stored: 0,
            redelivered: 0,
            doubled: 0,
            disordered: 0,
            fenced: 0,
            foreign: 0,
            examples: Vec::new(),
            latencies: latencies(),
        }
    }
}

/// Examples of what is wrong that are kept.
const EXAMPLES_MAX: usize = 5;

impl Tally {
    fn example(&mut self, what: impl FnOnce() -> String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(what());
        }
    }
}

#[derive(Debug, Default)]
struct Of {
    stored: Bits,
    acked: Bits,
    /// Numbers that may be in the stream twice.
    resent: Vec<Range<u64>>,
    /// The last number of each key, and one.
    last: Vec<u64>,
}

#[derive(Debug, Default)]
struct State {
    of: Vec<Of>,
    /// The newest owner of each shard.
    epochs: Vec<i64>,
    tally: Tally,
}

/// One group's oracle.
#[derive(Debug)]
pub struct Oracle {
    group: String,
    ordered: bool,
    state: Mutex<State>,
    /// [`Tally::stored`], for who only wants to know how far it is.
    stored: AtomicU64,
}

/// What became of a batch.
#[derive(Debug, Default)]
pub struct Kept {
    /// To be acknowledged.
    pub stored: Vec<Ticket>,
    /// Of shards that have a newer owner: to be handed back.
    pub fenced: Vec<Ticket>,
}

impl Oracle {
    /// Knows nothing yet. `ordered`: a key's events have to come in order.
    pub fn new(group: &str, ordered: bool, issue: &Issue) -> Self {
        let of = |_| Of { last: vec![0; issue.keys as usize], ..Of::default() };
        let of = (0..issue.producers()).map(of).collect();
        Self {
            group: group.to_owned(),
            ordered,
            state: Mutex::new(State { of, ..State::default() }),
            stored: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many events it has.
    pub fn stored(&self) -> u64 {
        self.stored.load(Ordering::Relaxed)
    }

    /// Takes in what a member was given at `now_us`, in the time of the events.
    pub fn store(&self, issue: &Issue, batch: &[Delivery], now_us: i64) -> Kept {
        let mut state = self.state();
        let mut kept = Kept::default();
        for delivery in batch {
            if state.is_fenced(delivery) {
                state.tally.fenced += 1;
                kept.fenced.push(delivery.ticket);
                continue;
            }
            kept.stored.push(delivery.ticket);
            state.take(issue, delivery, now_us, self.ordered, &self.group);
        }
        self.stored.store(state.tally.stored, Ordering::Relaxed);
        kept
    }

    /// These were acknowledged while they certainly were the member's: they do not come again.
    pub fn acked(&self, issue: &Issue, batch: &[Delivery]) {
        let mut state = self.state();
        for (producer, number) in batch.iter().filter_map(|it| issue.place(&it.event)) {
            state.of[producer].acked.set(number);
        }
    }

    /// These were published once more, as nobody knew whether the first time had worked: that they
    /// come again is no fault.
    pub fn resent(&self, producer: usize, numbers: Range<u64>) {
        let mut state = self.state();
        state.of[producer].resent.push(numbers);
    }

    /// What it had, and how many events are missing of those that producers made durable: the
    /// numbers below these, without those between that are not known to be.
    pub fn verdict(&self, durable: &[u64]) -> (Tally, u64) {
        let mut state = self.state();
        let mut lost = 0;
        for (producer, durable) in durable.iter().enumerate() {
            for number in 0..*durable {
                if !state.of[producer].stored.has(number) {
                    lost += 1;
                    let group = &self.group;
                    state.tally.example(|| {
                        format!("lost: event {number} of producer {producer} never came to {group}")
                    });
                }
            }
        }
        (state.tally.clone(), lost)
    }
}

impl State {
    /// Whether the sink has seen a newer owner of the shard.
    fn is_fenced(&mut self, delivery: &Delivery) -> bool {
        let Some(fence) = &delivery.fence else { return false };
        let shard = fence.shard as usize;
        if shard >= self.epochs.len() {
            self.epochs.resize(shard + 1, i64::MIN);
        }
        let newest = &mut self.epochs[shard];
        *newest = (*newest).max(fence.epoch);
        fence.epoch < *newest
    }

    fn take(
        &mut self,
        issue: &Issue,
        delivery: &Delivery,
        now_us: i64,
        ordered: bool,
        group: &str,
    ) {
        let Self { of, tally, .. } = self;
        let event = &delivery.event;
        if event.id == issue.first {
            return;
        }
        let place = issue.place(event).filter(|(_, number)| *number < NUMBERS_MAX);
        let Some((producer, number)) = place.filter(|_| event.body == issue.body) else {
            tally.foreign += 1;
            return tally.example(|| format!("foreign: {} in {group} was not issued so", event.id));
        };
        let of = &mut of[producer];
        if !of.stored.set(number) {
            let again = of.acked.has(number) && !of.resent.iter().any(|it| it.contains(&number));
            if !again {
                tally.redelivered += 1;
                return;
            }
            tally.doubled += 1;
            return tally.example(|| {
                format!(
                    "doubled: event {number} of producer {producer} came to {group} after it was \
                     acknowledged"
                )
            });
        }
        tally.stored += 1;
        tally.redelivered += u64::from(delivery.deliveries > 1);
        tally.latencies.saturating_record(now_us.saturating_sub(event.time_us).max(1) as u64);
        if !ordered || issue.keys == 0 {
            return;
        }
        let last = &mut of.last[(number % issue.keys) as usize];
        if *last > number {
            let after = *last - 1;
            tally.disordered += 1;
            tally.example(|| {
                format!(
                    "out of order: event {number} of producer {producer} came to {group} after \
                     {after} of the same key"
                )
            });
        }
        *last = (*last).max(number + 1);
    }
}

/// Numbers that a producer can issue: what is beyond is not of a bench, and would take memory.
const NUMBERS_MAX: u64 = 1 << 36;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Fence;

    fn issue() -> Issue {
        Issue::new("b", 2, 4, Bytes::from_static(b"body"))
    }

    fn delivered(issue: &Issue, producer: usize, number: u64) -> Delivery {
        Delivery {
            event: issue.event(producer, number, &"bench".into(), 1000),
            stream: "b".into(),
            ticket: Ticket { shard: 0, hold: 0, offset: number },
            deliveries: 1,
            attempts: 0,
            fence: None,
        }
    }

    /// An oracle that was given these numbers of the first producer, all acknowledged.
    fn given(issue: &Issue, numbers: &[u64], ordered: bool) -> Oracle {
        let oracle = Oracle::new("g", ordered, issue);
        for number in numbers {
            let batch = [delivered(issue, 0, *number)];
            assert_eq!(oracle.store(issue, &batch, 3000).stored.len(), 1);
            oracle.acked(issue, &batch);
        }
        oracle
    }

    fn wrong(tally: &Tally) -> [u64; 3] {
        [tally.doubled, tally.disordered, tally.foreign]
    }

    #[test]
    fn all_of_it_in_order_is_good() {
        let issue = issue();
        let oracle = given(&issue, &(0..500).collect::<Vec<_>>(), true);
        let (tally, lost) = oracle.verdict(&[500, 0]);
        assert_eq!((tally.stored, lost, wrong(&tally)), (500, 0, [0; 3]));
        assert_eq!((oracle.stored(), tally.latencies.max()), (500, 2000));
        assert!(tally.examples.is_empty());
    }

    #[test]
    fn a_lost_one_is_found() {
        let issue = issue();
        let (tally, lost) = given(&issue, &[0, 1, 3], true).verdict(&[4, 1]);
        assert_eq!((tally.stored, lost, wrong(&tally)), (3, 2, [0; 3]));
        assert_eq!(tally.examples[0], "lost: event 2 of producer 0 never came to g");
    }

    #[test]
    fn a_second_one_is_doubled_after_its_ack_and_redelivered_before() {
        let issue = issue();
        let oracle = given(&issue, &[0], true);
        oracle.store(&issue, &[delivered(&issue, 0, 1)], 3000);
        for number in [0, 1] {
            oracle.store(&issue, &[delivered(&issue, 0, number)], 3000);
        }
        let (tally, lost) = oracle.verdict(&[2, 0]);
        assert_eq!((tally.redelivered, wrong(&tally), lost), (1, [1, 0, 0], 0));
        assert!(tally.examples[0].starts_with("doubled: event 0 of producer 0"));
        // Who published it twice cannot complain.
        let oracle = given(&issue, &[0], true);
        oracle.resent(0, 0..1);
        oracle.store(&issue, &[delivered(&issue, 0, 0)], 3000);
        assert_eq!(wrong(&oracle.verdict(&[1, 0]).0), [0; 3]);
    }

    #[test]
    fn one_out_of_order_is_found_where_order_was_asked_for() {
        let issue = issue();
        // Two keys: 0 and 2 are of one, 1 and 3 of the other.
        assert_eq!(wrong(&given(&issue, &[1, 0, 2, 3], true).verdict(&[4, 0]).0), [0; 3]);
        let (tally, lost) = given(&issue, &[2, 0, 1, 3], true).verdict(&[4, 0]);
        assert_eq!((wrong(&tally), lost), ([0, 1, 0], 0));
        assert!(tally.examples[0].starts_with("out of order: event 0"), "{:?}", tally.examples);
        assert_eq!(wrong(&given(&issue, &[2, 0, 1, 3], false).verdict(&[4, 0]).0), [0; 3]);
    }

    #[test]
    fn what_nobody_issued_is_foreign() {
        let issue = issue();
        let oracle = Oracle::new("g", true, &issue);
        let mut changed = delivered(&issue, 0, 0);
        changed.event.body = Bytes::from_static(b"bodY");
        let other = Issue::new("another", 2, 4, issue.body.clone());
        oracle.store(&issue, &[changed, delivered(&other, 0, 0)], 3000);
        let (tally, lost) = oracle.verdict(&[1, 0]);
        assert_eq!((wrong(&tally), tally.stored, lost), ([0, 0, 2], 0, 1));
    }

    #[test]
    fn who_lost_the_shard_is_turned_away() {
        let issue = issue();
        let oracle = Oracle::new("g", true, &issue);
        let of_epoch = |number, epoch| Delivery {
            fence: Some(Arc::new(Fence { group: "b/g/1".into(), shard: 3, epoch })),
            ..delivered(&issue, 0, number)
        };
        assert_eq!(oracle.store(&issue, &[of_epoch(0, 7)], 3000).stored.len(), 1);
        assert_eq!(oracle.store(&issue, &[of_epoch(1, 8)], 3000).stored.len(), 1);
        let kept = oracle.store(&issue, &[of_epoch(2, 7)], 3000);
        assert_eq!((kept.stored.len(), kept.fenced.len()), (0, 1));
        let (tally, lost) = oracle.verdict(&[2, 0]);
        assert_eq!((tally.stored, tally.fenced, lost), (2, 1, 0));
    }
}
