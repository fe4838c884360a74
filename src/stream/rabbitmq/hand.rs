//! What a member holds: the broker has sent it, and waits for word of it.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use futures_util::FutureExt;
use lapin::Channel;
use lapin::options::{BasicAckOptions, BasicNackOptions};

use super::in_flight::Sky;
use super::link::answer;
use super::message::{Counts, Read};
use crate::event::{Event, Ticket};

/// A channel's number, so that a ticket of an earlier channel never matches.
static SERIAL: AtomicU64 = AtomicU64::new(1);

/// A channel that messages of one queue come by.
pub(super) struct Lane {
    /// The channel.
    pub channel: Channel,
    /// Its number in this process.
    pub serial: u64,
}

impl Lane {
    /// A lane of its own on `channel`.
    pub fn new(channel: Channel) -> Self {
        Self { channel, serial: SERIAL.fetch_add(1, Ordering::Relaxed) }
    }
}

/// Where a message is to be answered for: the lane's index, and the delivery tag in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub lane: usize,
    pub tag: u64,
}

/// One message.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub event: Event,
    pub place: Place,
    pub shard: u32,
    /// Deliveries, this one included.
    pub deliveries: u32,
    /// Charged attempts.
    pub attempts: u32,
    /// The last of them is charged for a delivery that is yet to come.
    pub unspent: bool,
    /// When the broker sent it.
    since: Instant,
    /// When the member's lease of it ends.
    deadline: Instant,
}

impl Held {
    /// What came by `place`.
    pub fn new(read: Read, place: Place, shard: u32) -> Self {
        let now = Instant::now();
        Self {
            event: read.event,
            place,
            shard,
            deliveries: read.counts.deliveries.saturating_add(1 + u32::from(read.returned)),
            attempts: read.counts.attempts,
            unspent: read.counts.unspent && !read.returned && read.counts.attempts > 0,
            since: now,
            deadline: now,
        }
    }

    /// What a copy of it carries, so that this delivery does not count.
    pub fn counts(&self) -> Counts {
        Counts {
            deliveries: self.deliveries.saturating_sub(1),
            attempts: self.attempts,
            token: 0,
            unspent: self.unspent,
            shard: self.shard,
        }
    }

    /// Attempts that were made.
    pub fn spent(&self) -> u32 {
        self.attempts - u32::from(self.unspent)
    }
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Word {
    /// It is done with.
    Ack,
    /// It goes to whoever is next, and the broker counts it.
    Requeue,
}

/// A member's hand.
pub(super) struct Hand {
    /// `INSTANCE/GROUP/NUMBER`
    pub member: String,
    /// By shard, and last that of the suspects.
    pub lanes: Vec<Lane>,
    inner: Mutex<Inner>,
}

/// What is in a hand, under its lock.
pub(super) struct Inner {
    /// Sent by the broker, and not fetched yet.
    pub buffer: VecDeque<Held>,
    /// Fetched.
    pub held: HashMap<Ticket, Held>,
    /// Somebody may have had these before: see [`super::reader`].
    pub returned: Vec<Held>,
    /// Of each lane, what is not answered for.
    open: Vec<BTreeSet<u64>>,
    /// Of each lane, the newest tag.
    newest: Vec<u64>,
    /// When the member was last seen.
    pub seen: Instant,
    /// The mean size of a message, and of how many of late.
    pub mean_bytes: f64,
    pub sampled: usize,
}

impl Hand {
    /// An empty hand on `lanes`.
    pub fn new(member: String, lanes: Vec<Lane>) -> Self {
        let open = lanes.iter().map(|_| BTreeSet::new()).collect();
        let newest = lanes.iter().map(|_| 0).collect();
        Self {
            member,
            lanes,
            inner: Mutex::new(Inner {
                buffer: VecDeque::new(),
                held: HashMap::new(),
                returned: Vec::new(),
                open,
                newest,
                seen: Instant::now(),
                mean_bytes: 0.0,
                sampled: 0,
            }),
        }
    }

    /// What is in it.
    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The suspects' lane.
    pub fn suspects(&self) -> usize {
        self.lanes.len() - 1
    }

    /// Messages that wait, messages that are held, and how long the member was not seen.
    pub fn numbers(&self) -> (u64, u64, Duration) {
        let inner = self.lock();
        let waiting = inner.buffer.len() + inner.returned.len();
        (waiting as u64, inner.held.len() as u64, inner.seen.elapsed())
    }

    /// Whether every lane still is what it was.
    pub fn check(&self) -> Result<()> {
        let open = self.lanes.iter().all(|lane| lane.channel.status().connected());
        ensure!(open, "the connection to the broker is gone");
        Ok(())
    }

