//! Members do at random what members do, against a model that knows what each event's state is:
//! what is acked never comes again, what is not comes in the end, and the counts are right.
//! `SEED=…` repeats a run; `RUNS=…` makes more of them.

#[path = "support/streams.rs"]
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aqueduct::event::{Delivery, Event};
use aqueduct::stream::{Appended, Backend, Reader, ReaderSpec, Writer};
use fastrand::Rng;
use streams::*;

const GROUPS: [&str; 2] = ["a", "b"];
const MEMBERS: usize = 3;
const STEPS: usize = 150;

/// Where an event is, for one group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nobody holds it.
    Free,
    /// This member does.
    Held(usize),
    /// It is done with.
    Acked,
    /// It is a dead letter.
    Dead,
}

/// What a group must know of an event.
#[derive(Clone, Copy, Debug)]
struct Known {
    state: State,
    deliveries: u32,
    attempts: u32,
}

/// A group and its members.
struct Group {
    name: &'static str,
    members: Vec<Arc<dyn Reader>>,
    /// What each member was given and has not acked, as far as it knows.
    hands: Vec<Vec<Delivery>>,
    /// What was held in earlier lives.
    stale: Vec<Delivery>,
    known: BTreeMap<u64, Known>,
}

struct World {
    at: Place,
    rng: Rng,
    backend: Arc<dyn Backend>,
    writer: Box<dyn Writer>,
    next: u64,
    groups: Vec<Group>,
}

impl World {
    async fn new(at: Place, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let shards = rng.u32(1..=3);
        let at = at.groups(&GROUPS).with(|spec| spec.shards = shards);
        let at = at.lease(Duration::from_secs(3600));
        let backend = at.open().await;
        let writer = backend.writer().await.unwrap();
        let groups = GROUPS.map(|name| Group {
            name,
            members: Vec::new(),
            hands: vec![Vec::new(); MEMBERS],
            stale: Vec::new(),
            known: BTreeMap::new(),
        });
        let mut world = Self { at, rng, backend, writer, next: 0, groups: groups.into() };
        world.members().await;
        world
    }

    /// Opens all members.
    async fn members(&mut self) {
        for group in &mut self.groups {
            for member in 0..MEMBERS {
                let reader = join(&self.at, &self.backend, group.name, member).await;
                group.members.push(reader);
            }
        }
    }

    async fn step(&mut self) {
        let (group, member) = (self.rng.usize(..GROUPS.len()), self.rng.usize(..MEMBERS));
        match self.rng.u32(..100) {
            0..20 => self.append().await,
            20..50 => self.fetch(group, member).await,
            50..65 => self.ack(group, member).await,
            65..73 => self.release(group, member).await,
            73..78 => self.renew(group, member).await,
            78..84 => self.charge(group, member).await,
            84..88 => self.bury(group, member).await,
            88..90 => self.replay().await,
            90..95 => self.restart(group, member).await,
            95..98 => self.use_stale(group, member).await,
            98 => self.reopen().await,
            _ => self.compare().await,
        }
    }

    async fn append(&mut self) {
        let count = self.rng.u64(1..60);
        let (to, rng) = (self.next + count, &mut self.rng);
        let keyed = |number| {
            let key = rng.bool().then(|| format!("k{}", rng.u32(..5)).into());
            Event { key, ..event(number) }
        };
        let events = (self.next..to).map(keyed).collect();
        let from = (self.next > 0).then_some(self.next);
        let append = moving("a", from, Some(to), events);
        assert_eq!(self.writer.append(&[append]).await.unwrap(), [Appended::Durable]);
        for group in &mut self.groups {
            let new = Known { state: State::Free, deliveries: 0, attempts: 0 };
            group.known.extend((self.next..to).map(|number| (number, new)));
        }
        self.next = to;
    }

    async fn fetch(&mut self, group: usize, member: usize) {
        let group = &mut self.groups[group];
        let count = self.rng.usize(1..80);
        let free = group.known.values().filter(|known| known.state == State::Free).count();
        let mut taken = group.members[member].fetch(count, BYTES, Duration::ZERO).await.unwrap();
        // Another member may have read ahead what is free, and hands it back soon.
        if taken.is_empty() && free > 0 {
            taken = group.members[member].fetch(count, BYTES, PATIENCE).await.unwrap();
        }
        assert!(taken.len() <= count);
        assert!(!taken.is_empty() || free == 0, "{free} events are free and none came");
        group.take(member, taken);
    }

