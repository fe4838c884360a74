//! A group member's hand on a stream.
//!
//! Every command that can make an event this member's runs in a task of its own and puts what it
//! got into the hand, so that a fetch that is given up loses nothing. What nobody fetches from
//! there is handed back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use anyhow::{Error, Result};
use async_trait::async_trait;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::dead;
use super::hand::Hand;
use super::held::{self, Life, Name};
use super::lanes::{BLOCK_MAX, Found, Lane, lanes};
use super::state::{Stream, lock};
use crate::event::{Delivery, Ticket};
use crate::stream::{GroupSpec, Reader, ReaderSpec};

/// How often a waiting member looks for what other processes handed back.
const LOOK: Duration = Duration::from_millis(100);
/// How often a member looks for what nobody renews, at most and at least.
const SEARCH: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));
/// How long one fetch waits, at most.
const WAIT_MAX: Duration = Duration::from_secs(3600);
/// How long what was read ahead waits for a fetch, at most.
const AHEAD_MAX: Duration = Duration::from_millis(500);

/// One member.
pub(super) struct Member(Arc<Inner>);

/// What the tasks of a member share.
pub(super) struct Inner {
    stream: Arc<Stream>,
    group: GroupSpec,
    life: Life,
    lanes: Vec<Lane>,
    hand: Mutex<Hand>,
    looks: Mutex<Looks>,
    /// A look for what others left is under way.
    looking: AtomicBool,
    /// Something was read, or a read ended.
    changed: Notify,
    failed: Mutex<Option<Error>>,
    /// Somebody sees to what is read ahead.
    minded: AtomicBool,
    /// The member is gone: what is read now is handed back.
    closed: AtomicBool,
    /// Held while something is handed back.
    handing: tokio::sync::Mutex<()>,
    /// It has said that it is gone. Not to be said twice: by then the next life of its name may be
    /// there.
    gone: tokio::sync::Mutex<bool>,
}

/// When a member last looked for what others left.
struct Looks {
    looked: Option<Instant>,
    searched: Option<Instant>,
}

impl Member {
    /// A hand on `stream`. What a member of this name held before, in an earlier life, is free
    /// at once.
    pub async fn open(stream: Arc<Stream>, spec: ReaderSpec) -> Result<Self> {
        let name = Name { group: spec.group.name.to_string(), member: spec.member };
        let known = stream.known.clone();
        close_before(&stream, &name).await;
        let life = held::begin(&stream, name, &spec.group).await?;
        let inner = Arc::new(Inner {
            lanes: lanes(&stream),
            hand: Mutex::new(Hand::new(spec.group.lease)),
            group: spec.group,
            life,
            stream,
            looks: Mutex::new(Looks { looked: None, searched: None }),
            looking: AtomicBool::new(false),
            changed: Notify::new(),
            failed: Mutex::default(),
            minded: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            handing: tokio::sync::Mutex::default(),
            gone: tokio::sync::Mutex::default(),
        });
        lock(&known.members).insert(inner.life.name.clone(), Arc::downgrade(&inner));
        Ok(Self(inner))
    }
}

/// Ends the life before of a member of this process. What it had not handed out does not count as
/// delivered: only it can tell which that is.
pub(super) async fn close_before(stream: &Stream, name: &Name) {
    let before = lock(&stream.known.members).get(name).and_then(Weak::upgrade);
    if let Some(before) = before {
        before.close().await;
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let inner = self.0.clone();
        // Without a runtime the process ends, and the lease runs out.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move { inner.close().await });
        }
    }
}

/// Tells that a command has ended, however it did.
struct Ended<'a>(&'a Inner, &'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.1.store(false, Ordering::Release);
        self.0.changed.notify_waiters();
    }
}

impl Inner {
    /// What is there, as far as it fits.
    fn take(self: &Arc<Self>, events: usize, bytes: usize) -> Vec<Delivery> {
        let (taken, late) = lock(&self.hand).take(events, bytes);
        if !late.is_empty() {
            let inner = self.clone();
            tokio::spawn(async move {
                let released = held::release(&inner.stream, &inner.life, &late).await;
                inner.note(released);
            });
        }
        taken
    }

    fn note(&self, result: Result<()>) {
        if let Err(error) = result {
            *lock(&self.failed) = Some(error);
            self.changed.notify_waiters();
        }
    }

