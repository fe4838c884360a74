//! The work of a bench: producers that append, members that fetch and acknowledge, and who kills
//! them. They call the stream as the actors and the library do; the sink is the oracle.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::line::Line;
use super::oracle::{Issue, Oracle};
use crate::event::{Event, Ticket};
use crate::spec::Site;
use crate::stream::{Append, Appended, GroupSpec, Reader, StreamSpec};

/// Bytes of bodies in an append, about.
const APPEND_BYTES: usize = 1024 * 1024;
/// Without a rate, events that a group may be behind: more would measure how long a queue can get.
const BEHIND_MAX: u64 = 20_000;
/// The pause before something is looked at again.
const PAUSE: Duration = Duration::from_millis(1);
/// How long a member may take to leave, and how often at least somebody is killed.
const LEAVE_MAX: Duration = Duration::from_secs(1);
/// How long a member that is to die with events in hand may look for some.
const DOOM: Duration = Duration::from_millis(300);

/// How much, and how fast.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Events in all; `None`: until the time is over.
    pub events: Option<u64>,
    /// Until then, where the number does not say.
    pub time: Option<Duration>,
    /// Members of each group.
    pub members: usize,
    /// Events in an append and in a fetch.
    pub batch: usize,
    /// Events a second, of all producers.
    pub rate: Option<u64>,
    /// Whether members are killed.
    pub kill: bool,
    /// How long nothing may work before the bench gives up.
    pub patience: Duration,
}

/// What all of a bench share.
pub struct Load {
    /// The stream, with its groups.
    pub spec: StreamSpec,
    /// This process.
    pub site: Site,
    /// How much, and how fast.
    pub plan: Plan,
    /// What is published.
    pub issue: Issue,
    /// Each group's oracle, in the order of the groups.
    pub oracles: Vec<Oracle>,
    /// How many numbers each producer has made durable.
    durable: Vec<AtomicU64>,
    /// How often something failed and worked again.
    pub interruptions: AtomicU64,
    /// Members that were killed.
    pub killed: AtomicU64,
    members: AtomicUsize,
    source: Arc<str>,
    begin: Instant,
    begin_us: i64,
    /// The work ends.
    pub stop: CancellationToken,
    /// Nobody is killed any more.
    pub calm: CancellationToken,
    /// When the last event was durable, and when it was stored, in microseconds since the begin.
    last_durable: AtomicU64,
    last_stored: AtomicU64,
    failure: Mutex<Option<anyhow::Error>>,
}

impl Load {
    /// Work that has not begun.
    pub fn new(
        spec: StreamSpec,
        site: Site,
        plan: Plan,
        issue: Issue,
        stop: CancellationToken,
    ) -> Self {
        let ordered = |group: &GroupSpec| Oracle::new(&group.name, group.ordered, &issue);
        Self {
            oracles: spec.groups.iter().map(ordered).collect(),
            durable: (0..issue.producers()).map(|_| AtomicU64::new(0)).collect(),
            interruptions: AtomicU64::new(0),
            killed: AtomicU64::new(0),
            members: AtomicUsize::new(0),
            source: "bench".into(),
            begin: Instant::now(),
            begin_us: crate::event::now_us(),
            calm: CancellationToken::new(),
            last_durable: AtomicU64::new(0),
            last_stored: AtomicU64::new(0),
            failure: Mutex::default(),
            spec,
            site,
            plan,
            issue,
            stop,
        }
    }

    /// Since it began.
    pub fn elapsed(&self) -> Duration {
        self.begin.elapsed()
    }

    /// Now, in the time that events carry: the wall clock may be set meanwhile.
    fn now_us(&self) -> i64 {
        self.begin_us + self.begin.elapsed().as_micros() as i64
    }

    /// How long it took until the last event was durable.
    pub fn last_durable(&self) -> Duration {
        Duration::from_micros(self.last_durable.load(Ordering::Relaxed))
    }

    /// How long it took until the last event was stored.
    pub fn last_stored(&self) -> Duration {
        Duration::from_micros(self.last_stored.load(Ordering::Relaxed))
    }

    fn mark(&self, last: &AtomicU64) {
        last.fetch_max(self.begin.elapsed().as_micros() as u64, Ordering::Relaxed);
    }

    /// How many numbers each producer has made durable.
    pub fn durable(&self) -> Vec<u64> {
        self.durable.iter().map(|durable| durable.load(Ordering::Relaxed)).collect()
    }

    /// What the slowest group has stored.
    pub fn stored(&self) -> u64 {
        self.oracles.iter().map(Oracle::stored).min().unwrap_or_default()
    }

    /// What made it end early.
    pub fn failure(&self) -> Option<anyhow::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn fail(&self, error: anyhow::Error) {
        if !self.stop.is_cancelled() {
            let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
            failure.get_or_insert(error);
            self.stop.cancel();
        }
    }

    /// Starts producer number `producer`.
    pub fn produce(self: &Arc<Self>, producer: usize) -> JoinHandle<()> {
        let load = self.clone();
        tokio::spawn(async move {
            let mut line = Line::new(&load, "publish to the stream");
            if let Err(error) = load.publish(producer, &mut line).await {
                load.fail(error);
            }
        })
    }