    /// A random part of what a member holds.
    fn part(&mut self, group: usize, member: usize) -> Vec<Delivery> {
        let hand = &mut self.groups[group].hands[member];
        if hand.is_empty() {
            return Vec::new();
        }
        if self.rng.bool() {
            return std::mem::take(hand);
        }
        let start = self.rng.usize(..hand.len());
        let end = self.rng.usize(start..hand.len()) + 1;
        hand.drain(start..end).collect()
    }

    async fn ack(&mut self, group: usize, member: usize) {
        let mut part = self.part(group, member);
        self.rng.shuffle(&mut part);
        let group = &mut self.groups[group];
        group.members[member].ack(&tickets(&part)).await.unwrap();
        for number in numbers(&part) {
            group.change(number, |known| known.state = State::Acked);
        }
        group.stale.extend(part);
    }

    async fn release(&mut self, group: usize, member: usize) {
        let part = self.part(group, member);
        let group = &mut self.groups[group];
        group.members[member].release(&tickets(&part)).await.unwrap();
        for number in numbers(&part) {
            group.change(number, |known| {
                known.state = State::Free;
                known.deliveries -= 1;
            });
        }
        group.stale.extend(part);
    }

    async fn renew(&mut self, group: usize, member: usize) {
        let mut part = self.part(group, member);
        let group = &mut self.groups[group];
        let lost = group.members[member].renew(&tickets(&part)).await.unwrap();
        assert_eq!(lost, [], "a member lost what it holds");
        group.hands[member].append(&mut part);
    }

    async fn charge(&mut self, group: usize, member: usize) {
        let back = self.rng.bool();
        let group = &mut self.groups[group];
        let Some(delivery) = self.rng.choice(&group.hands[member]).cloned() else { return };
        let (number, ticket) = (delivery.event.id.sequence(), delivery.ticket);
        let charged = group.members[member].charge(ticket).await.unwrap();
        assert_eq!(charged, Some(group.known[&number].attempts + 1));
        group.change(number, |known| known.attempts += 1);
        if back {
            group.members[member].refund(ticket).await.unwrap();
            group.change(number, |known| known.attempts -= 1);
        }
    }

    async fn bury(&mut self, group: usize, member: usize) {
        let group = &mut self.groups[group];
        let Some(delivery) = group.hands[member].pop() else { return };
        group.members[member].bury(&delivery, "at random").await.unwrap();
        group.change(delivery.event.id.sequence(), |known| known.state = State::Dead);
        group.stale.push(delivery);
    }

    async fn replay(&mut self) {
        let replayed = self.backend.replay_dead(&[]).await.unwrap();
        let mut dead = 0;
        for known in self.groups.iter_mut().flat_map(|group| group.known.values_mut()) {
            if known.state == State::Dead {
                *known = Known { state: State::Free, deliveries: 0, attempts: 0 };
                dead += 1;
            }
        }
        assert_eq!(replayed, dead);
    }

    /// A member ends without a word, and a new one of its name begins.
    async fn restart(&mut self, group: usize, member: usize) {
        let group = &mut self.groups[group];
        group.members[member] = join(&self.at, &self.backend, group.name, member).await;
        group.die(member);
    }

    /// What is held no more, nobody can touch.
    async fn use_stale(&mut self, group: usize, member: usize) {
        let group = &mut self.groups[group];
        // A ticket may name the event, and not how it came to the member that holds it again.
        let held = tickets(&group.hands[member]);
        group.stale.retain(|old| !held.contains(&old.ticket));
        let (reader, old) = (&group.members[member], tickets(&group.stale));
        let lost = reader.renew(&old).await.unwrap();
        let kept: Vec<_> = old.iter().filter(|ticket| !lost.contains(ticket)).collect();
        assert!(kept.is_empty(), "still held: {kept:?}");
        reader.ack(&old).await.unwrap();
        reader.release(&old).await.unwrap();
        if let Some(delivery) = self.rng.choice(&group.stale) {
            assert_eq!(reader.charge(delivery.ticket).await.unwrap(), None);
            reader.refund(delivery.ticket).await.unwrap();
            reader.bury(delivery, "not held").await.unwrap();
        }
    }

    /// The process ends and starts.
    async fn reopen(&mut self) {
        self.groups.iter_mut().for_each(|group| group.members.clear());
        self.writer = self.at.open().await.writer().await.unwrap();
        self.backend = self.at.open().await;
        self.members().await;
        for group in &mut self.groups {
            (0..MEMBERS).for_each(|member| group.die(member));
        }
    }