    /// Starts to read new events wherever nothing is being read.
    fn read(self: &Arc<Self>, events: usize, bytes: usize, block: Duration) {
        // The count is for each shard: those that had events will most likely have more.
        let busy: usize = self.lanes.iter().map(|lane| lane.busy.load(Ordering::Relaxed)).sum();
        let count = lock(&self.hand).count(events, bytes).div_ceil(busy.max(1));
        for index in 0..self.lanes.len() {
            if self.lanes[index].claim() {
                let inner = self.clone();
                tokio::spawn(async move {
                    let lane = &inner.lanes[index];
                    let ended = Ended(&inner, &lane.reading);
                    let since = Instant::now();
                    let found = lane.read(&inner.stream, &inner.life, count, block).await;
                    inner.put(found, since);
                    drop(ended);
                    inner.mind();
                });
            }
        }
    }

    /// Starts to look for what others left behind, if it is time or `now` is.
    fn look(self: &Arc<Self>, events: usize, bytes: usize, now: bool) {
        if !now && !self.is_look_due() {
            return;
        }
        if self.looking.swap(true, Ordering::AcqRel) {
            return;
        }
        let lease = self.group.lease;
        let search = {
            let mut looks = lock(&self.looks);
            let every = (lease / 4).clamp(SEARCH.0, SEARCH.1);
            let due = looks.searched.is_none_or(|searched| searched.elapsed() >= every);
            looks.looked = Some(Instant::now());
            if due {
                looks.searched = looks.looked;
            }
            due
        };
        // A script hands all ids on at once, of which there can be so many.
        let count = lock(&self.hand).count(events, bytes).min(1000);
        let inner = self.clone();
        tokio::spawn(async move {
            let ended = Ended(&inner, &inner.looking);
            for lane in &inner.lanes {
                let since = Instant::now();
                let found = lane.left(&inner.stream, &inner.life, count, lease, search).await;
                if found.as_ref().is_ok_and(|found| found.more || !found.deliveries.is_empty()) {
                    // There may be more right now.
                    *lock(&inner.looks) = Looks { looked: None, searched: None };
                }
                inner.put(found, since);
            }
            drop(ended);
            inner.mind();
        });
    }

    fn is_look_due(&self) -> bool {
        lock(&self.looks).looked.is_none_or(|looked| looked.elapsed() >= LOOK)
    }

    /// Keeps what a read found. It was this member's at `since` at the latest.
    fn put(self: &Arc<Self>, found: Result<Found>, since: Instant) {
        match found {
            Ok(found) => {
                lock(&self.hand).put(found.deliveries, since);
                if !found.not_ours.is_empty() {
                    let inner = self.clone();
                    tokio::spawn(async move {
                        let acked = held::ack(&inner.stream, &inner.life, &found.not_ours).await;
                        inner.note(acked);
                    });
                }
            }
            Err(error) => self.note(Err(error)),
        }
    }

    /// Whether a command that may bring events is under way.
    fn is_busy(&self) -> bool {
        self.looking.load(Ordering::Acquire)
            || self.lanes.iter().any(|lane| lane.reading.load(Ordering::Acquire))
    }

    /// Sees to it that what is read ahead and that no fetch takes is handed back.
    fn mind(self: &Arc<Self>) {
        if !lock(&self.hand).has_ahead() || self.minded.swap(true, Ordering::AcqRel) {
            return;
        }
        let inner = self.clone();
        tokio::spawn(async move {
            let age = AHEAD_MAX.min(inner.group.lease / 4);
            while lock(&inner.hand).has_ahead() {
                if inner.closed.load(Ordering::Acquire) {
                    inner.hand_back(Duration::ZERO).await;
                    break;
                }
                sleep(age / 4).await;
                inner.hand_back(age).await;
            }
            inner.minded.store(false, Ordering::Release);
            // Something may have come just now.
            inner.mind();
        });
    }

    /// Hands back what is read ahead, now and later.
    async fn close(&self) {
        self.closed.store(true, Ordering::Release);
        self.rest().await;
        self.hand_back(Duration::ZERO).await;
        let mut gone = self.gone.lock().await;
        if !*gone && let Err(error) = self.leave().await {
            tracing::debug!("could not say that a member is gone: {error:#}");
        }
        *gone = true;
    }

    /// Says that it is not there any more.
    async fn leave(&self) -> Result<()> {
        self.rest().await;
        for lane in &self.lanes {
            lane.leave(&self.stream, &self.life.name).await?;
        }
        Ok(())
    }

