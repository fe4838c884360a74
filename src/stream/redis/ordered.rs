//! A member of an ordered group. Who owns a shard stands in a hash beside it, and is changed by
//! one script (`lua/own.lua`), which also reads: so nothing is read by who is not the owner. Who
//! claims a shard takes from all others what they held of it, so that whatever they do to it
//! afterwards does nothing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use futures_util::future::join_all;
use redis::Value;
use tokio::time::{Instant, sleep_until};

use super::dead;
use super::entry::{Names, bytes};
use super::held::{self, Life, Name, by_shard};
use super::lanes::Found;
use super::member::close_before;
use super::state::{FREE, SCRIPTS, Stream, lock};
use crate::client::redis::odd;
use crate::event::{Delivery, Fence, Ticket};
use crate::stream::{GroupSpec, Reader, ReaderSpec};

/// How soon a member that found nothing looks again, at first and at last.
const LOOK: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(32));
/// How long one fetch waits, at most.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How often it looks at shards that are not its own, at least.
const LOOK_AROUND: Duration = Duration::from_millis(500);
/// A shard is not looked at.
const SKIP: &str = "";
/// Events that are asked of one shard at once, at most.
const AT_ONCE: usize = 1000;

/// How many events a look takes of each shard, and how many the member may hold of one before it
/// takes more of it.
#[derive(Clone, Copy, Default)]
struct Take {
    most: usize,
    room: usize,
}

/// One member.
pub(super) struct Member(Arc<Inner>);

struct Inner {
    stream: Arc<Stream>,
    group: GroupSpec,
    life: Life,
    state: Mutex<State>,
    /// Held while the member looks at its shards.
    looking: tokio::sync::Mutex<Names>,
}

/// What the member knows.
struct State {
    shards: Vec<Shard>,
    /// Who lives.
    living: Vec<String>,
    /// What was read and not fetched yet.
    ahead: VecDeque<Delivery>,
    /// Bytes of an event, about.
    size: usize,
    /// When it last looked at all shards.
    looked: Option<Instant>,
}

/// What it knows of a shard.
#[derive(Clone, Default)]
struct Shard {
    /// It is the member's.
    fence: Option<Arc<Fence>>,
    /// It was nobody's when last looked at.
    free: bool,
    /// It had nothing when last read.
    idle: bool,
}

impl State {
    fn owned(&self) -> usize {
        self.shards.iter().filter(|shard| shard.fence.is_some()).count()
    }

    /// How many shards are the member's share: all have the same number, or one more.
    fn share(&self, member: &str) -> usize {
        let Some(place) = self.living.iter().position(|name| name == member) else { return 0 };
        let (shards, members) = (self.shards.len(), self.living.len());
        shards / members + usize::from(place < shards % members)
    }

    /// What is to be done with each shard; `all`: those that are nothing to the member are looked
    /// at, too.
    fn plan(&self, member: &str, all: bool) -> Vec<&'static str> {
        let share = self.share(member);
        let (mut kept, mut owned) = (0, self.owned());
        let plan = self.shards.iter().map(|shard| {
            if shard.fence.is_some() {
                kept += 1;
                return if kept > share && !self.living.is_empty() { "give" } else { "keep" };
            }
            if shard.free && owned < share {
                owned += 1;
                return "claim";
            }
            if all { "look" } else { SKIP }
        });
        plan.collect()
    }

    /// How much is read of each shard. A member reads as much as it was asked for of all of them
    /// together: those that had events will most likely have more.
    fn reads(&self, plan: &[&str], events: usize, bytes: usize) -> Take {
        let fits = (bytes / self.size.max(1)).max(1);
        let count = events.min(fits).min(AT_ONCE);
        let own = plan.iter().map(|what| matches!(*what, "keep" | "claim"));
        let busy = self.shards.iter().zip(own).filter(|(shard, own)| *own && !shard.idle).count();
        // What is ahead is fetched first.
        let most = if self.ahead.is_empty() { count.div_ceil(busy.max(1)) } else { 0 };
        Take { most, room: 2 * count }
    }

    /// Hands out what fits, if it is still the member's.
    fn take(&mut self, events: usize, bytes: usize) -> Vec<Delivery> {
        let (mut taken, mut size) = (Vec::new(), 0);
        while let Some(next) = self.ahead.front() {
            let more = next.event.size();
            if taken.len() == events.max(1) || (!taken.is_empty() && size + more > bytes) {
                break;
            }
            let Some(next) = self.ahead.pop_front() else { break };
            let owned = self.shards.get(next.ticket.shard as usize);
            if owned.is_some_and(|shard| shard.fence == next.fence) {
                size += more;
                taken.push(next);
            }
        }
        taken
    }
}