    /// The numbers of the status are those of the model.
    async fn compare(&mut self) {
        let dead = self.backend.dead().await.unwrap();
        for group in &self.groups {
            let count = |wanted: fn(&State) -> bool| {
                group.known.values().filter(|known| wanted(&known.state)).count() as u64
            };
            let status = group_status(&self.backend, group.name).await;
            let held = count(|state| matches!(state, State::Held(_)));
            let free = count(|state| *state == State::Free);
            // What a dead member held counts as pending until another has it, and what was
            // replayed for one group counts for the other until it is passed over.
            let (lag, pending) = (status.lag.unwrap(), status.pending.unwrap());
            assert!(pending >= held, "pending {pending}, and {held} are held");
            assert!(lag + pending >= held + free, "{lag} + {pending} of {held} + {free}");
            let letters = dead.iter().filter(|letter| letter.group == group.name).count() as u64;
            assert_eq!(letters, count(|state| *state == State::Dead));
        }
    }

    /// Everybody finishes: each event that is not done with comes, once.
    async fn finish(&mut self) {
        for group in 0..GROUPS.len() {
            for member in 0..MEMBERS {
                self.restart(group, member).await;
            }
            let group = &mut self.groups[group];
            loop {
                let left = |known: &Known| !matches!(known.state, State::Acked | State::Dead);
                let wait = if group.known.values().any(left) { PATIENCE } else { Duration::ZERO };
                let taken = group.members[0].fetch(100, BYTES, wait).await.unwrap();
                if taken.is_empty() {
                    break;
                }
                group.members[0].ack(&tickets(&taken)).await.unwrap();
                group.take(0, taken.clone());
                for number in numbers(&taken) {
                    group.change(number, |known| known.state = State::Acked);
                }
            }
            let left: BTreeSet<u64> = group
                .known
                .iter()
                .filter(|(_, known)| !matches!(known.state, State::Acked | State::Dead))
                .map(|(number, _)| *number)
                .collect();
            assert!(left.is_empty(), "never delivered to {}: {left:?}", group.name);
            let status = group_status(&self.backend, group.name).await;
            assert_eq!((status.lag, status.pending), (Some(0), Some(0)));
        }
        let backend = self.backend.clone();
        until("all of it is deleted", async || length(&backend).await == 0).await;
    }
}

impl Group {
    fn change(&mut self, number: u64, change: impl FnOnce(&mut Known)) {
        change(self.known.get_mut(&number).unwrap());
    }

    /// A member was given these.
    fn take(&mut self, member: usize, taken: Vec<Delivery>) {
        for delivery in &taken {
            let number = delivery.event.id.sequence();
            assert_eq!(delivery.event.body, event(number).body);
            self.change(number, |known| {
                assert_eq!(known.state, State::Free, "event {number} is delivered");
                known.state = State::Held(member);
                known.deliveries += 1;
                let counts = (known.deliveries, known.attempts);
                assert_eq!((delivery.deliveries, delivery.attempts), counts, "event {number}");
            });
        }
        self.hands[member].extend(taken);
    }

    /// What a member held is free; its next delivery counts.
    fn die(&mut self, member: usize) {
        let hand = std::mem::take(&mut self.hands[member]);
        for number in numbers(&hand) {
            self.change(number, |known| {
                if known.state == State::Held(member) {
                    known.state = State::Free;
                }
            });
        }
        self.stale.extend(hand);
    }
}

async fn join(
    at: &Place,
    backend: &Arc<dyn Backend>,
    name: &str,
    number: usize,
) -> Arc<dyn Reader> {
    let group = at.spec.groups.iter().find(|group| *group.name == *name).unwrap().clone();
    let member = format!("here/{name}/{number}");
    backend.reader(ReaderSpec { group, member }).await.unwrap()
}

async fn run(place: impl Fn() -> Place) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let runs = number("RUNS").unwrap_or(12);
    for _ in 0..runs {
        let seed = number("SEED").unwrap_or_else(|| fastrand::u64(..));
        println!("SEED={seed}");
        let mut world = World::new(place(), seed).await;
        for _ in 0..STEPS {
            world.step().await;
        }
        world.compare().await;
        world.finish().await;
    }
}

/// The test for one backend.
macro_rules! what_happens_at_random_is_what_the_model_says {
    ($backend:ident, $place:expr) => {
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $backend() {
            run(|| $place).await;
        }
    };
}

what_happens_at_random_is_what_the_model_says!(embedded, Place::embedded());
what_happens_at_random_is_what_the_model_says!(redis, Place::redis());
what_happens_at_random_is_what_the_model_says!(redis_cluster, Place::redis_cluster());
what_happens_at_random_is_what_the_model_says!(postgres, Place::postgres());
