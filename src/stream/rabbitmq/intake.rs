//! What the broker sends: a consumer for each of a group's queues, with as many messages ahead as
//! keep the member busy and the memory small.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use futures_util::future::select_all;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use tokio::task::JoinHandle;

use super::hand::{Held, Place, Word};
use super::link::{answer, explain};
use super::message::Decoder;
use super::reader::Shared;

/// Batches that a member may have: one with the sink, and one read ahead. What is sent beyond that
/// would count as delivered when the process dies.
const BATCHES: usize = 2;
/// Bytes that are sent ahead, about.
const BYTES: usize = 24 * 1024 * 1024;
/// Messages sent ahead as long as nothing is known of their size.
const UNKNOWN: usize = 100;
/// How often a suspect that a dead member left behind is looked for.
pub(super) const ADOPT_EVERY: Duration = Duration::from_secs(1);

/// The consumers of one queue. One that was cancelled still gives what came before; the next one
/// has what came after.
type Flow = VecDeque<(Consumer, bool)>;

/// Where a member's messages come from.
pub(super) struct Intake {
    flows: Vec<Flow>,
    decoder: Decoder,
    /// Messages ahead, of each queue; 0 while nothing is consumed.
    ahead: usize,
    /// Of each lane, the newest message when its consumer started.
    since: Vec<u64>,
    /// New consumers on their way. They are started apart, so that a fetch that is given up
    /// leaves none behind that nobody listens to.
    starting: Option<JoinHandle<Result<Vec<Consumer>>>>,
    /// Suspects on their way, for the same reason.
    adopting: Option<JoinHandle<Result<()>>>,
    adopt_at: Instant,
    /// Why nothing more comes, whoever found out.
    failed: Option<String>,
}

impl Intake {
    /// Nothing is consumed yet.
    pub fn new(shared: &Shared) -> Self {
        Self {
            flows: shared.names.queues.iter().map(|_| VecDeque::new()).collect(),
            decoder: Decoder::new(shared.broker.spec.name.clone()),
            ahead: 0,
            since: vec![0; shared.names.queues.len()],
            starting: None,
            adopting: None,
            adopt_at: Instant::now(),
            failed: None,
        }
    }

    /// When suspects are looked for next.
    pub fn adopt_at(&self) -> Instant {
        self.adopt_at
    }

    /// Messages that should be ahead, of each queue.
    fn wanted(&self, shared: &Shared) -> usize {
        let (mean, sampled) = {
            let inner = shared.hand.lock();
            (inner.mean_bytes, inner.sampled)
        };
        let batches = shared.batch.saturating_mul(BATCHES);
        let fit = match sampled {
            0 => UNKNOWN,
            _ => (BYTES as f64 / mean.max(1.0)) as usize,
        };
        batches.min(fit).div_ceil(self.flows.len()).clamp(1, u16::MAX.into())
    }

    /// Starts to consume, or consumes with more or fewer messages ahead, if that is due.
    pub async fn consume(&mut self, shared: &Arc<Shared>) -> Result<()> {
        if self.starting.is_none() {
            let wanted = self.wanted(shared);
            let mut inner = shared.hand.lock();
            let far = wanted >= 2 * self.ahead || wanted * 2 <= self.ahead;
            let due = inner.sampled >= UNKNOWN / 2 && far;
            // All that a consumer may have is in the member's hand, and it asks for more.
            let spent = |lane: usize| inner.open_since(lane, self.since[lane]) >= self.ahead;
            let spent = inner.buffer.is_empty() && (0..self.since.len()).any(spent);
            if self.ahead > 0 && !due && !spent {
                return Ok(());
            }
            inner.sampled = inner.sampled.min(1);
            self.ahead = wanted;
            for (lane, since) in self.since.iter_mut().enumerate() {
                *since = inner.newest(lane);
            }
            let old: Vec<Vec<Consumer>> = self.flows.iter_mut().map(cancel).collect();
            let (shared, ahead) = (shared.clone(), wanted as u16);
            self.starting = Some(tokio::spawn(async move { start(&shared, old, ahead).await }));
        }
        self.started().await
    }

    async fn started(&mut self) -> Result<()> {
        let Some(starting) = &mut self.starting else { return Ok(()) };
        let started = starting.await;
        self.starting = None;
        for (flow, consumer) in self.flows.iter_mut().zip(started.context("consuming ended")??) {
            flow.push_back((consumer, false));
        }
        Ok(())
    }

    /// Stops to consume. What was sent until then is in the hand's buffer.
    pub async fn pause(&mut self, shared: &Shared) -> Result<()> {
        self.started().await?;
        self.ahead = 0;
        for (index, flow) in self.flows.iter_mut().enumerate() {
            for consumer in cancel(flow) {
                end(&shared.hand.lanes[index].channel, &consumer).await?;
            }
        }
        self.drain(shared)
    }