impl Member {
    /// A hand on `stream`. What a member of this name owned before, in an earlier life, is free
    /// at once.
    pub async fn open(stream: Arc<Stream>, spec: ReaderSpec) -> Result<Self> {
        let name = Name { group: spec.group.name.to_string(), member: spec.member };
        close_before(&stream, &name).await;
        let shards = vec![Shard::default(); stream.shards.len()];
        let state =
            State { shards, living: Vec::new(), ahead: VecDeque::new(), size: 1024, looked: None };
        let inner = Inner {
            life: held::begin(&stream, name, &spec.group).await?,
            group: spec.group,
            state: Mutex::new(state),
            looking: tokio::sync::Mutex::default(),
            stream,
        };
        Ok(Self(Arc::new(inner)))
    }
}

impl Inner {
    /// Looks at all shards, with what is to be done with each, and reads from its own.
    async fn look(&self, plan: &[&str], take: Take, names: &mut Names) -> Result<()> {
        let looks = plan.iter().enumerate().filter(|(_, what)| **what != SKIP);
        let looks = looks
            .map(|(shard, what)| async move { (shard, self.look_at(shard, what, take).await) });
        let mut failed = Ok(());
        for (shard, answer) in join_all(looks).await {
            let learnt = match answer {
                Ok(Some(answer)) => self.learn(shard, plan[shard], take, answer, names).await,
                // The group was not there; it is now, and what was known of it is void.
                Ok(None) => {
                    lock(&self.state).shards[shard] = Shard::default();
                    Ok(())
                }
                Err(error) => Err(error),
            };
            if let Err(error) = learnt {
                // It may have read something that is the member's now, and that nobody has. A new
                // claim frees it: what is read before would pass over it.
                // invariant: in-order
                lock(&self.state).shards[shard] = Shard::default();
                failed = Err(error);
            }
        }
        failed
    }

    async fn look_at(&self, shard: usize, what: &str, take: Take) -> Result<Option<Value>> {
        let Self { stream, life: Life { name: Name { group, member }, cursors }, .. } = self;
        let keys = &stream.shards[shard];
        let (owner, living, cursor) = (keys.owner(group), keys.living(group), keys.cursor(group));
        let keys = [&*keys.stream, &*owner, &*living, &*cursor];
        let lease = self.group.lease.as_millis().max(1) as u64;
        let epoch = lock(&self.state).shards[shard].fence.as_ref().map_or(0, |it| it.epoch);
        let answer = stream.redis.run(&SCRIPTS.own, &keys, |cmd| {
            cmd.arg(what).arg(group).arg(member).arg(lease).arg(FREE);
            cmd.arg(take.most).arg(take.room).arg(format!("{:016x}", fastrand::u64(..)));
            cmd.arg(&cursors[shard]).arg(epoch);
        });
        stream.of_group(answer.await).await
    }

    async fn learn(
        &self,
        shard: usize,
        what: &str,
        take: Take,
        answer: Value,
        names: &mut Names,
    ) -> Result<()> {
        let Value::Array(answer) = answer else { return Err(odd("an ownership")) };
        let mut parts = answer.into_iter();
        let mut next = || parts.next().context("an ownership is cut short");
        let epoch: i64 = text(next()?)?.parse()?;
        let id = text(next()?)?;
        let free = next()? == Value::Int(1);
        let (Value::Array(living), Value::Array(entries), Value::Array(counts)) =
            (next()?, next()?, next()?)
        else {
            return Err(odd("an ownership"));
        };
        let (stream, group) = (&self.stream.spec.name, &self.life.name.group);
        let fence = (epoch > 0).then(|| {
            let group = format!("{stream}/{group}/{id}").into();
            Arc::new(Fence { group, shard: shard as u32, epoch })
        });
        let (mut found, is_empty) = (Found::default(), entries.is_empty());
        for (entry, count) in entries.into_iter().zip(counts) {
            let Value::Int(count) = count else { return Err(odd("an ownership")) };
            found.add(&self.stream, &self.life.name, shard, entry, count.max(1) as u64, names);
        }
        if !found.not_ours.is_empty() {
            held::ack(&self.stream, &self.life, &found.not_ours).await?;
        }
        let living = living.into_iter().map(text).collect::<Result<Vec<String>>>()?;
        let mut state = lock(&self.state);
        // Who leaves is not among those that live, and will be again when it looks.
        if shard == 0 && what != "leave" {
            state.living = living;
            // The server has them by when they were last seen.
            state.living.sort_unstable();
        }
        let known = &mut state.shards[shard];
        // What is new to the member may have anything in it.
        let was_read = fence.is_some() && known.fence == fence;
        let idle = was_read && if take.most > 0 { is_empty } else { known.idle };
        *known = Shard { fence: fence.clone(), free, idle };
        for mut delivery in found.deliveries {
            delivery.fence = fence.clone();
            state.size = delivery.event.size().max(state.size - state.size / 64);
            state.ahead.push_back(delivery);
        }
        Ok(())
    }