    /// Gives the broker its word on messages that have left the hand, as few times as possible.
    /// `inner` is locked all the while: of two words on one message the broker takes the second
    /// ill. The words go out in order, whether they are waited for or not.
    pub fn answer(&self, inner: &mut Inner, places: &[Place], word: Word) -> Words {
        let mut words = Words(Vec::new());
        for (index, lane) in self.lanes.iter().enumerate() {
            let open = &mut inner.open[index];
            let mut tags: Vec<u64> = Vec::new();
            for place in places {
                if place.lane == index && open.remove(&place.tag) {
                    tags.push(place.tag);
                }
            }
            tags.sort_unstable();
            // All that came before the first open one is answered for by a single word: messages
            // come by a lane in the order of their tags.
            let first_open = open.first().copied().unwrap_or(u64::MAX);
            let split = tags.partition_point(|tag| *tag < first_open);
            if split > 0 {
                words.say(&lane.channel, tags[split - 1], split > 1, word);
            }
            for tag in &tags[split..] {
                words.say(&lane.channel, *tag, false, word);
            }
        }
        words
    }
}

/// Words on their way.
pub(super) struct Words(Vec<Pin<Box<dyn Future<Output = lapin::Result<()>> + Send>>>);

impl Words {
    fn say(&mut self, channel: &Channel, tag: u64, multiple: bool, word: Word) {
        let channel = channel.clone();
        let mut saying: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(async move {
            match word {
                Word::Ack => channel.basic_ack(tag, BasicAckOptions { multiple }).await,
                Word::Requeue => {
                    let options = BasicNackOptions { multiple, requeue: true };
                    channel.basic_nack(tag, options).await
                }
            }
        });
        // The first poll hands it over: so they go out in order.
        match saying.as_mut().now_or_never() {
            Some(said) => self.0.push(Box::pin(std::future::ready(said))),
            None => self.0.push(saying),
        }
    }

    /// Returns when all are out of this process: should it die then, the broker has them all the
    /// same.
    pub async fn out(self) -> Result<()> {
        for saying in self.0 {
            answer("answer for a message", saying).await?;
        }
        Ok(())
    }
}

impl Inner {
    /// A message came by a lane.
    pub fn arrived(&mut self, place: Place) {
        self.open[place.lane].insert(place.tag);
        self.newest[place.lane] = place.tag;
    }

    /// The tag of the newest message of a lane.
    pub fn newest(&self, lane: usize) -> u64 {
        self.newest[lane]
    }

    /// How many messages after `tag` the broker waits for word of.
    pub fn open_since(&self, lane: usize, tag: u64) -> usize {
        self.open[lane].range(tag + 1..).count()
    }

    /// Takes what fits from the buffer into the member's hand, under leases that end at
    /// `deadline`; nothing from the first on that `sky` holds.
    pub fn take(
        &mut self,
        lanes: &[Lane],
        events: usize,
        bytes: usize,
        deadline: Instant,
        sky: &Sky,
    ) -> Vec<(Ticket, Held)> {
        let mut taken: Vec<(Ticket, Held)> = Vec::with_capacity(events.min(self.buffer.len()));
        let mut total = 0;
        while taken.len() < events.max(1)
            && let Some(next) = self.buffer.front()
        {
            total += next.event.size();
            let fits = taken.is_empty() || total <= bytes;
            if !fits || sky.holds(&next.event.id) {
                break;
            }
            let Some(mut held) = self.buffer.pop_front() else { break };
            held.deadline = deadline;
            let Place { lane, tag } = held.place;
            let ticket = Ticket { shard: held.shard, hold: lanes[lane].serial, offset: tag };
            self.held.insert(ticket, held.clone());
            taken.push((ticket, held));
        }
        taken
    }

    /// Starts leases anew. Whether it is this member's.
    pub fn renew(&mut self, ticket: &Ticket, deadline: Instant) -> bool {
        let Some(held) = self.held.get_mut(ticket) else { return false };
        held.deadline = held.deadline.max(deadline);
        true
    }

    /// Ends a lease at `deadline`, if not before.
    pub fn shorten(&mut self, ticket: &Ticket, deadline: Instant) {
        if let Some(held) = self.held.get_mut(ticket) {
            held.deadline = held.deadline.min(deadline);
        }
    }

    /// Takes out what was held past its lease.
    pub fn take_expired(&mut self, now: Instant) -> Vec<Held> {
        self.held.extract_if(|_, held| held.deadline < now).map(|(_, held)| held).collect()
    }

    /// What the broker waits for longer than `age`, without taking it out.
    pub fn older(&self, now: Instant, age: Duration) -> (Vec<Ticket>, bool) {
        let old = |held: &Held| now.saturating_duration_since(held.since) > age;
        let held = self.held.iter().filter(|(_, held)| old(held)).map(|(ticket, _)| *ticket);
        (held.collect(), self.buffer.iter().any(old))
    }
}