    /// Takes in what has been sent.
    pub fn drain(&mut self, shared: &Shared) -> Result<()> {
        if let Some(failed) = &self.failed {
            bail!("{failed}");
        }
        for lane in 0..self.flows.len() {
            while let Some((consumer, _)) = self.flows[lane].front_mut() {
                let Some(next) = consumer.next().now_or_never() else { break };
                self.arrived(shared, lane, next)?;
            }
        }
        Ok(())
    }

    /// Waits until something is sent, and takes it in.
    pub async fn wait(&mut self, shared: &Shared) -> Result<()> {
        let fronts = self.flows.iter_mut().enumerate().filter_map(|(lane, flow)| {
            let (consumer, _) = flow.front_mut()?;
            Some(consumer.next().map(move |next| (lane, next)))
        });
        let fronts: Vec<_> = fronts.collect();
        if fronts.is_empty() {
            bail!("nothing is consumed");
        }
        let ((lane, next), _, rest) = select_all(fronts).await;
        drop(rest);
        self.arrived(shared, lane, next)
    }

    fn arrived(
        &mut self,
        shared: &Shared,
        lane: usize,
        next: Option<lapin::Result<Delivery>>,
    ) -> Result<()> {
        let taken = self.take_in(shared, lane, next);
        // The client says it once only.
        taken.inspect_err(|error| self.failed = Some(format!("{error:#}")))
    }

    fn take_in(
        &mut self,
        shared: &Shared,
        lane: usize,
        next: Option<lapin::Result<Delivery>>,
    ) -> Result<()> {
        let delivery = match next {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => return Err(explain(error)),
            None => {
                return match self.flows[lane].pop_front() {
                    Some((_, true)) => Ok(()),
                    _ => Err(anyhow!("queue `{}` is gone", shared.names.queues[lane])),
                };
            }
        };
        let place = Place { lane, tag: delivery.delivery_tag };
        let read = self.decoder.read(delivery);
        let mut inner = shared.hand.lock();
        inner.arrived(place);
        inner.sampled += 1;
        let weight = 1.0 / inner.sampled.min(1000) as f64;
        inner.mean_bytes += (read.event.size() as f64 - inner.mean_bytes) * weight;
        let other = read.event.only_group.as_ref().is_some_and(|only| *only != shared.names.name);
        // See the reader on how deliveries are counted.
        let count_anew = read.returned && read.counts.deliveries == 0;
        let held = Held::new(read, place, lane as u32);
        if other {
            let _on_its_way = shared.hand.answer(&mut inner, &[place], Word::Ack);
        } else if count_anew {
            inner.returned.push(held);
        } else {
            inner.buffer.push_back(held);
        }
        Ok(())
    }

    /// Takes in suspects that dead members left behind, if it is time to look for them.
    pub async fn adopt(&mut self, shared: &Arc<Shared>) -> Result<()> {
        if self.adopting.is_none() && Instant::now() >= self.adopt_at {
            let shared = shared.clone();
            self.adopting = Some(tokio::spawn(async move { shared.adopt().await }));
        }
        if let Some(adopting) = &mut self.adopting {
            let adopted = adopting.await;
            self.adopting = None;
            self.adopt_at = Instant::now() + ADOPT_EVERY;
            adopted.context("looking for suspects ended")??;
        }
        Ok(())
    }
}

/// Marks the consumers of a flow as about to end; those that were not before.
fn cancel(flow: &mut Flow) -> Vec<Consumer> {
    let mut running = Vec::new();
    for (consumer, cancelled) in flow {
        if !std::mem::replace(cancelled, true) {
            running.push(consumer.clone());
        }
    }
    running
}

async fn end(channel: &Channel, consumer: &Consumer) -> Result<()> {
    let ended = channel.basic_cancel(consumer.tag(), BasicCancelOptions::default());
    answer("stop consuming", ended).await
}

/// Ends the old consumers and starts new ones.
async fn start(shared: &Shared, old: Vec<Vec<Consumer>>, ahead: u16) -> Result<Vec<Consumer>> {
    let mut started = Vec::with_capacity(old.len());
    for (index, old) in old.into_iter().enumerate() {
        let (channel, queue) = (&shared.hand.lanes[index].channel, &shared.names.queues[index]);
        for consumer in old {
            end(channel, &consumer).await?;
        }
        let limited = channel.basic_qos(ahead, BasicQosOptions { global: false });
        answer("limit what is sent ahead", limited).await?;
        let options = BasicConsumeOptions::default();
        let tag = Default::default();
        let consumer = channel.basic_consume(queue.clone(), tag, options, FieldTable::default());
        started.push(answer(&format!("consume queue `{queue}`"), consumer).await?);
    }
    Ok(started)
}