    /// Keeps, claims and gives up shards, and reads. To its end also where the caller goes away,
    /// so that nothing is read that nobody has.
    async fn look_around(self: &Arc<Self>, events: usize, bytes: usize, all: bool) -> Result<()> {
        let inner = self.clone();
        let task = tokio::spawn(async move {
            let mut names = inner.looking.lock().await;
            let (plan, take) = {
                let mut state = lock(&inner.state);
                let every = LOOK_AROUND.min(inner.group.lease / 4);
                let all = all || state.looked.is_none_or(|looked| looked.elapsed() >= every);
                if all {
                    state.looked = Some(Instant::now());
                }
                let plan = state.plan(&inner.life.name.member, all);
                let take = state.reads(&plan, events, bytes);
                (plan, take)
            };
            inner.look(&plan, take, &mut names).await
        });
        task.await.context("a look at the shards was cut off")?
    }

    /// Gives up shards, and what was read ahead of them. The member counts no more there until it
    /// looks again.
    async fn give_up(&self, mut which: Vec<usize>) -> Result<()> {
        which.dedup();
        let mut names = self.looking.lock().await;
        let ahead: Vec<Ticket> = {
            let mut state = lock(&self.state);
            let (gone, kept): (VecDeque<_>, VecDeque<_>) = std::mem::take(&mut state.ahead)
                .into_iter()
                .partition(|delivery| which.contains(&(delivery.ticket.shard as usize)));
            state.ahead = kept;
            gone.iter().map(|delivery| delivery.ticket).collect()
        };
        held::release(&self.stream, &self.life, &ahead).await?;
        let mut plan = vec![SKIP; self.stream.shards.len()];
        which.into_iter().for_each(|shard| plan[shard] = "leave");
        self.look(&plan, Take::default(), &mut names).await?;
        self.stream.known.handed_back.notify_waiters();
        Ok(())
    }
}

fn text(value: Value) -> Result<String> {
    Ok(String::from_utf8(bytes(value))?)
}

#[async_trait]
impl Reader for Member {
    async fn fetch(&self, events: usize, bytes: usize, wait: Duration) -> Result<Vec<Delivery>> {
        let inner = &self.0;
        let end = Instant::now() + wait.min(WAIT_MAX);
        let (mut pause, mut all) = (LOOK.0, wait.is_zero());
        loop {
            inner.stream.tend();
            let handed_back = inner.stream.known.handed_back.notified();
            tokio::pin!(handed_back);
            handed_back.as_mut().enable();
            inner.look_around(events.max(1), bytes, all).await?;
            all = false;
            let (taken, claims) = {
                let mut state = lock(&inner.state);
                let taken = state.take(events, bytes);
                (taken, state.plan(&inner.life.name.member, false).contains(&"claim"))
            };
            if !taken.is_empty() {
                return Ok(taken);
            }
            if claims {
                continue;
            }
            if Instant::now() >= end {
                return Ok(Vec::new());
            }
            tokio::select! {
                () = handed_back => all = true,
                () = sleep_until(end.min(Instant::now() + pause)) => {}
            }
            pause = LOOK.1.min(pause * 2);
        }
    }

    async fn ack(&self, tickets: &[Ticket]) -> Result<()> {
        held::ack_own(&self.0.stream, &self.0.life, tickets).await
    }

    async fn renew(&self, tickets: &[Ticket]) -> Result<Vec<Ticket>> {
        self.0.look_around(0, 0, true).await?;
        Ok(held::renew(&self.0.stream, &self.0.life, tickets).await?.lost)
    }

    async fn charge(&self, ticket: Ticket) -> Result<Option<u32>> {
        held::charge(&self.0.stream, &self.0.life, ticket, "1").await
    }

    async fn refund(&self, ticket: Ticket) -> Result<()> {
        held::charge(&self.0.stream, &self.0.life, ticket, "-1").await.map(drop)
    }

    async fn release(&self, tickets: &[Ticket]) -> Result<()> {
        held::release(&self.0.stream, &self.0.life, tickets).await?;
        let shards = by_shard(&self.0.stream, tickets);
        self.0.give_up(shards.into_iter().map(|(shard, _)| shard).collect()).await
    }

    async fn leave(&self) -> Result<()> {
        self.0.give_up((0..self.0.stream.shards.len()).collect()).await
    }

    async fn bury(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let Inner { stream, group, life, .. } = &*self.0;
        dead::bury(stream, group, life, delivery, reason).await
    }
}