    async fn publish(&self, producer: usize, line: &mut Line<'_>) -> Result<()> {
        let producers = self.issue.producers() as u64;
        let quota = self.plan.events.map_or(u64::MAX, |events| {
            events / producers + u64::from((producer as u64) < events % producers)
        });
        let mut writer = None;
        let mut next = 0;
        while next < quota && !self.stop.is_cancelled() {
            if self.plan.time.is_some_and(|time| self.elapsed() >= time) {
                break;
            }
            let count = self.due(next).min(quota - next).min(self.batch_max());
            if count == 0 {
                self.wait_for_next(next).await;
                continue;
            }
            let numbers = next..next + count;
            let events = self.events(producer, numbers.clone());
            let append = [Append { origin: self.source.clone(), moves: Vec::new(), events }];
            loop {
                match line.append(&mut writer, &append).await {
                    Ok(Appended::Durable) => break,
                    Ok(Appended::Full(_)) => sleep(PAUSE * 5).await,
                    Ok(Appended::Rewound) => bail!("the stream answered as if to a source"),
                    Err(error) => {
                        line.failed(error).await?;
                        // Who knows what of it is stored.
                        let oracles = self.oracles.iter();
                        oracles.for_each(|oracle| oracle.resent(producer, numbers.clone()));
                    }
                }
                if self.stop.is_cancelled() {
                    return Ok(());
                }
            }
            line.worked();
            next += count;
            self.durable[producer].store(next, Ordering::Relaxed);
            self.mark(&self.last_durable);
        }
        Ok(())
    }

    /// Events that a producer sends now.
    fn events(&self, producer: usize, numbers: Range<u64>) -> Vec<Event> {
        let now_us = self.now_us();
        let time_us = |number| self.due_us(number).unwrap_or(now_us);
        let event = |number| self.issue.event(producer, number, &self.source, time_us(number));
        numbers.map(event).collect()
    }

    fn batch_max(&self) -> u64 {
        let bytes = (APPEND_BYTES / self.issue.body.len().max(1)).max(1);
        self.plan.batch.min(bytes) as u64
    }

    /// Nanoseconds between two events of one producer.
    fn period_ns(&self) -> Option<u128> {
        let rate = self.plan.rate?.max(1);
        Some(1_000_000_000 * self.issue.producers() as u128 / u128::from(rate))
    }

    /// When an event with this number is due, in the time of events. That it is sent later does not
    /// change what its latency is counted from.
    fn due_us(&self, number: u64) -> Option<i64> {
        let ns = self.period_ns()? * u128::from(number);
        Some(self.begin_us + (ns / 1000) as i64)
    }

    /// How many events from `next` on may be sent now.
    fn due(&self, next: u64) -> u64 {
        match self.period_ns() {
            Some(period) => {
                let due = self.begin.elapsed().as_nanos() / period.max(1) + 1;
                u64::try_from(due).unwrap_or(u64::MAX).saturating_sub(next)
            }
            None => {
                let durable: u64 = self.durable().iter().sum();
                let behind = durable.saturating_sub(self.stored());
                let share = self.batch_max() * self.issue.producers() as u64;
                BEHIND_MAX.max(share * 2).saturating_sub(behind)
            }
        }
    }

    async fn wait_for_next(&self, next: u64) {
        match self.period_ns() {
            // No more often than each millisecond, so that batches form at high rates.
            Some(period) => {
                let due = Duration::from_nanos((period * u128::from(next)) as u64);
                sleep_until((self.begin + due).max(Instant::now() + PAUSE)).await;
            }
            None => sleep(PAUSE).await,
        }
    }

    /// Starts a member of a group.
    pub fn consume(self: &Arc<Self>, group: usize) -> Member {
        let number = self.members.fetch_add(1, Ordering::Relaxed);
        let doomed = Arc::new(AtomicBool::new(false));
        let (load, doom) = (self.clone(), doomed.clone());
        let task = tokio::spawn(async move {
            let mut line = Line::new(&load, "read the stream");
            if let Err(error) = load.read(group, number, &doom, &mut line).await {
                load.fail(error);
            }
        });
        Member { group, task, doomed }
    }

