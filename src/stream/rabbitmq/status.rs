//! How much is waiting. The broker tells what is ready in a queue, and how many consumers it has;
//! what members hold, only this process's own are known.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::try_join_all;
use lapin::Channel;
use lapin::types::ShortString;

use super::Broker;
use super::declare;
use super::hand::Hand;
use super::names::GroupNames;
use crate::stream::{ConsumerStatus, GroupStatus, StreamStatus};

/// How long what is known of the slowest group is believed.
const BACKLOG_KNOWN: Duration = Duration::from_secs(1);

/// The members of this process, by broker and queue.
static MEMBERS: LazyLock<Mutex<HashMap<Group, Vec<Weak<Hand>>>>> = LazyLock::new(Mutex::default);

/// The broker's URL, and a queue that only this group has.
type Group = (String, ShortString);

/// Makes a member known.
pub(super) fn register(url: &str, group: &GroupNames, hand: Weak<Hand>) {
    let mut members = MEMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    members.retain(|_, hands| {
        hands.retain(|hand| hand.strong_count() > 0);
        !hands.is_empty()
    });
    members.entry((url.to_owned(), group.suspects.clone())).or_default().push(hand);
}

/// What members of this process hold.
struct Own {
    members: u64,
    waiting: u64,
    held: u64,
    consumers: Vec<ConsumerStatus>,
}

fn own(url: &str, group: &GroupNames) -> Own {
    let members = MEMBERS.lock().unwrap_or_else(PoisonError::into_inner);
    let found = members.get(&(url.to_owned(), group.suspects.clone()));
    let mut own = Own { members: 0, waiting: 0, held: 0, consumers: Vec::new() };
    for hand in found.into_iter().flatten().filter_map(Weak::upgrade) {
        if hand.check().is_err() {
            continue;
        }
        let (waiting, held, idle) = hand.numbers();
        own.members += 1;
        own.waiting += waiting;
        own.held += held;
        own.consumers.push(ConsumerStatus {
            name: hand.member.clone(),
            pending: Some(held),
            idle_ms: Some(idle.as_millis() as u64),
        });
    }
    own.consumers.sort_by(|a, b| a.name.cmp(&b.name));
    own
}

/// Counts what is ready.
pub(super) struct Counter {
    channel: Channel,
    known: Mutex<Known>,
}

/// How far the slowest group is behind, as far as it is known.
#[derive(Default)]
struct Known {
    at: Option<Instant>,
    behind: u64,
    /// Published since.
    since: u64,
}

impl Counter {
    /// Counts on this channel.
    pub fn new(channel: Channel) -> Self {
        Self { channel, known: Mutex::default() }
    }

    /// Messages ready for a group, and the most consumers that one of its queues has.
    async fn ready(&self, group: &GroupNames) -> Result<(u64, u64)> {
        let queues = group.queues.iter().chain([&group.suspects]);
        // Asked in one go, answered in order.
        let counts = try_join_all(queues.map(|queue| declare::count(&self.channel, queue))).await?;
        let ready = counts.iter().map(|(ready, _)| ready).sum();
        Ok((ready, counts.iter().map(|(_, consumers)| *consumers).max().unwrap_or_default()))
    }

    fn known(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Broker {
    /// The numbers of `/streams`.
    pub async fn status(&self) -> Result<StreamStatus> {
        let mut groups = Vec::with_capacity(self.names.groups.len());
        for group in &self.names.groups {
            let (ready, consumers) = self.counter.ready(group).await?;
            let own = own(&self.url, group);
            groups.push(GroupStatus {
                name: group.name.to_string(),
                lag: Some(ready + own.waiting),
                // What other processes' members hold, nobody tells.
                pending: (consumers <= own.members).then_some(own.held),
                consumers: own.consumers,
                oldest_us: None, // a queue shows no message without handing it out
            });
        }
        groups.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(StreamStatus { stream: self.spec.name.to_string(), groups, ..StreamStatus::default() })
    }

    /// How far the slowest group is behind, where that leaves no room for `count` events after
    /// `taken` others. A group that has nothing to do has room for any number.
    pub async fn behind(&self, taken: u64, count: u64) -> Result<Option<u64>> {
        let max = self.spec.max_backlog;
        let full = |behind: u64| (behind > 0 && behind + count > max).then_some(behind);
        if count == 0 || self.names.groups.is_empty() {
            return Ok(None);
        }
        let believed = {
            let known = self.counter.known();
            let fresh = known.at.is_some_and(|at| at.elapsed() < BACKLOG_KNOWN);
            fresh.then_some(known.behind + known.since + taken)
        };
        if believed.is_some_and(|behind| full(behind).is_none()) {
            return Ok(None);
        }
        let mut slowest = 0;
        for group in &self.names.groups {
            let own = own(&self.url, group);
            slowest = slowest.max(self.counter.ready(group).await?.0 + own.waiting + own.held);
        }
        *self.counter.known() = Known { at: Some(Instant::now()), behind: slowest, since: 0 };
        Ok(full(slowest + taken))
    }

    /// So many events were published.
    pub fn published(&self, count: u64) {
        self.counter.known().since += count;
    }
}