    /// Hands back what was read ahead at least this long ago.
    async fn hand_back(&self, age: Duration) {
        let _one = self.handing.lock().await;
        let old = lock(&self.hand).give_up(age);
        if !old.is_empty()
            && let Err(error) = held::release(&self.stream, &self.life, &old).await
        {
            tracing::debug!("could not hand back what nobody waits for: {error:#}");
        }
    }

    async fn fetch(
        self: &Arc<Self>,
        events: usize,
        bytes: usize,
        wait: Duration,
    ) -> Result<Vec<Delivery>> {
        let end = Instant::now() + wait.min(WAIT_MAX);
        let mut first = true;
        loop {
            self.stream.tend();
            let (changed, handed_back) =
                (self.changed.notified(), self.stream.known.handed_back.notified());
            tokio::pin!(changed, handed_back);
            changed.as_mut().enable();
            handed_back.as_mut().enable();
            if let Some(error) = lock(&self.failed).take() {
                return Err(error);
            }
            let taken = self.take(events, bytes);
            if !taken.is_empty() {
                return Ok(taken);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() && !first {
                if !self.is_busy() {
                    return Ok(Vec::new());
                }
                changed.await;
                continue;
            }
            self.look(events, bytes, first && wait.is_zero());
            self.read(events, bytes, left);
            first = false;
            let until = end.min(Instant::now() + LOOK);
            tokio::select! {
                () = changed => {}
                () = handed_back => self.look(events, bytes, true),
                () = sleep_until(until) => {}
            }
        }
    }

    /// Waits until no command is under way that may bring events.
    async fn rest(&self) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if !self.is_busy() {
                return;
            }
            // A read that hangs ends with its own limit.
            let _ = tokio::time::timeout(BLOCK_MAX, changed).await;
        }
    }
}

#[async_trait]
impl Reader for Member {
    async fn fetch(&self, events: usize, bytes: usize, wait: Duration) -> Result<Vec<Delivery>> {
        self.0.fetch(events, bytes, wait).await
    }

    async fn ack(&self, tickets: &[Ticket]) -> Result<()> {
        let (sure, unsure) = lock(&self.0.hand).sort(tickets);
        let Inner { stream, life, .. } = &*self.0;
        if !sure.is_empty() {
            held::ack(stream, life, &sure).await?;
        }
        if !unsure.is_empty() {
            held::ack_own(stream, life, &unsure).await?;
        }
        lock(&self.0.hand).let_go(tickets);
        Ok(())
    }

    async fn renew(&self, tickets: &[Ticket]) -> Result<Vec<Ticket>> {
        let (held, mut lost): (Vec<Ticket>, Vec<Ticket>) = {
            let hand = lock(&self.0.hand);
            tickets.iter().partition(|ticket| hand.has(ticket))
        };
        let since = Instant::now();
        let looked = held::renew(&self.0.stream, &self.0.life, &held).await?;
        lost.extend(lock(&self.0.hand).renewed(&held, since, looked));
        Ok(lost)
    }

    async fn charge(&self, ticket: Ticket) -> Result<Option<u32>> {
        if !lock(&self.0.hand).has(&ticket) {
            return Ok(None);
        }
        held::charge(&self.0.stream, &self.0.life, ticket, "1").await
    }

    async fn refund(&self, ticket: Ticket) -> Result<()> {
        if lock(&self.0.hand).has(&ticket) {
            held::charge(&self.0.stream, &self.0.life, ticket, "-1").await?;
        }
        Ok(())
    }

    /// With what is read ahead: a member that hands back its events is about to end, and the
    /// process may be, too.
    async fn release(&self, tickets: &[Ticket]) -> Result<()> {
        self.0.rest().await;
        let all = {
            let mut hand = lock(&self.0.hand);
            let held = tickets.iter().filter(|ticket| hand.has(ticket)).copied();
            let held: Vec<Ticket> = held.collect();
            [hand.give_up(Duration::ZERO), held].concat()
        };
        held::release(&self.0.stream, &self.0.life, &all).await?;
        lock(&self.0.hand).let_go(tickets);
        Ok(())
    }

    async fn leave(&self) -> Result<()> {
        self.0.leave().await
    }

    async fn bury(&self, delivery: &Delivery, reason: &str) -> Result<()> {
        let Inner { stream, group, life, hand, .. } = &*self.0;
        if lock(hand).has(&delivery.ticket) {
            dead::bury(stream, group, life, delivery, reason).await?;
            lock(hand).let_go(&[delivery.ticket]);
        }
        Ok(())
    }
}