    async fn read(
        &self,
        group: usize,
        number: usize,
        doomed: &AtomicBool,
        line: &mut Line<'_>,
    ) -> Result<()> {
        let oracle = &self.oracles[group];
        let lease = self.spec.groups[group].lease;
        let mut reader = None;
        // What comes may have been this member's since the fetch before.
        let mut sure = Instant::now();
        while !self.stop.is_cancelled() {
            let since = Instant::now();
            let taken = match line.fetch(&mut reader, group, number).await {
                Ok((taken, _)) if taken.is_empty() => {
                    (sure, _) = (since, line.worked());
                    continue;
                }
                Ok(taken) => taken,
                Err(error) => {
                    line.failed(error).await?;
                    continue;
                }
            };
            let (batch, hand) = taken;
            let dies = doomed.load(Ordering::Relaxed);
            // Half of them before the sink has it, half of them after.
            if dies && fastrand::bool() {
                return Ok(());
            }
            let kept = oracle.store(&self.issue, &batch, self.now_us());
            self.mark(&self.last_stored);
            if dies {
                return Ok(());
            }
            let settled = settle(&*hand, &kept.stored, &kept.fenced).await;
            match settled {
                // Later it may have been another's by then.
                Ok(()) if sure.elapsed() < lease / 2 && kept.fenced.is_empty() => {
                    oracle.acked(&self.issue, &batch);
                }
                Ok(()) => {}
                Err(error) => {
                    reader = None;
                    line.failed(error).await?;
                    continue;
                }
            }
            line.worked();
            sure = since;
        }
        if let Some((_, hand)) = &reader {
            let hand: &Arc<dyn Reader> = hand;
            // What fails here leaves a lease that nobody waits for.
            let _ = timeout(LEAVE_MAX, hand.leave()).await;
        }
        Ok(())
    }

    /// Kills members at random, and starts others in their place.
    pub async fn kill(self: Arc<Self>, members: Arc<tokio::sync::Mutex<Vec<Member>>>) {
        let lease = self.spec.groups.first().map_or(LEAVE_MAX, |group| group.lease);
        let mut pause = PAUSE * 20;
        loop {
            tokio::select! {
                () = sleep(pause) => {}
                () = self.stop.cancelled() => return,
                () = self.calm.cancelled() => return,
            }
            pause = lease.mul_f64(0.3 + fastrand::f64() * 0.7);
            let mut members = members.lock().await;
            let victim = fastrand::usize(..members.len());
            let group = members[victim].group;
            members[victim].doomed.store(true, Ordering::Relaxed);
            let task = &mut members[victim].task;
            if timeout(DOOM, &mut *task).await.is_err() {
                task.abort();
                let _ = task.await;
            }
            if !self.stop.is_cancelled() {
                self.killed.fetch_add(1, Ordering::Relaxed);
                members[victim] = self.consume(group);
            }
        }
    }
}

async fn settle(reader: &dyn Reader, stored: &[Ticket], fenced: &[Ticket]) -> Result<()> {
    if !fenced.is_empty() {
        reader.release(fenced).await?;
    }
    if !stored.is_empty() {
        reader.ack(stored).await?;
    }
    Ok(())
}

/// A member at work.
pub struct Member {
    group: usize,
    task: JoinHandle<()>,
    /// It is to end with what it fetches next in hand, as if it were killed.
    doomed: Arc<AtomicBool>,
}

impl Member {
    /// Waits until it has ended; not for ever.
    pub async fn ended(&mut self) {
        if timeout(LEAVE_MAX * 3, &mut self.task).await.is_err() {
            self.task.abort();
            let _ = (&mut self.task).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Delivery;
    use crate::spec::Values;
    use crate::stream::{self, Retain};

    /// Two producers, that have begun just now.
    fn load(rate: Option<u64>) -> Load {
        let spec = StreamSpec {
            name: "b".into(),
            kind: stream::KINDS[0],
            shards: 1,
            retain: Retain::Acked,
            max_backlog: 1000,
            groups: Vec::new(),
            values: Values::default(),
        };
        let site =
            Site { data_dir: "-".into(), instance: "i".into(), until_idle: false, runs: true };
        let plan = Plan {
            events: Some(10),
            time: None,
            members: 1,
            batch: 10,
            rate,
            kill: false,
            patience: Duration::from_secs(1),
        };
        let issue = Issue::new("b", 2, 4, "body".into());
        Load::new(spec, site, plan, issue, CancellationToken::new())
    }

    #[test]
    fn an_event_that_is_sent_late_has_been_on_its_way_since_it_was_due() {
        let load = load(Some(1000));
        std::thread::sleep(Duration::from_millis(50));
        let late = load.events(1, 0..3);
        let due: Vec<i64> = late.iter().map(|event| event.time_us - load.begin_us).collect();
        assert_eq!(due, [0, 2000, 4000], "each of the two sends every other millisecond");
        let oracle = Oracle::new("g", false, &load.issue);
        let delivery = |event| Delivery {
            event,
            stream: "b".into(),
            ticket: Ticket { shard: 0, hold: 0, offset: 0 },
            deliveries: 1,
            attempts: 0,
            fence: None,
        };
        let batch: Vec<Delivery> = late.into_iter().map(delivery).collect();
        oracle.store(&load.issue, &batch, load.now_us());
        let (tally, _) = oracle.verdict(&[0, 3]);
        assert!(tally.latencies.min() >= 45_000, "{} µs", tally.latencies.min());
    }

    #[test]
    fn without_a_rate_an_event_is_due_when_it_is_sent() {
        let load = load(None);
        std::thread::sleep(Duration::from_millis(20));
        assert!(load.events(0, 0..1)[0].time_us >= load.begin_us + 20_000);
    }
}
